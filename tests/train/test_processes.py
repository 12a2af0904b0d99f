"""How a process learns of the others."""

import jax
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.processes import join_processes

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SPATIAL_CLAP_PROCESSES")
PATIENCE = "SPATIAL_CLAP_JOIN_TIMEOUT_S"


@pytest.fixture
def joined(monkeypatch):
    """Arguments of `jax.distributed.initialize`, which is not called."""
    for name in (*NAMES, PATIENCE):
        monkeypatch.delenv(name, raising=False)
    calls: list[dict] = []

    def initialize(*, initialization_timeout: int, **given):
        # JAX would end the process then, with a trace of C++.
        assert initialization_timeout > 3600
        calls.append(given)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_alone_nothing_is_joined(joined):
    assert not join_processes()
    assert joined == []


def test_the_environment_tells_all(joined, monkeypatch):
    for name, value in zip(NAMES, ("10.0.0.1:1234", "4", "3"), strict=False):
        monkeypatch.setenv(name, value)
    join_processes()
    told = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    # Nor is Slurm asked, which would give each of them one GPU.
    assert joined == [told | {"cluster_detection_method": "deactivate"}]


def test_the_cluster_is_asked(joined, monkeypatch):
    monkeypatch.setenv("SPATIAL_CLAP_PROCESSES", "auto")
    join_processes()
    untold = ("coordinator_address", "num_processes", "process_id", "cluster_detection_method")
    assert joined == [dict.fromkeys(untold)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1"},
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID: not set, but JAX_COORDINATOR_ADDRESS is; set all",
        ),
        *(
            (
                {"SPATIAL_CLAP_PROCESSES": "auto", "SPATIAL_CLAP_JOIN_TIMEOUT_S": value},
                f"SPATIAL_CLAP_JOIN_TIMEOUT_S: '{value}' is no number of seconds above 0; set it",
            )
            for value in ("soon", "0", "nan", "inf", "-3")
        ),
        (
            {"SPATIAL_CLAP_PROCESSES": "4"},
            "SPATIAL_CLAP_PROCESSES: '4' is unknown; set it",
        ),
        (
            dict(zip(NAMES, ("a:1", "two", "0"), strict=False)),
            "JAX_NUM_PROCESSES: 'two' is no number",
        ),
        (
            dict(zip(NAMES, ("a:1", "2", "\u00b2"), strict=False)),
            "JAX_PROCESS_ID: '\u00b2' is no number",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(joined, monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        join_processes()
    assert joined == []


def test_what_jax_cannot_use_is_told(joined, monkeypatch):
    monkeypatch.setenv("SPATIAL_CLAP_PROCESSES", "auto")

    def fails(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(InputError, match=r"cannot join the training \(coordinator_addr.*launch/"):
        join_processes()
