"""What multi-ACCDOA outputs are trained towards: slots for one to three sources of a class."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.errors import InputError

# Most sources of one class in a frame, as there are tracks.
TRACKS = 3
# First slot of a frame with one, two, three sources of a class: A0 | B0 B1 | C0 C1 C2.
_FIRST_SLOT = np.array([0, 1, 3])


def adpit_targets(events: SoundEvents, labels: int, classes: int) -> Float32[np.ndarray, "l 6 5 c"]:
    """Targets of one clip.

    Of more than three sources of a class in a frame the first three rows count, whatever their
    source number.

    Args:
      events: the truth.
      labels: label frames of the clip.
      classes: how many there are.

    Returns:
      Slots A0, B0, B1, C0, C1, C2 of (activity, x, y, distance in m, on screen) for each label
      frame and class; x = cos(azimuth) ahead, y = sin(azimuth) left. Zero where nothing sounds.

    Raises:
      InputError: an event lies behind the last label frame or is of no class.

    Reference: multi-ACCDOA, Shimada et al., arXiv 2110.07124; distance and on-screen as the
      baseline of DCASE 2025 Task 3 has them, which leaves out a fourth source too.

    Example:
      Two sources of class 4 in frame 7, at +90 degrees 2 m away in the picture and at 0 degrees
      1 m away out of it: [7, 1, :, 4] = 1, 0, 1, 2, 1 and [7, 2, :, 4] = 1, 1, 0, 1, 0.
    """
    for name, values, count in (
        ("frame", events.frame, labels),
        ("category", events.category, classes),
    ):
        wrong = values[(values < 0) | (values >= count)]
        if len(wrong):
            raise InputError(
                f"events.{name}: {wrong[0]} must lie in 0..{count - 1}; give the events of this "
                "clip, and all classes."
            )
    targets = np.zeros((labels, 6, 5, classes), np.float32)
    cell = events.frame.astype(np.int64) * classes + events.category
    order = np.argsort(cell, kind="stable")
    _, start, index, count = np.unique(
        cell[order], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(order)) - start[index]
    slot = _FIRST_SLOT[np.minimum(count[index], TRACKS) - 1] + rank
    kept = rank < TRACKS
    rows = events.taken(order[kept])
    azimuth = np.radians(rows.azimuth_deg.astype(np.float64))
    values = (np.ones(len(rows)), np.cos(azimuth), np.sin(azimuth), rows.distance_m, rows.on_screen)
    targets[rows.frame, slot[kept], :, rows.category] = np.stack(values, axis=1)
    return targets
