"""ELSA: first-order ambisonics and text in one space that holds content, place and room.

    W           -> log-mel            -> content encoder ----------------+
                                                                         +-> fusion -> embedding
    W, Y, Z, X  -> intensity vectors  -> spatial attributes -> linear  --+               |
    caption     -> text encoder       -> projection MLP -> embedding         MLPs: direction,
                                                                             distance, floor area

Reference: Devnani et al., arXiv 2409.11369.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig, StftConfig
from spatial_clap_jax.intensity import Intensity, intensity_vectors
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.losses.regression import (
    TYPICAL_DISTANCE_M,
    TYPICAL_FLOOR_AREA_M2,
    angle_deg,
    direction_loss,
    log_ratio_loss,
    masked_mean,
)
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.layers import ProjectionMlp, unit
from spatial_clap_jax.models.spatial_attributes import (
    SpatialAttributes,
    SpatialAttributesConfig,
    static_statistics,
)
from spatial_clap_jax.models.text import TextConfig, TextEncoder, roberta_base
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.systems.base import Batch, Encoded, Variables
from spatial_clap_jax.systems.content import (
    Augmentation,
    SpecAugmentConfig,
    check_content,
    content_encoder,
    encode_content,
    level_plane,
)
from spatial_clap_jax.systems.two_towers import TwoTowers

# What each of `ElsaConfig.regression_weights` is of.
REGRESSIONS: tuple[str, ...] = ("direction", "distance", "floor_area")
_LABELS = ("has_place", "direction", "distance_m", "floor_area_m2")


@dataclass(frozen=True)
class ElsaConfig:
    """ELSA's shape; the defaults are those of its re-implementations.

    Attributes:
      sample_rate_hz: rate of the ambisonic audio that comes in.
      window_s: its length in seconds.
      content: content encoder of W: HTSAT, a small CNN, or the ViT of M2D-CLAP.
      content_mel: its front end; W is resampled to its rate.
      content_normalisation: mean and standard deviation that a ViT's levels are normalised by;
        None for the others.
      branch: what hears place: 'learned', the branch of `attributes`; 'static', fixed statistics
        of the intensity vectors; 'none', nothing: a CLAP of W alone.
      attributes: shape of the learned branch.
      intensity: cells of the intensity vectors; all four channels are resampled to its rate.
      intensity_scale: what they are divided by, see `intensity_vectors`.
      static_bands: bands of the fixed statistics.
      text: text encoder.
      spatial_width: width of what the fusion takes of the branch.
      fusion_width: hidden width of the fusion and of the text projection.
      joint_width: width of the joint space.
      head_width: hidden width of the regression heads.
      regression_weights: of the losses of direction, distance and floor area, beside the
        contrastive one; a head of weight 0 is left out.
      spec_augment: masks on the content encoder's log-mel in training; None for none.
      equaliser_db: spread of the random smooth equaliser on mel levels in training, in dB;
        0 for none. Of content encoders, for a CNN.
    """

    sample_rate_hz: int = 48_000
    window_s: float = 10.0
    content: HtsatConfig | CnnConfig | VitConfig = field(default_factory=HtsatConfig)
    content_mel: LogMelConfig = field(default_factory=LogMelConfig)
    content_normalisation: tuple[float, float] | None = None
    branch: Literal["learned", "static", "none"] = "learned"
    attributes: SpatialAttributesConfig = field(default_factory=SpatialAttributesConfig)
    intensity: StftConfig | LogMelConfig = field(default_factory=StftConfig)
    intensity_scale: Literal["active", "energy"] = "active"
    static_bands: int = 16
    text: TextConfig = field(default_factory=roberta_base)
    spatial_width: int = 192
    fusion_width: int = 768
    joint_width: int = 512
    head_width: int = 256
    regression_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    equaliser_db: float = 0.0

    def __post_init__(self) -> None:
        check_content(self.content, self.content_mel, self.content_normalisation)
        if min(self.regression_weights) < 0:
            raise InputError(
                f"model.regression_weights: {self.regression_weights}: one is negative; give 0 or "
                "more."
            )
        check_front_end(self.sample_rate_hz, self.intensity)
        if self.branch == "static" and not 1 <= self.static_bands <= bands_of(self.intensity):
            raise InputError(
                f"model.static_bands: {self.static_bands}, of {bands_of(self.intensity)} bands of "
                "the intensity; give 1 to that."
            )

    def build(self, loss: ContrastiveConfig, dtype: DTypeLike = jnp.float32) -> "Elsa":
        """The system of this shape, trained by `loss`, computing in `dtype`."""
        return Elsa(self, loss, dtype)


def bands_of(intensity: StftConfig | LogMelConfig) -> int:
    """Frequencies that intensity vectors are of."""
    return intensity.mels if isinstance(intensity, LogMelConfig) else intensity.bins


def check_front_end(sample_rate_hz: int, intensity: StftConfig | LogMelConfig) -> None:
    """Refuses intensity vectors of frequencies that the audio does not hold."""
    if intensity.sample_rate_hz > sample_rate_hz:
        raise InputError(
            f"model.intensity.sample_rate_hz: {intensity.sample_rate_hz} is above the "
            f"{sample_rate_hz} of the audio; give at most that."
        )


def hear_intensity(
    audio: Float[Array, "b 4 t"],
    sample_rate_hz: int,
    intensity: StftConfig | LogMelConfig,
    scale: Literal["active", "energy"],
) -> Intensity:
    """The intensity vectors of audio at another rate, all four channels resampled alike."""
    heard = features.resample(audio, sample_rate_hz, intensity.sample_rate_hz)
    return intensity_vectors(heard, intensity, scale)


class ElsaModule(nn.Module):
    """Encoders, branch, projections and heads under one tree of parameters.

    Attributes:
      config: shapes.
      initial_scale: exp(logit_scale) at first.
      dtype: of the computation; parameters stay float32.
    """

    config: ElsaConfig
    initial_scale: float
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.content = content_encoder(config.content, self.dtype)
        if config.branch == "learned":
            self.branch = SpatialAttributes(config.attributes, self.dtype)
        if config.branch != "none":
            self.spatial_projection = nn.Dense(config.spatial_width, dtype=self.dtype)
        self.fusion = ProjectionMlp(config.fusion_width, config.joint_width, self.dtype, nn.elu)
        self.text = TextEncoder(config.text, self.dtype)
        self.text_projection = ProjectionMlp(config.fusion_width, config.joint_width, self.dtype)
        widths = dict(zip(REGRESSIONS, (3, 1, 1), strict=True))
        self.heads = {
            name: ProjectionMlp(config.head_width, widths[name]) for name in self._regressed()
        }
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(jnp.log(self.initial_scale)), ()
        )

    def __call__(self, batch: Batch, train: bool) -> tuple[Array, Array, Array]:
        """Audio and text embeddings of a batch, and the logit scale."""
        audio = self.embed_audio(batch["audio"], train)
        text = self.embed_text(batch["tokens"], batch["token_mask"], train)
        if self.is_initializing():
            self.regress(audio)
        return audio, text, self.logit_scale

    def embed_audio(self, audio: Float[Array, "b 4 t"], train: bool) -> Float[Array, "b d"]:
        config, intensity, mono = self.config, None, None
        draw = partial(self.make_rng, "augment") if train else None
        augmentation = Augmentation(config.spec_augment, config.equaliser_db, draw)
        if config.branch != "none":
            intensity = hear_intensity(
                audio, config.sample_rate_hz, config.intensity, config.intensity_scale
            )
            mono = intensity.level_db
        if mono is None or config.content_mel != config.intensity:
            mono = features.resample(
                audio[:, 0], config.sample_rate_hz, config.content_mel.sample_rate_hz
            )
            mono = features.log_mel(mono, config.content_mel)
        joined = [
            encode_content(self.content, mono, augmentation, train, config.content_normalisation)
        ]
        if intensity is not None:
            heard = self._place(intensity, augmentation, train)
            joined.append(self.spatial_projection(nn.elu(heard)).astype(joined[0].dtype))
        return unit(self.fusion(jnp.concatenate(joined, axis=-1)))

    def embed_text(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"], train: bool
    ) -> Float[Array, "b d"]:
        return unit(self.text_projection(self.text(tokens, mask, train).pooled))

    def regress(self, audio: Float[Array, "b d"]) -> dict[str, Array]:
        """What the heads make of embeddings: a vector, logarithms of distance and floor area."""
        # Entries of about 1, as heads are initialised for.
        audio = audio * self.config.joint_width**0.5
        return {name: head(audio) for name, head in self.heads.items()}

    def _regressed(self) -> list[str]:
        weights = zip(REGRESSIONS, self.config.regression_weights, strict=True)
        return [name for name, weight in weights if weight]

    def _place(
        self, intensity: Intensity, augmentation: Augmentation, train: bool
    ) -> Float[Array, "b d"]:
        config, level = self.config, None
        if config.branch == "static":
            return static_statistics(intensity, config.static_bands)
        if config.attributes.hears_level:
            level = level_plane(
                intensity.level_db, config.attributes.level_reference_db, augmentation
            )
        return self.branch(intensity, level, train)


@dataclass(frozen=True)
class Elsa(TwoTowers):
    """ELSA as pure functions; see `systems.base.System`."""

    config: ElsaConfig

    @property
    def channels(self) -> int:
        return 4

    @property
    def padding(self) -> Literal["repeat", "zeros"]:
        return "repeat"

    @property
    def labels(self) -> tuple[str, ...]:
        return _LABELS if any(self.config.regression_weights) else ()

    @cached_property
    def module(self) -> ElsaModule:
        return ElsaModule(self.config, self.contrast.initial_scale, self.dtype)

    def encode(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Encoded:
        encoded = super().encode(variables, batch, rng, train)
        audio = encoded.rows["audio"]
        regressed: Any = self.module.apply(variables, audio, method="regress")
        heads = {f"{name}_head": x for name, x in regressed.items()}
        return encoded._replace(rows={**encoded.rows, **heads})

    def objective(
        self,
        rows: dict[str, Array],
        shared: dict[str, Float[Array, ""]],
        batch: Batch,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        loss, metrics = super().objective(rows, shared, batch, mesh)
        weights = dict(zip(REGRESSIONS, self.config.regression_weights, strict=True))
        losses, errors = regressions(rows, batch)
        for name, value in losses.items():
            loss += weights[name] * value
            metrics[f"{name}_loss"] = value
        return loss, metrics | errors


def regressions(
    rows: dict[str, Array], batch: Batch
) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
    """Losses of the heads that are in `rows`, by name, and errors in people's units for the log.

    Args:
      rows: `direction_head`, `distance_head` and `floor_area_head`, as many as there are.
      batch: the labels of `data.pipeline`.
    """
    losses, errors = {}, {}
    if "direction_head" in rows:
        known, vector = batch["has_place"], rows["direction_head"]
        losses["direction"] = direction_loss(vector, batch["direction"], known)
        errors["direction_error_deg"] = masked_mean(angle_deg(vector, batch["direction"]), known)
    for name, label, typical in (
        ("distance", "distance_m", TYPICAL_DISTANCE_M),
        ("floor_area", "floor_area_m2", TYPICAL_FLOOR_AREA_M2),
    ):
        if f"{name}_head" in rows:
            known, log = batch["has_place"], rows[f"{name}_head"][:, 0]
            losses[name] = log_ratio_loss(log, batch[label], typical, known)
            off = jnp.abs(typical * jnp.exp(log) - batch[label])
            errors[f"{name}_error_{label.rpartition('_')[2]}"] = masked_mean(off, known)
    return losses, errors
