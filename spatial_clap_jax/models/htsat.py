"""HTSAT: a shifted-window transformer over the log-mel spectrogram, folded into a square.

Time is cut into as many segments as mel bins fit into the square's side, and the segments are
stacked above each other: rows of the image are (segment, mel), columns the frames of a segment.

Audio longer than the image holds may come as four views: all of it shrunk, and three crops. They
are fused where patches become vectors, in as many positions as one view has.

Reference:
  Chen et al., HTS-AT, arXiv 2202.00874; Wu et al., LAION-CLAP, arXiv 2211.06687.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

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
    StochasticDepth,
    block_class,
    is_held_still,
    run_unbound,
    scanned,
    scans_layers,
)

_weights_init = nn.initializers.truncated_normal(0.02)

_CROPS = 3  # views of a clip besides the one of all of it


@dataclasses.dataclass(frozen=True)
class HtsatConfig:
    """Sizes of an `Htsat`; the defaults are HTSAT-tiny, as in LAION-CLAP.

    Attributes:
      spec_size: side of the square image.
      mels: mel bins; divides `spec_size`.
      patch: side of a patch.
      embed_dim: width in the first stage; doubles with every further one.
      depths: blocks of each stage; every second one has shifted windows.
      heads: attention heads of each stage.
      window: side of an attention window.
      mlp_ratio: hidden width of an MLP over its width.
      attention_dropout: rate on attention weights.
      drop_path: stochastic depth rate of the last block; rises from 0 at the first.
      fusion: takes four views of a long clip and fuses them ('aff_2d' of LAION-CLAP).
      fusion_reduction: width over the hidden width of the fusion's attention.
    """

    spec_size: int = 256
    mels: int = 64
    patch: int = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.0
    drop_path: float = 0.1
    fusion: bool = False
    fusion_reduction: int = 4

    def __post_init__(self):
        if self.spec_size % self.mels:
            raise InputError(
                f"HtsatConfig.mels: {self.mels} does not divide spec_size {self.spec_size}; "
                "choose a divisor"
            )
        if len(self.heads) != len(self.depths):
            raise InputError(
                f"HtsatConfig.heads: {self.heads} names {len(self.heads)} stages and depths "
                f"{len(self.depths)}; give one number a stage to both"
            )
        coarsest = self.patch * 2 ** (len(self.depths) - 1)
        if self.mels % coarsest:
            raise InputError(
                f"HtsatConfig.mels: {self.mels} is no multiple of {coarsest}, the mel bins that "
                f"one position of the last stage sees; take fewer stages or more mels"
            )
        for stage in range(len(self.depths)):
            side = self.side(stage)
            if side > self.window and side % self.window:
                raise InputError(
                    f"HtsatConfig.window: {self.window} does not divide the grid of stage {stage}, "
                    f"{side} a side; choose a divisor"
                )
            if self.stage_width(stage) % self.heads[stage]:
                raise InputError(
                    f"HtsatConfig.heads: {self.heads[stage]} does not divide the width of stage "
                    f"{stage}, {self.stage_width(stage)}; choose a divisor"
                )
        if self.fusion and not 1 <= self.fusion_reduction <= self.embed_dim:
            raise InputError(
                f"HtsatConfig.fusion_reduction: {self.fusion_reduction} leaves no hidden width of "
                f"embed_dim {self.embed_dim}; choose 1 to {self.embed_dim}"
            )
        if self.fusion and self.spec_size < _CROPS * self.patch:
            raise InputError(
                f"HtsatConfig.patch: {self.patch} is too wide for fusion, whose crops have patches "
                f"{_CROPS} times as long, and spec_size is {self.spec_size}; take smaller patches"
            )

    @property
    def segments(self) -> int:
        """Parts of the time axis that are stacked in the image."""
        return self.spec_size // self.mels

    @property
    def frames(self) -> int:
        """Most frames that it takes; fewer are interpolated to this number."""
        return self.spec_size * self.segments

    def side(self, stage: int) -> int:
        """Positions along a side of a stage's grid."""
        return self.spec_size // self.patch // 2**stage

    def stage_width(self, stage: int) -> int:
        """Width of a stage's positions."""
        return self.embed_dim * 2**stage

    @property
    def width(self) -> int:
        """Width of the output."""
        return self.stage_width(len(self.depths) - 1)


def htsat_tiny() -> HtsatConfig:
    """HTSAT-tiny: 768 wide."""
    return HtsatConfig()


def htsat_base() -> HtsatConfig:
    """HTSAT-base: 1024 wide."""
    return HtsatConfig(embed_dim=128, depths=(2, 2, 12, 2))


class HtsatOutput(NamedTuple):
    """What an `Htsat` gives.

    Attributes:
      pooled: mean of `map` over frequency and time.
      map: the last stage's positions, back in order of frequency and time.
    """

    pooled: Float[Array, "b d"]
    map: Float[Array, "b frequency time d"]


def bicubic_matrix(source: int, target: int) -> Float32[np.ndarray, "target source"]:
    """Matrix that interpolates a sequence by cubic convolution, both ends kept in place.

    Args:
      source: length of the sequence.
      target: length to interpolate to, 2 or more.

    Returns:
      Rows of four weights that sum to 1; beyond an end the end's value counts again.

    Reference:
      Keys 1981 with a = -0.75, the kernel of PyTorch's `bicubic` with `align_corners=True`.
    """
    a = -0.75
    # In float32, as PyTorch does, so that weights trained there see the same positions.
    place = np.arange(target, dtype=np.float32) * np.float32((source - 1) / (target - 1))
    left = np.floor(place).astype(int)
    matrix = np.zeros((target, source))
    for tap in (-1, 0, 1, 2):
        x = np.abs(place - (left + tap))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        column = np.clip(left + tap, 0, source - 1)
        np.add.at(matrix, (np.arange(target), column), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def relative_position_index(window: int) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for each pair of the window**2 positions of a window.

    Returns:
      (dy + window - 1) * (2 * window - 1) + dx + window - 1, of query minus key.

    Example:
      >>> relative_position_index(2)[0].tolist()
      [4, 3, 1, 0]
    """
    y, x = np.divmod(np.arange(window**2), window)
    dy = y[:, None] - y + window - 1
    dx = x[:, None] - x + window - 1
    return dy * (2 * window - 1) + dx


def to_windows(x: Float[Array, "b y x d"], window: int) -> Float[Array, "b w n d"]:
    """Cuts a grid into windows, row by row, of window**2 positions each."""
    batch, side, _, width = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, width).swapaxes(2, 3)
    return x.reshape(batch, count**2, window**2, width)


def from_windows(windows: Float[Array, "b w n d"], window: int) -> Float[Array, "b y x d"]:
    """Puts the windows of `to_windows` back into their square grid."""
    batch, total, _, width = windows.shape
    count = round(total**0.5)
    x = windows.reshape(batch, count, count, window, window, width).swapaxes(2, 3)
    return x.reshape(batch, count * window, count * window, width)


def shift_mask(side: int, window: int, shift: int) -> Float32[np.ndarray, "w n n"]:
    """Bias that keeps apart, in a window of the rolled grid, what the roll brought together.

    Returns:
      -100 where two positions of a window lie on different sides of the grid's edge, else 0.

    Reference:
      Liu et al., Swin Transformer, arXiv 2103.14030.
    """
    beyond = (np.arange(side) >= side - shift).astype(np.int64)
    region = 2 * beyond[:, None] + beyond
    count = side // window
    region = region.reshape(count, window, count, window).swapaxes(1, 2).reshape(count**2, -1)
    return np.where(region[:, :, None] != region[:, None], -100.0, 0.0).astype(np.float32)


class HtsatBlock(nn.Module):
    """Window attention and MLP, each on a normalised input and added to it (pre-norm)."""

    heads: int
    window: int
    shift: int
    mlp_ratio: float
    attention_dropout: float
    drop_path: float | Array
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"], train: bool = False) -> Float[Array, "b y x d"]:
        """Applies the block to a square grid."""
        norm = functools.partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        table = self.param(
            "position_bias", _weights_init, ((2 * self.window - 1) ** 2, self.heads), jnp.float32
        )
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)
        mixed = norm(name="attention_norm")(x)
        if self.shift:
            mixed = jnp.roll(mixed, (-self.shift, -self.shift), axis=(1, 2))
            bias = bias + shift_mask(x.shape[1], self.window, self.shift)[:, None]
        mixed = SelfAttention(
            self.heads, self.attention_dropout, self.dtype, _weights_init, name="attention"
        )(to_windows(mixed, self.window), bias, train)
        mixed = from_windows(mixed, self.window)
        if self.shift:
            mixed = jnp.roll(mixed, (self.shift, self.shift), axis=(1, 2))
        x = x + StochasticDepth(self.drop_path)(mixed, train)
        mlp = Mlp(round(self.mlp_ratio * x.shape[-1]), self.dtype, _weights_init, name="mlp")
        return x + StochasticDepth(self.drop_path)(mlp(norm(name="mlp_norm")(x)), train)


class PatchMerging(nn.Module):
    """Halves both sides of the grid and doubles the width."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b y2 x2 2*d"]:
        """Joins each 2 x 2 neighbours in the order (y, x) = 00, 10, 01, 11."""
        batch, side, _, width = x.shape
        x = x.reshape(batch, side // 2, 2, side // 2, 2, width).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, side // 2, side // 2, 4 * width)
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return nn.Dense(
            2 * width,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_weights_init,
            name="reduction",
        )(x)


class FusionAttention(nn.Module):
    """One scale of the fusion's attention: a narrow layer and one back, both batch-normalised."""

    reduction: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x d"], fused: Bool[Array, "b"], train: bool = False
    ) -> Float[Array, "b y x d"]:
        """Gives a logit a channel; the statistics count only rows that are `fused`."""
        width = x.shape[-1]
        x = nn.Dense(width // self.reduction, dtype=self.dtype, name="reduce")(x)
        x = nn.relu(self._normalised(x, "norm_in", fused, train))
        x = nn.Dense(width, dtype=self.dtype, name="expand")(x)
        return self._normalised(x, "norm_out", fused, train)

    def _normalised(
        self, x: Float[Array, "b y x d"], name: str, fused: Bool[Array, "b"], train: bool
    ) -> Float[Array, "b y x d"]:
        norm = nn.BatchNorm(
            momentum=0.9, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name
        )
        before = {kind: norm.get_variable("batch_stats", kind) for kind in ("mean", "var")}
        # Statistics of no rows would be NaN: then count all, and forget what they were.
        some = jnp.any(fused)
        counted = (fused | ~some)[:, None, None, None]
        x = norm(x, use_running_average=not train, mask=counted)
        if norm.is_mutable_collection("batch_stats") and not norm.is_initializing():
            for kind, old in before.items():
                new = norm.get_variable("batch_stats", kind)
                norm.put_variable("batch_stats", kind, jnp.where(some, new, old))
        return x


class FeatureFusion(nn.Module):
    """Weighs two embeddings of a clip against each other, by place and channel.

    Reference:
      Dai et al., Attentional Feature Fusion, arXiv 2009.14082; twice its output, as LAION-CLAP.
    """

    reduction: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        whole: Float[Array, "b y x d"],
        crops: Float[Array, "b y x d"],
        fused: Bool[Array, "b"],
        train: bool = False,
    ) -> Float[Array, "b y x d"]:
        """Fuses every row; the norms count only rows that are `fused`."""
        both = whole + crops
        mean = jnp.mean(both, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
        attention = functools.partial(FusionAttention, self.reduction, self.dtype)
        logits = attention(name="local")(both, fused, train)
        logits = logits + attention(name="global")(mean, fused, train)
        weight = nn.sigmoid(logits)
        return 2 * whole * weight + 2 * crops * (1 - weight)


class Htsat(nn.Module):
    """Encodes log-mel spectrograms; collections `params` and `batch_stats`.

    Attributes:
      config: sizes.
      dtype: compute type; parameters are float32.
    """

    config: HtsatConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        log_mel: Float[Array, "b l m"] | Float[Array, "b 4 l m"],
        train: bool = False,
        longer: Bool[Array, "b"] | None = None,
    ) -> HtsatOutput:
        """Encodes a batch.

        Args:
          log_mel: level of every mel bin in dB, `config.frames` frames or fewer; with
            `config.fusion` also four views of a clip: all of it shrunk, then three crops.
          train: normalises by the batch's own statistics (and keeps a running mean of them in
            `batch_stats`, which must be mutable), and drops out (rng stream `dropout`).
          longer: with four views, the clips that were longer than a crop. The others are encoded
            by their first view alone.

        Returns:
          The pooled vector, and the map that it is the mean of.

        Raises:
          InputError: too many frames, or a wrong number of mel bins or views; four views without
            `longer`, or `longer` without them.

        Reference:
          The fusion's norms count only clips that were longer, those of which it is used.
        """
        config = self.config
        log_mel = self._checked(log_mel, longer)
        if config.fusion and log_mel.ndim == 3 and self.is_initializing():
            # The parameters are the same ones whatever input they are made with.
            log_mel = jnp.stack([log_mel] * (1 + _CROPS), axis=1)
            longer = jnp.ones(log_mel.shape[0], bool)
        x = nn.BatchNorm(
            momentum=0.9,
            epsilon=1e-5,
            dtype=jnp.float32,
            use_fast_variance=False,
            name="input_norm",
        )(log_mel, use_running_average=not train)
        if x.shape[-2] < config.frames:
            matrix = bicubic_matrix(x.shape[-2], config.frames)
            x = jnp.einsum("jl,...lm->...jm", matrix, x, precision="highest")
        views, x = x, x if longer is None else x[:, 0]
        embed = functools.partial(nn.Dense, config.embed_dim, dtype=self.dtype)
        x = embed(name="patch_embedding")(self._patches(x, config.patch))
        if longer is not None:
            crops = views[:, 1:].reshape(-1, *views.shape[2:])
            crops = embed(name="crop_embedding")(self._patches(crops, _CROPS * config.patch))
            fusion = FeatureFusion(config.fusion_reduction, self.dtype, name="fusion")
            fused = fusion(x, self._side_by_side(crops), longer, train)
            x = jnp.where(longer[:, None, None, None], fused, x)
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="patch_norm")(x)

        block = block_class(HtsatBlock, train_argument=2)
        rates = iter(np.linspace(0, config.drop_path, sum(config.depths)).tolist())
        for stage, depth in enumerate(config.depths):
            if stage:
                x = PatchMerging(self.dtype, name=f"merging_{stage - 1}")(x)
            names = [f"stage_{stage}_block_{index}" for index in range(depth)]
            drop_paths = [next(rates) for _ in names]
            even, odd = self._block(stage, 0), self._block(stage, 1)
            # One or two pairs are not worth the copy.
            if depth >= 6 and depth % 2 == 0 and scans_layers(self, names):
                x = self._through_pairs(names, drop_paths, even, odd, x, train)
                continue
            for index, (name, drop_path) in enumerate(zip(names, drop_paths, strict=True)):
                settings = odd if index % 2 else even
                x = block(**settings, drop_path=drop_path, name=name)(x, train)
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return self._unfolded(x)

    def _block(self, stage: int, odd: int) -> dict[str, Any]:
        """Settings of a stage's blocks, every second of which has shifted windows."""
        config, side = self.config, self.config.side(stage)
        return {
            "heads": config.heads[stage],
            "window": min(config.window, side),
            "shift": config.window // 2 if odd and side > config.window else 0,
            "mlp_ratio": config.mlp_ratio,
            "attention_dropout": config.attention_dropout,
            "dtype": self.dtype,
        }

    def _through_pairs(
        self,
        names: list[str],
        drop_paths: list[float],
        even: dict[str, Any],
        odd: dict[str, Any],
        x: Float[Array, "b y x d"],
        train: bool,
    ) -> Float[Array, "b y x d"]:
        draws = train and not is_held_still(self)
        count = len(names) // 2
        keys = jax.random.split(self.make_rng("dropout"), (count, 2)) if draws else None

        def pair(layers: tuple, x: Array, keys: Array | None) -> Array:
            for i, (settings, (params, drop_path)) in enumerate(
                zip((even, odd), layers, strict=True)
            ):
                block = HtsatBlock(**settings, drop_path=drop_path, parent=None)
                x = run_unbound(block, params, None if keys is None else keys[i], x)
            return x

        params = self.variables["params"]
        layers = [
            (params[name], jnp.float32(drop_path))
            for name, drop_path in zip(names, drop_paths, strict=True)
        ]
        return scanned(pair, list(zip(layers[::2], layers[1::2], strict=True)), x, keys)

    def _checked(
        self, log_mel: Float[Array, "b *views l m"], longer: Bool[Array, "b"] | None
    ) -> Float32[Array, "b *views l m"]:
        batch, *views, frames, mels = log_mel.shape
        if mels != self.config.mels:
            raise InputError(
                f"log_mel: {mels} mel bins, but the encoder takes {self.config.mels}; "
                "compute the features with as many"
            )
        if not 1 <= frames <= self.config.frames:
            raise InputError(
                f"log_mel: {frames} frames, but the encoder takes 1 to {self.config.frames}; "
                "cut the audio into windows"
            )
        if views and not self.config.fusion:
            raise InputError(
                f"log_mel: {'x'.join(map(str, views))} views, but the encoder has no fusion and "
                "takes [b, l, m]; give one view, or set HtsatConfig.fusion"
            )
        if views and views != [1 + _CROPS]:
            raise InputError(
                f"log_mel: {'x'.join(map(str, views))} views, but fusion takes {1 + _CROPS}, all "
                "of the clip and three crops; make them with windows.fusion_views"
            )
        if views and longer is None:
            raise InputError(
                f"longer: None, but log_mel has {1 + _CROPS} views; say of each clip whether it "
                "was longer than a crop"
            )
        if longer is not None and not views:
            raise InputError(
                "longer: given, but log_mel has one view, with which nothing is fused; "
                f"leave it out, or give {1 + _CROPS} views"
            )
        if longer is not None and longer.shape != (batch,):
            raise InputError(
                f"longer: shape {longer.shape}, but log_mel has {batch} clips; "
                f"give one flag a clip, ({batch},)"
            )
        return log_mel.astype(jnp.float32)

    def _patches(self, x: Float[Array, "b l m"], frames: int) -> Float[Array, "b y x _"]:
        """Folds a spectrogram into its square, and the square into patches (mel, frame).

        Frames at the end of a segment that fill no patch are left out.
        """
        config, rows = self.config, self.config.mels // self.config.patch
        count = config.spec_size // frames
        x = x.reshape(x.shape[0], config.segments, config.spec_size, rows, config.patch)
        x = x[:, :, : count * frames]
        x = x.reshape(x.shape[0], config.segments, count, frames, rows, config.patch)
        x = x.transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(x.shape[0], config.side(0), count, config.patch * frames)

    def _side_by_side(self, crops: Float[Array, "b*3 y x3 d"]) -> Float[Array, "b y x d"]:
        """Puts a clip's crops beside each other, with zeros in the columns that are left."""
        _, side, count, width = crops.shape
        crops = crops.reshape(-1, _CROPS, side, count, width).swapaxes(1, 2)
        crops = crops.reshape(-1, side, _CROPS * count, width)
        return jnp.pad(crops, [(0, 0), (0, 0), (0, side - _CROPS * count), (0, 0)])

    def _unfolded(self, x: Float[Array, "b y x d"]) -> HtsatOutput:
        """Lays the segments behind each other again."""
        batch, side, _, width = x.shape
        bins = side // self.config.segments
        x = x.reshape(batch, self.config.segments, bins, side, width).swapaxes(1, 2)
        x = x.reshape(batch, bins, self.config.segments * side, width)
        return HtsatOutput(jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype), x)
