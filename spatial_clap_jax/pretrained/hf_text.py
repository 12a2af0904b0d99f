"""RoBERTa and BERT encoders, and the sentence encoders made of them, as our text encoder.

Reference: the names of Hugging Face's `RobertaModel` and `BertModel`; sentence-transformers'
  `modules.json` for the pooling.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from spatial_clap_jax.configs_io import describing, refuse_outsized
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.text import TextConfig, TextEncoder
from spatial_clap_jax.pretrained.files import Source, common_prefix, open_source
from spatial_clap_jax.pretrained.mapping import (
    Entry,
    Left,
    Taking,
    dense,
    leaf_shapes,
    norm,
    renamed,
)
from spatial_clap_jax.pretrained.towers import TextTower

# Positions of RoBERTa's family begin after the padding id, BERT's at zero.
ROBERTA_TYPES = ("roberta", "xlm-roberta", "camembert", "clap_text_model")
BERT_TYPES = ("bert",)
_NEEDED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
# sentence-transformers' names of a pooling, and ours.
_POOLING: dict[str, Literal["mean", "first"]] = {
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "first",
    "cls": "first",
}
# Versions of transformers differ in whether they store these.
TEXT_LEFT = (
    Left(r"(.*\.)?embeddings\.(position_ids|token_type_ids)", "indices"),
    Left(r"(lm_head|cls)\..*", "heads of masked language modelling"),
)


def read_hf_text(source: str | Path) -> TextTower:
    """Reads a RoBERTa or BERT folder, or a sentence-transformers one with its pooling.

    Args:
      source: a folder (config.json, weights, tokenizer files) or a name on the hub.

    Raises:
      InputError: it is another architecture, or a tensor is missing, unknown or does not fit.
    """
    opened = open_source(source)
    folder, pooling = _sentence_pooling(opened)
    transformer = opened.below(folder)
    config = transformer.json("config.json")
    if not isinstance(config, dict):
        raise InputError(f"{source}: holds no config.json; give a folder of Hugging Face's.")
    refuse_outsized(config, f"{source}: config.json", _NEEDED)
    tensors = renamed(transformer.tensors(), current_name)
    prefix = common_prefix(tensors, "embeddings.word_embeddings.weight", str(source))
    taking = Taking(str(source), tensors)
    left = [*TEXT_LEFT]
    if pooling is not None:
        left.append(Left(rf"{re.escape(prefix)}pooler\..*", f"pooled by {pooling}"))
    elif f"{prefix}pooler.dense.weight" in tensors:
        pooling = "pooler"
    else:
        pooling = "first"
        taking.make("pooling", "the first token: the source has no pooler")
    with describing(f"{source}: config.json"):
        text = text_config(config, pooling, str(source))
        shapes = text_shapes(text)
    arrays = taking.take(text_entries(text, prefix), shapes)
    return TextTower(
        config=text,
        arrays=arrays,
        tokenizer=read_tokenizer(transformer, text.max_tokens),
        report=taking.finish(left),
    )


def current_name(name: str) -> str:
    """The name that a tensor has today: BERT's oldest files call norms gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def text_config(
    config: Mapping[str, Any],
    pooling: Literal["pooler", "mean", "first"],
    source: str,
) -> TextConfig:
    """The shape that a `config.json` of Hugging Face's describes.

    Args:
      config: of a RoBERTa, BERT or CLAP text encoder.
      pooling: how its tokens become one vector.
      source: for errors.

    Raises:
      InputError: another architecture, or a habit that our encoder has not.
    """
    kind = config.get("model_type")
    if kind not in ROBERTA_TYPES + BERT_TYPES:
        known = ", ".join(ROBERTA_TYPES + BERT_TYPES)
        raise InputError(f"{source}: model_type {kind!r} is none of {known}; give one of these.")
    lacking = [key for key in _NEEDED if type(config.get(key)) is not int]
    if lacking:
        raise InputError(f"{source}: config.json lacks {', '.join(lacking)}; restore the file.")
    # A decoder has the same tensors, and sees no word to its right.
    fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise InputError(
                f"{source}: {key} is {config[key]!r}, our encoder has {value!r} only; give a "
                "model of that kind."
            )
    padding = config.get("pad_token_id")
    offset = (1 if padding is None else padding) + 1 if kind in ROBERTA_TYPES else 0
    return TextConfig(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        max_tokens=config["max_position_embeddings"] - offset,
        positions="absolute",
        position_offset=offset,
        token_types=config["type_vocab_size"],
        pooling=pooling,
        layer_norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
        dropout=float(config.get("hidden_dropout_prob", 0.1)),
        attention_dropout=float(config.get("attention_probs_dropout_prob", 0.1)),
    )


def text_entries(config: TextConfig, prefix: str = "") -> list[Entry]:
    """Entries of a text encoder under the names of Hugging Face's RoBERTa and BERT.

    Args:
      config: its shape.
      prefix: what stands before every name, with its dot.
    """
    tables = {"tokens": "word", "positions": "position", "token_types": "token_type"}
    entries = [
        Entry(f"params/{ours}/embedding", (f"{prefix}embeddings.{theirs}_embeddings.weight",))
        for ours, theirs in tables.items()
    ]
    entries += norm("params/norm", f"{prefix}embeddings.LayerNorm")
    for index in range(config.layers):
        layer = f"{prefix}encoder.layer.{index}"
        entries += transformer_layer(
            f"params/layer_{index}", layer, "attention.output.LayerNorm", "output.LayerNorm"
        )
    if config.pooling == "pooler":
        entries += dense("params/pooler", f"{prefix}pooler.dense")
    return entries


def transformer_layer(ours: str, theirs: str, before: str, after: str) -> list[Entry]:
    """Entries of a layer whose queries, keys and values are three tensors.

    Args:
      ours: path of our layer.
      theirs: their name of it.
      before: their name of the norm at the attention.
      after: their name of the norm at the MLP.
    """
    parts = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
    return [
        *dense(f"{ours}/attention/qkv", *parts),
        *dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense"),
        *norm(f"{ours}/attention_norm", f"{theirs}.{before}"),
        *dense(f"{ours}/mlp/up", f"{theirs}.intermediate.dense"),
        *dense(f"{ours}/mlp/down", f"{theirs}.output.dense"),
        *norm(f"{ours}/mlp_norm", f"{theirs}.{after}"),
    ]


@functools.cache
def text_shapes(config: TextConfig) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a text encoder's arrays by path, `params/` first."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    tree = jax.eval_shape(TextEncoder(config).init, jax.random.key(0), tokens, tokens > 0)
    return MappingProxyType(leaf_shapes(tree))


def read_tokenizer(source: Source, max_tokens: int) -> Tokenizer | None:
    """The tokenizer in a checkpoint's folder, None where there is none.

    Raises:
      InputError: its files cannot be read.
    """
    if source.folder is None:
        return None
    return Tokenizer.from_folder(source.folder, max_tokens)


def _sentence_pooling(source: Source) -> tuple[str, Literal["mean", "first"] | None]:
    """Where sentence-transformers keeps the transformer, and its pooling; ('', None) for others."""
    modules = source.json("modules.json")
    if modules is None:
        return "", None
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        paths = [module["path"] + "" for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{source.name}: modules.json lists no modules ({error}); restore the file."
        ) from error
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"{source.name}: is made of {', '.join(kinds) or 'nothing'}; a transformer with "
            "pooling (and normalisation) is read: give one of that kind."
        )
    held = source.below(paths[1]).json("config.json")
    held = held if isinstance(held, dict) else {}
    flags = [
        key for key, value in held.items() if key.startswith("pooling_mode_") and value is True
    ]
    modes = [flag.removeprefix("pooling_mode_") for flag in flags]
    if isinstance(held.get("pooling_mode"), str):
        modes = [held["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise InputError(
            f"{source.name}: pools by {' + '.join(modes) or 'nothing'}; our encoder pools by one "
            f"of {', '.join(_POOLING)}: give a model that does."
        )
    return paths[0], _POOLING[modes[0]]
