"""CLAP: one channel of audio and text in one space that holds content.

    audio   -> log-mel -> HTSAT        -> projection MLP -> unit embedding
    caption -> text encoder (RoBERTa)  -> projection MLP -> unit embedding

The published models of LAION-CLAP open as this system. A fused one embeds a recording that is
longer than its window as a whole: from a shrunk view of all of it and three crops.

Reference: Wu et al., arXiv 2211.06687.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.htsat import Htsat, HtsatConfig
from spatial_clap_jax.models.layers import ProjectionMlp, unit
from spatial_clap_jax.models.text import TextConfig, TextEncoder, roberta_base
from spatial_clap_jax.systems.base import Batch, Variables
from spatial_clap_jax.systems.two_towers import TwoTowers


@dataclass(frozen=True)
class ClapConfig:
    """CLAP's shape; the defaults are LAION-CLAP's with HTSAT-tiny.

    Attributes:
      sample_rate_hz: rate of the audio that comes in.
      channels: channels of it; of two, the mean is heard.
      window_s: its length in seconds.
      padding: what fills a shorter recording: 'repeat' (whole repeats, then zeros) or 'zeros'.
      content: content encoder.
      content_mel: its front end; audio is resampled to its rate.
      text: text encoder.
      joint_width: width of the joint space and of both projections.
    """

    sample_rate_hz: int = 48_000
    channels: int = 1
    window_s: float = 10.0
    padding: Literal["repeat", "zeros"] = "repeat"
    content: HtsatConfig = field(default_factory=HtsatConfig)
    content_mel: LogMelConfig = field(default_factory=LogMelConfig)
    text: TextConfig = field(default_factory=roberta_base)
    joint_width: int = 512

    def __post_init__(self) -> None:
        if self.channels not in (1, 2):
            raise InputError(f"model.channels: {self.channels}; CLAP hears 1, or the mean of 2.")

    def build(self, loss: ContrastiveConfig, dtype: DTypeLike = jnp.float32) -> "Clap":
        """The system of this shape, trained by `loss`, computing in `dtype`."""
        return Clap(self, loss, dtype)


class ClapModule(nn.Module):
    """Both encoders and projections under one tree of parameters.

    Attributes:
      config: shapes.
      initial_scale: exp(logit_scale) of both directions at first.
      dtype: of the computation; parameters stay float32.
    """

    config: ClapConfig
    initial_scale: float
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.content = Htsat(config.content, self.dtype)
        self.audio_projection = ProjectionMlp(config.joint_width, config.joint_width, self.dtype)
        self.text = TextEncoder(config.text, self.dtype)
        self.text_projection = ProjectionMlp(config.joint_width, config.joint_width, self.dtype)
        initial = nn.initializers.constant(jnp.log(self.initial_scale))
        self.logit_scale_audio = self.param("logit_scale_audio", initial, ())
        self.logit_scale_text = self.param("logit_scale_text", initial, ())

    def __call__(self, batch: Batch, train: bool) -> tuple[Array, Array, Array, Array]:
        """Audio and text embeddings of a batch, and the logit scale of either direction."""
        audio = self.embed_audio(batch["audio"], train)
        text = self.embed_text(batch["tokens"], batch["token_mask"], train)
        return audio, text, self.logit_scale_audio, self.logit_scale_text

    def embed_audio(self, audio: Float[Array, "b c t"], train: bool) -> Float[Array, "b d"]:
        config = self.config
        heard = audio.mean(axis=1)
        heard = features.resample(heard, config.sample_rate_hz, config.content_mel.sample_rate_hz)
        log_mel = features.log_mel(heard, config.content_mel)
        return unit(self.audio_projection(self.content(log_mel, train).pooled))

    def embed_views(
        self, views: Float[Array, "b 4 l m"], longer: Bool[Array, "b"]
    ) -> Float[Array, "b d"]:
        pooled = self.content(views, train=False, longer=longer).pooled
        return unit(self.audio_projection(pooled))

    def embed_text(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"], train: bool
    ) -> Float[Array, "b d"]:
        return unit(self.text_projection(self.text(tokens, mask, train).pooled))


@dataclass(frozen=True)
class Clap(TwoTowers):
    """CLAP as pure functions; see `systems.base.System`."""

    config: ClapConfig

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def padding(self) -> Literal["repeat", "zeros"]:
        return self.config.padding

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def module(self) -> ClapModule:
        return ClapModule(self.config, self.contrast.initial_scale, self.dtype)

    def embed_views(
        self, variables: Variables, views: Float[Array, "b 4 l m"], longer: Bool[Array, "b"]
    ) -> Float[Array, "b d"]:
        """Unit embeddings of recordings given as a shrunk view and three crops; fused models only.

        Args:
          variables: of this system.
          views: see `windows.fusion_views`.
          longer: which recordings are longer than the window.
        """
        return cast(Array, self.module.apply(variables, views, longer, method="embed_views"))
