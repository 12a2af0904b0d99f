"""A little of the fuzz at every test run: each kind of input, spoiled by the first seeds."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from all_kinds import ALL_KINDS
from commands import captured, digest_of, run_command
from fuzz import _outcome
from inputs import KINDS, Kind
from mutations import spoiled_json

from spatial_clap_jax.errors import InputError

# Those that compile programs are left to the long run.
LONG = ("command train", "command train, going on", "command study")
SLOW = (
    *("run", "export, safetensors", "export, stablehlo", "command embed", "command embed, sound"),
    *("command evaluate", *LONG),
)
QUICK = [kind for kind in ALL_KINDS if kind.name not in SLOW]
SEEDS = 5


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.name)
def test_spoiled_inputs_are_taken_or_refused(kind: Kind, tmp_path):
    spoil(kind, tmp_path, SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [kind for kind in ALL_KINDS if kind.name in LONG], ids=lambda kind: kind.name
)
def test_spoiled_inputs_of_long_commands(kind: Kind, tmp_path):
    spoil(kind, tmp_path, SEEDS)


def spoil(kind: Kind, tmp_path: Path, seeds: int) -> None:
    """Reads an input of a kind as it is, and then spoiled by some seeds."""
    good = tmp_path / "good"
    good.mkdir()
    kind.make(good)
    wanted = kind.read(Path(shutil.copytree(good, tmp_path / "input")))
    for seed in range(seeds):
        spoiled = Path(shutil.copytree(good, tmp_path / f"input-{seed}"))
        anew = kind.spoil(spoiled, random.Random(f"{kind.name}/{seed}"))
        outcome, reason = _outcome(kind, spoiled, wanted if kind.same and not anew else None)
        assert outcome != "crashed", f"seed {seed}: {reason}"


def test_no_input_depends_on_those_before():
    held = json.dumps({"a": {"b": [1, 2]}, "c": [{"d": "e"}] * 3}).encode()
    first, again = (
        [spoiled_json(held, random.Random(seed)) for seed in range(400)] for _ in range(2)
    )
    assert first == again


def test_a_reader_that_crashes_is_noticed(tmp_path):
    def read(folder: Path) -> list[np.ndarray]:
        return [np.zeros(2)]

    kind = Kind("crash", lambda folder: None, read)
    assert _outcome(kind, tmp_path, [np.ones(2)])[0] == "crashed"
    assert _outcome(kind, tmp_path, [np.zeros(2)])[0] == "taken"
    refuses = Kind("refuse", lambda folder: None, lambda folder: (_ for _ in ()).throw(InputError))
    assert _outcome(refuses, tmp_path, None)[0] == "crashed"


def test_what_a_failing_command_changes_is_noticed(tmp_path, monkeypatch):
    from spatial_clap_jax import cli

    (tmp_path / "a").write_text("a")

    def fails(words: list[str]) -> None:
        (tmp_path / "a").write_text("b")
        raise InputError("it fails; try again.")

    monkeypatch.setitem(cli.COMMANDS, "convert", fails)
    with pytest.raises(AssertionError):
        run_command(tmp_path, "convert")
    before = digest_of(tmp_path)
    with pytest.raises(InputError, match=r"^spatial-clap: it fails"):
        run_command(tmp_path, "convert")
    assert digest_of(tmp_path) == before


def test_what_any_library_says_is_heard():
    with captured() as said:
        os.write(2, b"from below")
        print("from above")
    assert said == [b"from above\n", b"from below"]


def test_the_long_run_counts_and_keeps(tmp_path):
    script = Path(__file__).with_name("fuzz.py")
    command = [
        sys.executable,
        script,
        "--inputs",
        "40",
        "--keep",
        tmp_path,
        "--kind",
        "results.json",
    ]
    told = subprocess.run([*command, "--kind", "key points"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    counts = next(line.split() for line in told.stdout.splitlines() if line.startswith("all "))
    assert sum(map(int, counts[1:])) == 40
    assert int(counts[2]) > 10
    assert "40 inputs of seed 0" in told.stdout


def test_every_good_input_has_files_to_spoil(tmp_path):
    for kind in KINDS:
        if kind.name in SLOW or kind.name.startswith("run"):
            continue
        folder = tmp_path / kind.name.replace(" ", "_")
        folder.mkdir()
        kind.make(folder)
        assert [path for pattern in kind.files for path in folder.glob(pattern)], kind.name
