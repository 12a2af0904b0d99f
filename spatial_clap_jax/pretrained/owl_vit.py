"""Hugging Face's `OwlViTForObjectDetection`: read as ours, and written so that it loads them.

Reference: transformers' `modeling_owlvit.py` and `configuration_owlvit.py` for names and defaults.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatial_clap_jax.configs_io import describing, from_plain, refuse_outsized
from spatial_clap_jax.data.images import CLIP_DEVIATION, CLIP_MEAN
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.owlvit import (
    OwlVit,
    OwlVitConfig,
    OwlVitImageConfig,
    OwlVitTextConfig,
)
from spatial_clap_jax.pretrained.files import Source, open_source, read_json, read_tensors
from spatial_clap_jax.pretrained.hf_text import read_tokenizer
from spatial_clap_jax.pretrained.mapping import (
    Entry,
    Left,
    Report,
    Taking,
    dense,
    leaf_shapes,
    norm,
    renamed,
    write_entries,
)

OWL_VIT = "owl-vit"
_MANIFEST, _TENSORS = "model.json", "model.safetensors"
# What a `config.json` may leave out, since it equals the class's default.
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_IMAGE_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 768,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Habits of which our towers have only this one.
_FIXED = ("hidden_act", "num_channels")
_LEFT = (Left(r"(.*\.)?(position_ids|box_bias)", "indices and constants"),)


@dataclasses.dataclass(frozen=True)
class OwlVitWeights:
    """A pretrained OWL-ViT.

    Attributes:
      config: its shape and habits.
      arrays: variables of `OwlVit(config)` by path, `params/` first.
      tokenizer: of its vocabulary; None where the source brings none.
      report: what became of the source's tensors.
    """

    config: OwlVitConfig
    arrays: dict[str, np.ndarray]
    tokenizer: Tokenizer | None
    report: Report

    def __post_init__(self) -> None:
        vocabulary = self.config.text.vocabulary
        # An id beyond the table would be read as the last row, in silence.
        if self.tokenizer and self.tokenizer.vocabulary_size > vocabulary:
            raise InputError(
                f"{self.report.source}: the tokenizer has {self.tokenizer.vocabulary_size} tokens "
                f"and the text tower knows {vocabulary}; give the tokenizer of its vocabulary."
            )


def read_owl_vit(source: str | Path) -> OwlVitWeights:
    """Reads a whole OWL-ViT: both towers, both heads, tokenizer.

    Args:
      source: an `OwlViTForObjectDetection` folder, its name on the hub, or a folder that `convert`
        made of one.

    Raises:
      InputError: it is another architecture, or a tensor is missing, unknown or does not fit.
    """
    folder = find_owl_vit(source)
    if folder is not None:
        return _read_converted(folder)
    opened = open_source(source)
    config = opened.json("config.json")
    if not is_owl_vit(config):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise InputError(
            f"{source}: model_type {kind!r} is not 'owlvit'; give an OwlViTForObjectDetection "
            "folder, or one that `spatial-clap convert` made of it."
        )
    sizes = {"projection_dim", *_IMAGE_DEFAULTS, *_TEXT_DEFAULTS}
    refuse_outsized(config, f"{source}: config.json", sizes)
    with describing(f"{source}: config.json"):
        shape = _config(config, str(source))
        shapes = owl_vit_shapes(shape)
    with describing(f"{source}: preprocessor_config.json"):
        _check_preprocessing(opened, shape)
    taking = Taking(str(source), renamed(opened.tensors(), _current_name))
    arrays = taking.take(owl_vit_entries(shape), shapes)
    report = taking.finish(_LEFT)
    return OwlVitWeights(shape, arrays, read_tokenizer(opened, shape.text.max_tokens), report)


def is_owl_vit(config: Any) -> bool:
    """Whether the content of a `config.json` is an OWL-ViT's."""
    return isinstance(config, dict) and config.get("model_type") == "owlvit"


def find_owl_vit(source: str | Path) -> Path | None:
    """The folder that `convert` made of an OWL-ViT: `source`, or the one inside it; else None."""
    folder = Path(source).expanduser()
    for place in (folder, folder / OWL_VIT):
        if (place / _MANIFEST).is_file() and (place / _TENSORS).is_file():
            held = read_json(place / _MANIFEST)
            if isinstance(held, dict) and held.get("format") == OWL_VIT:
                return place
    return None


def _read_converted(folder: Path) -> OwlVitWeights:
    held = read_json(folder / _MANIFEST).get("config")
    if not isinstance(held, dict):
        raise InputError(f"{folder / _MANIFEST}: describes no model; convert the weights again.")
    refuse_outsized(held, folder / _MANIFEST)
    config = from_plain(OwlVitConfig, held)
    with describing(folder / _MANIFEST):
        shapes = owl_vit_shapes(config)
    taking = Taking(str(folder), read_tensors(folder / _TENSORS))
    arrays = taking.take([Entry(path, (path,)) for path in shapes], shapes)
    tokenizer = read_tokenizer(Source(str(folder), folder), config.text.max_tokens)
    return OwlVitWeights(config, arrays, tokenizer, taking.finish())


def owl_vit_tensors(weights: OwlVitWeights) -> dict[str, np.ndarray]:
    """The state dict of the `OwlViTForObjectDetection` that computes what `weights` does.

    Raises:
      InputError: it has habits that Hugging Face's code has not.
    """
    _check_fits(weights.config)
    return write_entries(owl_vit_entries(weights.config), weights.arrays)


def owl_vit_configs(weights: OwlVitWeights) -> dict[str, dict[str, Any]]:
    """The JSON files that stand beside the tensors, by name.

    Raises:
      InputError: it has habits that Hugging Face's code has not.
    """
    _check_fits(weights.config)
    config, (height, width) = weights.config, weights.config.image.image_size
    tokenizer = weights.tokenizer
    ends = {} if tokenizer is None else {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip

    def sizes(tower: OwlVitImageConfig | OwlVitTextConfig) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": tower.layer_norm_epsilon,
        }

    files = {
        "config.json": {
            "architectures": ["OwlViTForObjectDetection"],
            "model_type": "owlvit",
            "projection_dim": config.joint_width,
            "text_config": {
                "model_type": "owlvit_text_model",
                **sizes(config.text),
                "vocab_size": config.text.vocabulary,
                "max_position_embeddings": config.text.max_tokens,
                **ends,
            },
            "vision_config": {
                "model_type": "owlvit_vision_model",
                **sizes(config.image),
                "num_channels": 3,
                "image_size": height,
                "patch_size": config.image.patch,
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "OwlViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": 3,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_DEVIATION),
        },
    }
    return files


def owl_vit_entries(config: OwlVitConfig) -> list[Entry]:
    """Entries of an OWL-ViT under Hugging Face's names.

    Args:
      config: its shape.
    """
    image, text = "owlvit.vision_model", "owlvit.text_model"
    patch = (config.image.patch, config.image.patch)
    return [
        Entry("params/image/cls_token", (f"{image}.embeddings.class_embedding",)),
        Entry("params/image/positions", (f"{image}.embeddings.position_embedding.weight",)),
        Entry(
            "params/image/patch/kernel",
            (f"{image}.embeddings.patch_embedding.weight",),
            "patches",
            patch,
        ),
        *norm("params/image/norm_before", f"{image}.pre_layernorm"),
        *_blocks("params/image/blocks", f"{image}.encoder.layers", config.image.layers),
        *norm("params/image/blocks/norm", f"{image}.post_layernorm"),
        *norm("params/image/merged_norm", "layer_norm"),
        Entry("params/text/tokens/embedding", (f"{text}.embeddings.token_embedding.weight",)),
        Entry("params/text/positions/embedding", (f"{text}.embeddings.position_embedding.weight",)),
        *_blocks("params/text/blocks", f"{text}.encoder.layers", config.text.layers),
        *norm("params/text/blocks/norm", f"{text}.final_layer_norm"),
        *dense("params/image_projection", "owlvit.visual_projection", bias=False),
        *dense("params/text_projection", "owlvit.text_projection", bias=False),
        Entry("params/logit_scale", ("owlvit.logit_scale",)),
        *dense("params/class_head/embedding", "class_head.dense0"),
        *dense("params/class_head/shift", "class_head.logit_shift"),
        *dense("params/class_head/scale", "class_head.logit_scale"),
        *dense("params/box_head/hidden_0", "box_head.dense0"),
        *dense("params/box_head/hidden_1", "box_head.dense1"),
        *dense("params/box_head/out", "box_head.dense2"),
    ]


@functools.cache
def owl_vit_shapes(config: OwlVitConfig) -> Mapping[str, tuple[int, ...]]:
    """Shapes of an OWL-ViT's arrays by path, `params/` first."""
    images = jnp.zeros((1, *config.image.image_size, 3))
    tokens = jnp.zeros((1, config.text.max_tokens), jnp.int32)
    tree = jax.eval_shape(OwlVit(config).init, jax.random.key(0), images, tokens)
    return MappingProxyType(leaf_shapes(tree))


def _blocks(ours: str, theirs: str, layers: int) -> list[Entry]:
    entries = []
    for index in range(layers):
        here, there = f"{ours}/block_{index}", f"{theirs}.{index}"
        parts = [f"{there}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        entries += [
            *norm(f"{here}/attention_norm", f"{there}.layer_norm1"),
            *dense(f"{here}/attention/qkv", *parts),
            *dense(f"{here}/attention/out", f"{there}.self_attn.out_proj"),
            *norm(f"{here}/mlp_norm", f"{there}.layer_norm2"),
            *dense(f"{here}/mlp/up", f"{there}.mlp.fc1"),
            *dense(f"{here}/mlp/down", f"{there}.mlp.fc2"),
        ]
    return entries


def _current_name(name: str) -> str:
    """The name that a tensor has today: files of transformers before 5 misspell one norm."""
    return name.replace("pre_layrnorm", "pre_layernorm")


def _config(config: Mapping[str, Any], source: str) -> OwlVitConfig:
    text = _TEXT_DEFAULTS | (config.get("text_config") or {})
    image = _IMAGE_DEFAULTS | (config.get("vision_config") or {})
    for part, held, known in (
        ("text_config", text, _TEXT_DEFAULTS),
        ("vision_config", image, _IMAGE_DEFAULTS),
    ):
        for key in _FIXED:
            if key in known and held[key] != known[key]:
                raise InputError(
                    f"{source}: {part}.{key} is {held[key]!r}, our OWL-ViT has {known[key]!r} "
                    "only; give a model of that kind."
                )
    if not isinstance(image["image_size"], int) or not isinstance(image["patch_size"], int):
        raise InputError(
            f"{source}: vision_config has image_size {image['image_size']} and patch_size "
            f"{image['patch_size']}; OWL-ViT's are single numbers: give such a model."
        )
    epsilon = float(image["layer_norm_eps"])
    try:
        return OwlVitConfig(
            image=OwlVitImageConfig(
                image_size=(image["image_size"], image["image_size"]),
                patch=image["patch_size"],
                width=image["hidden_size"],
                layers=image["num_hidden_layers"],
                heads=image["num_attention_heads"],
                mlp_width=image["intermediate_size"],
                layer_norm_epsilon=epsilon,
                merged_epsilon=epsilon,
            ),
            text=OwlVitTextConfig(
                vocabulary=text["vocab_size"],
                width=text["hidden_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                mlp_width=text["intermediate_size"],
                max_tokens=text["max_position_embeddings"],
                layer_norm_epsilon=float(text["layer_norm_eps"]),
            ),
            joint_width=config.get("projection_dim", 512),
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _check_preprocessing(source: Source, config: OwlVitConfig) -> None:
    given = source.json("preprocessor_config.json") or {}
    # Newer folders keep the image processor's settings in the processor's file.
    given = given or (source.json("processor_config.json") or {}).get("image_processor", {})
    for key, known in (("image_mean", CLIP_MEAN), ("image_std", CLIP_DEVIATION)):
        held = given.get(key, known)
        if len(held) != 3 or not np.allclose(held, known, atol=1e-4):
            raise InputError(
                f"{source.name}: preprocessor_config.json has {key} {held}, our images are "
                f"normalised by CLIP's {list(known)}; give a model of that kind."
            )
    size = given.get("size", {})
    sides = set(size.values() if isinstance(size, dict) else np.ravel(size).tolist())
    if sides - {config.image.image_size[0]}:
        raise InputError(
            f"{source.name}: preprocessor_config.json has size {size} and the image tower takes "
            f"{config.image.image_size[0]} pixels; its files must be of one model."
        )


def _check_fits(config: OwlVitConfig) -> None:
    image = config.image
    if image.merged_epsilon != image.layer_norm_epsilon or config.box_gelu != "exact":
        raise InputError(
            f"owlvit: merged_epsilon {image.merged_epsilon} and box_gelu {config.box_gelu!r}; "
            f"Hugging Face's code has {image.layer_norm_epsilon} and 'exact' there: it would "
            "compute something else."
        )
    if image.image_size[0] != image.image_size[1]:
        raise InputError(
            f"owlvit: image_size {image.image_size}; Hugging Face's code takes squares only."
        )
