"""Numbers gone wrong: counted, named with their samples, and a run that ends when they stay so."""

import json
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import health
from spatial_clap_jax.train.appended_lines import AppendedLines
from spatial_clap_jax.train.health import HealthConfig, HealthWatch, read_incidents


class Watched:
    """A watch with what it tells."""

    def __init__(self, folder, resume_step=0, state=None, **config):
        self.told: list[str] = []
        self.watch = HealthWatch(
            HealthConfig(**config),
            folder,
            resume_step,
            lambda step: [f"train_k1/{step}", f"train_k2/{step}"],
            self.told.append,
            state,
        )

    def see(self, step, loss, norm=1.0, applied=1.0):
        self.watch.see(step, {"loss": loss, "gradient_norm": norm, "applied": applied})


def test_a_bad_step_is_counted_with_its_samples(tmp_path):
    watched = Watched(tmp_path, bad_steps=3)
    watched.see(1, 2.0)
    watched.see(2, np.nan, np.inf, applied=0.0)
    watched.see(3, 2.0)
    assert watched.watch.skipped == 1
    assert not watched.watch.is_hopeless
    assert watched.told == [
        "step 2: loss nan, gradient norm inf; not applied, 1 in a row; its samples are in "
        "incidents.jsonl"
    ]
    (row,) = read_incidents(tmp_path)
    assert row == {
        "step": 2,
        "kind": "not finite",
        "loss": "nan",
        "gradient_norm": "inf",
        "applied": 0.0,
        "samples": ["train_k1/2", "train_k2/2"],
    }


def test_as_many_in_a_row_end_the_run_with_a_bundle(tmp_path):
    watched = Watched(tmp_path, bad_steps=2)
    for step, applied in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 0.0)):
        assert not watched.watch.is_hopeless
        watched.see(step, 1.0, applied=applied)
    assert watched.watch.is_hopeless
    state = {"w": jnp.float32([3.0, np.nan, -4.0]), "step": jnp.int32(4)}
    folder = watched.watch.bundle(state, {"seed": 0})
    assert folder == tmp_path / "incident_4"
    error = watched.watch.stopped("all is saved as step 4")
    assert (
        "steps 3 to 4 were not finite, and 2 in a row end a run; all is saved as step 4. Mend the "
        "data or lower the learning rate, or raise --health.bad-steps" in str(error)
    )
    steps, found, experiment = (
        json.loads((folder / name).read_text())
        for name in ("steps.json", "state.json", "experiment.json")
    )
    assert [step["samples"][0] for step in steps] == ["train_k1/3", "train_k1/4"]
    assert found == {"w": {"shape": [3], "not_finite": 1, "norm": 5.0, "min": -4.0, "max": 3.0}}
    assert experiment == {"seed": 0}


def test_a_good_step_after_the_last_bad_one_saves_no_run(tmp_path):
    # It was on its way when the bad one was seen.
    watched = Watched(tmp_path, bad_steps=2)
    for step, applied in ((1, 0.0), (2, 0.0), (3, 1.0)):
        watched.see(step, 1.0, applied=applied)
    assert watched.watch.is_hopeless
    # Who starts it again has mended something.
    again = Watched(tmp_path, resume_step=3, state=watched.watch.get_state(), bad_steps=2)
    assert not again.watch.is_hopeless


def test_a_watch_that_goes_on_sees_what_a_straight_one_sees(tmp_path):
    def steps(watched, numbers):
        for step in numbers:
            applied = float(step not in (28, 29, 30))
            watched.see(step, 50.0 if step in (35, 60) else 2.0 + 0.01 * (step % 7), 1.0, applied)

    (tmp_path / "straight").mkdir()
    (tmp_path / "cut").mkdir()
    straight = Watched(tmp_path / "straight", bad_steps=4)
    steps(straight, range(1, 71))
    first = Watched(tmp_path / "cut", bad_steps=4)
    steps(first, range(1, 40))
    halves = Watched(tmp_path / "cut", resume_step=0, bad_steps=4)
    steps(halves, range(1, 30))
    state = json.loads(json.dumps(halves.watch.get_state()))
    resumed = Watched(tmp_path / "cut", resume_step=29, state=state, bad_steps=4)
    steps(resumed, range(30, 71))
    assert halves.told + resumed.told == straight.told
    assert sum("jumps" in line for line in straight.told) == 2
    assert "not applied, 3 in a row" in resumed.told[0]
    same = [(tmp_path / name / "incidents.jsonl").read_bytes() for name in ("cut", "straight")]
    assert same[0] == same[1]


def test_a_jump_of_the_loss_is_told_and_slow_changes_are_not(tmp_path):
    watched = Watched(tmp_path, spike=10.0)
    rng = np.random.default_rng(0)
    for step in range(1, 101):
        watched.see(step, 3.0 - 0.01 * step + 0.05 * rng.standard_normal())
    assert not watched.told
    watched.see(101, 9.0)
    assert watched.told == ["step 101: loss 9.000 jumps above the usual 2.516; see incidents.jsonl"]
    assert [row["kind"] for row in read_incidents(tmp_path)] == ["spike"]
    silent = Watched(tmp_path / "silent", spike=None)
    for step in range(1, 102):
        silent.see(step, 9.0 if step == 101 else 2.0)
    assert not silent.told


def test_a_resumed_watch_counts_on_and_drops_what_comes_again(tmp_path):
    watched = Watched(tmp_path)
    for step in (3, 5, 8):
        watched.see(step, np.inf, applied=0.0)
    with (tmp_path / "incidents.jsonl").open("a") as file:
        file.write('{"step": 9, "ki')
    resumed = Watched(tmp_path, resume_step=5)
    assert resumed.watch.skipped == 2
    assert [row["step"] for row in read_incidents(tmp_path)] == [3, 5]
    resumed.see(8, np.inf, applied=0.0)
    assert resumed.watch.skipped == 3
    assert [row["step"] for row in read_incidents(tmp_path)] == [3, 5, 8]


def test_records_that_cannot_be_read_are_counted_by_name(tmp_path):
    watched = Watched(tmp_path)
    watched.watch.see_records(4, Counter())
    watched.watch.see_records(4, Counter({"train_k1/7": 2}))
    watched.watch.see_records(6, Counter({"train_k1/7": 2}))
    watched.watch.see_records(8, Counter({"train_k1/7": 3, "train_k2/1": 1}))
    assert watched.watch.skipped_records == 4
    assert [(r["step"], r["times"], r["samples"]) for r in read_incidents(tmp_path)] == [
        (4, 2, ["train_k1/7"]),
        (8, 2, ["train_k1/7", "train_k2/1"]),
    ]
    assert watched.told[0] == (
        "step 4: train_k1/7 cannot be read, others stand in; 2 so far, see incidents.jsonl"
    )
    resumed = Watched(tmp_path, resume_step=4)
    assert resumed.watch.skipped_records == 2
    assert resumed.watch.skipped == 0


@pytest.mark.parametrize("others", [0, 3])
def test_records_that_nothing_has_told_of_are_told_by_the_run_that_goes_on(
    tmp_path, monkeypatch, others
):
    """A signal between two rows of the log; other processes have skipped some as well."""
    in_others = [0]
    monkeypatch.setattr(health, "total_of_all", lambda count: count + in_others[0])

    def skipped(*names, elsewhere=0):
        in_others[0] = elsewhere
        return Counter(names)

    for name in ("straight", "cut"):
        (tmp_path / name).mkdir()
    straight = Watched(tmp_path / "straight").watch
    straight.see_records(4, skipped("a", "b", "b"))
    straight.see_records(8, skipped("a", "b", "b", "b", "c", "d", elsewhere=others))
    straight.see_records(10, skipped("a", "b", "b", "b", "c", "d"))
    first = Watched(tmp_path / "cut")
    first.watch.see_records(4, skipped("a", "b", "b"))
    state = first.watch.get_state(skipped("a", "b", "b", "b", "c", elsewhere=others))
    state = json.loads(json.dumps(state))
    # Iterators count anew.
    resumed = Watched(tmp_path / "cut", resume_step=6, state=state)
    again = resumed.watch.get_state(skipped())
    assert again["records"] == state["records"] == {"times": 2 + others, "names": ["b", "c"]}
    resumed.watch.see_records(8, skipped("d"))
    resumed.watch.see_records(10, skipped("d"))
    assert resumed.watch.skipped_records == straight.skipped_records == 6 + others
    same = [(tmp_path / name / "incidents.jsonl").read_bytes() for name in ("cut", "straight")]
    assert same[0] == same[1]


@pytest.mark.parametrize("written", [False, True])
def test_incidents_that_wait_are_kept_by_a_kill_after_a_save(tmp_path, monkeypatch, written):
    def full(*_):
        raise OSError(28, "No space left on device")

    watched = Watched(tmp_path)
    watched.see(2, np.inf, applied=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(AppendedLines, "flush", full)
        with pytest.raises(OSError, match="No space"):
            watched.see(4, np.inf, applied=0.0)
    state = json.loads(json.dumps(watched.watch.get_state()))
    if written:
        watched.see(5, np.inf, applied=0.0)
    resumed = Watched(tmp_path, resume_step=4, state=state)
    assert resumed.watch.skipped == 2
    assert [row["step"] for row in read_incidents(tmp_path)] == [2, 4]


def test_other_processes_carry_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "is_first_process", lambda: False)
    state = {"records": {"times": 2, "names": ["a"]}}
    resumed = Watched(tmp_path, resume_step=6, state=state)
    assert resumed.watch.get_state()["records"] == {"times": 0, "names": []}


def test_records_of_other_processes_count(tmp_path, monkeypatch):
    watched = Watched(tmp_path)
    monkeypatch.setattr(health, "total_of_all", lambda count: count + 3)
    watched.watch.see_records(4, Counter())
    watched.watch.see_records(5, Counter({"train_k1/7": 1}))
    assert watched.watch.skipped_records == 7
    assert watched.told == [
        "step 4: records of other processes cannot be read, others stand in; 3 so far, see "
        "incidents.jsonl",
        "step 5: train_k1/7 and more cannot be read, others stand in; 7 so far, see "
        "incidents.jsonl",
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1}',
        '{"step": 1, "kind": 2}',
        '{"step": Infinity, "kind": "spike"}',
        '{"step": 1e999, "kind": "spike"}',
        '{"step": -1, "kind": "spike"}',
        '{"step": 1, "kind": "spike", "loss": NaN}',
        '{"step": 1, "kind": "bad records", "times": "3"}',
        '{"step": 1, "kind": "bad records"}',
        "[" * 100_000,
        "5",
        "\udcff",
    ],
)
def test_a_damaged_incident_is_named(tmp_path, line):
    (tmp_path / "incidents.jsonl").write_text(
        f'{{"step": 1, "kind": "spike"}}\n{line}\n', "utf-8", "surrogateescape"
    )
    with pytest.raises(
        InputError, match=r"incidents.jsonl: line 2 is no incident \(.*\); remove that line"
    ):
        Watched(tmp_path, resume_step=5)


def test_damaged_incidents_and_settings(tmp_path):
    assert read_incidents(tmp_path) == []
    (tmp_path / "incidents.jsonl").write_text('{"kind": "spike"}\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"incidents.jsonl: line 1 is no incident"):
        read_incidents(tmp_path)
    for changes, message in (
        ({"bad_steps": 0}, "health.bad_steps: 0; give at least 1"),
        ({"spike": 0.0}, "health.spike: 0.0; give more than 0, or None"),
        ({"window": 5}, "health.window: 5; give at least 20"),
    ):
        with pytest.raises(InputError, match=message):
            HealthConfig(**changes)
