"""Benchmarks: the comparison they share by a clock made up, and that each of them runs."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def side_by_side():
    spec = importlib.util.spec_from_file_location("side_by_side", FOLDER / "side_by_side.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look up their annotations.
    sys.modules["side_by_side"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["side_by_side"]


class Clock:
    """Stands still but for what the sides take: seconds of their calls, one after the other."""

    def __init__(self):
        self.now, self.calls = 100.0, []

    def side(self, name, *seconds):
        left = list(seconds)

        def call():
            self.calls.append(name)
            self.now += left.pop(0)

        return call


def test_sides_alternate_after_the_warmups_and_each_pair_has_its_ratio(side_by_side):
    clock = Clock()
    ours, peer = clock.side("ours", 50, 1, 2, 6), clock.side("peer", 50, 4, 4, 4)
    found = side_by_side.compare(
        ours,
        peer,
        3,
        name="work",
        peer_name="theirs",
        before=clock.side("before", *[7] * 6),
        clock=lambda: clock.now,
    )
    assert clock.calls == ["ours", "peer", *["before", "ours", "before", "peer"] * 3]
    assert found.ours == side_by_side.Spread(1, 2, 6)
    assert found.peer == side_by_side.Spread(4, 4, 4)
    assert found.ratio == side_by_side.Spread(0.25, 0.5, 1.5)
    assert found.unit == "s"


def test_an_untimed_call_of_its_own_side_comes_right_before_each_timed_one(side_by_side):
    clock = Clock()
    ours, peer = clock.side("ours", 50, 9, 1, 9, 2), clock.side("peer", 50, 9, 4, 9, 4)
    found = side_by_side.compare(
        ours, peer, 2, untimed=1, name="work", peer_name="theirs", clock=lambda: clock.now
    )
    assert clock.calls == ["ours", "peer", *["ours", "ours", "peer", "peer"] * 2]
    assert (found.ours.min, found.ours.max, found.peer.max) == (1, 2, 4)


def test_a_timed_call_waits_until_threads_of_the_one_before_rest(side_by_side):
    begins, left = [], []

    def spins_on():
        """Returns at once and leaves a thread at work, as BLAS and OpenMP do."""

        def spin():
            end = time.perf_counter() + 0.2
            while time.perf_counter() < end:
                pass
            left.append(time.perf_counter())

        threading.Thread(target=spin).start()

    side_by_side.compare(
        spins_on,
        lambda: begins.append(time.perf_counter()),
        1,
        warmups=0,
        name="work",
        peer_name="theirs",
    )
    assert begins[0] > left[0]


def test_a_rate_is_above_one_where_ours_is_faster(side_by_side):
    clock = Clock()
    ours, peer = clock.side("ours", 1, 2), clock.side("peer", 4, 4)
    settings = {"name": "work", "peer_name": "theirs", "unit": "clips/s"}
    found = side_by_side.compare(ours, peer, 1, 0, amount=8, clock=lambda: clock.now, **settings)
    assert (found.ours.median, found.peer.median, found.ratio.median) == (8, 2, 4)
    # Where the peer does less in a call, it is the rates that are compared.
    found = side_by_side.compare(
        ours, peer, 1, 0, amount=8, peer_amount=2, clock=lambda: clock.now, **settings
    )
    assert (found.ours.median, found.peer.median, found.ratio.median) == (4, 0.5, 8)


def test_a_table_and_a_line_of_json_tell_the_same(side_by_side, capsys):
    spread = side_by_side.Spread
    found = side_by_side.Comparison(
        "work", "theirs", spread(1, 2, 3), spread(4, 5, 6), spread(0.25, 0.375, 0.5), "s"
    )
    side_by_side.report([found, found], {"batch": 4}, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == lines[1]
    assert lines[0]["ratio"] == {"min": 0.25, "median": 0.375, "max": 0.5}
    assert (lines[0]["unit"], lines[0]["batch"]) == ("s", 4)
    assert {"cpu", "cores", "load_average_at_start", "versions"} <= lines[0]["machine"].keys()
    side_by_side.report([found], {"batch": 4}, as_json=False)
    table = capsys.readouterr().out
    for told in ("work: ours beside theirs", "0.375", "batch 4", "python"):
        assert told in table


def run(script, *options):
    """The lines that a benchmark prints as JSON, of one timed call of each side."""
    return told(script, *options, "--repeats", "1")


def told(script, *options):
    """The lines that a script prints as JSON."""
    return [json.loads(line) for line in printed(script, *options, "--json").splitlines()]


def printed(script, *options):
    """What a script prints."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *options],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_compared(line, unit):
    assert line["unit"] == unit
    assert line["machine"]["versions"]
    for side in ("ours", "peer", "ratio"):
        assert 0 < line[side]["min"] <= line[side]["median"] <= line[side]["max"]


def test_front_end_runs():
    lines = run("front_end.py", "--clips", "1", "--seconds", "0.5")
    assert lines[0]["peer_name"] == "librosa"
    assert len(lines) == (2 if importlib.util.find_spec("torch") else 1)
    for line in lines:
        assert_compared(line, "s")


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="the peer is PyTorch's loader")
def test_input_runs():
    scenes = ("--singles", "2", "--mixtures", "7")
    (line,) = run("input.py", "--workers", "0", "--batches", "1", "--settle-s", "0", *scenes)
    assert_compared(line, "clips/s")


def test_seld_runs():
    (line,) = run("seld.py", "--size", "quickstart", "--clips", "1")
    assert_compared(line, "s of sound/s")


def test_masking_runs():
    lines = run("masking.py", "--size", "quickstart", "--batch", "2")
    assert [line["peer_name"] for line in lines] == ["all patches", "no masks"]
    for line in lines:
        assert_compared(line, "s")
    # The text encoder, which trains along, is no cheaper.
    assert 0.3 < lines[0]["flops_ratio_all_patches"] < 0.7
    # Target and predictor, which is as wide as the encoder here, cost more than the masks save.
    assert 1.01 < lines[1]["flops_ratio_no_masks"] < 1.2


def test_render_runs():
    options = ("--singles", "1", "--mixtures", "1", "--peer-scenes", "2", "--duration-s", "0.5")
    (line,) = run("render.py", *options)
    assert_compared(line, "scenes/s")
    assert line["scenes_of_ours"] == 3


def test_loss_runs():
    small, large = run("loss.py", "--pairs", "64", "20480", "--width", "8")
    assert_compared(small, "s")
    assert small["temp_bytes"] > 0
    # All pairs of as many would take more than is worth it: ours is measured alone.
    assert (large["peer"], large["ratio"], large["pairs"]) == (None, None, 20480)
    assert 0 < large["ours"]["min"] <= large["ours"]["max"]
    assert large["temp_bytes"] < large["resident_bytes"] < large["peer_temp_bytes"]


@pytest.fixture
def tpu():
    pytest.importorskip("libtpu", reason="XLA's compiler for TPUs is not installed (extra `tpu`)")


def test_loss_for_chips_that_are_not_here(tpu):
    (line,) = told("loss.py", "--topology", "v5e:2x2", "--pairs", "2048", "--width", "64")
    assert_compared(line, "bytes of temporaries")
    for side, key in (("ours", "temp_bytes"), ("peer", "peer_temp_bytes")):
        assert line[side] == dict.fromkeys(("min", "median", "max"), line[key])
    assert line["ratio"]["median"] == line["temp_bytes"] / line["peer_temp_bytes"]


def test_dense_needs_more_than_a_chip_has(tpu):
    """The compiler refuses it, and says how much it would take."""
    (line,) = told("loss.py", "--topology", "v5e:2x2", "--pairs", "65536", "--width", "64")
    assert line["temp_bytes"] < 150e6
    assert line["peer_temp_bytes"] > 15.75 * 2**30


def test_a_chip_of_256_holds_the_pairs_of_a_quarter_of_a_million(tpu):
    (line,) = told(
        *("loss.py", "--topology", "v5e:16x16", "--pairs", "262144", "--width", "512"),
        "--no-with-dense",
    )
    assert line["devices"] == 256
    assert 0 < line["ours"]["max"] == line["temp_bytes"] <= 150e6
    assert (line["peer"], line["ratio"], line["peer_temp_bytes"]) == (None, None, None)


@pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")),
    reason="the peer is ClapModel in PyTorch",
)
def test_step_runs():
    (line,) = run("step.py", "--batch", "1", "--layers", "1", "--seconds", "1", "--tokens", "8")
    assert_compared(line, "s")
    assert line["clips_per_s"] == pytest.approx(1 / line["ours"]["median"])
    assert line["gflops_per_step"] > 1
    assert line["peer_tf32"] == importlib.import_module("torch").cuda.is_available()


def test_scaling_runs():
    lines = told("scaling.py", "--devices", "1", "2", "--captions-per-device", "64")
    assert [line["devices"] for line in lines] == [1, 2]
    for line in lines:
        assert_compared(line, "bytes of temporaries")
    one, two = lines
    assert one["ours_collectives"] == {}
    # Gradients, and the ring: rows stay where they are, heads of attention included.
    assert two["ours_collectives"].keys() == {"all-reduce", "collective-permute"}
    # The dense loss gathers; that the step counts hits round the ring is all that it passes there.
    passed = [two[f"{side}_collectives"]["collective-permute"] for side in ("ours", "peer")]
    assert passed[0] > 2 * passed[1]
    assert two["peer_collectives"]["all-gather"] > 0
    assert two["ours_flops_per_device"] == pytest.approx(one["ours_flops_per_device"], rel=0.01)


@pytest.mark.parametrize(
    "command",
    [
        ("scaling.py", "--devices", "1", "--captions-per-device", "16"),
        ("throughput.py", "--size", "quickstart", "--batches", "4", "--repeats", "1"),
        ("loss.py", "--pairs", "20480", "--width", "8", "--repeats", "1"),
    ],
)
def test_figures_without_a_comparison_tell_of_the_machine_too(command):
    told_of = printed(*command).replace("\n", " ")
    for word in ("cores_used", "load_average_at_start", "jax 0."):
        assert word in told_of


def test_throughput_runs():
    lines = run("throughput.py", "--size", "quickstart", "--batches", "4", "8")
    assert [line["batch"] for line in lines] == [4, 8]
    for line in lines:
        assert line["clips_per_s"]["median"] > 0
        assert line["flops_per_step"] == line["model_flops_per_step"] > 0
        # Of a CPU no peak is known.
        assert line["mfu"] is None
        assert line["bytes"] > 0
    assert lines[1]["flops_per_step"] == pytest.approx(2 * lines[0]["flops_per_step"], rel=0.05)


def test_text_positions_runs():
    lines = told("text_positions.py", "--positions", "sided", "--steps", "2")
    told_by = [(line["positions"], line["projected"]) for line in lines]
    assert told_by == [("sided", "text"), ("sided", "tokens")]
    for line in lines:
        assert list(line["two"]) == ["2"]
        # Nobody learns to read in two steps.
        assert 0.4 < line["two"]["2"] < 0.6
        assert 0.05 < line["three"] < 0.35
