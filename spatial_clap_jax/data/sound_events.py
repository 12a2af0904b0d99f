"""What sounds where in a clip: a row for each source in each label frame."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int32

# Seconds from one label frame to the next.
LABEL_STEP_S = 0.1
# Of DCASE 2025 Task 3, by number.
DCASE_CLASSES = (
    *("female speech", "male speech", "clapping", "telephone", "laughter", "domestic sounds"),
    *("footsteps", "door", "music", "musical instrument", "water tap", "bell", "knock"),
)


@dataclasses.dataclass(frozen=True)
class SoundEvents:
    """Events of one clip, the truth or a prediction, n rows in the order of frames.

    Attributes:
      frame: label frame, from 0, `LABEL_STEP_S` apart.
      category: class, from 0.
      source: tells apart sources of one class; 0 where that is unknown.
      azimuth_deg: counter-clockwise, 0 ahead, +90 left, in [-90, 90]: front and back are one.
      distance_m: from the receiver.
      on_screen: whether the source is in the picture.

    Reference: DCASE 2025 Challenge, Task 3.
    """

    frame: Int32[np.ndarray, "n"]
    category: Int32[np.ndarray, "n"]
    source: Int32[np.ndarray, "n"]
    azimuth_deg: Float32[np.ndarray, "n"]
    distance_m: Float32[np.ndarray, "n"]
    on_screen: Bool[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.frame)

    def taken(self, rows: Int32[np.ndarray, "r"] | Bool[np.ndarray, "n"]) -> SoundEvents:
        """Some of the rows, chosen by number or by a mask."""
        fields = dataclasses.fields(self)
        return SoundEvents(*(getattr(self, field.name)[rows] for field in fields))

    def mirrored(self) -> SoundEvents:
        """The same with left and right exchanged."""
        return dataclasses.replace(self, azimuth_deg=-self.azimuth_deg)


def no_events() -> SoundEvents:
    """A clip in which nothing sounds."""
    whole, real = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return SoundEvents(whole, whole, whole, real, real, np.zeros(0, bool))
