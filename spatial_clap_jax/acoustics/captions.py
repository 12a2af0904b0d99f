"""Captions of scenes: what sounds, and where it sounds."""

import re
from collections.abc import Sequence

from spatial_clap_jax.acoustics.directions import PHRASE_SETS
from spatial_clap_jax.errors import InputError

# Where the name of a class goes in a prompt.
CLASS = "{class}"
# M2D-CLAP's (arXiv 2503.22104), with the period that all captions of trainings here end with.
LABEL_PROMPT = f"{CLASS} can be heard."

_PHRASINGS: dict[str, tuple[str, ...]] = {
    # ESC-10
    "baby cry": (
        "a baby cries",
        "a baby is crying",
        "a crying baby",
        "the cries of an infant",
    ),
    "chainsaw": (
        "a chainsaw runs",
        "a chainsaw is cutting wood",
        "the roar of a chainsaw",
        "a chainsaw revs",
    ),
    "clock tick": (
        "a clock ticks",
        "a clock is ticking",
        "a ticking clock",
        "the ticking of a clock",
    ),
    "dog bark": (
        "a dog barks",
        "a dog is barking",
        "a barking dog",
        "the barking of a dog",
    ),
    "fire crackling": (
        "a fire crackles",
        "a fire is crackling",
        "a crackling fire",
        "the crackling of flames",
    ),
    "helicopter": (
        "a helicopter flies",
        "a helicopter is flying",
        "the rotor of a helicopter",
        "the whirring of a helicopter",
    ),
    "person sneeze": (
        "a person sneezes",
        "someone is sneezing",
        "a sneeze",
        "the sneeze of a person",
    ),
    "rain": ("rain falls", "rain is falling", "raindrops patter", "the patter of rain"),
    "rooster": (
        "a rooster crows",
        "a rooster is crowing",
        "a crowing rooster",
        "the crow of a rooster",
    ),
    "sea waves": (
        "sea waves roll",
        "ocean waves are breaking",
        "waves of the sea",
        "the surf of the ocean",
    ),
    # Built-in sound bank
    "beeps": ("a device beeps", "a device is beeping", "electronic beeps", "a series of beeps"),
    "bell": ("a bell rings", "a bell is ringing", "a ringing bell", "the toll of a bell"),
    "buzz": ("something buzzes", "something is buzzing", "a steady buzz", "a buzzing sound"),
    "chirps": ("a bird chirps", "a bird is chirping", "a chirping bird", "the chirps of a bird"),
    "engine": (
        "an engine runs",
        "an engine is idling",
        "a rumbling engine",
        "the rumble of an engine",
    ),
    "footsteps": (
        "someone walks",
        "someone is walking",
        "footsteps",
        "the footsteps of a person",
    ),
    "knocking": ("someone knocks", "someone is knocking", "a series of knocks", "knocking"),
    "siren": ("a siren wails", "a siren is wailing", "a wailing siren", "the wail of a siren"),
    "static noise": (
        "static noise",
        "static is hissing",
        "hissing static",
        "the hiss of static",
    ),
    "water drops": (
        "water drips",
        "water is dripping",
        "drops of water",
        "the dripping of water",
    ),
    "whistle": (
        "a whistle sounds",
        "someone is whistling",
        "a shrill whistle",
        "the tone of a whistle",
    ),
    "wind": ("wind blows", "the wind is blowing", "gusts of wind", "the howling of the wind"),
}

# ESC-50 spells the ten classes of ESC-10 differently.
_ESC50_NAMES = {
    "crying baby": "baby cry",
    "dog": "dog bark",
    "crackling fire": "fire crackling",
    "sneezing": "person sneeze",
}


def labels_of(category: str) -> tuple[str, ...]:
    """The labels that a category holds, separated by ';' or '|'; none where it is empty.

    Example:
      >>> labels_of("Rain; Dog bark|Rain"), labels_of("rain")
      (('Rain', 'Dog bark'), ('rain',))
    """
    labels = (" ".join(label.split()) for label in re.split("[;|]", category))
    return tuple(dict.fromkeys(filter(None, labels)))


def category_phrasings(category: str) -> tuple[str, ...]:
    """Several ways to say that a category sounds, lower-case, without place or period.

    Args:
      category: a name as ESC-10, ESC-50 or the built-in sound bank spell it; upper
        and lower case, '_' and '-' make no difference. Or several labels, see `labels_of`.

    Returns:
      About four contents that a direction phrase can follow; for an unknown category
      phrasings around its name; for several labels one, which lists them.

    Raises:
      InputError: a name is empty.

    Reference: M2D-CLAP, arXiv 2503.22104 (the list of labels); the rest is our choice.

    Example:
      >>> category_phrasings("Dog bark")[0], category_phrasings("mouse_click")[0]
      ('a dog barks', 'the sound of mouse click')
      >>> category_phrasings("Rain;Wind;Dog")
      ('the sound of rain, wind, and dog',)
    """
    labels = [_spoken(label) for label in labels_of(category)]
    if not labels or not all(labels):
        raise InputError(f"category {category!r} is empty; give each clip a category or a caption.")
    if len(labels) > 1:
        # As M2D-CLAP lists them: 'A, B, and C', but 'A and B'.
        ending = f"{',' if len(labels) > 2 else ''} and {labels[-1]}"
        return (f"the sound of {', '.join(labels[:-1])}{ending}",)
    (name,) = labels
    known = _PHRASINGS.get(_ESC50_NAMES.get(name, name))
    if known is not None:
        return known
    return (f"the sound of {name}", f"{name} is heard", f"{name} can be heard", name)


def label_prompt(label: str, prompt: str = LABEL_PROMPT) -> str:
    """What a clip of a label is asked for: its words, lower-case, in place of "{class}".

    Example:
      >>> label_prompt("Dog_bark")
      'dog bark can be heard.'
    """
    return prompt.replace(CLASS, _spoken(label))


def _spoken(label: str) -> str:
    return " ".join(label.lower().replace("_", " ").replace("-", " ").split())


def compose_caption(
    contents: Sequence[str],
    directions: Sequence[int],
    order: Sequence[int] | None = None,
    phrases: Sequence[str] = PHRASE_SETS["side"],
) -> str:
    """Caption of a scene: each content with its direction, in the order of mention.

    Args:
      contents: k contents such as 'a dog barks'; a final period is dropped.
      directions: k indices into `STEREO_DIRECTIONS`, aligned with `contents`.
      order: the sources in the order of mention, a permutation of 0..k-1; None keeps
        the order of `contents`.
      phrases: what is said of each direction class.

    Returns:
      '{content} {phrase}' joined by ', and ', with a final period.

    Raises:
      InputError: a content is empty.

    Reference: sarulab-speech/Moving-CLAP (template).

    Example:
      >>> compose_caption(["a dog barks", "rain falls"], [0, 2], order=[1, 0])
      'rain falls in front, and a dog barks on the left side.'
    """
    if len(contents) != len(directions) or not contents:
        raise ValueError(
            f"{len(contents)} contents and {len(directions)} directions; give one direction "
            "for each of at least one content."
        )
    return join_clauses(contents, [phrases[direction] for direction in directions], order) + "."


def join_clauses(
    contents: Sequence[str], places: Sequence[str], order: Sequence[int] | None = None
) -> str:
    """Each content with what is said of its place, in the order of mention, without a period.

    Args:
      contents: k contents such as 'a dog barks'; a final period is dropped.
      places: what is said of each place; '' where nothing is.
      order: the sources in the order of mention, a permutation of 0..k-1; None keeps
        the order of `contents`.

    Raises:
      InputError: a content is empty.

    Example:
      >>> join_clauses(["a dog barks.", "rain falls"], ["in front", ""])
      'a dog barks in front, and rain falls'
    """
    mentioned = range(len(contents)) if order is None else order
    if sorted(mentioned) != list(range(len(contents))):
        raise ValueError(
            f"order {list(mentioned)} is no permutation of the {len(contents)} sources."
        )
    clauses = []
    for source in mentioned:
        content = bare_content(contents[source])
        if not content:
            raise InputError(
                f"content {contents[source]!r} is an empty caption; give every clip words."
            )
        clauses.append(f"{content} {places[source]}" if places[source] else content)
    return ", and ".join(clauses)


def bare_content(content: str) -> str:
    """A content as captions hold it: without blanks around it and without a final period."""
    return content.strip().rstrip(".").rstrip()
