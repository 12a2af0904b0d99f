"""Rates of a training, by a clock that the test sets."""

import threading

import pytest

from spatial_clap_jax.train import progress
from spatial_clap_jax.train.progress import TrainProgress, waiting_hint


def test_rates_are_since_the_last_call(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    bar = TrainProgress(10, clips_per_step=8, show=False)
    bar.advance(1)
    bar.advance(2)
    now[0] = 0.5
    bar.waited(since=0.0)
    now[0] = 4.0
    assert bar.rates() == {"clips_per_s": 4.0, "data_wait_share": 0.125}
    bar.advance(3)
    now[0] = 5.0
    assert bar.rates() == {"clips_per_s": 8.0, "data_wait_share": 0.0}


def test_waiting_while_the_devices_work_costs_nothing(monkeypatch):
    class Results:
        """Stands for arrays that are there when they are let go."""

        def __init__(self):
            self.let_go = threading.Event()

        def block_until_ready(self):
            assert self.let_go.wait(10)

    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with TrainProgress(10, clips_per_step=8, show=False) as bar:
        bar.advance(1)
        first = Results()
        bar.at_work(first)
        now[0] = 2.0
        # A batch that took two seconds, and the step is not done yet.
        bar.waited(since=0.0)
        now[0] = 4.0
        assert bar.rates()["data_wait_share"] == 0.0
        now[0] = 5.0
        first.let_go.set()
        assert bar._step is not None
        bar._step.result(10)
        now[0] = 8.0
        # One that took four, the last three of them with nothing to do.
        bar.waited(since=4.0)
        assert bar.rates()["data_wait_share"] == 0.75


def test_a_known_peak_gives_the_share_of_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    bar = TrainProgress(10, clips_per_step=8, show=False)
    now[0] = 60.0
    # Compilation is over: time counts from here.
    bar.started(3e12, 2.4e12, 12e12, "fast")
    bar.advance(1)
    now[0] = 61.0
    rates = bar.rates()
    assert (rates["flops_per_s"], rates["mfu"], rates["clips_per_s"]) == (3e12, 0.2, 8.0)
    bar.started(3e12, 3e12, None, "slow")
    bar.advance(2)
    now[0] = 62.0
    assert "mfu" not in bar.rates()


def test_a_peak_that_is_unknown_is_said(capsys):
    with TrainProgress(4, clips_per_step=8) as bar:
        bar.started(2e9, 2e9, None, "cpu")
        bar.show(1, {"loss": 1.0, "clips_per_s": 8.0, "flops_per_s": 2e9})
    assert "2 GFLOP/s (unknown peak of cpu)" in capsys.readouterr().err


def test_waiting_is_explained_once_until_it_is_over(capsys, monkeypatch):
    monkeypatch.setattr(progress.os, "cpu_count", lambda: 16)
    row = {"loss": 1.0, "clips_per_s": 8.0}
    with TrainProgress(9, clips_per_step=8) as bar:
        for step, share in enumerate((0.05, 0.3, 0.4, 0.02, 0.2), 1):
            bar.show(step, {**row, "data_wait_share": share})
    said = capsys.readouterr().err
    assert said.count("of the time for data: batches are built in this process") == 2
    assert (
        "waits 30% of the time for data: batches are built in this process; try --data.workers 8"
        in said
    )
    assert "waits 2% for data" not in said


@pytest.mark.parametrize(
    ("workers", "cores", "said"),
    [
        (0, 2, "share 2 cores"),
        (0, 12, "--data.workers 6"),
        (4, 16, "--data.workers 8"),
        (8, 8, "faster disk, or train on more hosts"),
    ],
)
def test_hints(workers, cores, said):
    assert said in waiting_hint(0.5, workers, cores)


def test_without_a_terminal_it_prints_lines(capsys):
    with TrainProgress(4, clips_per_step=8) as bar:
        bar.show(2, {"loss": 1.25, "clips_per_s": 16.0, "assignment": 0.5})
    assert capsys.readouterr().err.split() == (
        ["step", "2/4", "loss", "1.250", "16", "clips/s", "assignment", "0.50", "1", "s", "left"]
    )


def test_a_name_is_shown_as_it_is(capsys):
    with TrainProgress(4, clips_per_step=8) as bar:
        bar.announce("runs/:warning:/[b]a: from step 0")
    assert capsys.readouterr().err == "runs/:warning:/[b]a: from step 0\n"


def test_it_can_be_silent(capsys):
    with TrainProgress(4, clips_per_step=8, show=False) as bar:
        bar.announce("hello")
        bar.show(2, {"loss": 1.0, "clips_per_s": 1.0})
    assert capsys.readouterr() == ("", "")


def test_no_terminal_obeys_a_name_out_of_data(capsys):
    bar = TrainProgress(10, clips_per_step=8)
    bar.announce("step 3:  \x1b[2J\x1b]0;title\x07 a\nb cannot be read")
    assert capsys.readouterr().err == ("step 3:  \\x1b[2J\\x1b]0;title\\x07 a\\nb cannot be read\n")
