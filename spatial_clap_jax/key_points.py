"""Persons seen in a video correct where sounds of persons are heard."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float

from spatial_clap_jax.acoustics.stereo_view import HORIZONTAL_FIELD_DEG
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.data.video import width_of
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of

# COCO's 17 key points: nose, eyes and ears; wrists; ankles.
_POINTS = 17
_HEAD, _WRISTS, _ANKLES = (0, 1, 2, 3, 4), (9, 10), (15, 16)
# Pixels that no picture has.
_FARTHEST = 1e9
# Where on a person each class sounds.
_SOUNDING = {
    "female speech": _HEAD,
    "male speech": _HEAD,
    "laughter": _HEAD,
    "clapping": _WRISTS,
    "footsteps": _ANKLES,
}


@dataclasses.dataclass(frozen=True)
class PersonConfig:
    """How persons seen correct events of persons.

    Attributes:
      reach_deg: a person who is at most so far from an event is its source.
      moves: whether such an event moves to the person.
      gates: whether an event of a person is on screen exactly where a person is in reach.

    Reference: that human key points are used, Berghi and Jackson, arXiv 2509.06598; the rule is
      our choice.
    """

    reach_deg: float = 15.0
    moves: bool = True
    gates: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.reach_deg <= HORIZONTAL_FIELD_DEG:
            raise InputError(
                f"PersonConfig.reach_deg: {self.reach_deg} must lie in (0, "
                f"{HORIZONTAL_FIELD_DEG:g}]; give 15."
            )


@dataclasses.dataclass(frozen=True)
class Persons:
    """Persons in a clip's video.

    Attributes:
      width: of the picture in pixels.
      points: across (pixels, to the right), down and visibility (0: not labelled) of the 17 key
        points of each person, by label frame; a frame without persons is left out.
    """

    width: float
    points: dict[int, Float[np.ndarray, "n 17 3"]]


def read_persons(path: str | Path, video: str | Path | None = None) -> Persons:
    """Reads key points of a clip's label frames, in either of COCO's forms.

    Args:
      path: JSON. A list of results, of what a detector tells of each person: `image_id`, here the
        label frame, and `keypoints`, 17 times x, y, v. Or an object that has such a list as
        `annotations`, and the picture's width in pixels as `width`, or as that of all `images`.
        Other entries are left alone.
      video: of the clip; its width is that of the pictures where the file tells none.

    Returns:
      The persons.

    Raises:
      InputError: the file cannot be read, an entry breaks a rule, or nothing tells the width.

    Reference: COCO's key point format, Lin et al., arXiv 1405.0312.
    """
    try:
        found = json_of(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a JSON file of key points."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); write it anew.") from error
    listed = found.get("annotations") if isinstance(found, dict) else found
    if not isinstance(listed, list):
        raise InputError(
            f"{path}: holds neither a list of results nor an object with a list of annotations; "
            'give {"width": 640, "annotations": [...]}.'
        )
    width = _width(path, found if isinstance(found, dict) else {}, video)
    by_frame: dict[int, list[np.ndarray]] = {}
    for number, entry in enumerate(listed):
        place = f"{path}: {'annotations' if isinstance(found, dict) else 'results'}[{number}]"
        frame, points = _entry(place, entry)
        by_frame.setdefault(frame, []).append(points)
    return Persons(width, {frame: np.stack(each) for frame, each in by_frame.items()})


def correct_persons(
    events: SoundEvents, persons: Persons, classes: Sequence[str], config: PersonConfig
) -> SoundEvents:
    """Moves events of persons to the persons seen, and tells by them what is on screen.

    Speech and laughter are looked for at heads, clapping at wrists, footsteps at ankles: the mean
    of those key points that are visible, or of all of the person's where none of them is. Events
    of other classes stay as they are.

    Args:
      events: of one clip.
      persons: in its video.
      classes: names of the classes.
      config: the rule.

    Returns:
      The events, in the same order.

    Reference: our choice; see `PersonConfig`.

    Example:
      Of a picture 640 wide with a nose at x = 320, speech told at 9 degrees moves to 0 and is on
      screen; speech told at 40 degrees stays there and is off screen.
    """
    azimuth_deg, on_screen = events.azimuth_deg.copy(), events.on_screen.copy()
    for row in range(len(events)):
        name = classes[int(events.category[row])]
        if name not in _SOUNDING:
            continue
        seen = persons.points.get(int(events.frame[row]), np.zeros((0, _POINTS, 3)))
        places = np.array([_azimuth_deg(one, persons.width, _SOUNDING[name]) for one in seen])
        # An invisible person is nowhere.
        apart = np.abs(places - azimuth_deg[row]) if len(places) else np.array([np.inf])
        nearest = int(np.argmin(np.where(np.isnan(apart), np.inf, apart)))
        in_reach = bool(apart[nearest] <= config.reach_deg)
        if in_reach and config.moves:
            azimuth_deg[row] = places[nearest]
        if config.gates:
            on_screen[row] = in_reach
    return dataclasses.replace(events, azimuth_deg=azimuth_deg, on_screen=on_screen)


def azimuth_deg_across(across: float, width: float) -> float:
    """Azimuth of a column of a pinhole camera's picture that looks ahead.

    Args:
      across: pixels from the left edge.
      width: of the picture.

    Returns:
      Degrees, left positive: half the horizontal field at the left edge.

    Reference: DCASE 2025 Challenge, Task 3: a field of 100 degrees.

    Example:
      >>> azimuth_deg_across(0.0, 640.0), azimuth_deg_across(320.0, 640.0)
      (50.0, 0.0)
    """
    tangent = (1 - 2 * across / width) * np.tan(np.radians(HORIZONTAL_FIELD_DEG / 2))
    return float(np.degrees(np.arctan(tangent)))


def _azimuth_deg(
    points: Float[np.ndarray, "17 3"], width: float, sounding: tuple[int, ...]
) -> float:
    """Where a person sounds; NaN where nothing of them is visible."""
    visible = points[:, 2] > 0
    chosen = visible[list(sounding)]
    across = points[list(sounding), 0][chosen] if chosen.any() else points[visible, 0]
    return azimuth_deg_across(float(across.mean()), width) if len(across) else float("nan")


def _width(path: str | Path, found: dict[str, Any], video: str | Path | None) -> float:
    """Width of the pictures, of what tells it first: the file, each of its images, the video."""
    images = found.get("images")
    told = [found["width"]] if "width" in found else []
    if not told and isinstance(images, list):
        told = [x["width"] for x in images if isinstance(x, dict) and "width" in x]
    if not told and video is not None:
        told = [width_of(video)]
    if not told:
        raise InputError(
            f"{path}: tells no width of its pictures; give the clip's video, or write "
            '{"width": 640, "annotations": [...]}.'
        )
    for width in told:
        if not _is_number(width) or width <= 0:
            raise InputError(
                f"{path}: width {width!r} must be the picture's width in pixels; give a number "
                "above 0."
            )
        if width != told[0]:
            raise InputError(
                f"{path}: images of widths {told[0]} and {width}; give key points in pictures of "
                "one width."
            )
    return float(told[0])


def _entry(place: str, entry: Any) -> tuple[int, np.ndarray]:
    if not isinstance(entry, dict):
        raise InputError(
            f"{place}: is of type {type(entry).__name__}; give an object of image_id and keypoints."
        )
    frame, points = entry.get("image_id"), entry.get("keypoints")
    if not isinstance(frame, int) or isinstance(frame, bool) or frame < 0:
        raise InputError(
            f"{place}: image_id {frame!r} must be the label frame; give a whole number from 0."
        )
    if (
        not isinstance(points, list)
        or len(points) != 3 * _POINTS
        or not all(map(_is_number, points))
    ):
        raise InputError(
            f"{place}: keypoints must be {3 * _POINTS} finite numbers, x, y, v of {_POINTS} "
            "points; write them as COCO does."
        )
    return frame, np.array(points, np.float64).reshape(_POINTS, 3)


def _is_number(value: Any) -> TypeGuard[float]:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number of JSON may be beyond every float.
    return is_real and -_FARTHEST < value < _FARTHEST
