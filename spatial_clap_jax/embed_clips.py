"""What frozen towers hear and see in clips, once for all trainings: `spatial-clap embed`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float32

from spatial_clap_jax import features
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.data.tower_cache import TowerCache, write_tower_cache
from spatial_clap_jax.embed_sentences import progress_bar
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.object_detection import object_detector
from spatial_clap_jax.pretrained.mapping import nested, weights_digest
from spatial_clap_jax.pretrained.owl_vit import find_owl_vit, read_owl_vit
from spatial_clap_jax.pretrained.towers import inside
from spatial_clap_jax.stored import flatten, read_trained
from spatial_clap_jax.systems.base import Variables, in_use
from spatial_clap_jax.systems.content import (
    ContentConfig,
    content_encoder,
    frame_step_s,
    frames_of_audio,
)

# Pictures of a clip that are looked at where nobody says how many: of 5 s, one every half second.
PICTURES = 10


@dataclass(frozen=True, eq=False)
class FrozenTower:
    """A tower as a function of a clip.

    Attributes:
      digest: tells it, and how it is asked, from others.
      step_s: seconds from one moment to the next.
      embed: features [moments, width] of left and right [2, t] where it hears, or
        [pictures, columns, width] of the clip's pictures [pictures, y, x, 3] where it looks.
    """

    digest: str
    step_s: float
    embed: Callable[[Any], Float32[np.ndarray, "..."]]


def embed_clips(
    source: str | Path,
    clips: str | Path,
    out: str | Path,
    pictures: int | None = None,
    progress: bool = True,
) -> TowerCache:
    """Runs a frozen tower over all clips once; goes on where it stopped.

    Args:
      source: a run or an export with a content encoder, which hears the mean of both channels at
        every moment; or a converted OWL-ViT, which looks at pictures.
      clips: a folder in DCASE form, with labels or without.
      out: folder to write; one that holds these very features is left as it is.
      pictures: of a clip that an OWL-ViT looks at, `PICTURES` where None.
      progress: show a progress bar (on standard error).

    Returns:
      The opened folder: features [moments, width], or [pictures, columns, width], by clip.

    Raises:
      InputError: no tower, no clips, no video to look at, pictures for a tower that hears, or
        `out` holds something else.
    """
    opened = open_clips(clips, needs_labels=False)
    looks = find_owl_vit(source) is not None
    if not looks and pictures is not None:
        raise InputError(
            f"--frames {pictures}: {source} hears, and is no OWL-ViT that `convert` wrote; leave "
            "it out."
        )
    names = [name for split in opened.splits.values() for name in split]
    if not names:
        raise InputError(f"{clips}: holds no clips; give a folder with some.")
    count = PICTURES if pictures is None else pictures
    if looks:
        tower = looking_tower(source, count, opened.duration_s)
    else:
        tower = hearing_tower(source, opened.sample_rate_hz)

    def embed(name: str) -> Float32[np.ndarray, "..."]:
        return tower.embed(opened.frames(name, count) if looks else opened.audio(name))

    with progress_bar(progress) as bar:
        task = bar.add_task("clips", total=len(names))
        return write_tower_cache(
            out,
            names,
            embed,
            source=Path(source).expanduser().name,
            tower=tower.digest,
            fingerprint=opened.fingerprint,
            shape=embed(names[0]).shape,
            step_s=tower.step_s,
            done=lambda count: bar.update(task, completed=count),
        )


def hearing_tower(source: str | Path, sample_rate_hz: int) -> FrozenTower:
    """The content encoder of a trained model, at every moment of the mean of both channels.

    Args:
      source: folder of a run or of an export.
      sample_rate_hz: of the audio.

    Raises:
      InputError: it holds no model, or one without a content encoder.
    """
    trained = read_trained(source)
    system = trained.audio_text
    model = cast(Any, system).config
    content: ContentConfig | None = getattr(model, "content", None)
    if content is None:
        raise InputError(
            f"{source}: {type(model).__name__} has no content encoder; give a CLAP of any kind."
        )
    # M2D-CLAP, whose one encoder is the content's, calls them by shorter names.
    mel: LogMelConfig = getattr(model, "content_mel", None) or model.mel
    normalisation = getattr(model, "content_normalisation", getattr(model, "normalisation", None))
    arrays = inside(flatten(in_use(trained.variables)), "content")
    encoder = content_encoder(content, "float32")

    @jax.jit
    def run(variables: Variables, audio: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            mono = features.resample(audio.mean(axis=0), sample_rate_hz, mel.sample_rate_hz)
            frames, _ = frames_of_audio(
                encoder.bind(variables),
                mono[None],
                mel,
                normalisation,
                window_s=model.window_s,
                padding=system.padding,
            )
            return frames[0]

    # What an HTSAT is given windows of, and a ViT inputs.
    window: tuple[Any, ...] | None = None
    if isinstance(content, HtsatConfig):
        window = (model.window_s, system.padding)
    elif isinstance(content, VitConfig):
        window = ("inputs", content.frames)
    described = (to_plain(content), to_plain(mel), normalisation, window)
    heard = partial(run, jax.device_put(nested(arrays)))
    return FrozenTower(
        digest=weights_digest(arrays, repr(described)),
        step_s=frame_step_s(content, mel, model.window_s),
        embed=lambda audio: np.asarray(heard(audio), np.float32),
    )


def looking_tower(source: str | Path, pictures: int, duration_s: float) -> FrozenTower:
    """An OWL-ViT's merged map of some pictures of a clip, the mean of each column.

    How far left or right something stands is kept, how high is not.

    Args:
      source: a folder that `convert` made of an OWL-ViT.
      pictures: of each clip, evenly spread over it; of any size, so best as they are in the video,
        since an OWL-ViT is defined by its own way of resizing them.
      duration_s: of a clip.

    Raises:
      InputError: no OWL-ViT, or no picture asked for.

    Reference: the mean over rows is our choice.
    """
    if pictures < 1:
        raise InputError(f"--frames {pictures}; give 1 or more.")
    weights = read_owl_vit(source)
    detector = object_detector(weights)
    image = {path: array for path, array in weights.arrays.items() if "/image/" in path}

    described = (to_plain(weights.config.image), pictures, "bicubic")
    return FrozenTower(
        digest=weights_digest(image, repr(described)),
        step_s=duration_s / pictures,
        embed=lambda frames: detector.merged_maps(frames).mean(axis=1),
    )
