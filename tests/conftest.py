"""Session fixtures; this folder is on the path, for `import fakes` and `import tiny`."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Compiling is most of the time of the tests; it takes half as long where LLVM optimises nothing.
# Before anything of JAX, and inherited by the processes that tests start.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

# Tests compile the same small steps over and over, in several processes: each of them once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)

import pytest
from absl import flags
from jaxtyping import install_import_hook

# Shapes and types in signatures are checked at run time where arrays are computed.
CHECKED = (
    *("acoustics", "features", "intensity", "stereo_features", "windows", "losses", "metrics"),
)
install_import_hook([f"spatial_clap_jax.{part}" for part in CHECKED], "beartype.beartype")

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags.


def _is_whole(config: pytest.Config) -> bool:
    """Whether no file was named; what somebody works on runs whole, and in this process."""
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def pytest_configure(config: pytest.Config) -> None:
    """A bare `pytest` takes minutes; what is slow is asked for."""
    if _is_whole(config) and not (config.option.markexpr or config.option.keyword):
        config.option.markexpr = "not slow"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core for the whole suite."""
    return len(os.sched_getaffinity(0)) if _is_whole(config) else 0


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of half a second from the synthetic bank, for whole small runs."""
    from tiny import tiny_recipe

    from spatial_clap_jax.data.builders import render_scenes

    out = tmp_path_factory.mktemp("tiny") / "scenes"
    render_scenes(tiny_recipe(), "synthetic", out, workers=1, progress=False)
    return out
