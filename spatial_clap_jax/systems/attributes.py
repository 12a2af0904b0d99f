"""Pre-training of ELSA's branch: place and room from intensity vectors, without content or text.

    W, Y, Z, X -> intensity vectors -> spatial attributes -> 44 numbers against the true ones

A training of ELSA starts from it by `--init.branch`. Captions are read by nobody.

Reference: Devnani et al., ELSA, arXiv 2409.11369.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig, StftConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.losses.regression import (
    angle_deg,
    attribute_errors,
    direction_of_map,
    masked_mean,
)
from spatial_clap_jax.models.layers import unit
from spatial_clap_jax.models.spatial_attributes import SpatialAttributes, SpatialAttributesConfig
from spatial_clap_jax.systems.base import (
    UNREAD_TOKENS,
    UNREAD_VOCABULARY,
    Batch,
    Encoded,
    Variables,
)
from spatial_clap_jax.systems.content import Augmentation, level_plane
from spatial_clap_jax.systems.elsa import check_front_end, hear_intensity


@dataclass(frozen=True)
class AttributesConfig:
    """What is pre-trained: fields as in `ElsaConfig`, which takes them over.

    Attributes:
      sample_rate_hz: rate of the ambisonic audio that comes in.
      window_s: its length in seconds.
      attributes: shape of the branch.
      intensity: cells of the intensity vectors.
      intensity_scale: what they are divided by.
      equaliser_db: spread of the random smooth equaliser on the level that the branch hears.
    """

    sample_rate_hz: int = 48_000
    window_s: float = 10.0
    attributes: SpatialAttributesConfig = field(default_factory=SpatialAttributesConfig)
    intensity: StftConfig | LogMelConfig = field(default_factory=StftConfig)
    intensity_scale: Literal["active", "energy"] = "active"
    equaliser_db: float = 0.0

    def __post_init__(self) -> None:
        check_front_end(self.sample_rate_hz, self.intensity)

    def build(
        self, loss: ContrastiveConfig, dtype: DTypeLike = jnp.float32
    ) -> "AttributeRegression":
        """The system of this shape, computing in `dtype`; nothing is contrasted."""
        return AttributeRegression(self, dtype)


class AttributesModule(nn.Module):
    """The branch under the name that it has in ELSA.

    Attributes:
      config: shapes.
      dtype: of the computation; parameters stay float32.
    """

    config: AttributesConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, audio: Float[Array, "b 4 t"], train: bool) -> Float[Array, "b 44"]:
        config, level = self.config, None
        draw = partial(self.make_rng, "augment") if train else None
        intensity = hear_intensity(
            audio, config.sample_rate_hz, config.intensity, config.intensity_scale
        )
        if config.attributes.hears_level:
            augmentation = Augmentation(None, config.equaliser_db, draw)
            level = level_plane(
                intensity.level_db, config.attributes.level_reference_db, augmentation
            )
        branch = SpatialAttributes(config.attributes, self.dtype, name="branch")
        return branch(intensity, level, train).astype(jnp.float32)


@dataclass(frozen=True)
class AttributeRegression:
    """The branch by itself as pure functions; see `systems.base.System`.

    Attributes:
      config: its shape.
      dtype: of the computation.
    """

    config: AttributesConfig
    dtype: DTypeLike = jnp.float32

    @property
    def sample_rate_hz(self) -> int:
        return self.config.sample_rate_hz

    @property
    def channels(self) -> int:
        return 4

    @property
    def window_samples(self) -> int:
        return round(self.config.window_s * self.config.sample_rate_hz)

    @property
    def vocabulary(self) -> int:
        return UNREAD_VOCABULARY

    @property
    def max_tokens(self) -> int:
        return UNREAD_TOKENS

    @property
    def padding(self) -> Literal["repeat", "zeros"]:
        return "repeat"

    @property
    def reads(self) -> bool:
        """No: there is a method for texts, as of every system, which refuses them."""
        return False

    @property
    def labels(self) -> tuple[str, ...]:
        return ("has_place", "direction", "attributes")

    @cached_property
    def module(self) -> AttributesModule:
        return AttributesModule(self.config, self.dtype)

    def init(self, rng: jax.Array) -> Variables:
        audio = jnp.zeros((2, self.channels, self.window_samples))
        variables = self.module.init({"params": rng}, audio, train=False)
        return {"params": variables["params"], "batch_stats": variables["batch_stats"]}

    def encode(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Encoded:
        dropout, augment = jax.random.split(rng)
        forward: Any = self.module.apply(
            variables,
            batch["audio"],
            train,
            rngs={"dropout": dropout, "augment": augment},
            mutable=["batch_stats"],
        )
        predicted, updated = forward
        return Encoded({"attributes": predicted}, {}, updated["batch_stats"])

    def objective(
        self,
        rows: dict[str, Array],
        shared: dict[str, Float[Array, ""]],
        batch: Batch,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        errors = attribute_errors(rows["attributes"], batch["attributes"])
        direction = direction_of_map(rows["attributes"][:, :2])
        error_deg = masked_mean(angle_deg(direction, batch["direction"]), batch["has_place"])
        metrics = {f"{name}_loss": value for name, value in errors._asdict().items()}
        return sum(errors, jnp.zeros(())), {**metrics, "direction_error_deg": error_deg}

    def embed_audio(
        self, variables: Variables, audio: Float[Array, "b 4 t"]
    ) -> Float[Array, "b d"]:
        """The normalised attributes, scaled to length one as embeddings are."""
        return unit(cast(Array, self.module.apply(variables, audio, False)))

    def embed_text(
        self, variables: Variables, tokens: Int[Array, "b n"], token_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b d"]:
        """Refused: nothing here reads.

        Raises:
          InputError: always.
        """
        raise InputError(
            "model: pre-trained spatial attributes have no text encoder; train ELSA from them by "
            "--init.branch, and use that."
        )
