"""M2D-CLAP's published weights: read as ours, and written so that its own code loads them.

Those of 2024 are a whole training: the online encoder, the target's own blocks, the predictor
("decoder") and a projector of two layers. Those of 2025 are an encoder with its projector of a
learned token, under `backbone.`, and a BERT. Files of M2D alone (no CLAP, or an encoder only) are
read too. Positions are constants here: they are compared with ours and dropped, and made again on
the way back.

Reference: Niizumi et al., arXiv 2503.22104; names by the public code (nttcslab/m2d).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from spatial_clap_jax.data.audio import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import M2D_LOG_MEL, LogMelConfig
from spatial_clap_jax.models.m2d import Masks, Predictor, PredictorConfig, TokenProjection
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import Vit, VitConfig, sincos_positions, vit_blocks
from spatial_clap_jax.pretrained.files import common_prefix, count_numbered, open_source
from spatial_clap_jax.pretrained.hf_text import (
    TEXT_LEFT,
    current_name,
    text_entries,
    text_shapes,
)
from spatial_clap_jax.pretrained.laion_clap import roberta_shape
from spatial_clap_jax.pretrained.mapping import (
    Entry,
    Left,
    Report,
    Taking,
    Tensors,
    dense,
    leaf_shapes,
    mlp,
    mlp_shapes,
    norm,
    renamed,
    write_entries,
)
from spatial_clap_jax.pretrained.towers import AudioTower, TextTower, below

Projector = Literal["mlp", "token"]
_PATCHES = "patch_embed.proj.weight"
_BACKBONE, _TEXT = "backbone.", "text_encoder.text_encoder."
_WORDS = f"{_TEXT}embeddings.word_embeddings.weight"
# Of the weights of 2022, which do not tell theirs.
_OLD_NORMALISATION = (-7.1, 4.2)
# No tensor tells the heads; those of every published ViT and predictor are this wide.
_HEAD, _PREDICTOR_HEAD = 64, 32
_ROBERTA_OFFSET = 2
# Positions further off than this are others than ours.
_SAME_POSITION = 1e-4
# ...-80x1001p16x16p16k...: mels and frames of the input, of a patch, and the rate.
_SIZES = re.compile(r"-(\d{1,6})x(\d{1,6})p(\d{1,6})x(\d{1,6})(?:p(\d{1,6})k)?")
_LEFT = (
    *TEXT_LEFT,
    Left(r"(.*\.)?(decoder_)?pos_embed", "positions, which are constants here"),
    Left(r"(.*\.)?norm_stats", "kept in the configuration"),
    Left(rf"{re.escape(_TEXT)}pooler\..*", "texts are pooled by their first token"),
)


@dataclasses.dataclass(frozen=True)
class M2dClapWeights:
    """What a published file holds.

    Attributes:
      audio: content encoder, with its front end and normalisation.
      text: text encoder, without a tokenizer: it is bert-base-uncased's. None where texts are
        sentence embeddings of another model.
      projector: of audio: 'mlp', of the mean token, or 'token', a learned one; None without CLAP.
      sentence_width: of sentence embeddings where they are projected, None where they are not.
      predictor: its shape; None without one.
      arrays: `params/` of audio_projection, text_projection, predictor and logit_scale, and
        `target/`, by path: those that the file has.
      report: what became of the source's tensors.
    """

    audio: AudioTower
    text: TextTower | None
    projector: Projector | None
    sentence_width: int | None
    predictor: PredictorConfig | None
    arrays: dict[str, np.ndarray]
    report: Report


def read_m2d_clap(source: str | Path) -> M2dClapWeights:
    """Reads a published M2D-CLAP, or an M2D without CLAP.

    Args:
      source: its `.pth` (needs PyTorch), or its tensors as `.safetensors`. The name that it is
        published under, of the file or its folder, tells how many frames its input has.

    Raises:
      InputError: it is another architecture, or a tensor is missing, unknown or does not fit.
    """
    return m2d_clap_of(open_source(source).tensors(), str(source))


def is_m2d_clap(tensors: Tensors) -> bool:
    """Whether a state dict looks like one of M2D."""
    return any(
        {f"{prefix}{name}" for name in (_PATCHES, "pos_embed", "cls_token")} <= tensors.keys()
        for prefix in ("", _BACKBONE)
    )


def m2d_clap_of(tensors: Tensors, name: str) -> M2dClapWeights:
    """`read_m2d_clap` of tensors that are read already; `name` stands in errors."""
    tensors = renamed(tensors, current_name)
    prefix = common_prefix(tensors, _PATCHES, name)
    config = _vit_config(tensors, prefix, name)
    _check_positions(tensors, f"{prefix}pos_embed", config, config.width, name)
    has = lambda key: f"{prefix}{key}" in tensors  # noqa: E731
    taking = Taking(name, tensors)
    content = taking.take(vit_entries(config, prefix), vit_shapes(config))
    shapes: dict[str, tuple[int, ...]] = {}
    entries: list[Entry] = []
    projector: Projector | None = None
    if has("audio_proj.sem_token") or has("audio_proj.0.weight"):
        projector = "token" if has("audio_proj.sem_token") else "mlp"
        entries += projector_entries(projector, prefix)
        shapes |= projector_shapes(projector, config.width)
    sentence_width = None
    if has("text_proj.weight"):
        sentence_width = int(tensors[f"{prefix}text_proj.weight"].shape[-1])
        entries += dense("params/text_projection", f"{prefix}text_proj")
        shapes["params/text_projection/kernel"] = (sentence_width, config.width)
        shapes["params/text_projection/bias"] = (config.width,)
    predictor = None
    if has("decoder_embed.weight"):
        predictor = _predictor_config(tensors, prefix, name)
        _check_positions(tensors, f"{prefix}decoder_pos_embed", config, predictor.width, name)
        entries += pretraining_entries(config, predictor, prefix)
        shapes |= pretraining_shapes(config, predictor)
    if has("logit_scale"):
        entries.append(Entry("params/logit_scale", (f"{prefix}logit_scale",)))
        shapes["params/logit_scale"] = ()
    arrays = taking.take(entries, shapes)
    texts = None
    if _WORDS in tensors:
        bert = _bert_config(tensors, name)
        texts = bert, taking.take(text_entries(bert, _TEXT), text_shapes(bert))
    normalisation = _normalisation(taking, prefix)
    report = taking.finish(_LEFT)
    rate_khz = _told_by(name, 5, 16)
    if not LOWEST_RATE_HZ <= rate_khz * 1000 <= HIGHEST_RATE_HZ:
        raise InputError(
            f"{name}: its name tells of {rate_khz} kHz; a rate within {LOWEST_RATE_HZ} and "
            f"{HIGHEST_RATE_HZ} Hz is read: rename the file."
        )
    mel = m2d_log_mel(config.mels, rate_khz * 1000)
    return M2dClapWeights(
        audio=AudioTower(config, mel, content, report, normalisation),
        text=None if texts is None else TextTower(*texts, None, report),
        projector=projector,
        sentence_width=sentence_width,
        predictor=predictor,
        arrays=arrays,
        report=report,
    )


def m2d_clap_tensors(weights: M2dClapWeights) -> dict[str, np.ndarray]:
    """The state dict of the public model that computes what `weights` does.

    With a text encoder or a learned token in its projector it is laid out as in 2025, else as in
    2024.
    Of the text encoder's pooler, which nothing asks, zeros are written.

    Raises:
      InputError: the text encoder is none of BERT's, or the heads are others than the public
        model's.
    """
    config = weights.audio.config
    assert isinstance(config, VitConfig)
    assert weights.audio.normalisation is not None
    _check_heads(config, weights.predictor)
    is_2025 = weights.projector == "token" or weights.text is not None
    prefix = _BACKBONE if is_2025 else ""
    entries = [*vit_entries(config, prefix)]
    arrays = {**weights.audio.arrays, **weights.arrays}
    if weights.projector is not None:
        entries += projector_entries(weights.projector, prefix)
    if weights.sentence_width is not None:
        entries += dense("params/text_projection", f"{prefix}text_proj")
    if weights.predictor is not None:
        entries += pretraining_entries(config, weights.predictor, prefix)
    if "params/logit_scale" in arrays:
        # The public loader of 2025 looks at nothing but what is under its prefixes.
        entries.append(Entry("params/logit_scale", (f"{prefix}logit_scale",)))
    tensors = write_entries(entries, arrays)
    tensors[f"{prefix}pos_embed"] = _positions(config, config.width)
    tensors[f"{prefix}norm_stats"] = np.array(weights.audio.normalisation, np.float32)
    if weights.predictor is not None:
        tensors[f"{prefix}decoder_pos_embed"] = _positions(config, weights.predictor.width)
    if weights.text is not None:
        text = weights.text.config
        _check_is_bert(text)
        tensors |= write_entries(text_entries(text, _TEXT), weights.text.arrays)
        tensors[f"{_TEXT}pooler.dense.weight"] = np.zeros((text.width, text.width), np.float32)
        tensors[f"{_TEXT}pooler.dense.bias"] = np.zeros(text.width, np.float32)
    return tensors


def published_name(weights: M2dClapWeights) -> str:
    """The name of the folder that the public code reads the input's length from."""
    config = weights.audio.config
    assert isinstance(config, VitConfig)
    sizes = f"{config.mels}x{config.frames}p{config.patch[0]}x{config.patch[1]}"
    text = "" if weights.text is None else "pBpTI"
    return f"m2d_clap_vit_base-{sizes}p{weights.audio.mel.sample_rate_hz // 1000}k{text}"


def m2d_log_mel(mels: int = 80, sample_rate_hz: int = 16_000) -> LogMelConfig:
    """M2D's front end at another rate or with other bands: 25 ms every 10 ms, up to half the rate.

    Args:
      mels: bands.
      sample_rate_hz: rate of the audio.
    """
    return dataclasses.replace(
        M2D_LOG_MEL,
        sample_rate_hz=sample_rate_hz,
        n_fft=sample_rate_hz // 40,
        hop=sample_rate_hz // 100,
        mels=mels,
        high_hz=sample_rate_hz / 2,
    )


def vit_entries(config: VitConfig, prefix: str = "") -> list[Entry]:
    """Entries of a content encoder under timm's names.

    Args:
      config: its shape.
      prefix: what stands before every name, with its dot.
    """
    patches = f"{prefix}{_PATCHES}"
    return [
        Entry("params/cls_token", (f"{prefix}cls_token",), "token"),
        Entry("params/patch/kernel", (patches,), "patches", config.patch),
        Entry("params/patch/bias", (patches.replace("weight", "bias"),)),
        *_blocks("params", f"{prefix}blocks", config.layers),
        *norm("params/norm", f"{prefix}norm"),
    ]


@functools.cache
def vit_shapes(config: VitConfig) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a content encoder's arrays by path, `params/` first."""
    levels = jnp.zeros((1, config.patch[1], config.mels))
    return MappingProxyType(
        leaf_shapes(jax.eval_shape(Vit(config).init, jax.random.key(0), levels))
    )


def projector_entries(projector: Projector, prefix: str = "") -> list[Entry]:
    """Entries of the projection of audio; see `M2dClapWeights.projector`."""
    theirs = f"{prefix}audio_proj"
    if projector == "mlp":
        return mlp("audio_projection", f"{theirs}.0", f"{theirs}.2")
    return [
        Entry("params/audio_projection/token", (f"{theirs}.sem_token",), "token"),
        *_block("params/audio_projection/block", f"{theirs}.sem_blocks.0"),
        *norm("params/audio_projection/norm", f"{theirs}.norm"),
    ]


def projector_shapes(projector: Projector, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the projection of audio to the width of its tokens, by path."""
    if projector == "mlp":
        return mlp_shapes("audio_projection", width, width)
    init = TokenProjection().init
    tree = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, width)))
    return below(leaf_shapes(tree), "audio_projection")


def pretraining_entries(
    config: VitConfig, predictor: PredictorConfig, prefix: str = ""
) -> list[Entry]:
    """Entries of what only M2D's training needs: the target's blocks and the predictor.

    Args:
      config: of the content encoder.
      predictor: its shape.
      prefix: what stands before every name, with its dot.
    """
    return [
        *_blocks("target/content", f"{prefix}target_blocks", config.layers),
        *norm("target/content/norm", f"{prefix}target_norm"),
        *dense("params/predictor/embed", f"{prefix}decoder_embed"),
        Entry("params/predictor/mask_token", (f"{prefix}mask_token",), "token"),
        *_blocks("params/predictor", f"{prefix}decoder_blocks", predictor.layers),
        *norm("params/predictor/norm", f"{prefix}decoder_norm"),
        *dense("params/predictor/out", f"{prefix}decoder_pred"),
    ]


def pretraining_shapes(config: VitConfig, predictor: PredictorConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of what `pretraining_entries` are of, by path."""
    key, tokens = jax.random.key(0), jnp.zeros((1, 1, config.width))
    target = leaf_shapes(jax.eval_shape(vit_blocks(config).init, key, tokens))
    masks = Masks(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32))
    init = functools.partial(Predictor(predictor, config.width).init, grid=(1, 2))
    own = leaf_shapes(jax.eval_shape(init, key, tokens, tokens[:, 0], masks))
    return {
        **{path.replace("params", "target/content", 1): shape for path, shape in target.items()},
        **below(own, "predictor"),
    }


def _blocks(ours: str, theirs: str, layers: int) -> list[Entry]:
    return [
        entry
        for index in range(layers)
        for entry in _block(f"{ours}/block_{index}", f"{theirs}.{index}")
    ]


def _block(ours: str, theirs: str) -> list[Entry]:
    return [
        *norm(f"{ours}/attention_norm", f"{theirs}.norm1"),
        *dense(f"{ours}/attention/qkv", f"{theirs}.attn.qkv"),
        *dense(f"{ours}/attention/out", f"{theirs}.attn.proj"),
        *norm(f"{ours}/mlp_norm", f"{theirs}.norm2"),
        *dense(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *dense(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]


def _vit_config(tensors: Tensors, prefix: str, name: str) -> VitConfig:
    """The shape of a ViT, read off its tensors, and how long its input is, off its name."""
    try:
        width, _, bands, length = tensors[f"{prefix}{_PATCHES}"].shape
        patches = np.asarray(tensors[f"{prefix}pos_embed"][0, 1:])
        # Time is the first half, and begins anew with every row of the grid.
        again = np.abs(patches[1:, : width // 2] - patches[0, : width // 2]).max(axis=1) < 1e-3
        columns = 1 + int(np.flatnonzero(again)[0]) if again.any() else len(patches)
        rows = len(patches) // columns
        frames = _told_by(name, 2, columns * length)
        return VitConfig(
            mels=rows * bands,
            frames=frames if frames // length == columns else columns * length,
            patch=(bands, length),
            width=width,
            layers=_layers(tensors, f"{prefix}blocks"),
            heads=max(width // _HEAD, 1),
            mlp_ratio=len(tensors[f"{prefix}blocks.0.mlp.fc1.weight"]) / width,
        )
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{name}: the shape of its ViT cannot be told ({error} is missing or odd); give a "
            "whole checkpoint of M2D."
        ) from error


def _predictor_config(tensors: Tensors, prefix: str, name: str) -> PredictorConfig:
    try:
        width = len(tensors[f"{prefix}decoder_embed.weight"])
        return PredictorConfig(
            width=width,
            layers=_layers(tensors, f"{prefix}decoder_blocks"),
            heads=max(width // _PREDICTOR_HEAD, 1),
            mlp_ratio=len(tensors[f"{prefix}decoder_blocks.0.mlp.fc1.weight"]) / width,
        )
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{name}: the shape of its decoder cannot be told ({error} is missing or odd); give a "
            "whole checkpoint of M2D."
        ) from error


def _bert_config(tensors: Tensors, name: str) -> TextConfig:
    like = roberta_shape(tensors, _TEXT, name)
    return dataclasses.replace(
        like,
        max_tokens=like.max_tokens + _ROBERTA_OFFSET,
        position_offset=0,
        pooling="first",
        layer_norm_epsilon=1e-12,
    )


def _layers(tensors: Tensors, theirs: str) -> int:
    return count_numbered(tensors, rf"{re.escape(theirs)}\.(\d+)\.")


def _told_by(name: str, group: int, otherwise: int) -> int:
    """A number of the name that weights are published under, of the file's or its folder's."""
    path = Path(name)
    for part in (path.parent.name, path.name):
        found = _SIZES.search(part)
        if found and found[group]:
            return int(found[group])
    return otherwise


def _positions(config: VitConfig, width: int) -> np.ndarray:
    columns = config.time_patches(config.frames)
    return np.array(sincos_positions(config.mel_patches, columns, width)[None])


def _check_positions(tensors: Tensors, key: str, config: VitConfig, width: int, name: str) -> None:
    ours, theirs = _positions(config, width), tensors.get(key)
    if theirs is None or theirs.shape != ours.shape:
        what = "lacks it" if theirs is None else f"has one of shape {list(theirs.shape)}"
        raise InputError(
            f"{name}: {key}: must be a table of positions {list(ours.shape)}, and the file {what}; "
            "give a whole checkpoint of M2D."
        )
    # So that NaN is refused too.
    if not np.abs(np.asarray(theirs, np.float32) - ours).max() <= _SAME_POSITION:
        raise InputError(
            f"{name}: {key}: holds other positions than the fixed sines and cosines of M2D, which "
            "are constants here; give a checkpoint with those."
        )


def _normalisation(taking: Taking, prefix: str) -> tuple[float, float]:
    held = taking.tensors.get(f"{prefix}norm_stats")
    if held is None:
        taking.make("normalisation", "the file tells none: that of 2022")
        return _OLD_NORMALISATION
    numbers = np.asarray(held, np.float32)
    if numbers.shape != (2,) or not np.isfinite(numbers).all() or numbers[1] <= 0:
        raise InputError(
            f"{taking.source}: {prefix}norm_stats: {held.tolist()}; it must be a mean and a "
            "standard deviation above 0: give an undamaged checkpoint."
        )
    return float(numbers[0]), float(numbers[1])


def _check_heads(config: VitConfig, predictor: PredictorConfig | None) -> None:
    for name, part, wide in (
        ("content", config, _HEAD),
        ("predictor", predictor, _PREDICTOR_HEAD),
    ):
        if part is not None and part.heads != max(part.width // wide, 1):
            raise InputError(
                f"m2d-clap: {name} has {part.heads} heads of {part.width // part.heads}, and no "
                f"tensor tells so; those of the public models are {wide} wide: train with such."
            )


def _check_is_bert(text: TextConfig) -> None:
    wanted: dict[str, Any] = {
        "positions": "absolute",
        "position_offset": 0,
        "pooling": "first",
        "heads": max(text.width // _HEAD, 1),
        "layer_norm_epsilon": 1e-12,
    }
    for key, value in wanted.items():
        if getattr(text, key) != value:
            raise InputError(
                f"m2d-clap: text.{key} is {getattr(text, key)!r}, of the public model's BERT "
                f"{value!r}; train with that, or take another --format."
            )
