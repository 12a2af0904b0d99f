"""Where a run comes from."""

import json
import subprocess
import sys

from spatial_clap_jax.train import provenance


def test_every_start_leaves_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["spatial-clap", "train", "configs/mine.py"])
    provenance.note_start(tmp_path, 0, [])
    provenance.note_start(tmp_path, 40, ["seed 0 there, 1 here"], ["keep 3 there, 5 here"])
    rows = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [row["from_step"] for row in rows] == [0, 40]
    assert rows[1]["accepted"] == ["seed 0 there, 1 here"]
    assert [row["changed"] for row in rows] == [[], ["keep 3 there, 5 here"]]
    assert rows[0]["command"] == ["spatial-clap", "train", "configs/mine.py"]
    assert {"time", "folder", "commit", "host", "processes", "devices", "versions"} < set(rows[0])
    assert rows[0]["versions"]["jax"]
    assert {"numpy", "grain", "tokenizers", "array-record"} < set(rows[0]["versions"])


def test_a_torn_last_line_takes_no_other_one_with_it(tmp_path):
    (tmp_path / "starts.jsonl").write_text('{"from_step": 0}\n{"from_st', "utf-8")
    provenance.note_start(tmp_path, 40, [])
    provenance.note_start(tmp_path, 60, [])
    lines = (tmp_path / "starts.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"from_step": 0}', '{"from_st']
    assert [json.loads(line)["from_step"] for line in lines[2:]] == [40, 60]


def test_a_folder_whose_name_is_no_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["spatial-clap", "train", "--workdir", "runs/\udcff"])
    provenance.note_start(tmp_path, 0, [])
    assert json.loads((tmp_path / "starts.jsonl").read_bytes())["command"][-1] == "runs/\udcff"


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
    )


def test_the_commit_says_whether_something_was_changed(tmp_path, monkeypatch):
    file = tmp_path / "package" / "train" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.source_commit() is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = provenance.source_commit()
    assert commit is not None
    assert len(commit) == 40
    file.write_text("2")
    assert provenance.source_commit() == f"{commit}-changed"
