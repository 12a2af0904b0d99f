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
        self._groups, self._change = groups, change
        self._count = min(count, len(groups))

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
      counts: groups to see of each split that is seen.
      change: of a group.
    """

    scenes: Scenes
    counts: dict[str, int]
    change: Callable[[SceneGroup], SceneGroup]

    @property
    def splits(self) -> Collection[str]:
        return [split for split in self.counts if split in self.scenes.splits]

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
    if sources is not None and not Path(data).exists():
        return render_scenes(study.scenes, sources, data, progress=progress)
    return open_scenes(data)


def open_conditions(
    study: Study,
    scenes: SceneData,
    folder: Path,
    sources: str | None,
    progress: bool = True,
) -> tuple[dict[str, Scenes], list[str]]:
    """The test scenes as they are, the first of them again, and under every condition of a study.

    Args:
      study: says the conditions.
      scenes: the data.
      folder: where scenes of conditions that are rendered anew lie, or will.
      sources: the clips that the data were rendered from.
      progress: show progress bars.

    Returns:
      Scenes by name of condition, and the names of those that can neither be found nor rendered;
      rooms that were measured cannot be rendered otherwise.

    Raises:
      InputError: the sources are not those of the data.
    """
    opened: dict[str, Scenes] = {PLAIN: scenes}
    if study.conditions:
        opened[UNCHANGED] = changed(None, scenes, study.singles, study.pairs)
    held_source = scenes.manifest["source"]["fingerprint"]
    if sources is not None:
        options = from_plain(SceneRecipe, scenes.manifest["recipe"]).sources
        if open_source(sources, options).fingerprint() != held_source:
            raise InputError(
                f"--sources {sources}: {scenes.data_dir} was rendered from other clips; give the "
                "csv that it was rendered from, with the same audio beside it."
            )
    missing = []
    for condition in study.conditions:
        if not isinstance(condition, Rendered):
            opened[condition.name] = changed(condition, scenes, study.singles, study.pairs)
            continue
        if scenes.manifest.get("rirs") is not None:
            missing.append(condition.name)
            continue
        out = folder / condition.name
        recipe = from_plain(SceneRecipe, scenes.manifest["recipe"])
        recipe = condition.recipe(recipe, study.singles, study.pairs)
        if sources is not None:
            # Scenes that are there already are left as they are, others refused.
            rendered = render_scenes(recipe, sources, out, progress=progress)
        elif out.exists():
            rendered = open_scenes(out)
        else:
            missing.append(condition.name)
            continue
        held = from_plain(SceneRecipe, rendered.manifest["recipe"])
        if held != recipe or rendered.manifest["source"]["fingerprint"] != held_source:
            raise InputError(
                f"{out}: rendered by another recipe, or from other clips than the data; remove it, "
                "and give as --sources the clips that the data were rendered from."
            )
        opened[condition.name] = rendered
    return opened, missing


def changed(condition: Condition | None, scenes: Scenes, singles: int, pairs: int) -> ChangedScenes:
    """The first test scenes as they are (None), or under a condition that needs no rendering."""
    counts = {"test_k1": singles, "test_k2": pairs}
    if condition is None:
        return ChangedScenes(scenes, counts, lambda group: group)
    if isinstance(condition, Noise):
        snr_db = condition.snr_db
        return ChangedScenes(scenes, counts, lambda group: noisy(group, snr_db))
    assert isinstance(condition, Phrases)
    phrases = condition.phrases
    return ChangedScenes(scenes, counts, lambda group: rephrase(group, phrases))
