"""Commands that work for long, over spoiled inputs: what was done before is not lost."""

import contextlib
import json
import shutil
import tempfile
import threading
import unittest.mock
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
from commands import captured, digest_of, run_command
from inputs import Kind, make_scenes

_MODEL = """
from dataclasses import replace

from tiny import tiny_experiment


def get_config(size):
    return replace(tiny_experiment(), steps=3, checkpoint_every=1)
"""
_STUDY = """
from tiny import tiny_experiment, tiny_recipe

from spatial_clap_jax.study import Row, Study


def get_config(size):
    row = Row("one", "one row", tiny_experiment())
    return Study("tiny", tiny_recipe(), (row,), showcase="one")
"""


@contextlib.contextmanager
def _elsewhere(folder: Path) -> Iterator[Path]:
    """A place for what a command writes, outside the user's folder."""
    out = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        yield out
    finally:
        shutil.rmtree(out)


def _make_for_train(folder: Path) -> None:
    make_scenes(folder)
    (folder / "model.py").write_text(_MODEL)


def _train(folder: Path) -> None:
    with _elsewhere(folder) as out:
        data = f"--data={folder / 'scenes'}"
        run_command(
            *(folder, "train", str(folder / "model.py"), data, f"--workdir={out / 'run'}"),
            tells=True,
        )


def _make_for_going_on(folder: Path) -> None:
    _make_for_train(folder)
    with captured():
        _go_on(folder)
    # As it was before its last step.
    shutil.rmtree(folder / "run" / "checkpoints" / "3")


def _go_on(folder: Path) -> None:
    from spatial_clap_jax.cli import main

    data, workdir = f"--data={folder / 'scenes'}", f"--workdir={folder / 'run'}"
    main(["train", str(folder / "model.py"), data, workdir])


def _train_on(folder: Path) -> None:
    """A run that is gone on with: what it holds may be added to and set aside, and is not lost."""
    from spatial_clap_jax.errors import InputError

    before, status = _saved(folder), 0
    with captured() as said:
        try:
            _go_on(folder)
        except SystemExit as exit:
            status = exit.code
    err = said[1].decode(errors="replace")
    assert "Traceback" not in err, err
    assert status in (0, 2), (status, err)
    lost = before - _saved(folder)
    assert not lost, lost
    if status:
        line = err.splitlines()[-1]
        assert line.startswith("spatial-clap: "), err
        raise InputError(line)


def _saved(folder: Path) -> set[str]:
    """All content in a run's checkpoints, wherever it stands, and what is known of the data."""
    files = digest_of(folder).items()
    kept = ("run/checkpoints/", "run/set_aside/")
    return {held for name, held in files if name.startswith(kept) or not name.startswith("run/")}


def _make_for_study(folder: Path) -> None:
    from tiny import tiny_experiment

    from spatial_clap_jax.data.builders import open_scenes
    from spatial_clap_jax.evaluate import Outcome
    from spatial_clap_jax.study import Row, run
    from spatial_clap_jax.study.outcomes import Findings, SceneMap, write_findings

    make_scenes(folder)
    (folder / "study.py").write_text(_STUDY)
    rng = np.random.default_rng(0)
    names = ("direction/1", "content/1", "assignment/2", "t2a_r1/1")
    outcomes = {name: Outcome(rng.random(6) < 0.5, np.arange(6), 0.5) for name in names}
    shown = SceneMap(rng.random((6, 3), np.float32), np.arange(6) % 5, ["dog", "rain"] * 3)
    tested = {"test": Findings(outcomes, np.eye(5, dtype=int), shown)}
    row = Row("one", "one row", tiny_experiment())
    # Of a training that was there.
    identity = run._identity(row, 0, open_scenes(folder / "scenes"), gallery=200)
    write_findings(folder / "study" / "runs" / "one" / "seed0", identity, tested)
    _study(folder)


def _study(folder: Path) -> None:
    options = (f"--data={folder / 'scenes'}", f"--workdir={folder / 'study'}", "--seeds=1")
    run_command(folder, "study", str(folder / "study.py"), *options, tells=True)


_RECIPE = """
import dataclasses

from tiny import tiny_recipe

from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts


def get_config(size):
    return dataclasses.replace(
        tiny_recipe(),
        receiver=Foa(),
        rooms=FloorRanges(t30_s=(0.2, 0.6)),
        response_s=0.5,
        room_counts=RoomCounts(1, 1, 1),
        group_counts=GroupCounts(2, *[0] * 8, train_k0=1),
    )
"""


def _make_for_rewrite(folder: Path) -> None:
    (folder / "recipe.py").write_text(_RECIPE)
    options = ("--sources=synthetic", f"--out={folder / 'scenes'}", "--workers=1")
    run_command(folder, "render", str(folder / "recipe.py"), *options, tells=True)
    choice = {"message": {"role": "assistant", "content": "A dog barks on the left, far away."}}
    (folder / "answer.json").write_text(json.dumps({"choices": [choice]}))
    _rewrite(folder)
    (folder / "scenes" / "rewritten.jsonl").unlink()


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[tuple[str, ...]]:
    """Options for a server that gives answer.json to whatever it is asked."""
    body = (folder / "answer.json").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"--url=http://127.0.0.1:{server.server_port}/v1"
    try:
        # Waits between attempts are not what is tried here.
        with unittest.mock.patch("time.sleep"):
            yield url, "--model=tiny", f"--cache={folder / 'answers'}", "--variants=2"
    finally:
        server.shutdown()
        server.server_close()


def _rewrite(folder: Path) -> None:
    from spatial_clap_jax.data.rewritten import read_rewrites

    with _served(folder) as options:
        run_command(folder, "rewrite", str(folder / "scenes"), *options, tells=True)
    # What it wrote can be read.
    read_rewrites(folder / "scenes")


LONG_KINDS: tuple[Kind, ...] = (
    Kind("command train", _make_for_train, _train, ("scenes/*",), 3),
    Kind("command train, going on", _make_for_going_on, _train_on, ("run/**/*",), 6),
    Kind("command study", _make_for_study, _study, ("study/**/*.*", "scenes/*.json"), 3),
    Kind("command rewrite", _make_for_rewrite, _rewrite, ("answer.json", "answers/*/*"), 8),
    Kind("command rewrite, its scenes", _make_for_rewrite, _rewrite, ("scenes/*",), 4),
)
