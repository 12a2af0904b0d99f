"""What the long runs of `tests/soak` call flat, and what they do not."""

import json
import random
from pathlib import Path

import pytest
from soak import gauges, train_for_long


def hour(mb_an_hour: float, files_an_hour: float = 0.0, seed: int = 0) -> list[gauges.Sample]:
    """Forty minutes after a warm-up: what is held moves by some MB, and more is held in saves."""
    draw = random.Random(seed)
    samples = []
    for at in range(1200, 3600, 5):
        held = 716 + mb_an_hour * at / 3600 + draw.uniform(-8, 8) + (at % 60 == 0) * 200
        files = 27 + int(files_an_hour * (at - 1200) / 3600)
        samples.append(gauges.Sample(float(at), held, files, 169, 3))
    return samples


def grows(samples: list[gauges.Sample]) -> set[str]:
    limits = {**gauges.LIMITS, "memory_mb": train_for_long.LIMIT}
    return set(gauges.growing(samples, limits))


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_an_hour_is_told(seed):
    assert grows(hour(0.0, seed=seed)) == set()
    assert grows(hour(8.0, seed=seed)) == set()
    assert grows(hour(32.0, seed=seed)) == {"memory_mb"}


def test_one_more_file_is_a_state_that_was_met_late_and_more_are_a_leak():
    assert grows(hour(0.0, files_an_hour=2.0)) == set()
    assert grows(hour(0.0, files_an_hour=6.0)) == {"files"}


@pytest.mark.parametrize(("mb_a_restart", "found"), [(0.025, set()), (0.5, {"memory_mb"})])
def test_a_few_restarts_may_leave_little(mb_a_restart, found):
    samples = [gauges.Sample(n, 170 + mb_a_restart * n, 11, 72, 2) for n in range(20)]
    assert set(gauges.growing(samples)) == found


@pytest.mark.parametrize("count", [0, 1, 2, gauges.FEWEST - 1])
def test_too_few_samples_tell_nothing(capsys, count):
    samples = [gauges.Sample(float(at), 700.0 + at, 27, 169, 3) for at in range(10 + count)]
    assert gauges.report(samples, 10, 3600, "h", 1) == 1
    assert capsys.readouterr().out.endswith(
        f"too short to tell: take at least {gauges.FEWEST} samples after that\n"
    )
    assert gauges.report(samples, 10, 3600, "h", 1, ["processes [7] are left"]) == 1
    assert "too short to tell: " in (told := capsys.readouterr().out)
    assert told.endswith("; NOT flat: processes [7] are left\n")


def test_enough_samples_tell(capsys):
    flat = [gauges.Sample(float(at), 700.0, 27, 169, 3) for at in range(10 + gauges.FEWEST)]
    assert gauges.report(flat, 10, 3600, "h", 1) == 0
    assert capsys.readouterr().out.endswith("\nflat\n")


def run(folder: Path, last: int, evaluated: tuple[int, ...]) -> Path:
    """What a training leaves that was asked to end at some step."""
    (folder / "checkpoints" / str(last)).mkdir(parents=True)
    rows = [{"step": step, "validation/t2a_r1": 0.5} for step in evaluated]
    lines = [json.dumps(row) for row in [{"step": 1, "loss": 2.0}, *rows]]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    ("last", "every", "evaluated", "expected"),
    [
        (320, (100, 150), (150, 300), []),
        # Asked to end amid an evaluation.
        (300, (100, 150), (150,), []),
        (320, (100, 150), (150,), ["evaluated at 1 steps, not at each of 2"]),
        (320, (100, 150), (), ["nothing was evaluated"]),
        (90, (100, 50), (50,), ["nothing was saved before the end"]),
        (90, (0, 50), (50,), []),
        (320, (100, 0), (), []),
    ],
)
def test_a_training_that_saved_or_scored_nothing_is_told(
    tmp_path, capsys, last, every, evaluated, expected
):
    assert train_for_long.missing(run(tmp_path / "run", last, evaluated), *every) == expected
    saves = last // every[0] if every[0] else 0
    assert f"{last} steps, {saves} saves" in capsys.readouterr().out


def test_a_training_that_left_nothing_is_told(tmp_path):
    faults = ["no checkpoint is there", "nothing was saved before the end", "nothing was evaluated"]
    assert train_for_long.missing(tmp_path, 100, 150) == faults
