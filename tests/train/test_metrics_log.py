"""The log of a run reads the same whether or not the run was interrupted."""

import contextlib
import json
import math
import resource
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.appended_lines import AppendedLines
from spatial_clap_jax.train.metrics_log import MetricsLog, read_metrics


def write_steps(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.write(step, {"loss": 1 / step})


def test_rows_are_on_disk_at_once_and_plain_json(tmp_path):
    log = MetricsLog(tmp_path / "run")
    log.write(3, {"loss": jnp.float32(0.5), "rate": np.float64(0.25), "clips": np.int64(7)})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "loss": 0.5, "rate": 0.25, "clips": 7}\n'
    log.close()


def test_nan_and_infinity_survive_and_the_file_stays_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": math.nan, "norm": -math.inf})
    log.close()
    refuse = pytest.fail
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"])
    assert row["norm"] == -math.inf


def test_a_resumed_log_equals_a_straight_one(tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    log = MetricsLog(straight)
    write_steps(log, range(1, 9))
    log.close()
    log = MetricsLog(cut)
    write_steps(log, range(1, 7))
    log.close()
    # The process died while it wrote the row of step 7; its checkpoint is of step 4.
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert [row["step"] for row in read_metrics(cut)] == [1, 2, 3, 4, 5, 6]
    log = MetricsLog(cut, resume_step=4)
    write_steps(log, range(5, 9))
    log.close()
    assert (cut / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_a_torn_line_is_repaired_when_no_row_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"st')
    log = MetricsLog(tmp_path, resume_step=1)
    log.write(2, {"loss": 1})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1}]


def test_starting_anew_drops_all_rows(tmp_path):
    log = MetricsLog(tmp_path)
    write_steps(log, range(1, 4))
    log.close()
    MetricsLog(tmp_path).close()
    assert read_metrics(tmp_path) == []


def read_events(folder) -> list[Event]:
    """TensorBoard's records: length, its checksum, the event, its checksum."""
    paths = sorted(folder.glob("events.*"))
    return [event for path in paths for event in events_of(path.read_bytes())]


def events_of(data: bytes) -> list[Event]:
    """The records of one file."""
    events = []
    while data:
        length = int.from_bytes(data[:8], "little")
        record, check = data[12 : 12 + length], data[12 + length : 16 + length]
        assert int.from_bytes(check, "little") == masked_crc32c(record)
        events.append(Event.FromString(record))
        data = data[16 + length :]
    return events


def test_tensorboard_has_the_scalars_and_the_step_to_purge_from(tmp_path):
    log = MetricsLog(tmp_path, resume_step=4)
    log.write(5, {"train/loss": 0.5})
    log.close()
    events = read_events(tmp_path / "tensorboard")
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [5]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(5, "train/loss", 0.5)]


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Every write past a size fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_that_a_full_disk_refused_follow_with_the_next_one(tmp_path):
    log = MetricsLog(tmp_path)
    write_steps(log, range(1, 4))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with files_of_at_most(size + 5):
        # As many as would fill a queue, if there were one.
        for step in range(4, 30):
            with pytest.raises(OSError, match=r"File too large|No space left"):
                log.write(step, {"loss": 1 / step})
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
    log.write(30, {"loss": 1 / 30})
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 31))
    last = max((tmp_path / "tensorboard").glob("events.*"), key=lambda path: path.stat().st_mtime)
    steps = [e.step for e in events_of(last.read_bytes()) if e.summary.value]
    assert steps == list(range(steps[0], 31))
    assert steps[0] <= 4


@pytest.mark.parametrize("killed", ["at once", "after the next row", "before the first"])
def test_rows_that_wait_are_kept_by_a_kill_after_a_save(tmp_path, monkeypatch, killed):
    """The disk was full for the row of step 4, and had room for the checkpoint of step 4."""
    straight = MetricsLog(tmp_path / "straight")
    write_steps(straight, range(1, 9))
    straight.close()
    log = MetricsLog(tmp_path / "cut")
    write_steps(log, range(1, 4))
    with monkeypatch.context() as patch:
        patch.setattr(AppendedLines, "flush", full)
        with pytest.raises(OSError, match="No space left"):
            write_steps(log, range(4, 5))
        waiting = json.loads(json.dumps(log.waiting))
    assert len(waiting) == 1
    if killed == "after the next row":
        write_steps(log, range(5, 6))
    elif killed == "before the first":
        (tmp_path / "cut" / "metrics.jsonl").unlink()
    log = MetricsLog(tmp_path / "cut", resume_step=4, waiting=waiting)
    assert log.waiting == []
    write_steps(log, range(5, 9))
    log.close()
    found, wanted = read_metrics(tmp_path / "cut"), read_metrics(tmp_path / "straight")
    assert found == (wanted[3:] if killed == "before the first" else wanted)
    # TensorBoard's newest file has all that waited, and counts from there on.
    last = max((tmp_path / "cut" / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime)
    events = events_of(last.read_bytes())
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [4]
    assert [e.step for e in events if e.summary.value] == [4, 5, 6, 7, 8]


def full(*_):
    raise OSError(28, "No space left on device")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = MetricsLog(tmp_path / "run")
    log.write(1, {"loss": 1})
    log.close()
    assert not (tmp_path / "run").exists()


def test_wandb_gets_rows_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append((step, row)), finish=lambda: calls.append("finish")
    )

    def init(**options):
        calls.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        log = MetricsLog(tmp_path / "run", wandb=True)
        log.write(1, {"loss": 2.0})
        log.close()
    first, row, finish, second = calls[:4]
    assert (row, finish) == ((1, {"loss": 2.0}), "finish")
    assert first == second
    assert first["resume"] == "allow"
    assert first["name"] == "run"


@pytest.mark.parametrize("content", [b"", b"a b", b"\xff\xfe", b"../other", b"x" * 65])
def test_a_damaged_id_of_wandb_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=None))
    (tmp_path / "wandb_id.txt").write_bytes(content)
    with pytest.raises(
        InputError, match=r"wandb_id\.txt: (holds no id|cannot be read).* remove it"
    ):
        MetricsLog(tmp_path, wandb=True)
    assert (tmp_path / "wandb_id.txt").read_bytes() == content


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install "spatial-clap-jax\[wandb\]"'):
        MetricsLog(tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()


def test_bad_logs(tmp_path):
    with pytest.raises(InputError, match=r"metrics.jsonl: no such file; give the --workdir"):
        read_metrics(tmp_path)
    for line in ('{"step": 1', "[1]", '{"loss": 1}'):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        with pytest.raises(InputError, match=r"metrics.jsonl: line 2 is no metrics row"):
            read_metrics(tmp_path)
