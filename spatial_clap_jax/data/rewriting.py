"""Captions rewritten by a language model; where a rewrite is not true, the template stays.

A data set's folder may hold `rewritten.jsonl` beside its records: a header, then a row a member
with the captions that passed. Scenes of one source and plain clips are rewritten. Of several
sources, word lists cannot tell whether each is still where it was, so their templates stay.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from spatial_clap_jax.acoustics.captions import bare_content
from spatial_clap_jax.acoustics.spatial_words import SpatialWords
from spatial_clap_jax.data.language_model import LanguageModel
from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.rewritten import FORMAT
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.wording import words_of_one
from spatial_clap_jax.errors import InputError

MOST_WORDS = 40

# A side of the listener, before its name; 'the left' alone may be what is left.
_AT = (
    r"(?:from|on|to|at|in|into|towards?|near|by) (?:the|your|my|our|the listener['\u2019]s) "
    r"(?:(?:far|near|immediate|extreme|upper|lower|front|back|rear|left|right) )?"
)
# What stands behind, above, ... something else than the listener is told of no direction.
_OF_LISTENER = (
    r"(?! (?!(?:the listener|the microphones?)\b)(?:the|an?|all|it|him|her|them|some|closed)\b)"
)
# A small dog is no small room: sizes are those of a room, with adjectives between.
_ROOM = "(?:room|hall|space|place|chamber|interior|enclosure|environment)s?"
_QUALIFIED = (
    r"(?:,? (?:and )?(?:very|quite|open|empty|bare|dry|dead"
    r"|\w+(?:ly|ed|ing|ant|ent|ous|ive|y)\b)){0,3}"
)


def _of_room(*sizes: str) -> tuple[str, ...]:
    """A size before a room, or said of one."""
    size = f"(?:{'|'.join(sizes)})"
    return (
        rf"{size}{_QUALIFIED},? {_ROOM}",
        rf"{_ROOM} (?:is|was|sounds|feels|seems){_QUALIFIED},? (?:and )?{size}",
    )


# What each word may be said as; case makes no difference, and a match is of whole words, to which
# a hyphen belongs unless a direction stands at it: 'high-pitched' is one word, 'far-left' two.
ACCEPTED: dict[str, dict[str, tuple[str, ...]]] = {
    "direction": {
        "front": (
            f"{_AT}front(?! (?:door|yard|porch|row|seat|desk|gate|steps?))",
            "front side",
            r"in front(?! of (?!(?:you|me|us|the listener)\b))",
            "(?<!go )(?<!goes )(?<!going )ahead",
        ),
        "left": (
            f"{_AT}left",
            "left (?:hand )?side",
            "left of (?:you|me|us|the listener)",
            "leftwards?",
        ),
        "back": (
            f"{_AT}(?:back|rear)(?! (?:door|yard|porch|row|seat|desk|gate|steps?|room|alley))",
            "(?:back|rear) side",
            f"behind{_OF_LISTENER}",
        ),
        "right": (
            f"{_AT}right(?! (?:moment|time|place|way|speed|pitch|note|tempo|volume))",
            "right (?:hand )?side(?! up)",
            "right of (?:you|me|us|the listener)",
            "rightwards?",
        ),
    },
    "elevation": {
        "up": (
            f"above{_OF_LISTENER}",
            "overhead",
            "upper (?:left|right|front|back|rear)",
            "up (?:high|there|in the air)",
            "high (?:up|in the air)",
            "(?:further|farther|higher) up",
            "elevated (?:place|position|spot|point|location)",
        ),
        "down": (
            f"(?:below|beneath|underneath){_OF_LISTENER}",
            "lower (?:left|right|front|back|rear)",
            "down (?:low|there)",
            "low (?:down|to the ground)",
            "(?:further|farther|lower) down",
        ),
    },
    "distance": {
        "near": (
            r"near(?! (?!(?:the listener|the (?:left|right|front|back|rear))\b)(?:the|an?|some)\b)",
            "nearby",
            "close-by",
            "close (?:by|at hand|behind|ahead|in front|above|below|range)",
            "close (?:to|on) (?:you|me|us|the listener|(?:your|my|our|the) (?:left|right))",
            "(?:very|quite|really|up) close",
            "short distance",
        ),
        "far": ("far", "far-off", "faraway", "afar", "distant", "(?<!short )distance", "remote"),
    },
    "room_size": {
        "small": _of_room("small", "small-sized", "tiny", "little", "compact", "cramped"),
        "mid-sized": _of_room("mid-?sized?", "medium", "medium-sized?", "moderately sized"),
        "large": (*_of_room("large", "large-sized", "big", "huge", "vast"), "spacious"),
    },
    "reverberation": {
        "acoustically dampened": ("dampened", "damped", "deadened", "acoustically (?:dead|dry)"),
        "highly reverberant": (
            "reverberant",
            "reverberat(?:e[sd]?|ing|ions?)",
            "reverb",
            "echo(?:e[sdy]|ing)?",
        ),
    },
}
# What tells of a word without saying it: allowed where the word is true, and not enough there.
HINTS: dict[str, dict[str, str]] = {
    "direction": {
        "front": "front, ahead, forwards?, frontal(?:ly)?, facing, "
        "before (?:you|me|us|the listener)",
        "left": "left, leftmost, lefthand",
        "back": "back, behind, rear, backwards?, rearwards?, backmost, hindmost, at your heels",
        # 'right behind' says nothing of the right.
        "right": "right(?! (?:behind|ahead|in front|next|now|at|there|here|above|below|beside"
        "|by)), rightmost, righthand",
    },
    "elevation": {
        "up": "up, above, upper, upwards?, elevated, high, higher, highest, raised, top, atop, "
        "aloft, airborne, sky, ceiling, roof, rooftop, upstairs, "
        "over (?:you|me|us|the listener)",
        "down": "down, below, beneath, underneath, lower, downwards?, low, lowest, lowered, "
        "bottom, under, underfoot, ground, floor, downstairs, basement, cellar",
    },
    "distance": {
        "near": "near, close, nearer, nearest, closer, closest, closely, close-up, adjacent, "
        "alongside, beside, next to, proximity, vicinity, within reach, at hand",
        "far": "farther, farthest, further(?! (?:up|down)), furthest, distantly, away, yonder, "
        "horizon, (?:met(?:er|re)s|feet|yards|miles|steps|paces) off",
    },
    "room_size": {
        "small": "small, small-sized, tiny, little, compact, cramped, tight, smaller, smallest, "
        "smallish, narrow, confined, co[sz]y, closet, cupboard, booth, cubicle, miniature",
        "mid-sized": "mid-?sized?, medium, medium-sized?, moderately sized, average, "
        "average-sized, moderate, normal-sized",
        "large": "large, large-sized, big, huge, vast, larger, largest, bigger, biggest, enormous, "
        "immense, massive, giant, gigantic, expansive, roomy, wide, wide-open, "
        "open (?:space|area|room|hall)s?, halls?, auditorium, warehouse, hangar, cathedral, "
        "cavern(?:s|ous)?",
    },
    "reverberation": {
        "acoustically dampened": "dry, dead, damp(?:en)?ing, deadening, muffled, muted, padded, "
        "anechoic, echo-?(?:less|free), sound-?proof(?:ed)?, absorb(?:s|ed|ent|ing)",
        "highly reverberant": "reverb(?:y|s), reverberantly, resonan(?:t|tly|ces?), "
        "resonat(?:e[sd]?|ing), resound(?:s|ed|ing|ingly)?, echo-filled, boomy, reflections?, "
        "reflective, cathedral, cavern(?:s|ous)?, "
        f"(?:ringing|live|lively) (?:acoustics?|{_ROOM})",
    },
}
# What no caption of ours says. A side is only that of a direction.
ELSEWHERE = (
    "outside, outdoors?, indoors?, underwater, everywhere, all around, surround(?:s|ed|ing)?, "
    "cent(?:er|re)(?:ed)?, middle, corner, opposite, beyond, diagonal(?:ly)?, north(?:ern)?, "
    "south(?:ern)?, east(?:ern)?, west(?:ern)?, o.clock, degrees?, bathroom, kitchen, bedroom, "
    "garage, attic, studio, office, corridor, hallway, stair(?:s|well|case), tunnel, cave, lobby, "
    "chamber, church, gym(?:nasium)?, stadium, arena, theat(?:er|re), across, open air, "
    "(?:ear|eye|head)[ -](?:level|height), gardens?, (?:back|front|court)?yards?, streets?, "
    "roads?, alley(?:way)?, parks?, plaza, market, fields?, meadow, forest, woods, beach, valley, "
    "hills?, mountains?, porch, patio, balcony, neighbou?r(?:s|hood|ing)?, next door, "
    "(?<!left )(?<!right )(?<!front )(?<!back )(?<!rear )(?<!hand )sides?"
)


def _whole_words(*said: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(said)})(?![\w-])", re.IGNORECASE)


_SAYS = {
    (field, word): _whole_words(*said)
    for field, words in ACCEPTED.items()
    for word, said in words.items()
}
# One by one, so that none stands for another of the content's.
_TELLS = {
    (field, word): [_whole_words(one) for one in (*said, *HINTS[field][word].split(", "))]
    for field, words in ACCEPTED.items()
    for word, said in words.items()
}
_ELSEWHERE = [_whole_words(one) for one in ELSEWHERE.split(", ")]
# Hyphens of directions.
_JOINTS = re.compile(
    r"(?:(?<=\bfront)|(?<=\bleft)|(?<=\bback)|(?<=\bright)|(?<=\brear))-"
    r"|-(?=(?:front|left|back|right|rear)\b)",
    re.IGNORECASE,
)
# 'Not far' is neither far nor near.
_NEGATION = re.compile(
    r"\b(?:not|no|never|without|nor|neither|hardly|barely|scarcely)\b|n['\u2019]t\b|\bnon-",
    re.IGNORECASE,
)
# Both words of reverberation are strong ones.
_LITTLE = (
    r"(?:slight(?:ly)?|mild(?:ly)?|somewhat|a (?:bit|little|touch|hint|trace)(?: of)?|faint(?:ly)?"
    r"|light(?:ly)?|moderate(?:ly)?|fairly|rather|partly|partially|subtl[ey]|gentl[ey]|weak(?:ly)?"
    r"|some|little|less|minimal(?:ly)?)"
)
_OF_REVERBERATION = "(?:dampened|damped|deadened|dead|dry|reverb\\w*|echo\\w*)"
_SOFTENED = _whole_words(
    rf"{_LITTLE} (?:acoustically |highly )?{_OF_REVERBERATION}", rf"{_OF_REVERBERATION} {_LITTLE}"
)
# Fields of `SpatialWords` whose names are not what a person would say.
_FIELDS = {"room_size": "size of the room"}
# What is asked of the first, second, ... rewrite of a caption.
_MANNERS = (
    "Choose the most natural wording.",
    "Begin with where the sound comes from.",
    "Begin with the room, if it is told, else with the sound.",
    "Use as few words as you can.",
    "Use a full sentence with a verb.",
)
# Threads, of which a system gives some thousands.
_MOST_WORKERS = 256
# Words of contents that every answer may hold by chance.
_EMPTY_WORDS = frozenset({"sound", "someone", "something", "with", "from", "that", "this", "the"})


@dataclasses.dataclass(frozen=True)
class _Task:
    """One rewrite that is wanted."""

    scene_id: str
    words: SpatialWords
    content: str
    prompt: str


def rewrite_scenes(
    scenes: Scenes,
    fingerprint: str,
    model: LanguageModel,
    out: str | Path,
    splits: Collection[str] = (),
    variants: int = 1,
    workers: int = 8,
    progress: bool = True,
) -> dict[str, int]:
    """Rewrites the captions of scenes of one source and of plain clips.

    Args:
      scenes: the data, in ELSA's words.
      fingerprint: of the data, which the file names.
      model: what rewrites; a `Cached` one asks nothing twice, so that a start after a failure goes
        on where it stopped.
      out: the file to write, whole or not at all; never over another.
      splits: whose captions; default: the training splits of one source and of plain clips.
      variants: rewrites asked of each caption, 1 to 5.
      workers: prompts that are under way at once.
      progress: whether to show a progress bar (on standard error).

    Returns:
      How many rewrites passed ('rewritten') and how many were refused, by reason; the template
      stands where all of a member were.

    Raises:
      InputError: the file exists, a split is absent or of several sources, scenes are in other
        words, or the model cannot be reached.
    """
    out = Path(out)
    check_rewrites_path(out)
    if not 1 <= variants <= len(_MANNERS):
        raise InputError(f"variants {variants}: must be 1 to {len(_MANNERS)}.")
    if not 1 <= workers <= _MOST_WORKERS:
        raise InputError(f"workers {workers}: must be 1 to {_MOST_WORKERS}.")
    names = _chosen(scenes, splits)
    tasks = [task for name in names for task in _tasks(scenes.source(name), variants)]
    answers = _answers(model, sorted({task.prompt for task in tasks}), workers, progress)
    counts: collections.Counter[str] = collections.Counter(rewritten=0)
    kept: dict[str, list[str]] = {}
    words = {task.scene_id: task.words for task in tasks}
    for task in tasks:
        caption = clean(answers[task.prompt])
        fault = fault_of(caption, task.words, task.content)
        counts[fault or "rewritten"] += 1
        if fault is None and caption not in kept.setdefault(task.scene_id, []):
            kept[task.scene_id].append(caption)
    header = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "model": model.name,
        "splits": list(names),
        "counts": dict(counts),
    }
    rows = [
        {"scene_id": name, "member": 0, "words": dataclasses.asdict(words[name]), "captions": said}
        for name, said in kept.items()
        if said
    ]
    _write(out, [header, *rows])
    return dict(counts)


def check_rewrites_path(path: str | Path) -> None:
    """Refuses a place that holds something, before any model is asked.

    Raises:
      InputError: the path exists.
    """
    if os.path.lexists(path):
        raise InputError(f"{path}: exists; nothing is overwritten: move it away.")


def prompt_for(caption: str, words: SpatialWords, variant: int = 0) -> str:
    """What the model is asked.

    Args:
      caption: the template.
      words: what it says of place and room.
      variant: which of several wordings is asked for.
    """
    said = [
        f"{_FIELDS.get(field, field)}: {word}"
        for field, word in dataclasses.asdict(words).items()
        if word is not None
    ]
    keep = f"Keep all of this ({', '.join(said)}), and" if said else "Add nothing:"
    return (
        "Rewrite the caption of a sound as one short English sentence that a person would write.\n"
        f"Caption: {caption}\n"
        f"{keep} say nothing else about direction, height, distance, size of a room or "
        f"reverberation. Keep what sounds. {_MANNERS[variant]}\n"
        "Answer with the sentence alone."
    )


def clean(answer: str) -> str:
    """An answer as a caption: without quotes around it, with a final period.

    Example:
      >>> clean(' "A dog barks on the left"\\n')
      'A dog barks on the left.'
    """
    text = answer.strip().strip("\"'`\u201c\u201d").strip()
    return text if not text or text[-1] in ".!?" else f"{text}."


def fault_of(rewrite: str, words: SpatialWords, content: str) -> str | None:
    """Why a rewrite is not taken.

    A word stands where the rewrite says it, by a phrase of `ACCEPTED`, more often than the content
    does ('a car backs up' says nothing of where the car is): 'on the left' and not 'left', 'a small
    room' and not 'small'. Words of reverberation are strong ones, and none is 'slightly' so. Where
    a word is not true, nothing may tell of it more often than in the content, neither by `ACCEPTED`
    nor by `HINTS`; nor may a word of `ELSEWHERE`, which is never true.

    Args:
      rewrite: of a caption of one source.
      words: that are true.
      content: what sounds.

    Returns:
      None for a rewrite that says what sounds, each of the words and no other; else the reason.

    Reference: our choice.

    Example:
      >>> left = SpatialWords(direction="left")
      >>> fault_of("A dog barks from the left.", left, "a dog barks")
      >>> fault_of("A dog barks far to the left.", left, "a dog barks")
      'distance far invented'
    """
    if "\n" in rewrite or re.search(r"[.!?]\s", rewrite):
        return "more than a sentence"
    if not rewrite.isprintable():
        return "characters that nobody can read"
    if not 2 <= len(rewrite.split()) <= MOST_WORDS:
        return "too short or too long"
    if len(_NEGATION.findall(rewrite)) > len(_NEGATION.findall(content)):
        return "negation"
    if not _mentions(rewrite, content):
        return "content lost"
    if _adds([_SOFTENED], rewrite, content):
        return "reverberation softened"
    said, content = (_JOINTS.sub(" ", text) for text in (rewrite, content))
    for (field, word), says in _SAYS.items():
        if getattr(words, field) == word:
            if not _adds([says], said, content):
                return f"{field} {word} lost"
        elif _adds(_TELLS[field, word], said, content):
            return f"{field} {word} invented"
    return "another place invented" if _adds(_ELSEWHERE, said, content) else None


def _adds(patterns: Sequence[re.Pattern[str]], rewrite: str, content: str) -> bool:
    """Whether any of the patterns is in the rewrite more often than in the content."""
    return any(len(one.findall(rewrite)) > len(one.findall(content)) for one in patterns)


def _mentions(rewrite: str, content: str) -> bool:
    """Whether a word of the content is there, by its first four letters."""
    words = [w for w in re.findall(r"\w+", content.lower()) if w not in _EMPTY_WORDS]
    longest = max(map(len, words), default=0)
    stems = tuple(w[:4] for w in words if len(w) >= min(4, longest))
    return not stems or any(w.startswith(stems) for w in re.findall(r"\w+", rewrite.lower()))


def _chosen(scenes: Scenes, splits: Collection[str]) -> tuple[str, ...]:
    wanted = tuple(splits) or tuple(
        name for name in ("train_k0", "train_k1") if name in scenes.splits
    )
    for name in wanted:
        if name not in scenes.splits or not name.endswith(("_k0", "_k1")):
            raise InputError(
                f"split {name!r}: captions of one source or of plain clips are rewritten; give "
                f"such splits among {', '.join(sorted(scenes.splits))}."
            )
    if not wanted:
        raise InputError("scenes: hold neither train_k0 nor train_k1; render some.")
    return wanted


def _tasks(source: Sequence[SceneGroup], variants: int) -> Iterator[_Task]:
    for index in range(len(source)):
        group = source[index]
        if group.words != "elsa":
            raise InputError(
                f"{group.scene_id}: its captions are in the words of stereo scenes; give scenes of "
                "first-order ambisonics, whose words a rewrite can be checked by."
            )
        # A plain clip has no place, and nothing is said of one.
        words, caption = words_of_one(group), group.captions[0]
        content = _content(group.contents[0], caption)
        for variant in range(variants):
            yield _Task(group.scene_id, words, content, prompt_for(caption, words, variant))


def _content(contents: Sequence[str], caption: str) -> str:
    """The content that a caption was made with."""
    known = [bare_content(content) for content in contents]
    said = [content for content in known if content.lower() in caption.lower()]
    return max(said or known, key=len)


def _answers(
    model: LanguageModel, prompts: Sequence[str], workers: int, progress: bool
) -> Mapping[str, str]:
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = pool.map(model.complete, prompts)
        shown = track(
            zip(prompts, waiting, strict=True),
            "captions",
            total=len(prompts),
            console=Console(stderr=True),
            disable=not progress,
        )
        return dict(shown)
    finally:
        # After a failure nothing more is asked.
        pool.shutdown(cancel_futures=True)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        draft.write_text(text, encoding="utf-8")
        # Looked at again: it may have appeared while the model was asked.
        check_rewrites_path(path)
        draft.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error
    finally:
        draft.unlink(missing_ok=True)
