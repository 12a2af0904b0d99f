"""Where `spatial-clap` begins: a training hears signals before anything heavy is imported."""

import sys

from spatial_clap_jax.streams import keep_standard_files_open
from spatial_clap_jax.train.environment import names_others
from spatial_clap_jax.train.host_memory import keep_freed_memory
from spatial_clap_jax.train.interruption import Interruption


def main() -> None:
    """Runs the command line."""
    keep_standard_files_open()
    if sys.argv[1:2] == ["train"]:
        # First, as it comes before threads, and listening starts one.
        keep_freed_memory()
        # Left with the process: there is no moment at which a signal is another's.
        Interruption(exits=not names_others()).__enter__()
    from spatial_clap_jax import cli

    cli.main()


if __name__ == "__main__":
    main()
