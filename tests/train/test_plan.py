"""Plans: the tiny experiment compiled for real, refusals and lines by hand, mistakes in words."""

import json
from dataclasses import fields, replace
from typing import Any

import jax
import pytest
from tiny import tiny_experiment
from towers_on_disk import TEXT, save_bert

from spatial_clap_jax.cli import main
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train import hlo, topology
from spatial_clap_jax.train import plan as planning
from spatial_clap_jax.train.chips import chip
from spatial_clap_jax.train.plan import Plan, plan, print_plan
from spatial_clap_jax.train.topology import devices_of

PROMISED = {
    "devices",
    "global_batch",
    "hbm_peak_bytes",
    "hbm_capacity_bytes",
    "fits",
    "flops_per_step",
    "bytes_per_step",
    "collectives",
    "step_seconds_bound",
    "bound_by",
    "mfu_bound",
}
CONFIG = "from tiny import tiny_experiment\n\ndef get_config(size):\n    return tiny_experiment()\n"
GIB = 2**30
# What XLA 0.0.42 says of a program that needs too much.
REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(23.28G) exceeds available HBM (15.75G)."
)


@pytest.fixture
def tpu() -> None:
    pytest.importorskip("libtpu", reason="XLA's compiler for TPUs is not installed (extra `tpu`)")


def compiled(batch: int, peak: float) -> planning._Compiled:
    parts = dict.fromkeys(("parameter_bytes", "average_bytes", "optimizer_bytes", "batch_bytes"), 1)
    return planning._Compiled(batch, parts, 4e12, 3e12, None, int(peak), 16 * GIB, seconds=1.0)


def test_a_plan_is_of_the_encoders_that_the_run_begins_with(tmp_path, monkeypatch):
    save_bert(tmp_path / "bert")
    planned = []

    def instead(experiment, mesh, batch, **_):
        planned.append(experiment.model)
        return compiled(batch, 4 * GIB)

    monkeypatch.setattr(planning, "_compile", instead)
    tiny = tiny_experiment()
    init = replace(tiny.init, text=str(tmp_path / "bert"))
    plan(replace(tiny, init=init), "cpu", 8, largest=False)
    assert tiny.model.text.mlp_width != TEXT.mlp_width
    assert planned[0].text.mlp_width == TEXT.mlp_width
    missing = replace(tiny.init, text=str(tmp_path / "none"))
    with pytest.raises(InputError, match="none"):
        plan(replace(tiny, init=missing), "cpu", 8, largest=False)


@pytest.mark.slow
def test_a_plan_for_this_machine(tmp_path, capsys):
    config = tmp_path / "tiny_config.py"
    config.write_text(CONFIG)
    main(["plan", str(config), "--topology", "cpu", "--global-batch", "4", "--json"])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert "compiling tiny, 4 captions a batch" in printed.err
    assert set(found) == {field.name for field in fields(Plan)} >= PROMISED
    devices = len(jax.devices("cpu"))
    assert found["devices"] == devices
    assert found["global_batch"] == 4
    # A weight has two moments; running statistics have none.
    assert (
        1.9 * found["parameter_bytes"] < found["optimizer_bytes"] <= 2.01 * found["parameter_bytes"]
    )
    experiment = tiny_experiment()
    audio = 4 * 4 * 2 * experiment.build_system().window_samples
    assert audio < found["batch_bytes"] * devices < 1.01 * audio
    named = (
        "parameter_bytes",
        "average_bytes",
        "optimizer_bytes",
        "batch_bytes",
        "temporary_bytes",
    )
    assert found["hbm_peak_bytes"] == sum(found[name] for name in named)
    assert found["flops_per_step"] == found["model_flops_per_step"] > 0
    assert found["bytes_per_step"] > found["hbm_peak_bytes"]
    # Of a CPU no peaks are known: nothing is said of time, nor of what fits.
    for unknown in ("hbm_capacity_bytes", "fits", "step_seconds_bound", "bound_by", "mfu_bound"):
        assert found[unknown] is None
    print_plan(Plan(**found))
    assert "cpu: peaks unknown; memory and counts only." in capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_for_a_tpu(tpu, capsys):
    found = plan(tiny_experiment(), "v5e:4x4", 64, largest=False, fast=True, progress=False)
    assert found.devices == 16
    assert found.device_kind == "TPU v5 lite"
    assert found.fits
    assert found.hbm_capacity_bytes == 15.75 * GIB
    assert found.seconds is not None
    assert found.collectives is not None
    assert found.collectives["all-reduce"] > 0.25 * found.parameter_bytes
    known = chip("TPU v5 lite")
    assert known is not None
    assert found.seconds["compute"] == found.flops_per_step / known.bf16_flops_per_s
    assert found.step_seconds_bound == max(found.seconds.values())
    assert found.bound_by in ("compute", "hbm", "interconnect")
    assert found.mfu_bound == found.seconds["compute"] / found.step_seconds_bound
    assert found.largest_batch is None
    print_plan(found)
    printed = capsys.readouterr().out
    assert "tiny on v5e:4x4: 16 x TPU v5 lite, 64 captions a batch" in printed
    assert f"bound by {found.bound_by}; model FLOPs utilisation is at most" in printed


@pytest.mark.parametrize(
    ("name", "devices", "slices"),
    [
        ("v4:4x4x4", 64, 1),
        ("v5e:1x1", 1, 1),
        ("v5e:16x16", 256, 1),
        ("v5p:4x4x4", 64, 1),
        ("v6e:16x16", 256, 1),
        ("tpu7x:2x2x1", 8, 1),
        ("v5e:4x4*2", 32, 2),
    ],
)
def test_slices_and_their_chips(tpu, name, devices, slices):
    found, count = devices_of(name)
    assert len(found) == devices
    assert count == slices
    # A v4 chip counts once, though it has two cores.
    assert chip(found[0].device_kind) is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9z:3x3", "--topology v9z:3x3: unknown; give GENERATION:SHAPE with one of v4, v5e"),
        ("v5e", "--topology v5e: unknown; give GENERATION:SHAPE"),
        ("v5e:4x", "--topology v5e:4x: unknown; give GENERATION:SHAPE"),
        ("v5e:5x7x9", "--topology v5e:5x7x9: has 3 sides, these slices have 2; give one like v5e"),
        ("v4:4x4", "--topology v4:4x4: has 2 sides, these slices have 3; give one like v4:4x4x4"),
        ("v5e:5x7", "--topology v5e:5x7: the first two sides must be even"),
        ("v5e:0x4", "--topology v5e:0x4: the first two sides must be even"),
        ("v6e:32x32", "at most 16 x 16 chips; give v6e:16x16, or several of them (v6e:16x16*2)"),
        (
            "v5e:4x4*0",
            "--topology v5e:4x4*0: 0 slices are too few; give 1 or more, like v5e:16x16*2.",
        ),
        ("gpu", "--topology gpu: JAX has no such device here"),
    ],
)
def test_what_is_no_topology(name, said):
    if name == "gpu" and jax.default_backend() == "gpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError) as error:
        devices_of(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_the_compiler(monkeypatch):
    def missing(*arguments, **options):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topology.topologies, "get_topology_desc", missing)
    with pytest.raises(InputError, match=r'pip install "spatial-clap-jax\[tpu\]"'):
        devices_of("v5e:4x4")


@pytest.mark.parametrize(("batch", "nearest"), [(0, 16), (65, 64), (7, 16)])
def test_a_batch_that_does_not_divide(tpu, batch, nearest):
    expected = f"--global-batch {batch}: is no multiple of the 16 chips of v5e:4x4; give {nearest}"
    with pytest.raises(InputError, match=expected):
        plan(tiny_experiment(), "v5e:4x4", batch)


@pytest.mark.parametrize(
    ("message", "needed", "given"),
    [
        (REFUSAL, 23.28, 15.75),
        ("XLA:TPU compile permanent error. Used 17.99G of 15.48G hbm. Exceeded", 17.99, 15.48),
        ("HLO temporaries (1536.0M) exceeds available HBM (1.00G).", 1.5, 1.0),
    ],
)
def test_how_much_a_refused_program_needs(message, needed, given):
    found = planning.refusal(jax.errors.JaxRuntimeError(message))
    assert found == (int(needed * GIB), int(given * GIB))


def test_another_error_is_not_taken_for_a_refusal():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        planning.refusal(error)


def test_a_refused_program_still_makes_a_plan(monkeypatch, capsys):
    def refuse(experiment, mesh, batch, **_):
        return compiled(batch, peak=(2 + 3 * batch) * GIB)

    monkeypatch.setattr(planning, "_compile", refuse)
    batch = 100 * len(jax.devices("cpu"))
    found = plan(tiny_experiment(), "cpu", batch)
    assert found.fits is False
    assert found.hbm_peak_bytes == (2 + 3 * batch) * GIB
    assert found.hbm_capacity_bytes == 16 * GIB
    assert found.temporary_bytes == found.hbm_peak_bytes - 4
    assert found.flops_per_step * found.devices == 4e12
    assert found.bytes_per_step is None
    assert found.largest_batch_from[0] == batch
    assert found.compile_seconds == 2.0
    print_plan(found)
    assert "It does not fit." in capsys.readouterr().out


@pytest.mark.parametrize(
    "program", [None, "ENTRY %m (p: f32[8]) -> f32[8] {\n  %r = f32[8]{0} fusion(%p)\n}\n"]
)
def test_a_program_that_cannot_be_read_still_makes_a_plan(monkeypatch, capsys, program):
    def compile_unread(experiment, mesh, batch, **_):
        return replace(compiled(batch, peak=GIB), capacity=None, program=program)

    monkeypatch.setattr(planning, "_compile", compile_unread)
    monkeypatch.setattr(planning, "_capacity", lambda mesh: 16 * GIB)
    found = plan(tiny_experiment(), "cpu", 16 * len(jax.devices("cpu")), largest=False)
    assert (found.fits, found.hbm_peak_bytes) == (True, GIB)
    assert (found.collectives, found.mfu_bound) == (None, None)
    print_plan(found)
    assert "Its program cannot be read: no traffic" in capsys.readouterr().out


def test_a_program_is_read_as_its_compiler_wrote_it(tmp_path):
    class Unread:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    unread: Any = Unread()
    assert planning._program_text(unread, tmp_path) is None
    for name, text in (("1.after_optimizations", "HloModule step"), ("2.after_codegen", "more")):
        (tmp_path / f"module_{name}.txt").write_text(text)
    assert planning._program_text(unread, tmp_path) == "HloModule step"


@pytest.mark.slow
def test_what_the_compiler_of_a_tpu_writes_is_what_jax_tells(tpu, monkeypatch):
    texts = []

    def both(executable, folder):
        assert len(list(folder.glob("*.after_optimizations.txt"))) == 1
        texts.extend((written(executable, folder), executable.as_text()))
        return texts[0]

    written = planning._program_text
    monkeypatch.setattr(planning, "_program_text", both)
    plan(tiny_experiment(), "v5e:4x4", 64, largest=False, fast=True, progress=False)
    ours, told = (hlo.parse(text) for text in texts)
    assert hlo.memory_bytes(ours) == hlo.memory_bytes(told) > 0
    assert hlo.collectives(ours, 16) == hlo.collectives(told, 16) != []


@pytest.mark.parametrize(
    ("units", "gib_a_unit", "second"),
    # Half as many; more than the fewest that there can be; as many as 16 GiB may hold.
    [(7, 1, 3), (1, 1, 2), (100, 4, 4)],
)
def test_the_second_batch(monkeypatch, units, gib_a_unit, second):
    tiny = tiny_experiment()
    tiny = replace(tiny, execution=replace(tiny.execution, micro_batches=4))
    # Pairs of captions in each of four parts on every device.
    unit = 2 * 4 * len(jax.devices("cpu"))

    def compile_nothing(experiment, mesh, batch, **_):
        return compiled(batch, peak=batch / unit * gib_a_unit * GIB)

    monkeypatch.setattr(planning, "_compile", compile_nothing)
    found = plan(tiny, "cpu", units * unit)
    assert found.largest_batch_from == [units * unit, second * unit]
    assert found.largest_batch == 16 // gib_a_unit * unit


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        # 2 GiB and 1 GiB for each 8 captions: 14 times 8 more fit into 16.
        ({8: 3, 16: 4}, 112),
        ({16: 4, 8: 3}, 112),
        # 20 GiB whatever the batch.
        ({8: 20.5, 16: 21}, 0),
        # No line that rises.
        ({8: 3, 16: 3}, None),
        ({8: 3}, None),
    ],
)
def test_the_largest_batch_by_hand(peaks, expected):
    steps = [compiled(batch, peak * GIB) for batch, peak in peaks.items()]
    assert planning._largest(steps, 8, 16 * GIB) == expected


def test_nothing_is_estimated_without_a_capacity():
    assert planning._largest([compiled(8, GIB), compiled(16, 2 * GIB)], 8, None) is None


def test_sizes_and_times_in_words():
    assert [planning._size(n) for n in (0, 1023, 2048, 1.5 * GIB, 5000 * GIB)] == [
        "0.00 B",
        "1,023.00 B",
        "2.00 KiB",
        "1.50 GiB",
        "5,000.00 GiB",
    ]
    assert [planning._duration(s) for s in (2.5, 0.0021, 3e-6)] == [
        "2,500.00 ms",
        "2.10 ms",
        "3.00 us",
    ]


def test_what_is_sent_over_an_unknown_network_takes_nobody_knows_how_long():
    known = chip("TPU v5 lite")
    assert known is not None
    inside, between = (
        planning.hlo.Collective("all-reduce", 8.0, 1e9, over) for over in (False, True)
    )
    unknown = replace(known, network_bytes_per_s=None)
    seconds = planning._exchange_seconds([inside], unknown)
    assert seconds == 1e9 / (known.interconnect_bytes_per_s / 2)
    assert planning._exchange_seconds([inside, between], unknown) is None
    assert planning._exchange_seconds([inside, between], known) is not None
