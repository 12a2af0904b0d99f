import json

import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.scores import measure_of, score_of, write_results

RESULTS = {"direction/1": score_of(np.array([True, False, True]), np.arange(3), 0.2)}


def test_a_score_is_plain_json(tmp_path):
    write_results(RESULTS, tmp_path / "new" / "results.json")
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert found == RESULTS
    assert found["direction/1"]["value"] == pytest.approx(2 / 3)
    assert found["direction/1"]["n"] == 3
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["results.json"]


def test_older_results_are_replaced(tmp_path):
    path = tmp_path / "results.json"
    write_results({"content/1": RESULTS["direction/1"]}, path)
    before = path.read_text()
    (tmp_path / "kept.json").hardlink_to(path)
    write_results(RESULTS, path)
    assert json.loads(path.read_text()) == RESULTS
    # A new file took the name: whoever reads the old one never sees half of the new one.
    assert (tmp_path / "kept.json").read_text() == before


@pytest.mark.parametrize("text", ["", "notes", "{}", "[1]", '{"a": 1}', '{"a": {"value": 1}}'])
def test_another_file_is_never_replaced(tmp_path, text):
    path = tmp_path / "thesis.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"thesis\.json: exists and is not a file of results"):
        write_results(RESULTS, path)
    assert path.read_text() == text


def test_unwritable_places_are_named(tmp_path):
    with pytest.raises(InputError, match="exists and is not a file of results"):
        write_results(RESULTS, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(.*\); give a path"):
        write_results(RESULTS, tmp_path / "file" / "results.json")


def test_a_failed_write_leaves_the_old_results(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(RESULTS, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_results({"content/1": RESULTS["direction/1"]}, path)
    assert json.loads(path.read_text()) == RESULTS
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_measure_is_a_score_of_the_same_fields(tmp_path):
    values = np.array([1.0, 2.0, 3.0, 10.0])
    mean, median = measure_of(values, 90.0), measure_of(values, 80.0, np.median)
    assert (mean["value"], mean["chance"], mean["n"]) == (4.0, 90.0, 4)
    assert (median["value"], median["chance"]) == (2.5, 80.0)
    assert 1.0 <= mean["low"] < 4.0 < mean["high"] <= 10.0
    path = tmp_path / "results.json"
    write_results({"angular_error_deg/1": mean}, path)
    write_results({**RESULTS, "angular_error_deg/1": mean}, path)
    assert json.loads(path.read_text())["angular_error_deg/1"] == mean
