"""Session fixtures; this folder is on the path, for `import fakes` and `import tiny`."""

import os
from pathlib import Path

# Compiling is most of the time of the tests; it takes half as long where LLVM optimises nothing.
# Before anything of JAX, and inherited by the processes that tests start.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

import pytest
from absl import flags
from jaxtyping import install_import_hook

# Shapes and types in signatures are checked at run time where arrays are computed.
CHECKED = ("acoustics", "features", "windows", "losses", "metrics")
install_import_hook([f"spatial_clap_jax.{part}" for part in CHECKED], "beartype.beartype")

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags.


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of half a second from the synthetic bank, for whole small runs."""
    from tiny import tiny_recipe

    from spatial_clap_jax.data.builders import render_scenes

    out = tmp_path_factory.mktemp("tiny") / "scenes"
    render_scenes(tiny_recipe(), "synthetic", out, workers=1, progress=False)
    return out
