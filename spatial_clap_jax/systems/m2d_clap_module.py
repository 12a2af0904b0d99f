"""The parts of M2D-CLAP under one tree of parameters, and what passes between them in training."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax.losses.masked import masked_prediction_loss
from spatial_clap_jax.models.layers import ProjectionMlp, unit
from spatial_clap_jax.models.m2d import Masks, Predictor, TokenProjection
from spatial_clap_jax.models.text import TextConfig, TextEncoder
from spatial_clap_jax.models.vit import Vit, VitOutput, take_tokens, vit_blocks
from spatial_clap_jax.systems.base import Batch, Variables


class Heard(NamedTuple):
    """What the encoder is given in training.

    Attributes:
      levels: normalised log-mel.
      categories: of these levels, shares where clips were mixed; None without.
      masks: what of the patches is seen; None for all.
    """

    levels: Float[Array, "b l m"]
    categories: Float[Array, "b k"] | None
    masks: Masks | None


class M2dClapModule(nn.Module):
    """Encoder, predictor, projections, text encoder and head under one tree of parameters.

    Attributes:
      config: shapes, an `M2dClapConfig`.
      initial_scale: exp(logit_scale) at first.
      dtype: of the computation; parameters stay float32.
    """

    config: Any
    initial_scale: float
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.content = Vit(config.content, self.dtype)
        if config.predicts:
            self.predictor = Predictor(config.predictor, config.content.width, self.dtype)
        if config.contrast_weight:
            width = config.joint_width
            self.audio_projection = (
                TokenProjection(self.dtype)
                if config.projector == "token"
                else ProjectionMlp(width, width, self.dtype)
            )
            if isinstance(config.text, TextConfig):
                self.text = TextEncoder(config.text, self.dtype)
            if config.text.width != width:
                self.text_projection = nn.Dense(width, dtype=self.dtype)
            initial = nn.initializers.constant(jnp.log(self.initial_scale))
            self.logit_scale = self.param("logit_scale", initial, ())
        if config.classes:
            self.head = nn.Dense(len(config.classes))

    def __call__(
        self, heard: Heard, batch: Batch, target: Variables | None, train: bool
    ) -> dict[str, Array]:
        """Rows for the objective.

        Args:
          heard: what the encoder is given.
          batch: for the text side.
          target: blocks and norm of the target encoder; None where nothing is predicted.
          train: whether the text encoder drops out.
        """
        config, rows, masks = self.config, {}, heard.masks
        patches = self.content.embed(heard.levels)
        seen = self.see(patches, masks, train)
        if config.predicts and masks is not None:
            grid = (config.content.mel_patches, patches.shape[1] // config.content.mel_patches)
            predicted = self.predictor(seen.tokens, seen.cls, masks, grid, train)
            if target is not None:
                wanted = self.aim(patches, masks, target)
                rows["masked_loss"] = masked_prediction_loss(predicted, wanted)
        if config.contrast_weight:
            rows["audio"] = self.project(seen.tokens)
            rows["text"] = self.read(batch, train)
        if config.classes:
            rows["category_logits"] = self.classify(seen.tokens)
        return rows

    def see(self, patches: Float[Array, "b n d"], masks: Masks | None, train: bool) -> VitOutput:
        """The encoder on its own share of the patches."""
        return self.content.encode(
            patches if masks is None else take_tokens(patches, masks.kept), train
        )

    def aim(
        self, patches: Float[Array, "b n d"], masks: Masks, target: Variables
    ) -> Float[Array, "b h d"]:
        """The target's tokens of the masked patches, which are all that it sees."""
        # Patch embedding, positions and CLS are the encoder's own.
        shown = self.content.with_cls(take_tokens(patches, masks.masked))
        blocks = vit_blocks(self.config.content, self.dtype)
        # The loss stops the gradient too; stopped here, the blocks keep nothing for it.
        tokens = blocks.apply({"params": target}, jax.lax.stop_gradient(shown))
        return cast(Array, tokens)[:, 1:]

    def tokens(self, levels: Float[Array, "b l m"]) -> Float[Array, "b n d"]:
        """Tokens of all patches."""
        return self.content(levels).tokens

    def project(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Unit embeddings of tokens, however many."""
        pooled = tokens if self.config.projector == "token" else tokens.mean(axis=1)
        return unit(self.audio_projection(pooled))

    def classify(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits of the classes, of tokens, however many."""
        return self.head(tokens.mean(axis=1).astype(jnp.float32))

    def read(self, batch: Batch, train: bool) -> Float[Array, "b d"]:
        """Unit embeddings of the texts of a batch, or of its sentence embeddings."""
        if isinstance(self.config.text, TextConfig):
            text = self.text(batch["tokens"], batch["token_mask"], train).pooled
        else:
            text = batch["sentence"]
        has_projection = self.config.text.width != self.config.joint_width
        return unit(self.text_projection(text) if has_projection else text)
