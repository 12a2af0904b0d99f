"""The description of a run: written whole, read back or refused."""

import os
from pathlib import Path

import jax
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.description import (
    has_description,
    read_description,
    write_atomically,
    write_description,
)


def test_description_round_trip_and_versions(tmp_path):
    write_description(tmp_path / "run", {"config": {"rate": 0.1}, "tokenizer": '{"größe": 1}'})
    description = read_description(tmp_path / "run")
    assert description["config"] == {"rate": 0.1}
    assert description["tokenizer"] == '{"größe": 1}'
    assert description["versions"]["jax"] == jax.__version__
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["description.json"]


def test_a_failed_write_keeps_the_old_description(tmp_path):
    write_description(tmp_path, {"rate": 1})
    with pytest.raises(TypeError):
        write_description(tmp_path, {"rate": object()})
    assert read_description(tmp_path)["rate"] == 1


def test_two_that_write_a_file_at_the_same_time_do_not_meet(tmp_path, monkeypatch):
    path, sync, begun = tmp_path / "note.json", os.fsync, []

    def other_meanwhile(file):
        if not begun:
            begun.append(file)
            write_atomically(path, "theirs")
        sync(file)

    monkeypatch.setattr(os, "fsync", other_meanwhile)
    write_atomically(path, "ours")
    assert begun
    assert path.read_text() == "ours"
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


def test_drafts_do_not_pile_up(tmp_path):
    """Those of kills an hour ago go, also of before drafts had names of their own."""
    drafts = [tmp_path / f".note.json{name}.partial" for name in ("", ".0123abcd", ".89ab4567")]
    others = [tmp_path / name for name in (".notes.json.partial", "note.json.partial")]
    for file in (*drafts, *others):
        file.write_text("{")
        os.utime(file, (0, 0))
    os.utime(drafts[2])
    write_atomically(tmp_path / "note.json", "{}")
    left = {file.name for file in (drafts[2], *others)}
    assert {file.name for file in tmp_path.iterdir()} == {"note.json", *left}
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", "{}")
    assert {file.name for file in tmp_path.iterdir()} == {"note.json", "folder", *left}


def test_bad_descriptions(tmp_path):
    with pytest.raises(InputError, match=r"description.json: no such file.*--workdir"):
        read_description(tmp_path)
    for text, message in (('{"config"', "not readable as JSON"), ("[]", "no JSON object")):
        (tmp_path / "description.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_description(tmp_path)


def test_a_folder_has_a_description_once_it_is_written(tmp_path):
    assert not has_description(tmp_path / "run")
    write_description(tmp_path / "run", {})
    assert has_description(tmp_path / "run")
    with pytest.raises(InputError, match="gs://bucket/run is no path of a file system"):
        has_description("gs://bucket/run")
    with pytest.raises(InputError, match="gs:/bucket/run is no path of a file system"):
        has_description(Path("gs://bucket/run"))


def test_names_that_are_no_utf8_are_written_and_read(tmp_path):
    # As Python reads the byte 0xFF in a path.
    description = {"experiment": {"data": "clips/\udcff.wav"}, "words": "ein Käuzchen"}
    write_description(tmp_path, description)
    found = read_description(tmp_path)
    assert {key: found[key] for key in description} == description
