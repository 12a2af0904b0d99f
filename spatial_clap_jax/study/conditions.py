"""Test scenes under each condition of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from spatial_clap_jax.acoustics.noise import with_noise
from spatial_clap_jax.acoustics.render import quantise_jointly
from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.pipeline import Scenes
from spatial_clap_jax.data.records import SceneData
from spatial_clap_jax.data.scenes import SceneGroup, SceneRecipe
from spatial_clap_jax.data.sources import open_source
from spatial_clap_jax.data.transforms import rephrase
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.study.spec import (
    PLAIN,
    UNCHANGED,
    Condition,
    Noise,
    Phrases,
    Rendered,
    Study,
)


class _ChangedGroups(Sequence[SceneGroup]):
    """The first groups of a split, each changed when it is read."""

    def __init__(
        self,
        groups: Sequence[SceneGroup],
        count: int,
        change: Callable[[SceneGroup], SceneGroup],
    ):
        self._groups, self._count, self._change = groups, count, change

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> SceneGroup:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._change(self._groups[index % self._count])


@dataclasses.dataclass(frozen=True)
class ChangedScenes:
    """Opened scenes of which some splits are seen, shortened and changed; nothing is written.

    Attributes:
      scenes: the data.
      counts: groups to see of each split that is seen; no more than it has.
      change: of a group.
    """

    scenes: Scenes
    counts: dict[str, int]
    change: Callable[[SceneGroup], SceneGroup]

    @property
    def splits(self) -> Collection[str]:
        """Names of the splits that are seen."""
        return list(self.counts)

    def source(self, split: str) -> Sequence[SceneGroup]:
        """The groups of a split, changed."""
        return _ChangedGroups(self.scenes.source(split), self.counts[split], self.change)


def noisy(group: SceneGroup, snr_db: float) -> SceneGroup:
    """A group in noise that is drawn by the group's own seed."""
    rng = np.random.default_rng([group.seed, 1])
    audio, scale = quantise_jointly(with_noise(group.waveforms(), snr_db, rng))
    return dataclasses.replace(group, audio=audio, scale=float(np.float32(scale)))


def open_data(
    study: Study, data: str | Path, sources: str | None, progress: bool = True
) -> SceneData:
    """The scenes of a study, rendered first where there are none.

    Args:
      study: says the recipe.
      data: folder of scenes, of this or another recipe.
      sources: clips to render from where the folder is missing.
      progress: show progress bars.

    Raises:
      InputError: the folder is missing and so are the sources, or it cannot be used.
    """
    if not Path(data).exists():
        if sources is None:
            raise InputError(
                f"--data {data}: no such folder; give one that `render` wrote, or the clips as "
                "--sources to have it rendered."
            )
        return render_scenes(study.scenes, sources, data, progress=progress)
    return open_scenes(data)


def open_conditions(
    study: Study,
    scenes: SceneData,
    folder: Path,
    sources: str | None,
    progress: bool = True,
) -> tuple[dict[str, Scenes], dict[str, str]]:
    """The test scenes as they are, the first of them again, and under every condition of a study.

    Args:
      study: says the conditions; held to the scenes (`Study.held_to`).
      scenes: the data.
      folder: where scenes of conditions that are rendered anew lie, or will.
      sources: the clips that the data were rendered from.
      progress: show progress bars.

    Returns:
      Scenes by name of condition; and of those that can neither be found nor rendered, why.

    Raises:
      InputError: the sources are not those of the data.
    """
    if sources is not None:
        options = from_plain(SceneRecipe, scenes.manifest["recipe"]).sources
        if open_source(sources, options).fingerprint() != _clips_of(scenes):
            raise InputError(
                f"--sources {sources}: {scenes.data_dir} was rendered from other clips; give the "
                "csv that it was rendered from, with the same audio beside it."
            )
    opened: dict[str, Scenes] = {PLAIN: scenes}
    if not (study.singles or study.pairs):
        reason = "the data have no test scenes of one source or of two"
        return opened, {condition.name: reason for condition in study.conditions}
    if study.conditions:
        opened[UNCHANGED] = changed(None, scenes, study.singles, study.pairs)
    missing: dict[str, str] = {}
    for condition in study.conditions:
        name, out = condition.name, folder / condition.name
        if not isinstance(condition, Rendered):
            opened[name] = changed(condition, scenes, study.singles, study.pairs)
        elif reason := _unrenderable(condition, scenes):
            missing[name] = reason
        elif sources is None and not out.exists():
            missing[name] = "its scenes are not there, and --sources would render them"
        else:
            opened[name] = _rendered(condition, study, scenes, out, sources, progress)
    return opened, missing


def _clips_of(scenes: SceneData) -> str:
    return scenes.manifest["source"]["fingerprint"]


def _unrenderable(condition: Rendered, scenes: SceneData) -> str:
    """Why the clips of the data cannot be rendered under a condition; empty where they can."""
    if scenes.manifest.get("rirs") is not None:
        return "the rooms of the data were measured, and no others can be rendered for them"
    recipe = from_plain(SceneRecipe, scenes.manifest["recipe"])
    if besides := condition.changes_besides(recipe.rooms):
        return f"the rooms of the data have {' and '.join(besides)} of their own, which it changes"
    return ""


def _rendered(
    condition: Rendered,
    study: Study,
    scenes: SceneData,
    out: Path,
    sources: str | None,
    progress: bool,
) -> SceneData:
    """The scenes of a condition in a folder, rendered first where they are not there."""
    recipe = from_plain(SceneRecipe, scenes.manifest["recipe"])
    recipe = condition.recipe(recipe, study.singles, study.pairs)
    if sources is not None:
        # Scenes that are there already are left as they are, others refused.
        return render_scenes(recipe, sources, out, progress=progress)
    rendered = open_scenes(out)
    held = from_plain(SceneRecipe, rendered.manifest["recipe"])
    if held != recipe or _clips_of(rendered) != _clips_of(scenes):
        raise InputError(
            f"{out}: rendered by another recipe, or from other clips than the data; remove it, "
            "and give as --sources the clips that the data were rendered from."
        )
    return rendered


def changed(condition: Condition | None, scenes: Scenes, singles: int, pairs: int) -> ChangedScenes:
    """The first test scenes as they are (None), or under a condition that needs no rendering.

    Args:
      condition: what is done to them.
      scenes: the data.
      singles: scenes of one source, no more than there are.
      pairs: of two.
    """
    counts = {split: n for split, n in (("test_k1", singles), ("test_k2", pairs)) if n}
    if condition is None:
        return ChangedScenes(scenes, counts, lambda group: group)
    if isinstance(condition, Noise):
        snr_db = condition.snr_db
        return ChangedScenes(scenes, counts, lambda group: noisy(group, snr_db))
    assert isinstance(condition, Phrases)
    phrases = condition.phrases
    return ChangedScenes(scenes, counts, lambda group: rephrase(group, phrases))
