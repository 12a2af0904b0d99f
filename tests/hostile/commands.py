"""The command line over spoiled inputs: a failure is one line, and changes no file of the user."""

import contextlib
import functools
import hashlib
import os
import random
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
from inputs import (
    RATE_HZ,
    Kind,
    make_bert,
    make_export,
    make_run,
    make_seld_export,
    make_source,
    make_video,
    tone,
)
from mutations import NASTY_TEXTS

_BAR = re.compile(r"\d+/\d+ +(?:[\d.]+/s +)?[-\d]+:[-\d]+:[-\d]+\s*$")


def digest_of(folder: Path) -> dict[str, str]:
    """What every file of a folder is and holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = path.lstat()
        if stat.S_ISREG(kind.st_mode):
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            held = os.readlink(path) if path.is_symlink() else "no file"
        found[str(path.relative_to(folder))] = f"{kind.st_mode} {held}"
    return found


@contextlib.contextmanager
def captured() -> Iterator[list[bytes]]:
    """What the process writes on its standard output and error, whoever in it writes."""
    sys.stdout.flush()
    sys.stderr.flush()
    said: list[bytes] = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        ours = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w", errors="backslashreplace")
        try:
            with contextlib.redirect_stdout(ours[0]), contextlib.redirect_stderr(ours[1]):
                yield said
        finally:
            for stream in ours:
                stream.close()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
            for file in (out, err):
                file.seek(0)
                said.append(file.read())


def run_command(folder: Path, *arguments: str, tells: bool = False) -> None:
    """Runs a command in this process; an exit with status 2 becomes an InputError.

    Args:
      folder: of the user; nothing in it may change where the command fails.
      arguments: of `spatial-clap`.
      tells: whether it says how far it is, before the line about what is wrong.
    """
    from spatial_clap_jax.cli import main
    from spatial_clap_jax.errors import InputError

    before, status = digest_of(folder), 0
    with captured() as said:
        try:
            main(list(arguments))
        except SystemExit as exit:
            status = exit.code or 0
    out, err = (text.decode(errors="replace") for text in said)
    assert "Traceback" not in err, err
    for text in (out, err):
        strange = [char for char in text if not char.isprintable() and char not in "\n\u200c\u200d"]
        assert not strange, (strange, text)
    if status == 0:
        return
    # A bar may have shown how far it came.
    lines = [line for line in err.splitlines() if line.strip() and not _BAR.search(line)]
    assert status == 2, (status, err)
    assert len(lines) == 1 or (tells and lines), err
    assert lines[-1].startswith("spatial-clap: "), err
    after = digest_of(folder)
    assert after == before, set(after.items()) ^ set(before.items())
    raise InputError(lines[-1])


def _make_for_embed(folder: Path) -> None:
    make_run(folder)
    soundfile.write(folder / "a.wav", tone(4000, 2), RATE_HZ)


def _embed(folder: Path) -> None:
    rng = random.Random(str(sorted(path.name for path in folder.iterdir())))
    text = rng.choice(["a dog barks", *NASTY_TEXTS]).replace("\0", "") or "rain"
    out = str(folder.parent / "embedding.npy")
    arguments = ("embed", str(folder / "run"), str(folder / "a.wav"), f"--text={text}")
    run_command(folder, *arguments, f"--out={out}")


def _make_for_evaluate(folder: Path) -> None:
    make_run(folder)
    rows = ["filename,caption,wrong_captions", "a.wav,a dog left,a dog right|rain", "b.wav,rain,"]
    (folder / "recordings.csv").write_text("\n".join(rows) + "\n")
    for name in "ab":
        soundfile.write(folder / f"{name}.wav", tone(4000, 2), RATE_HZ)


def _evaluate(folder: Path) -> None:
    run_command(folder, "evaluate", str(folder / "run"), f"--scenes={folder / 'recordings.csv'}")


def _embed_text(folder: Path) -> None:
    out = Path(tempfile.mkdtemp(dir=folder.parent)) / "sentences"
    captions, encoder = folder / "captions.csv", folder / "bert"
    run_command(folder, "embed-text", str(captions), f"--text-encoder={encoder}", f"--out={out}")
    shutil.rmtree(out.parent)


def _make_for_embed_text(folder: Path) -> None:
    make_bert(folder)
    (folder / "captions.csv").write_text("caption,category\nA dog barks.,dog\n,rain\n")


def _convert(folder: Path) -> None:
    out = Path(tempfile.mkdtemp(dir=folder.parent))
    run_command(folder, "convert", str(folder / "bert"), f"--out={out}", "--verbose=True")
    shutil.rmtree(out)


def _export(folder: Path) -> None:
    out = Path(tempfile.mkdtemp(dir=folder.parent))
    arguments = ("export", str(folder / "exported"), f"--out={out}", "--format=safetensors")
    run_command(folder, *arguments)
    shutil.rmtree(out)


RECIPE = """
from dataclasses import replace

from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts
from spatial_clap_jax.data.sources import SourceOptions
from tiny import tiny_recipe


def get_config(size):
    counts = GroupCounts(1, 1, 0, 0, 0, 0, 0, 0, 0)
    options = SourceOptions(validation_share=0.0)
    rooms = RoomCounts(1, 1, 1)
    return replace(tiny_recipe(), group_counts=counts, room_counts=rooms, sources=options)
"""


def _make_for_render(folder: Path) -> None:
    make_source(folder)
    (folder / "recipe.py").write_text(RECIPE)


def _render(folder: Path) -> None:
    out = Path(tempfile.mkdtemp(dir=folder.parent))
    options = (f"--sources={folder / 'clips.csv'}", f"--out={out / 'scenes'}", "--workers=1")
    wanted: list[str] = []
    try:
        run_command(folder, "render", str(folder / "recipe.py"), *options)
        wanted = ["scenes"]
    finally:
        # A failure leaves no half of a folder.
        left = [path.name for path in out.iterdir()]
        shutil.rmtree(out)
        assert left == wanted, left


def _make_for_detect(folder: Path) -> None:
    make_seld_export(folder)
    make_video(folder)
    soundfile.write(folder / "a.wav", tone(12_800, 2), RATE_HZ)


def _detect(folder: Path) -> None:
    recording = (f"--audio={folder / 'a.wav'}", f"--video={folder / 'a.mp4'}")
    run_command(folder, "detect", str(folder / "exported"), *recording)


def _make_words(folder: Path) -> None:
    (folder / "word.txt").write_text("text")


def _words(folder: Path) -> None:
    """Any command with any words: what is typed is hostile, too."""
    from spatial_clap_jax.cli import COMMANDS

    seed = (folder / "word.txt").read_bytes() if (folder / "word.txt").is_file() else b""
    if seed == b"text":
        run_command(folder, "--version")
        return
    rng = random.Random(seed)
    words = [
        rng.choice(
            (
                *(str(folder / "word.txt"), str(folder), "x" * 300, str(folder / ("y" * 300))),
                *("--out", "--data=x", "--step=-1", "--step", "--text=", "--size=[red]", "-h"),
                *NASTY_TEXTS,
            )
        )
        for _ in range(rng.randrange(5))
    ]
    commands = [*COMMANDS, rng.choice(NASTY_TEXTS)]
    for long in ("quickstart", "plan", "study", "train", "render", "rewrite"):
        commands.remove(long)
    run_command(folder, rng.choice(commands), *words)


_RUN = ("run/**/*", "a.wav")
COMMANDS_KINDS: tuple[Kind, ...] = (
    Kind("command embed", _make_for_embed, _embed, _RUN, 8),
    Kind("command embed, sound", _make_for_embed, _embed, ("a.wav",), 6),
    Kind("command evaluate", _make_for_evaluate, _evaluate, ("*.csv", "*.wav"), 8),
    Kind("command embed-text", _make_for_embed_text, _embed_text, ("*.csv", "bert/*"), 8),
    Kind("command convert", make_bert, _convert, ("bert/*",), 10),
    Kind(
        "command export",
        functools.partial(make_export, "safetensors"),
        _export,
        ("exported/*/*",),
        10,
        signed="exported/safetensors/model.json",
    ),
    Kind("command render", _make_for_render, _render, ("*.csv", "*.wav"), 6),
    Kind("command detect", _make_for_detect, _detect, ("exported/*/*", "a.*"), 6),
    Kind("command of any words", _make_words, _words, share=12),
)
