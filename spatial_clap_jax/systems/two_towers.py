"""What systems of an audio and a text tower under one contrastive loss have in common."""

import abc
from dataclasses import dataclass
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax.losses.contrastive import (
    ContrastiveConfig,
    clamped_scale,
    ring_in_batch_accuracy,
    ring_info_nce,
    ring_siglip,
)
from spatial_clap_jax.losses.rivals import group_rival_loss, rival_loss
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.systems.base import (
    UNREAD_TOKENS,
    UNREAD_VOCABULARY,
    Batch,
    Encoded,
    Variables,
)


@dataclass(frozen=True)
class TwoTowers(abc.ABC):
    """A module of two towers as pure functions; see `systems.base.System`.

    Attributes:
      config: has sample_rate_hz, window_s and text.
      contrast: the loss.
      dtype: of the computation.
    """

    config: Any
    contrast: ContrastiveConfig
    dtype: DTypeLike = jnp.float32

    @property
    @abc.abstractmethod
    def channels(self) -> int: ...

    @property
    @abc.abstractmethod
    def padding(self) -> Literal["repeat", "zeros"]: ...

    @property
    @abc.abstractmethod
    def labels(self) -> tuple[str, ...]: ...

    @property
    @abc.abstractmethod
    def module(self) -> nn.Module:
        """Called with (batch, train): audio and text embeddings, and one or two logit scales.

        Two are of the directions from audio to text and from text to audio. Its methods
        `embed_audio` and `embed_text` give unit embeddings.
        """

    @property
    def sample_rate_hz(self) -> int:
        return self.config.sample_rate_hz

    @property
    def window_samples(self) -> int:
        return round(self.config.window_s * self.config.sample_rate_hz)

    @property
    def vocabulary(self) -> int:
        text = self.config.text
        return text.vocabulary if isinstance(text, TextConfig) else UNREAD_VOCABULARY

    @property
    def max_tokens(self) -> int:
        text = self.config.text
        return text.max_tokens if isinstance(text, TextConfig) else UNREAD_TOKENS

    @property
    def told_by(self) -> tuple[str, ...]:
        """Arrays of a batch that tell each row, for the text tower."""
        return "tokens", "token_mask"

    def example(self) -> Batch:
        """A batch that fits the module."""
        return {
            "audio": jnp.zeros((2, self.channels, self.window_samples)),
            "tokens": jnp.zeros((2, self.max_tokens), jnp.int32),
            "token_mask": jnp.ones((2, self.max_tokens), bool),
        }

    def init(self, rng: jax.Array) -> Variables:
        variables = self.module.init({"params": rng}, self.example(), train=False)
        params = dict(variables["params"])
        if self.contrast.kind == "siglip":
            params["logit_bias"] = jnp.float32(self.contrast.initial_bias)
        return {"params": params, "batch_stats": variables.get("batch_stats", {})}

    def encode(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Encoded:
        dropout, augment = jax.random.split(rng)
        has_rivals, rivals = f"rival_{self.told_by[0]}" in batch, {}
        if has_rivals:
            # Texts know nothing of each other: the rivals are further rows of the same encoder.
            both = {
                name: jnp.concatenate([batch[name], batch[f"rival_{name}"]])
                for name in self.told_by
            }
            batch = {**batch, **both}
        forward: Any = self.module.apply(
            variables,
            batch,
            train,
            rngs={"dropout": dropout, "augment": augment},
            mutable=["batch_stats"],
        )
        (audio, text, *logit_scales), updated = forward
        shared = {f"logit_scale_{i}": scale for i, scale in enumerate(logit_scales)}
        if self.contrast.kind == "siglip":
            shared["logit_bias"] = variables["params"]["logit_bias"]
        if has_rivals:
            text, rivals["rival"] = jnp.split(text, 2)
        rows = {"audio": audio, "text": text, **rivals}
        return Encoded(rows, shared, updated.get("batch_stats", {}))

    def objective(
        self,
        rows: dict[str, Array],
        shared: dict[str, Float[Array, ""]],
        batch: Batch,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        audio, text, meaning = rows["audio"], rows["text"], batch["meaning"]
        layout: Any = {"mesh": mesh, "block": self.contrast.block}
        scales = [
            clamped_scale(shared[name], self.contrast)
            for name in sorted(shared)
            if name.startswith("logit_scale")
        ]
        metrics = ring_in_batch_accuracy(audio, text, batch["group"], meaning, **layout)
        metrics["scale"] = scales[0]
        alike = self.contrast.meaning(batch)
        if self.contrast.kind == "info_nce":
            loss = ring_info_nce(audio, text, scales[0], alike, *scales[1:], **layout)
        else:
            bias = metrics["bias"] = shared["logit_bias"]
            loss = ring_siglip(audio, text, scales[0], bias, alike, **layout)
        if not self.contrast.rival_weight:
            return loss, metrics
        if "rival" in rows:
            rival = rival_loss(audio, text, rows["rival"], scales[0], batch["has_rival"])
        else:
            rival = group_rival_loss(audio, text, scales[0], batch["group"], meaning)
        metrics["rival_loss"] = rival
        return loss + self.contrast.rival_weight * rival, metrics

    def embed_audio(
        self, variables: Variables, audio: Float[Array, "b c t"]
    ) -> Float[Array, "b d"]:
        return cast(Array, self.module.apply(variables, audio, False, method="embed_audio"))

    def embed_text(
        self, variables: Variables, tokens: Int[Array, "b n"], token_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b d"]:
        inputs = (tokens, token_mask, False)
        return cast(Array, self.module.apply(variables, *inputs, method="embed_text"))
