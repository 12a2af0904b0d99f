"""Simple video of a drawn clip: sources on screen as shapes at their places, and distractors.

A shape is shown from the first to the last label frame in which its source sounds, not before or
after: so a picture tells what sounds, and a network can learn to look from few clips. Shape and
colour tell the class, size the distance.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from spatial_clap_jax.acoustics.stereo_view import HORIZONTAL_FIELD_DEG, picture_position
from spatial_clap_jax.data.seld_drawing import PlacedEvent, SeldClip
from spatial_clap_jax.data.seld_recipe import PictureOptions
from spatial_clap_jax.data.sound_events import LABEL_STEP_S

_Plane = Float[np.ndarray, "height width"]
# Whether a point (across, down), in units of the shape's half size, is inside of it.
_SHAPES: tuple[Callable[[_Plane, _Plane], Bool[np.ndarray, "height width"]], ...] = (
    lambda x, y: np.hypot(x, y) <= 1,
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.85,
    lambda x, y: (np.abs(x) <= (y + 1) / 2) & (y <= 1),
    lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x, y) >= 0.5),
    lambda x, y: np.abs(x) + np.abs(y) <= 1,
)
# Half of the smallest shape, in pixels.
_LEAST_PX = 2.0
_NOISE = 3.0


def paint_clip(
    clip: SeldClip, classes: int, options: PictureOptions, duration_s: float
) -> UInt8[np.ndarray, "n height width 3"]:
    """All pictures of a clip; a pure function of its arguments.

    Args:
      clip: the sources and where they are.
      classes: how many classes share the colours.
      options: size and rate of the video.
      duration_s: of the clip.

    Returns:
      RGB: a background of blurred patches with grey shapes that stay, and each on-screen source,
      near ones over far ones, at the place where a pinhole camera shows it.

    Reference: our choice.
    """
    rng = np.random.default_rng((clip.seed, 1))
    background = _background(options, rng)
    shown = [event for event in clip.placed if event.on_screen]
    shown.sort(key=lambda event: -event.distance_m)
    count = round(duration_s * options.rate_hz)
    # The label frame in which a picture is taken.
    labels = ((np.arange(count) + 0.5) / options.rate_hz / LABEL_STEP_S).astype(np.int64)
    pictures = np.empty((count, options.height, options.width, 3), np.uint8)
    painted: dict[tuple[bool, ...], np.ndarray] = {}
    for number, label in enumerate(labels.tolist()):
        seen = tuple(_extends_over(event, label) for event in shown)
        if seen not in painted:
            picture = background.copy()
            for event in (event for event, is_seen in zip(shown, seen, strict=True) if is_seen):
                _paint_source(picture, event, classes, options)
            painted[seen] = picture
        # A sensor's noise: no two pictures are the same.
        noise = rng.standard_normal(pictures.shape[1:3], np.float32)[..., None] * _NOISE
        pictures[number] = np.clip(painted[seen] + noise, 0, 255)
    return pictures


def class_colour(category: int, classes: int) -> Float32[np.ndarray, "3"]:
    """The colour of a class, RGB in 0..255; hues are spread evenly."""
    return np.array(colorsys.hsv_to_rgb(category / classes, 0.9, 0.95), np.float32) * 255


def source_half_px(distance_m: float, options: PictureOptions) -> float:
    """Half of the size of a source's shape, in pixels, through a pinhole."""
    focal_px = options.width / 2 / math.tan(math.radians(HORIZONTAL_FIELD_DEG / 2))
    return max(_LEAST_PX, focal_px * options.source_m / 2 / distance_m)


def _extends_over(event: PlacedEvent, label: int) -> bool:
    sounding = np.flatnonzero(event.active)
    return bool(sounding[0] <= label <= sounding[-1])


def _paint_source(
    picture: Float32[np.ndarray, "height width 3"],
    event: PlacedEvent,
    classes: int,
    options: PictureOptions,
) -> None:
    across, down = picture_position(np.array(event.azimuth_deg), np.array(event.elevation_deg))
    middle = (across + 1) / 2 * options.width, (down + 1) / 2 * options.height
    half_px = source_half_px(event.distance_m, options)
    colour = class_colour(event.category, classes)
    _paint(picture, middle, half_px, event.category % len(_SHAPES), colour)


def _paint(
    picture: Float32[np.ndarray, "height width 3"],
    middle: Sequence[float],
    half_px: float,
    shape: int,
    colour: Float32[np.ndarray, "3"],
) -> None:
    height, width, _ = picture.shape
    left, top = (max(0, int(place - half_px - 1)) for place in middle)
    right, bottom = min(width, left + int(2 * half_px) + 4), min(height, top + int(2 * half_px) + 4)
    across = (np.arange(left, right) + 0.5 - middle[0]) / half_px
    down = (np.arange(top, bottom) + 0.5 - middle[1]) / half_px
    x, y = np.meshgrid(across, down)
    picture[top:bottom, left:right][_SHAPES[shape](x, y)] = colour


def _background(
    options: PictureOptions, rng: np.random.Generator
) -> Float32[np.ndarray, "height width 3"]:
    """Patches of pale colours that run into each other, and grey shapes."""
    coarse = rng.uniform(60, 190) + rng.uniform(-25, 25, (4, 6, 3))
    rows = np.linspace(0, 3, options.height)
    columns = np.linspace(0, 5, options.width)
    picture = _interpolated(_interpolated(coarse, rows, 0), columns, 1).astype(np.float32)
    for _ in range(int(rng.integers(options.distractors + 1))):
        middle = rng.uniform(0, options.width), rng.uniform(0, options.height)
        half_px = rng.uniform(0.03, 0.12) * options.width
        grey = np.full(3, rng.uniform(20, 235), np.float32)
        _paint(picture, middle, half_px, int(rng.integers(len(_SHAPES))), grey)
    return picture


def _interpolated(
    values: Float[np.ndarray, "..."], at: Float[np.ndarray, "n"], axis: int
) -> Float[np.ndarray, "..."]:
    """Linear interpolation along an axis, at fractions of its indices."""
    low = np.minimum(at.astype(np.int64), values.shape[axis] - 2)
    share = (at - low).reshape((-1,) + (1,) * (values.ndim - axis - 1))
    return values.take(low, axis) * (1 - share) + values.take(low + 1, axis) * share
