"""Rendering: a recipe and dry sounds become a folder of clips in the form of DCASE 2025 Task 3."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spatial_clap_jax.acoustics.foa_rirs import simulate_foa_room
from spatial_clap_jax.data import material
from spatial_clap_jax.data.dcase import (
    AUDIO,
    LABELS,
    MANIFEST,
    SAMPLE_RATE_HZ,
    VIDEO,
    Clips,
    open_clips,
    read_clips_manifest,
    write_checksums,
)
from spatial_clap_jax.data.event_tables import write_predictions
from spatial_clap_jax.data.manifests import digest, recipe_as_json, versions
from spatial_clap_jax.data.seld_drawing import draw_clip
from spatial_clap_jax.data.seld_pictures import paint_clip
from spatial_clap_jax.data.seld_recipe import ClipCounts, PictureOptions, SeldRecipe
from spatial_clap_jax.data.sources import Source, open_source
from spatial_clap_jax.data.staging import is_free, put, refuse_other, staging
from spatial_clap_jax.data.video import write_video
from spatial_clap_jax.data.workers import WorkerPool
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.shown import printable

__all__ = ["ClipCounts", "PictureOptions", "SeldRecipe", "render_clips"]

FORMAT = 1
# Groups by split; their names are what tells the split to every reader.
_GROUPS = {split: f"dev-{split}-rendered" for split in ("train", "validation", "test")}


@dataclasses.dataclass(frozen=True)
class _Rendering:
    """One clip to be drawn and written, as it is sent to a worker."""

    recipe: SeldRecipe
    sources: str
    classes: tuple[str, ...]
    material: Path
    out: Path
    split: str
    index: int

    def __call__(self) -> int:
        """Writes the clip's files; returns how many sources it has."""
        drawn_from = material.open_material(self.material, self.sources, self.recipe.sources)
        clip = draw_clip(self.recipe, drawn_from, self.classes, self.split, self.index)
        path = functools.partial(self._path, f"{self.split}_{self.index:06d}")
        soundfile.write(path(AUDIO, ".wav"), clip.audio.T, SAMPLE_RATE_HZ, subtype="PCM_16")
        write_predictions(path(LABELS, ".csv"), clip.events())
        if (video := self.recipe.video) is not None:
            pictures = paint_clip(clip, len(self.classes), video, self.recipe.duration_s)
            write_video(path(VIDEO, ".mp4"), pictures, video.rate_hz)
        return len(clip.placed)

    def _path(self, name: str, kind: str, ending: str) -> Path:
        return self.out / kind / _GROUPS[self.split] / f"{name}{ending}"


def render_clips(
    recipe: SeldRecipe,
    sources: str,
    out: str | Path,
    workers: int | None = None,
    progress: bool = True,
) -> Clips:
    """Render all clips of a recipe into a folder.

    The folder appears when it is whole: rendering goes on in a hidden folder beside it, which
    is renamed at the end and removed after an error.

    Args:
      recipe: what to render.
      sources: a csv of dry sounds with categories, the classes, or 'synthetic'.
      out: the folder to make. One that holds the same clips already is left as it is.
      workers: processes that render; None: one for each core. The result does not depend on it.
      progress: show progress bars on stderr.

    Returns:
      The opened folder.

    Raises:
      InputError: `out` holds something else, a source cannot be used or has no categories, more
        than 5 % of its clips are bad, a split lacks sounds, or PyAV is missing where video is asked
        for.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} must be at least 1; leave it out for all cores.")
    if sources != "synthetic":
        sources = os.path.abspath(sources)
    source = open_source(sources, recipe.sources)
    identity = {
        "recipe": recipe_as_json(recipe),
        "source": {"name": source.name, "fingerprint": source.fingerprint()},
    }
    out = Path(os.path.realpath(out))

    def holds_the_same() -> bool:
        if is_free(out, MANIFEST, "set of clips"):
            return False
        refuse_other(out, read_clips_manifest(out), identity)
        return True

    if holds_the_same():
        if progress:
            line = f"{out}: holds these clips already; nothing to do."
            print(printable(line), file=sys.stderr)
        return open_clips(out)
    with staging(out) as folder, WorkerPool(workers or os.cpu_count() or 1, progress) as pool:
        skipped = material.check_clips(pool, source, sources, recipe.sources, SAMPLE_RATE_HZ)
        classes = _classes(source, skipped)
        _make_rooms(pool, recipe, folder)
        material.store_material(folder, skipped, dataclasses.asdict(recipe.room_counts))
        whole = folder / "clips"
        kinds = (AUDIO, LABELS) if recipe.video is None else (AUDIO, LABELS, VIDEO)
        for path in (whole / kind / _GROUPS[split] for kind in kinds for split in recipe.splits()):
            path.mkdir(parents=True)
        renderings = [
            _Rendering(recipe, sources, classes, folder, whole, split, index)
            for split, count in recipe.splits().items()
            for index in range(count)
        ]
        counts = collections.Counter(pool.run(renderings, "clips rendered", len(renderings)))
        manifest = {
            "format": FORMAT,
            "classes": classes,
            **identity,
            "fingerprint": digest(identity),
            "versions": versions(),
            "clips": recipe.splits(),
            "clips_by_sources": {str(number): counts[number] for number in sorted(counts)},
            "skipped_clips": skipped,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (whole / MANIFEST).write_text(text, encoding="utf-8")
        write_checksums(whole)
        put(whole, out, holds_the_same)
    return open_clips(out)


def _classes(source: Source, skipped: dict[str, str]) -> tuple[str, ...]:
    """Categories of the usable dry sounds, sorted."""
    usable = [clip for clip in source.clips if clip.clip_id not in skipped]
    without = [clip.clip_id for clip in usable if not clip.category]
    if without:
        raise InputError(
            f"{source.name}: {len(without)} clips have no category, such as {without[0]!r}; clips "
            "of sound events need the class of each: fill the column 'category'."
        )
    return tuple(sorted({clip.category for clip in usable}))


def _make_rooms(pool: WorkerPool, recipe: SeldRecipe, folder: Path) -> None:
    counts = {split: getattr(recipe.room_counts, split) for split in recipe.splits()}
    simulations = []
    for split, count in counts.items():
        path = folder / "rooms" / split
        path.mkdir(parents=True)
        simulations += [
            functools.partial(_store_room, recipe, path, split, index) for index in range(count)
        ]
    for _ in pool.run(simulations, "rooms simulated", len(simulations)):
        pass


def _store_room(recipe: SeldRecipe, folder: Path, split: str, index: int) -> None:
    """Simulates and writes a room: the same wherever it is done."""
    seed: Any = (recipe.seed, zlib.crc32(f"seld rooms {split}".encode()), index)
    room = simulate_foa_room(
        np.random.SeedSequence(seed),
        recipe.rooms,
        recipe.receiver,
        recipe.places_per_room,
        SAMPLE_RATE_HZ,
        f"{split}_{index:05d}",
        recipe.distance_range_m,
        recipe.elevation_range_deg,
        recipe.response_s,
        recipe.high_pass_hz,
    )
    material.store_room(folder, index, room)
