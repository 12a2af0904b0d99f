"""Peaks of accelerators: published figures, and nothing said of what is unknown."""

import pytest

from spatial_clap_jax.train.chips import _CHIPS, chip


def test_a_published_chip():
    found = chip("TPU v5 lite")
    assert found is not None
    # Google Cloud's table of v5e, and 15.75 of its 16 GiB, which is what XLA lets a program have.
    assert found.bf16_flops_per_s == 197e12
    assert found.hbm_bytes == 15.75 * 2**30
    assert found.hbm_bytes_per_s == 819e9
    assert found.interconnect_bytes_per_s == 400e9
    # 6.4 Tbit/s a pod of 256 chips.
    assert found.network_bytes_per_s == 6.4e12 / 256 / 8


@pytest.mark.parametrize(("short", "name"), [("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")])
def test_two_names_of_one_chip(short, name):
    assert chip(short) == chip(name)


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA GeForce RTX 4090", "TPU v99"])
def test_what_is_unknown_is_none(kind):
    assert chip(kind) is None


@pytest.mark.parametrize("kind", _CHIPS)
def test_figures_make_sense(kind):
    found = _CHIPS[kind]
    # A step of a tensor core in bfloat16 is no slower than in float32.
    assert found.bf16_flops_per_s >= found.float32_flops_per_s > 1e13
    # Wires get slower with their length.
    assert found.bf16_flops_per_s > found.hbm_bytes_per_s > found.interconnect_bytes_per_s
    if found.network_bytes_per_s is not None:
        assert found.interconnect_bytes_per_s > found.network_bytes_per_s
    # All of main memory can be read many times a second.
    assert 5 < found.hbm_bytes_per_s / found.hbm_bytes < 100
