"""Rates of a training, by a clock that the test sets."""

from spatial_clap_jax.train import progress
from spatial_clap_jax.train.progress import TrainProgress


def test_rates_are_since_the_last_call(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    bar = TrainProgress(10, clips_per_step=8, show=False)
    bar.advance(1)
    bar.advance(2)
    bar.waited(0.5)
    now[0] = 4.0
    assert bar.rates() == {"clips_per_s": 4.0, "data_wait_share": 0.125}
    bar.advance(3)
    now[0] = 5.0
    assert bar.rates() == {"clips_per_s": 8.0, "data_wait_share": 0.0}


def test_without_a_terminal_it_prints_lines(capsys):
    with TrainProgress(4, clips_per_step=8) as bar:
        bar.show(2, {"loss": 1.25, "clips_per_s": 16.0, "assignment": 0.5})
    assert capsys.readouterr().err.split() == (
        ["step", "2/4", "loss", "1.250", "16", "clips/s", "assignment", "0.50", "1", "s", "left"]
    )


def test_it_can_be_silent(capsys):
    with TrainProgress(4, clips_per_step=8, show=False) as bar:
        bar.announce("hello")
        bar.show(2, {"loss": 1.0, "clips_per_s": 1.0})
    assert capsys.readouterr() == ("", "")
