"""Memory that is freed stays with a process that asked for it."""

import subprocess
import sys

import pytest

from spatial_clap_jax.train.host_memory import keep_freed_memory

# The pages that a large array faults in, the first time and once it was freed.
FAULTS = """
import resource, sys
import numpy as np
from spatial_clap_jax.train.host_memory import keep_freed_memory

kept = keep_freed_memory() if "keep" in sys.argv else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults(), faults())
"""


def faults_of(*arguments: str) -> tuple[bool, int, int]:
    command = [sys.executable, "-c", FAULTS, *arguments]
    kept, first, again = subprocess.check_output(command, text=True).split()
    return kept == "True", int(first), int(again)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_freed_memory_is_used_again_without_a_page_fault():
    kept, first, again = faults_of("keep")
    if not kept:
        pytest.skip("no glibc here")
    # NumPy's own allocations ask for huge pages too, so the first counts tell little.
    assert first > 0
    assert again < 10
    _, _, given_back = faults_of()
    assert given_back > again + 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
