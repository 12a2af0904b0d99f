"""Microphones and how they stand in a room."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from spatial_clap_jax.errors import InputError


@dataclass(frozen=True)
class StereoPair:
    """Two omnidirectional microphones in free air, L and R, that look along +x.

    Spacing and height are those of sarulab-speech/Moving-CLAP; there is no head.
    """

    spacing_m: float = 0.1698
    height_m: float = 1.5

    def __post_init__(self) -> None:
        for field in ("spacing_m", "height_m"):
            if not getattr(self, field) > 0:
                raise InputError(
                    f"StereoPair.{field} {getattr(self, field):g} must be above 0 metres."
                )

    def positions_m(self, center_m: Float[np.ndarray, "3"]) -> Float[np.ndarray, "c 3"]:
        """Positions of the two microphones.

        Args:
          center_m: the point between them (x ahead, y left, z up), metres.

        Returns:
          L and then R, metres; L lies towards +y.

        Reference: sarulab-speech/Moving-CLAP.

        Example:
          >>> StereoPair(spacing_m=0.2).positions_m(np.array([3.0, 2.0, 1.5]))
          array([[3. , 2.1, 1.5],
                 [3. , 1.9, 1.5]])
        """
        return center_m + np.array([[0, 0.5, 0], [0, -0.5, 0]]) * self.spacing_m


@dataclass(frozen=True)
class Foa:
    """A first-order ambisonics receiver, which looks along +x.

    Attributes:
      height_m: above the floor.
      position: 'centre' of the floor plan, or 'drawn' for each room, so that small rooms hold
        far sources too.
      encoding: 'ideal': every wave is encoded by its direction; 'tetrahedron': four cardioids
        on a sphere hear it, each at its own place, and are converted to B-format.
      radius_m: of that sphere.
    """

    height_m: float = 1.5
    position: Literal["centre", "drawn"] = "drawn"
    encoding: Literal["ideal", "tetrahedron"] = "ideal"
    radius_m: float = 0.0147

    def __post_init__(self) -> None:
        for field in ("height_m", "radius_m"):
            if not getattr(self, field) > 0:
                raise InputError(f"Foa.{field} {getattr(self, field):g} must be above 0 metres.")
        for field, known in (
            ("position", ("centre", "drawn")),
            ("encoding", ("ideal", "tetrahedron")),
        ):
            if getattr(self, field) not in known:
                raise InputError(
                    f"Foa.{field} {getattr(self, field)!r} is unknown; give {' or '.join(known)}."
                )


@dataclass(frozen=True)
class Mono:
    """No place and no room: one channel that holds the clip itself."""


Receiver = StereoPair | Foa | Mono
