"""Spatial-CLAP: stereo audio and text in one space that holds content and place.

    (L + R) / 2 -> log-mel         -> content encoder  --+
                                                         +-> fusion MLP -> unit embedding
    L, R        -> spatial planes  -> spatial encoder  --+
    caption     -> text encoder    -> projection MLP ----------------> unit embedding

Before there is anything to read, labels may tell the scenes: what sounds where, as the sum of a
vector for each class in each direction (`LabelsConfig`). A training with captions starts from such
a one by `--init.model`.

Reference: Seki et al., arXiv 2509.14785.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.crnn import Crnn, CrnnConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.label_vectors import LabelsConfig, LabelVectors
from spatial_clap_jax.models.layers import ProjectionMlp, unit
from spatial_clap_jax.models.parted import PartedCnn, PartedCnnConfig
from spatial_clap_jax.models.plain_spatial import PlainSpatial, PlainSpatialConfig
from spatial_clap_jax.models.text import TextConfig, TextEncoder, mean_over_tokens, roberta_base
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.systems.base import Batch, Variables
from spatial_clap_jax.systems.content import (
    Augmentation,
    SpecAugmentConfig,
    below_peak,
    check_content,
    content_encoder,
    encode_content,
)
from spatial_clap_jax.systems.two_towers import TwoTowers


@dataclass(frozen=True)
class SpatialClapConfig:
    """Spatial-CLAP's shape; the defaults are the released architecture.

    Attributes:
      sample_rate_hz: rate of the stereo audio that comes in.
      window_s: its length in seconds.
      content: content encoder: HTSAT, a small CNN, or the ViT of M2D-CLAP.
      content_mel: its front end; the mean of the channels is resampled to its rate.
      content_normalisation: mean and standard deviation that a ViT's levels are normalised by;
        None for the others.
      spatial: spatial encoder: CASE, one that parts the sources, or a plain one that hears no
        spectrum; None for a monaural CLAP.
      spatial_planes: 'magnitude_phase' (STFT planes of CASE) or 'mel_cross' (log-mel,
        mel-band cross-spectrum and level difference).
      spatial_mel: front end of 'mel_cross', at `sample_rate_hz`.
      text: text encoder, or labels in its place.
      joined: 'fused': one MLP over what both encoders give; 'separate': each has its own MLP and
        half of the embedding.
      projected: what the text projection MLP is applied to: 'text', the encoder's pooled vector,
        or each of the 'tokens', whose mean is then the text's; with pooling by mean alone.
      fusion_width: hidden width of the fusion and text projection MLPs.
      joint_width: width of the joint space.
      spec_augment: masks on the content encoder's log-mel in training; None for none.
      equaliser_db: spread of the random smooth equaliser on mel levels in training, in dB;
        0 for none. Of content encoders, for a CNN.
    """

    sample_rate_hz: int = 16_000
    window_s: float = 10.0
    content: HtsatConfig | CnnConfig | VitConfig = field(default_factory=HtsatConfig)
    content_mel: LogMelConfig = field(default_factory=LogMelConfig)
    content_normalisation: tuple[float, float] | None = None
    spatial: CrnnConfig | PartedCnnConfig | PlainSpatialConfig | None = field(
        default_factory=CrnnConfig
    )
    spatial_planes: Literal["magnitude_phase", "mel_cross"] = "magnitude_phase"
    spatial_mel: LogMelConfig | None = None
    text: TextConfig | LabelsConfig = field(default_factory=roberta_base)
    joined: Literal["fused", "separate"] = "fused"
    projected: Literal["text", "tokens"] = "text"
    fusion_width: int = 512
    joint_width: int = 512
    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    equaliser_db: float = 0.0

    def __post_init__(self) -> None:
        check_content(self.content, self.content_mel, self.content_normalisation)
        needs_mel = self.spatial is not None and self.spatial_planes == "mel_cross"
        if needs_mel and self.spatial_mel is None:
            raise InputError("model.spatial_mel: None, but 'mel_cross' planes need its front end.")
        if isinstance(self.spatial, PlainSpatialConfig) and not needs_mel:
            raise InputError(
                f"model.spatial_planes: {self.spatial_planes!r}, but a plain spatial encoder takes "
                "'mel_cross'; set that."
            )
        if self.joined == "separate" and (self.spatial is None or self.joint_width % 2):
            raise InputError(
                f"model.joined: 'separate' needs a spatial encoder and an even joint_width, not "
                f"{self.joint_width}; give both, or 'fused'."
            )
        pooling = self.text.pooling if isinstance(self.text, TextConfig) else "mean"
        if self.projected == "tokens" and pooling != "mean":
            raise InputError(
                f"model.projected: 'tokens' are averaged, but model.text.pooling is {pooling!r}; "
                "give 'mean', or project the 'text'."
            )

    def build(self, loss: ContrastiveConfig, dtype: DTypeLike = jnp.float32) -> "SpatialClap":
        """The system of this shape, trained by `loss`, computing in `dtype`.

        Raises:
          InputError: classes that are not known yet.
        """
        if isinstance(self.text, LabelsConfig) and self.text.classes is None:
            raise InputError(
                "model.text.classes: None stands for the categories of the data, which a training "
                "reads; name them here."
            )
        return SpatialClap(self, loss, dtype)


class SpatialClapModule(nn.Module):
    """The encoders and projections under one tree of parameters.

    Attributes:
      config: shapes.
      initial_scale: exp(logit_scale) at first.
      dtype: of the computation; parameters stay float32.
    """

    config: SpatialClapConfig
    initial_scale: float
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.content = content_encoder(config.content, self.dtype)
        if isinstance(config.spatial, CrnnConfig):
            self.spatial = Crnn(config.spatial, self.dtype)
        elif isinstance(config.spatial, PartedCnnConfig):
            self.spatial = PartedCnn(config.spatial, self.dtype)
        elif config.spatial is not None:
            assert config.spatial_mel is not None
            self.spatial = PlainSpatial(config.spatial, config.spatial_mel, self.dtype)
        width = config.joint_width // (2 if config.joined == "separate" else 1)
        self.fusion = ProjectionMlp(config.fusion_width, width, self.dtype)
        if config.joined == "separate":
            self.spatial_projection = ProjectionMlp(config.fusion_width, width, self.dtype)
        if isinstance(config.text, LabelsConfig):
            self.labels = LabelVectors(config.text, config.joint_width, self.dtype)
        else:
            self.text = TextEncoder(config.text, self.dtype)
            self.text_projection = ProjectionMlp(
                config.fusion_width, config.joint_width, self.dtype
            )
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(jnp.log(self.initial_scale)), ()
        )

    def __call__(self, batch: Batch, train: bool) -> tuple[Array, Array, Array]:
        """Audio and text embeddings of a batch, and the logit scale."""
        audio = self.embed_audio(batch["audio"], train)
        if isinstance(self.config.text, LabelsConfig):
            told = unit(self.labels(batch["events"]))
        else:
            told = self.embed_text(batch["tokens"], batch["token_mask"], train)
        return audio, told, self.logit_scale

    def embed_audio(self, audio: Float[Array, "b 2 t"], train: bool) -> Float[Array, "b d"]:
        config, spatial_planes, mono = self.config, None, None
        augmentation = self._augmentation(train)
        if config.spatial is not None and config.spatial_planes == "magnitude_phase":
            # 512 of the 513 bins are pooled into 64; the pool itself drops the last one.
            spatial_planes = features.magnitude_phase(audio)
        elif config.spatial is not None:
            assert config.spatial_mel is not None
            planes, mono = features.mel_cross_and_mono(audio, config.spatial_mel)
            level = augmentation.equalised(below_peak(planes[..., 0]))
            spatial_planes = jnp.concatenate([level[..., None], planes[..., 1:]], axis=-1)
        if mono is None or config.content_mel != config.spatial_mel:
            mono = audio.mean(axis=1)
            mono = features.resample(mono, config.sample_rate_hz, config.content_mel.sample_rate_hz)
            mono = features.log_mel(mono, config.content_mel)
        content = encode_content(
            self.content, mono, augmentation, train, config.content_normalisation
        )
        if spatial_planes is None:
            return unit(self.fusion(content))
        spatial = self.spatial(spatial_planes, train).astype(content.dtype)
        if config.joined == "separate":
            halves = unit(self.fusion(content)), unit(self.spatial_projection(spatial))
            return unit(jnp.concatenate(halves, axis=-1))
        return unit(self.fusion(jnp.concatenate([content, spatial], axis=-1)))

    def embed_text(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"], train: bool
    ) -> Float[Array, "b d"]:
        text = self.text(tokens, mask, train)
        if self.config.projected == "text":
            return unit(self.text_projection(text.pooled))
        return unit(mean_over_tokens(self.text_projection(text.hidden), mask))

    def _augmentation(self, train: bool) -> Augmentation:
        config = self.config
        draw = partial(self.make_rng, "augment") if train else None
        return Augmentation(config.spec_augment, config.equaliser_db, draw)


@dataclass(frozen=True)
class SpatialClap(TwoTowers):
    """Spatial-CLAP as pure functions; see `systems.base.System`."""

    config: SpatialClapConfig

    @property
    def channels(self) -> int:
        return 2

    @property
    def padding(self) -> Literal["repeat", "zeros"]:
        return "zeros"

    @property
    def reads(self) -> bool:
        """Whether it has a text encoder."""
        return isinstance(self.config.text, TextConfig)

    @property
    def told_by(self) -> tuple[str, ...]:
        return super().told_by if self.reads else ("events",)

    @property
    def labels(self) -> tuple[str, ...]:
        if self.reads:
            return ()
        has_rivals = self.contrast.rival_weight and not self.contrast.scl
        return ("events", "rival_events") if has_rivals else ("events",)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where labels tell the scenes."""
        text = self.config.text
        return () if isinstance(text, TextConfig) else text.classes or ()

    @property
    def sentence_width(self) -> int:
        return 0

    @cached_property
    def module(self) -> SpatialClapModule:
        return SpatialClapModule(self.config, self.contrast.initial_scale, self.dtype)

    def example(self) -> Batch:
        text, example = self.config.text, super().example()
        if isinstance(text, LabelsConfig):
            example["events"] = jnp.zeros((2, *text.events))
        return example

    def embed_text(
        self, variables: Variables, tokens: Int[Array, "b n"], token_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b d"]:
        """Unit embeddings of tokenised text.

        Raises:
          InputError: labels stand in the text encoder's place.
        """
        if not self.reads:
            raise InputError(
                "model.text: this Spatial-CLAP was told labels and reads nothing; train it with "
                "captions first, by --init.model."
            )
        return super().embed_text(variables, tokens, token_mask)
