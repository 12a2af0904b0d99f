"""A run whose checkpoints are gone never starts anew, and one that never had any always may."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from tiny import tiny_experiment

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import checkpoint
from spatial_clap_jax.train.checkpoint import RunCheckpoints, first_saved_step
from spatial_clap_jax.train.resuming import changed_freely, check_never_saved, check_unchanged

STATE = {"a": jnp.ones(2)}
GONE = "but its checkpoints are gone; put them back, or take another --workdir to start anew"


def log(workdir: Path, last: int) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, last + 1)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def save(workdir: Path, *steps: int) -> None:
    checkpoints = RunCheckpoints(workdir, keep=1)
    for step in steps:
        checkpoints.save(step, STATE, {}, wait=True)
    checkpoints.close()


def test_before_the_first_whole_checkpoint_a_run_may_start_again(tmp_path):
    check_never_saved(tmp_path, checkpoint_every=10)
    save(tmp_path)
    # As far as it comes where saves fail, or were to be less frequent.
    log(tmp_path, last=50)
    for _ in range(2):
        check_never_saved(tmp_path, checkpoint_every=10)
        save(tmp_path)


@pytest.mark.parametrize("steps", [(2,), (2, 4)])
def test_one_checkpoint_that_is_gone_is_enough(tmp_path, steps):
    save(tmp_path, *steps)
    log(tmp_path, last=5)
    shutil.rmtree(tmp_path / "checkpoints")
    for _ in range(2):
        with pytest.raises(InputError, match=f"{tmp_path}: had come to step 5, {GONE}"):
            check_never_saved(tmp_path, checkpoint_every=1000)
        # A start that was refused has opened the folder.
        save(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=f"had come to step 2, {GONE}"):
        check_never_saved(tmp_path, checkpoint_every=1000)


def test_a_checkpoint_that_was_gone_on_from_was_whole(tmp_path):
    """A kill between the end of the first save and the note of it."""
    save(tmp_path, 2)
    (tmp_path / "saved.json").write_text('{"step": null}', "utf-8")
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.restore_newest({"a": STATE["a"]}, print)
    checkpoints.close()
    assert first_saved_step(tmp_path) == 2


def test_a_save_that_ends_is_noted_though_nobody_waits_for_it(tmp_path):
    """A kill between the end of the first save and the next row of the log."""
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(2, STATE, {})
    until = time.monotonic() + 30
    while first_saved_step(tmp_path) is None and time.monotonic() < until:
        time.sleep(0.05)
    assert first_saved_step(tmp_path) == 2
    checkpoints.close()


def test_a_note_that_cannot_be_written_follows_with_the_next_save(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoints = RunCheckpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    checkpoints.save(2, STATE, {}, wait=True)
    monkeypatch.undo()
    assert first_saved_step(tmp_path) is None
    checkpoints.save(4, STATE, {}, wait=True)
    checkpoints.close()
    assert first_saved_step(tmp_path) == 4


def test_runs_of_before_the_note(tmp_path):
    log(tmp_path, last=20)
    save(tmp_path)
    assert not (tmp_path / "saved.json").exists()
    check_never_saved(tmp_path, checkpoint_every=10)
    with pytest.raises(InputError, match=f"had come to step 20, {GONE}"):
        check_never_saved(tmp_path, checkpoint_every=9)
    starts = tmp_path / "starts.jsonl"
    starts.write_text('{"from_step": 0}\nnonsense\n{"from_step": 1e999}\n{"from_', "utf-8")
    check_never_saved(tmp_path, checkpoint_every=10)
    starts.write_text('{"from_step": 30}\n{"from_step": 0}\n', "utf-8")
    with pytest.raises(InputError, match=f"had come to step 30, {GONE}"):
        check_never_saved(tmp_path, checkpoint_every=10)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1]", '{"step": "x"}', '{"step": Infinity}', '{"step": -1}', '{"step": true}'],
)
def test_a_damaged_note_is_named(tmp_path, content):
    (tmp_path / "saved.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"saved\.json: cannot be read .*; remove it if"):
        check_never_saved(tmp_path, checkpoint_every=10)


def test_what_may_change_is_told_all_the_same():
    ours = tiny_experiment()
    found = {"experiment": to_plain(ours)}
    data = dataclasses.replace(ours.data, workers=2)
    changed = dataclasses.replace(ours, keep=7, data=data, seed=5)
    told = changed_freely(found, to_plain(changed))
    # A seed has to be accepted, and is told there.
    assert told == [
        f"data.workers {ours.data.workers} there, 2 here",
        f"keep {ours.keep} there, 7 here",
    ]
    assert changed_freely(found, to_plain(ours)) == []


def unchanged(accept, **changes):
    """What is accepted of a run of other settings, and which keys are there in vain."""
    ours = tiny_experiment()
    found = {"experiment": to_plain(ours), "data_fingerprint": "a", "tokenizer": ""}
    found |= {"max_tokens": 9}
    plain = to_plain(dataclasses.replace(ours, **changes))
    return check_unchanged(found, plain, "a", Path("run"), accept)


def test_what_is_accepted_once_more_is_no_mistake():
    told, idle = unchanged(["seed", "optimizer.learning_rate", "dataset", "keep"], seed=5)
    assert told == ["seed 0 there, 5 here"]
    assert idle == ["optimizer.learning_rate", "dataset", "keep"]


def test_a_key_that_is_none_is_refused():
    known = "a run has nothing of that name; did you mean optimizer"
    for accept, message in (
        ("optimiser", f"--accept optimiser: {known}"),
        ("optimizer.rate", f"--accept optimizer.rate: {known}.rate_rules"),
    ):
        with pytest.raises(InputError, match=message):
            unchanged([accept], seed=5)


@pytest.mark.parametrize(("tokenizer", "tokens"), [(5, 9), ([], 9), ("", "9"), ("", None)])
def test_a_tokenizer_that_is_no_text_is_named(tokenizer, tokens):
    plain = to_plain(tiny_experiment())
    found = {"experiment": plain, "data_fingerprint": "a"}
    found |= {"tokenizer": tokenizer, "max_tokens": tokens}
    with pytest.raises(InputError, match=r"run/description\.json: tokenizer is no text, or max"):
        check_unchanged(found, plain, "a", Path("run"))


def refused_data(there, here) -> str:
    plain = to_plain(tiny_experiment())
    found = {"experiment": plain, "data_fingerprint": "a", "tokenizer": "", "max_tokens": 9}
    with pytest.raises(InputError) as refused:
        check_unchanged(found | there, plain, "b", Path("run"), (), here)
    return str(refused.value)


def test_what_differs_of_the_data_is_told():
    there = {"recipe": {"seed": 0, "rooms": [2]}, "groups": {"train_k1": 8}}
    here = {"recipe": {"seed": 1, "rooms": [2]}, "groups": {"train_k1": 8, "train_k2": 4}}
    assert (
        "differs: dataset differs in groups.train_k2 (None there, 4 here), recipe.seed (0 there, 1 "
        "here); take another --workdir"
    ) in refused_data({"dataset": there}, here)
    many = {str(n): 1 for n in range(30)}
    told = refused_data({"dataset": {"x": 1}}, {"x": 1, **many})
    assert "(None there, 1 here) and 22 more; take" in told


def test_data_that_a_description_tells_no_more_of_differ_by_their_fingerprint():
    told = "dataset of another recipe, seed or source (a there, b here)"
    assert told in refused_data({}, {"recipe": 1})
    assert told in refused_data({"dataset": {"recipe": 1}}, {"recipe": 1})
