"""Scenes told by labels in place of captions: a free vector for each class in each direction."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.errors import InputError


@dataclass(frozen=True)
class LabelsConfig:
    """What stands in a text encoder's place where scenes are told by labels.

    Attributes:
      classes: names of the classes; None for the categories of the data.
    """

    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise InputError(f"model.text.classes: {self.classes} name one twice; name each once.")

    @property
    def events(self) -> tuple[int, int]:
        """Shape of the label `events`: classes and directions."""
        return len(self.classes or ()), len(STEREO_DIRECTIONS)


class LabelVectors(nn.Module):
    """The sum of the vectors of what sounds where.

    There is nothing to read here, and so nothing that an audio encoder would have to wait for:
    what a pair of a class and a direction means is a row of its own, whatever the others are.

    Attributes:
      config: the classes.
      width: of a vector.
      dtype: of the computation; parameters stay float32.

    Reference: our choice, in place of the pre-trained encoders of Spatial-CLAP.
    """

    config: LabelsConfig
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, events: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        shape = (*self.config.events, self.width)
        vectors = self.param("vectors", nn.initializers.normal(0.3), shape)
        return jnp.einsum("bnd,nde->be", events.astype(self.dtype), vectors.astype(self.dtype))
