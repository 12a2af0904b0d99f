"""Tables of hand-made tests."""

import errno
import re

import numpy as np
import pytest
from tiny import tiny_experiment, tiny_recipe

from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import Outcome
from spatial_clap_jax.study import Noise, Row, Study, outcomes
from spatial_clap_jax.study.outcomes import Findings, SceneMap, read_findings, write_findings
from spatial_clap_jax.study.summary import markdown, summarise, table

STUDY = Study(
    name="hand-made",
    scenes=tiny_recipe(),
    rows=tuple(Row(name, f"row {name}", tiny_experiment()) for name in ("good", "bad", "new")),
    comparisons=(("good", "bad"),),
    conditions=(Noise("loud", "loud noise", 0.0),),
)


def found_of(share: float) -> Findings:
    """A hundred scenes of two queries, the first of which succeed."""
    hits = np.repeat(np.arange(100) < 100 * share, 2)
    return Findings({"assignment/2": Outcome(hits, np.repeat(np.arange(100), 2), 0.5)})


TESTED = {
    "good": {
        0: {"test": found_of(0.9), "unchanged": found_of(0.8), "loud": found_of(0.6)},
        1: {"test": found_of(0.8), "unchanged": found_of(0.7)},
    },
    "bad": {0: {"test": found_of(0.5), "loud": found_of(0.5)}},
}


def test_scores_are_means_over_seeds():
    scores = summarise(STUDY, TESTED)["rows"]["good"]["scores"]
    assert scores["test"]["assignment/2"]["value"] == pytest.approx(0.85)
    assert scores["test"]["assignment/2"]["by_seed"] == [0.9, 0.8]
    assert scores["test"]["assignment/2"]["n"] == 200
    assert scores["loud"]["assignment/2"]["value"] == pytest.approx(0.6)


def test_differences_are_of_the_seeds_that_both_have():
    found = summarise(STUDY, TESTED)["comparisons"][0]["scores"]["test"]["assignment/2"]
    assert found["seeds"] == 1
    assert found["difference"] == pytest.approx(0.4)
    assert found["low"] > 0
    assert found["p"] < 0.01


def test_what_a_condition_changes_is_told_by_pairs_of_the_same_scenes():
    """Not against all test scenes, of which a condition has but some."""
    results = summarise(STUDY, TESTED)
    change = results["rows"]["good"]["changes"]["loud"]["assignment/2"]
    assert change["difference"] == pytest.approx(0.6 - 0.8)
    assert change["low"] <= change["difference"] <= change["high"] < 0
    assert change["seeds"] == 1
    assert results["rows"]["bad"]["changes"] == {}
    text = markdown(STUDY, results)
    assert "| row | as trained | loud noise |" in text
    assert re.search(r"\| row good \| 75\.0 \(.*\) \| 60\.0, -20\.0 \(-.* - -.*\) \(one", text)
    assert "| row bad (one seed: scenes only) | - | 50.0 |" in text


def test_rows_are_compared_under_each_condition():
    results = summarise(STUDY, TESTED)
    found = results["comparisons"][0]["scores"]
    assert found["loud"]["assignment/2"]["difference"] == pytest.approx(0.1)
    assert "unchanged" not in found
    text = markdown(STUDY, results)
    assert re.search(r"\| row good \| row bad \| - \| \+10\.0 \(.*\), p 0\.", text)


def test_rows_without_a_test_stand_in_the_tables_with_a_dash():
    results = summarise(STUDY, TESTED)
    assert results["rows"]["new"] == {
        "title": "row new",
        "is_ours": False,
        "seeds": [],
        "scores": {},
        "changes": {},
    }
    text = markdown(STUDY, results)
    assert "| row new | 0 | - |" in text
    assert "| row good | 2 | 85.0 (" in text
    assert "| chance |  | 50.0 |" in text
    assert "loud noise" in text
    assert table(STUDY, results).row_count == 4


def test_a_study_of_which_nothing_is_done_has_empty_tables():
    results = summarise(STUDY, {})
    assert "row good | 0 |" in markdown(STUDY, results)
    assert results["comparisons"][0]["scores"] == {}


def test_what_is_written_is_read_again(tmp_path):
    kept = SceneMap(np.eye(3, dtype=np.float32), np.array([0, 4, 2]), ["a", "b", ""])
    confusion = np.arange(25).reshape(5, 5)
    full = Findings(found_of(0.3).outcomes, confusion, kept, {"singles": 3})
    write_findings(tmp_path, {"a": 1}, {"test": full, "loud": found_of(0.1)})
    found = read_findings(tmp_path, {"a": 1})
    assert found.keys() == {"test", "loud"}
    outcome = found["test"].outcomes["assignment/2"]
    np.testing.assert_array_equal(outcome.hits, full.outcomes["assignment/2"].hits)
    assert outcome.chance == 0.5
    np.testing.assert_array_equal(found["test"].confusion, confusion)
    assert found["test"].map is not None
    assert found["test"].map.categories == ["a", "b", ""]
    assert found["loud"].map is None
    assert (found["test"].changes, found["loud"].changes) == ({"singles": 3}, {})


def test_findings_that_cannot_be_read_now_are_not_called_damaged(tmp_path, monkeypatch):
    write_findings(tmp_path, {}, {"test": found_of(0.3)})

    def failing(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(outcomes, "bytes_of", failing)
    with pytest.raises(InputError, match=r"npz: could not be read now \(Input/output "):
        read_findings(tmp_path, None)


def test_findings_of_a_version_without_a_setting_are_findings_of_its_default(tmp_path):
    now = {"experiment": to_plain(tiny_experiment()), "data": "d"}
    settings = {k: v for k, v in now["experiment"].items() if k != "ema_decay"}
    write_findings(tmp_path, {**now, "experiment": settings}, {"test": found_of(0.3)})
    assert read_findings(tmp_path, now).keys() == {"test"}
    other = {**now, "experiment": {**now["experiment"], "ema_decay": 0.5}}
    with pytest.raises(InputError, match=r"other settings .* experiment.ema_decay None there, 0.5"):
        read_findings(tmp_path, other)


def test_findings_of_another_training_are_told_by_what_differs(tmp_path):
    plain = to_plain(tiny_experiment())
    now = {"experiment": plain, "before": plain, "data": "d", "gallery": 200}
    write_findings(tmp_path, now, {"test": found_of(0.3)})

    def refused(match, **changes):
        with pytest.raises(InputError, match=match):
            read_findings(tmp_path, {**now, **changes})

    refused(r"tests\.npz: .* data: gallery 200 there, 50 here; take another", gallery=50)
    refused("data: data 'd' there, 'e' here; take another", data="e")
    refused(r"data: before\.steps 2 there, 3 here; take another", before={**plain, "steps": 3})
    refused(r"data: before \{'name': 'tiny'.* there, None here", before=None)
    others = {f"other{n}": n for n in range(12)}
    refused("other7 None there, 7 here; and 4 more; take another", **others)
    write_findings(tmp_path, {**now, "experiment": {**plain, "nonsense": 1}}, {})
    refused("data: experiment: .*nonsense.*; take another")


def test_tables_tell_where_fewer_seeds_than_the_studys_were_compared():
    three = {seed: {"test": found_of(0.9 - seed / 10)} for seed in range(3)}
    for seeds, told in ((3, ""), (2, " (2 seeds)"), (1, " (one seed: scenes only)")):
        fewer = {seed: {"test": found_of(0.5)} for seed in range(seeds)}
        text = markdown(STUDY, summarise(STUDY, {"good": three, "bad": fewer}))
        line = next(line for line in text.splitlines() if line.startswith("| row good | row bad |"))
        assert re.search(rf"p 0\.\d{{3}}{re.escape(told)} \|", line), line
    # Under conditions of a row it is told once, and where it is not so of all of them.
    text = markdown(STUDY, summarise(STUDY, TESTED))
    assert re.search(r"60\.0, -20\.0 \(-.* - -.*\) \(one seed: scenes only\) \|", text)
    found = {0: TESTED["good"][0]}
    text = markdown(STUDY, summarise(STUDY, {"good": found, "bad": {**found, 1: found[0]}}))
    assert re.search(
        r"\| row good \(one seed: scenes only\) \| 80.* 60\.0, -20\.0 \([^(]*\) \|", text
    )
    assert re.search(r"\| row bad \| 80.* 60\.0, -20\.0 \([^(]*\) \|", text)
    single = {row: {0: tests[0]} for row, tests in TESTED.items()}
    assert "p 0.001 (one seed: scenes only) |" in markdown(STUDY, summarise(STUDY, single))
