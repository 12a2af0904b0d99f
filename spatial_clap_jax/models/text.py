"""Text encoder: a post-norm transformer that is RoBERTa, BERT, or a small one with ALiBi."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import (
    LayerNorm,
    Mlp,
    SelfAttention,
    bert_init,
    block_class,
    is_held_still,
    run_unbound,
    scanned,
    scans_layers,
)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes and habits of a `TextEncoder`; the defaults are a small one for template captions.

    Attributes:
      vocabulary: number of token ids.
      width: width of a token.
      layers: number of transformer layers.
      heads: attention heads; divides `width`.
      mlp_width: hidden width of the MLP.
      max_tokens: longest text.
      positions: `absolute` = learned table; `alibi` = a bias that falls with distance, which
        tells what is near and not what comes first; `sided` = such a bias for which half of the
        heads look ahead and half look back.
      position_offset: row of the table that the first token takes.
      token_types: rows of the token type table, of which row 0 is used; 0 = no table.
      pooling: `pooler` = tanh(dense(first token)); `mean` over true tokens; `first` token.
      layer_norm_epsilon: added to the variance.
      dropout: rate on embeddings and on each branch.
      attention_dropout: rate on attention weights.
    """

    vocabulary: int
    width: int = 256
    layers: int = 4
    heads: int = 8
    mlp_width: int = 1024
    max_tokens: int = 64
    positions: Literal["absolute", "alibi", "sided"] = "sided"
    position_offset: int = 0
    token_types: int = 0
    pooling: Literal["pooler", "mean", "first"] = "mean"
    layer_norm_epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1

    # The text side of runs from before there were labels in its place.
    kind_by_default: ClassVar[bool] = True

    def __post_init__(self):
        if self.width % self.heads:
            raise InputError(
                f"TextConfig.heads: {self.heads} does not divide the width {self.width}; "
                "choose a divisor"
            )
        if self.positions == "sided" and self.heads % 2:
            raise InputError(
                f"TextConfig.heads: {self.heads} is odd, but with 'sided' positions half of the "
                "heads look ahead; choose an even number"
            )


def roberta_base(vocabulary: int = 50265) -> TextConfig:
    """RoBERTa-base: 124,645,632 parameters with its pooler.

    Reference:
      Liu et al., arXiv 1907.11692. Its position ids start after the padding id 1.
    """
    return TextConfig(
        vocabulary=vocabulary,
        width=768,
        layers=12,
        heads=12,
        mlp_width=3072,
        max_tokens=512,
        positions="absolute",
        position_offset=2,
        token_types=1,
        pooling="pooler",
    )


def bert_base(vocabulary: int = 30522) -> TextConfig:
    """BERT-base: 109,482,240 parameters with its pooler.

    Reference:
      Devlin et al., arXiv 1810.04805.
    """
    return dataclasses.replace(
        roberta_base(vocabulary), position_offset=0, token_types=2, layer_norm_epsilon=1e-12
    )


class TextOutput(NamedTuple):
    """What a `TextEncoder` gives.

    Attributes:
      hidden: last layer's tokens.
      pooled: one vector a text.
    """

    hidden: Float[Array, "b n d"]
    pooled: Float[Array, "b d"]


def alibi_bias(heads: int, tokens: int) -> Float32[np.ndarray, "h n n"]:
    """Attention bias -slope * |i - j|: a token sees its neighbours best, on both sides.

    Args:
      heads: number of heads; head h of H = 1..H has slope 2 ** (-8 h / H).
      tokens: length of the text.

    Returns:
      The bias of query i and key j.

    Reference:
      Press et al., arXiv 2108.12409; distance both ways since our encoder is bidirectional.

    Example:
      >>> alibi_bias(heads=1, tokens=2).tolist()
      [[[-0.0, -0.00390625], [-0.00390625, -0.0]]]
    """
    slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
    position = np.arange(tokens)
    distance = np.abs(position[:, None] - position)
    return (-slopes[:, None, None] * distance).astype(np.float32)


def sided_bias(heads: int, tokens: int) -> Float32[np.ndarray, "h n n"]:
    """Attention bias by which half of the heads look ahead and half back, and near ones first.

    Where a phrase tells of the clause before it ("... on the left, and a dog barks ..."), distance
    alone does not say whose phrase it is: to an encoder whose bias is the same both ways a text and
    its mirror image are one.

    Args:
      heads: number of heads, even; the first half sees a token and those after it, the other half
        a token and those before it. Head h = 0..H-1 of either half has slope 2 ** (-4 h / H):
        steeper than ALiBi's, for captions of some twenty tokens.
      tokens: length of the text.

    Returns:
      The bias of query i and key j: -slope * |i - j|, or the lowest number where j is not seen.

    Reference:
      Press et al., arXiv 2108.12409 (the bias); sides and slopes are our choice.

    Example:
      >>> sided_bias(heads=2, tokens=2)[0, 0].tolist()
      [-0.0, -1.0]
    """
    slopes = 2.0 ** (-4.0 * np.arange(heads // 2) / (heads // 2))
    position = np.arange(tokens)
    ahead = position - position[:, None]
    bias = -slopes[:, None, None] * np.abs(ahead)
    # Half of the range, because the bias of the padding is added to it.
    hidden = np.finfo(np.float32).min / 2
    halves = [np.where(seen, bias, hidden) for seen in (ahead >= 0, ahead <= 0)]
    return np.concatenate(halves).astype(np.float32)


def mean_over_tokens(x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """The mean of a text's true tokens, in their type; zeros for a text of padding alone."""
    weight = mask[..., None].astype(jnp.float32)
    total = jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
    return total.astype(x.dtype)


class TextLayer(nn.Module):
    """Self-attention and MLP, each added to its input and then normalised (post-norm)."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], bias: Float32[Array, "..."], train: bool = False
    ) -> Float[Array, "b n d"]:
        """Applies the layer; `bias` is added to the attention logits."""
        config = self.config
        attended = SelfAttention(
            config.heads, config.attention_dropout, self.dtype, name="attention"
        )(x, bias, train)
        attended = nn.Dropout(config.dropout)(attended, deterministic=not train)
        x = LayerNorm(config.layer_norm_epsilon, dtype=self.dtype, name="attention_norm")(
            x + attended
        )
        changed = Mlp(config.mlp_width, self.dtype, name="mlp")(x)
        changed = nn.Dropout(config.dropout)(changed, deterministic=not train)
        return LayerNorm(config.layer_norm_epsilon, dtype=self.dtype, name="mlp_norm")(x + changed)


class TextEncoder(nn.Module):
    """Encodes padded token ids; what stands in the padding never matters.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"], train: bool = False
    ) -> TextOutput:
        """Encodes a batch of texts.

        Args:
          tokens: ids, padded at the end.
          mask: true where a token is one, false on padding.
          train: applies dropout (rng stream `dropout`).

        Returns:
          The last layer's tokens, and one pooled vector a text.

        Raises:
          InputError: more tokens than the encoder has positions for.
        """
        config = self.config
        if tokens.shape[1] > config.max_tokens:
            raise InputError(
                f"tokens: {tokens.shape[1]} a text, but the encoder takes at most "
                f"{config.max_tokens}; shorten the text or raise TextConfig.max_tokens"
            )
        x = nn.Embed(config.vocabulary, config.width, embedding_init=bert_init, name="tokens")(
            tokens
        )
        bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min / 2)[:, None, None, :]
        if config.positions == "absolute":
            rows = config.max_tokens + config.position_offset
            place = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0) + config.position_offset
            positions = nn.Embed(rows, config.width, embedding_init=bert_init, name="positions")
            x = x + positions(place)
        else:
            falling = sided_bias if config.positions == "sided" else alibi_bias
            bias = bias + falling(config.heads, tokens.shape[1])
        if config.token_types:
            types = nn.Embed(
                config.token_types, config.width, embedding_init=bert_init, name="token_types"
            )
            x = x + types(jnp.zeros_like(tokens))
        x = LayerNorm(config.layer_norm_epsilon, dtype=self.dtype, name="norm")(x)
        x = nn.Dropout(config.dropout)(x, deterministic=not train)
        x = self._through_layers(x, bias, train)
        return TextOutput(x, self._pool(x, mask))

    def _through_layers(
        self, x: Float[Array, "b n d"], bias: Float32[Array, "..."], train: bool
    ) -> Float[Array, "b n d"]:
        config = self.config
        names = [f"layer_{index}" for index in range(config.layers)]
        if scans_layers(self, names):
            draws = train and not is_held_still(self)
            keys = jax.random.split(self.make_rng("dropout"), len(names)) if draws else None
            params = self.variables["params"]
            layer = TextLayer(config, self.dtype, parent=None)
            return scanned(
                lambda params, x, key: run_unbound(layer, params, key, x, bias),
                [params[name] for name in names],
                x,
                keys,
            )
        layer_class = block_class(TextLayer, train_argument=3)
        for name in names:
            x = layer_class(config, self.dtype, name=name)(x, bias, train)
        return x

    def _pool(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
        if self.config.pooling == "mean":
            return mean_over_tokens(x, mask)
        first = x[:, 0]
        if self.config.pooling == "first":
            return first
        dense = nn.Dense(self.config.width, dtype=self.dtype, kernel_init=bert_init, name="pooler")
        return nn.tanh(dense(first))
