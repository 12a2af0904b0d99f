"""What the environment says of the other processes of a training; imported in no time."""

import os

# Host:port of process 0, how many there are, and which one this is, from 0.
BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Set to 'auto', JAX asks whatever started the processes.
AUTOMATIC = "SPATIAL_CLAP_PROCESSES"
# How long the others are waited for.
PATIENCE = "SPATIAL_CLAP_JOIN_TIMEOUT_S"


def names_others() -> bool:
    """Whether others may wait for this process: the environment speaks of several."""
    return bool(os.environ.get(AUTOMATIC)) or os.environ.get(BY_HAND[1], "1") != "1"
