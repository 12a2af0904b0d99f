"""Names of HTSAT's tensors in Hugging Face's `ClapAudioEncoder` and in LAION-CLAP's own code."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from spatial_clap_jax.models.htsat import Htsat, HtsatConfig
from spatial_clap_jax.pretrained.mapping import (
    Entry,
    Left,
    batch_norm,
    dense,
    leaf_shapes,
    norm,
)


@dataclass(frozen=True)
class Names:
    """One code's names of what differs between the two.

    Attributes:
      input_norm: BatchNorm over mel bins.
      attention_norm: norm before a block's attention.
      qkv: queries, keys and values; one name where they are one tensor.
      out: projection after attention.
      position_bias: table of relative positions.
      mlp_norm: norm before a block's MLP.
      up: first layer of the MLP.
      down: second layer of the MLP.
    """

    input_norm: str
    attention_norm: str
    qkv: tuple[str, ...]
    out: str
    position_bias: str
    mlp_norm: str
    up: str
    down: str


HUGGING_FACE = Names(
    input_norm="batch_norm",
    attention_norm="layernorm_before",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    position_bias="attention.self.relative_position_bias_table",
    mlp_norm="layernorm_after",
    up="intermediate.dense",
    down="output.dense",
)
LAION = Names(
    input_norm="bn0",
    attention_norm="norm1",
    qkv=("attn.qkv",),
    out="attn.proj",
    position_bias="attn.relative_position_bias_table",
    mlp_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
)
# What lies beside the weights in either code, as names below the encoder's prefix.
HTSAT_LEFT = (
    Left(r".*relative_position_index", "indices"),
    Left(r".*num_batches_tracked", "counters"),
    Left(r".*attn_mask", "masks"),
    Left(r"(.*\.)?(tscam_conv|head)\.(weight|bias)", "class heads"),
)


def htsat_entries(config: HtsatConfig, prefix: str, names: Names) -> list[Entry]:
    """Entries of an HTSAT.

    Args:
      config: its shape.
      prefix: what stands before every name, with its dot.
      names: of the code that wrote it.
    """
    patch = config.patch
    entries = [
        *batch_norm("input_norm", f"{prefix}{names.input_norm}"),
        *_patches("patch_embedding", f"{prefix}patch_embed.proj", (patch, patch)),
        *norm("params/patch_norm", f"{prefix}patch_embed.norm"),
        *norm("params/norm", f"{prefix}norm"),
    ]
    if config.fusion:
        entries += _patches("crop_embedding", f"{prefix}patch_embed.mel_conv2d", (patch, 3 * patch))
        # Their global branch begins with a pooling, which counts as a layer.
        for ours, theirs, first in (("local", "local_att", 0), ("global", "global_att", 1)):
            branch = f"{prefix}patch_embed.fusion_model.{theirs}"
            entries += _patches(f"fusion/{ours}/reduce", f"{branch}.{first}", (1, 1))
            entries += batch_norm(f"fusion/{ours}/norm_in", f"{branch}.{first + 1}")
            entries += _patches(f"fusion/{ours}/expand", f"{branch}.{first + 3}", (1, 1))
            entries += batch_norm(f"fusion/{ours}/norm_out", f"{branch}.{first + 4}")
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            ours, theirs = f"params/stage_{stage}_block_{index}", f"layers.{stage}.blocks.{index}"
            entries += _block(ours, f"{prefix}{theirs}", names)
        if stage < len(config.depths) - 1:
            ours, theirs = f"params/merging_{stage}", f"{prefix}layers.{stage}.downsample"
            entries += norm(f"{ours}/norm", f"{theirs}.norm")
            entries += dense(f"{ours}/reduction", f"{theirs}.reduction", bias=False)
    return entries


@functools.cache
def htsat_shapes(config: HtsatConfig) -> Mapping[str, tuple[int, ...]]:
    """Shapes of an HTSAT's variables by path, `params/` or `batch_stats/` first."""
    log_mel = jnp.zeros((1, config.frames, config.mels))
    tree = jax.eval_shape(Htsat(config).init, jax.random.key(0), log_mel)
    return MappingProxyType(leaf_shapes(tree))


def _patches(ours: str, theirs: str, patch: tuple[int, int]) -> list[Entry]:
    return [
        Entry(f"params/{ours}/kernel", (f"{theirs}.weight",), "patches", patch),
        Entry(f"params/{ours}/bias", (f"{theirs}.bias",)),
    ]


def _block(ours: str, theirs: str, names: Names) -> list[Entry]:
    return [
        *norm(f"{ours}/attention_norm", f"{theirs}.{names.attention_norm}"),
        *dense(f"{ours}/attention/qkv", *(f"{theirs}.{part}" for part in names.qkv)),
        *dense(f"{ours}/attention/out", f"{theirs}.{names.out}"),
        Entry(f"{ours}/position_bias", (f"{theirs}.{names.position_bias}",)),
        *norm(f"{ours}/mlp_norm", f"{theirs}.{names.mlp_norm}"),
        *dense(f"{ours}/mlp/up", f"{theirs}.{names.up}"),
        *dense(f"{ours}/mlp/down", f"{theirs}.{names.down}"),
    ]
