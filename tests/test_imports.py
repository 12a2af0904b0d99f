"""The data's way is one direction: a file imports only what stands before it."""

import ast
from pathlib import Path

import pytest

import spatial_clap_jax

PACKAGE = Path(spatial_clap_jax.__file__).parent
ORDER = (
    "errors",
    "shown",
    "streams",
    "small_files",
    "configs_io",
    "shapes",
    "acoustics",
    "data",
    "features",
    "intensity",
    "stereo_features",
    "windows",
    "models",
    "pretrained",
    "losses",
    "systems",
    "train",
    "metrics",
    "seld_tracks",
    "key_points",
    "evaluate",
    "report",
    "stored",
    "embedding_files",
    "scene_embeddings",
    "text_embeddings",
    "object_detection",
    "inference",
    "embed_sentences",
    "embed_clips",
    "event_locator",
    "event_report",
    "evaluate_events",
    "validation",
    "folders",
    "event_export",
    "model_card",
    "export",
    "convert",
    "quickstart",
    "study",
    "arguments",
    "mistakes",
    "commands",
    "cli",
    "__main__",
)
FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if PACKAGE / "configs" not in path.parents and path != PACKAGE / "__init__.py"
)


def imported_parts(path: Path) -> set[str]:
    """First names below the package that a file imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "spatial_clap_jax":
            parts |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "spatial_clap_jax."
        ):
            parts.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("spatial_clap_jax.")
            }
    return parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in ORDER, f"{own} has no place in the data's way"
    later = {part for part in imported_parts(path) if ORDER.index(part) > ORDER.index(own)}
    assert not later, f"{path.name} imports {later}, which comes after {own}"


@pytest.mark.parametrize("folder", ["acoustics", "data"])
def test_host_code_does_not_import_jax(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        assert not names & {"jax", "flax", "optax", "orbax"}, path.name
