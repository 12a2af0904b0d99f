"""M2D's ViT answers like Hugging Face's, whose weights come to it under timm's names."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.models.m2d import TokenProjection
from spatial_clap_jax.models.vit import Vit, VitConfig, sincos_positions
from spatial_clap_jax.pretrained.m2d_clap import (
    projector_entries,
    projector_shapes,
    vit_entries,
    vit_shapes,
)
from spatial_clap_jax.pretrained.mapping import Taking, nested
from spatial_clap_jax.scene_embeddings import PatchTokens
from spatial_clap_jax.windows import log_mel_on_host

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
from random_models import randomised  # noqa: E402

pytestmark = pytest.mark.parity
SMALL = VitConfig(width=64, layers=3, heads=4)
NORMALISATION = (-7.1, 4.2)
# Seconds of audio by the columns of patches of each input: of the last column some frames are
# filled up, and the positions of each input begin anew.
COLUMNS = {1: (7,), 3: (19,), 6.01: (38,), 10: (62,), 20: (62, 62)}


def hugging_face(config: VitConfig, columns: int):
    """A `ViTModel` of random weights, its positions those of M2D."""
    model = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=round(config.mlp_ratio * config.width),
            layer_norm_eps=config.layer_norm_epsilon,
            image_size=(config.mels, columns * 16),
            patch_size=16,
            num_channels=1,
        ),
        add_pooling_layer=False,
    )
    randomised(model, scale=0.05)
    positions = sincos_positions(5, columns, config.width)
    model.embeddings.position_embeddings.data.copy_(torch.from_numpy(np.array(positions))[None])
    return model


def timm_names(model) -> dict[str, np.ndarray]:
    """Its tensors under the names of M2D's files: queries, keys and values are one."""
    names = (
        (r"^embeddings\.", ""),
        (r"patch_embeddings\.projection", "patch_embed.proj"),
        (r"^(encoder\.layer|layers)\.", "blocks."),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"attention\.attention\.(\w+)|attention\.(q|k|v)_proj", r"attn.\1\2"),
        (r"attention\.(output\.dense|o_proj)", "attn.proj"),
        (r"(intermediate\.dense|mlp\.fc1)", "mlp.fc1"),
        (r"(?<!attention\.)(output\.dense|mlp\.fc2)", "mlp.fc2"),
        (r"^layernorm", "norm"),
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.numpy()
    del tensors["position_embeddings"]
    keys = [name for name in tensors if re.search(r"attn\.(key|k)\.", name)]
    for key in keys:
        letter = ("query", "key", "value") if "key" in key else tuple("qkv")
        parts = [tensors.pop(re.sub(r"attn\.(key|k)", f"attn.{part}", key)) for part in letter]
        tensors[re.sub(r"attn\.(key|k)", "attn.qkv", key)] = np.concatenate(parts)
    return tensors


def ours_of(config: VitConfig, tensors: dict[str, np.ndarray]):
    taking = Taking("ViTModel", tensors)
    variables = nested(taking.take(vit_entries(config), vit_shapes(config)))
    taking.finish()
    return jax.jit(lambda levels: Vit(config).apply(variables, levels))


def gap(config: VitConfig, seconds: float) -> float:
    """Greatest difference of the tokens of a recording, all its inputs together."""
    config = dataclasses.replace(config, frames=1001)
    columns = COLUMNS[seconds]
    model = hugging_face(config, columns[0])
    audio = 0.1 * np.random.default_rng(1).normal(size=(1, 1, round(seconds * 16_000)))
    encode = ours_of(config, timm_names(model))
    tokens = PatchTokens(
        config,
        M2D_LOG_MEL,
        NORMALISATION,
        encode=lambda levels: encode(levels).tokens,
        project=lambda tokens: tokens,
    )
    ours, _ = tokens.frames(audio.astype(np.float32), 16_000)
    mean, deviation = map(np.float32, NORMALISATION)
    levels = (log_mel_on_host(audio[0, 0].astype(np.float32), M2D_LOG_MEL) - mean) / deviation
    theirs = []
    for start, count in zip(range(0, len(levels), 1001), columns, strict=True):
        part = levels[start : start + 1001][: count * 16]
        part = np.pad(part, ((0, count * 16 - len(part)), (0, 0))).T
        with torch.no_grad():
            found = model(torch.from_numpy(part[None, None].copy())).last_hidden_state[0, 1:]
        # Frequency-major tokens; a moment holds those of all frequencies.
        theirs.append(found.numpy().reshape(5, count, -1).swapaxes(0, 1).reshape(count, -1))
    assert ours.shape == (1, sum(columns), 5 * config.width)
    return float(np.abs(ours[0] - np.concatenate(theirs)).max())


@pytest.mark.parametrize("seconds", COLUMNS)
def test_tokens_are_those_of_hugging_face(seconds):
    assert gap(SMALL, seconds) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("seconds", COLUMNS)
def test_tokens_of_the_true_size_are_those_of_hugging_face(seconds):
    assert gap(VitConfig(), seconds) < 1e-5


def test_cls_is_that_of_hugging_face():
    model = hugging_face(SMALL, 7)
    levels = np.random.default_rng(1).normal(size=(2, 7 * 16, 80)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(levels.transpose(0, 2, 1)[:, None].copy()))
    ours = ours_of(SMALL, timm_names(model))(levels).cls
    np.testing.assert_allclose(ours, theirs.last_hidden_state[:, 0].numpy(), atol=1e-5)


def layer_norm(x, scale, bias):
    mean, spread = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(spread + 1e-5) * scale + bias


def projected(tokens: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The projection of 2025 in float64, by the names of its tensors."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    width = tokens.shape[-1]
    block = "audio_proj.sem_blocks.0"

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def normed(name, x):
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"])

    first = np.broadcast_to(t["audio_proj.sem_token"], (len(tokens), 1, width))
    x = np.concatenate([first, tokens], axis=1)
    query, key, value = np.split(dense(f"{block}.attn.qkv", normed(f"{block}.norm1", x)), 3, -1)
    logits = query @ key.swapaxes(1, 2) / np.sqrt(width)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    x = x + dense(f"{block}.attn.proj", weights @ value)
    hidden = torch.from_numpy(dense(f"{block}.mlp.fc1", normed(f"{block}.norm2", x)))
    hidden = torch.nn.functional.gelu(hidden).numpy()
    x = x + dense(f"{block}.mlp.fc2", hidden)
    return normed("audio_proj.norm", x[:, 0])


@pytest.mark.parametrize("tokens", [1, 35, 620])
def test_the_projector_of_a_learned_token(tokens):
    rng = np.random.default_rng(tokens)
    entries = projector_entries("token")
    shapes = projector_shapes("token", 32)
    tensors = {}
    for entry in entries:
        array = rng.normal(0, 0.3, shapes[entry.ours]).astype(np.float32)
        tensors |= zip(entry.theirs, entry.to_theirs(array), strict=True)
    arrays = Taking("projector", tensors).take(entries, shapes)
    params = nested(arrays)["params"]["audio_projection"]
    heard = rng.normal(size=(2, tokens, 32)).astype(np.float32)
    ours = TokenProjection().apply({"params": params}, heard)
    np.testing.assert_allclose(ours, projected(heard, tensors), atol=2e-5)
