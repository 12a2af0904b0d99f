"""Our encoders answer like the Hugging Face ones, given the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.models.htsat import Htsat, HtsatConfig, htsat_tiny
from spatial_clap_jax.models.text import TextConfig, TextEncoder

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity


def randomised(model, scale=0.05):
    """Fills every weight with noise, scales about 1, and positive running variances."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 300 * noise.abs())
        elif name.endswith("running_mean"):
            tensor.copy_(-30 + 10 * noise)
        elif "norm" in name.lower() and name.endswith("weight"):
            tensor.copy_(1 + 0.2 * noise)
        else:
            tensor.copy_(scale * noise)
    return model.eval()


class Weights:
    """A state dict that hands out Flax sub-trees by prefix and counts what was taken."""

    def __init__(self, model):
        self.left = {name: value.numpy() for name, value in model.state_dict().items()}

    def take(self, name):
        return self.left.pop(name)

    def dense(self, *prefixes):
        weights = [self.take(f"{prefix}.weight").T for prefix in prefixes]
        tree = {"kernel": np.concatenate(weights, axis=1)}
        if f"{prefixes[0]}.bias" in self.left:
            tree["bias"] = np.concatenate([self.take(f"{prefix}.bias") for prefix in prefixes])
        return tree

    def norm(self, prefix):
        return {"scale": self.take(f"{prefix}.weight"), "bias": self.take(f"{prefix}.bias")}

    def layer(self, prefix, before, after):
        query, key, value = (
            f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")
        )
        return {
            "attention_norm": self.norm(f"{prefix}.{before}"),
            "mlp_norm": self.norm(f"{prefix}.{after}"),
            "attention": {
                "qkv": self.dense(query, key, value),
                "out": self.dense(f"{prefix}.attention.output.dense"),
            },
            "mlp": {
                "up": self.dense(f"{prefix}.intermediate.dense"),
                "down": self.dense(f"{prefix}.output.dense"),
            },
        }


def htsat_variables(model, config):
    weights = Weights(model.audio_encoder)
    params = {
        "input_norm": weights.norm("batch_norm"),
        "patch_norm": weights.norm("patch_embed.norm"),
        "norm": weights.norm("norm"),
        "patch_embedding": {
            "kernel": weights.take("patch_embed.proj.weight").reshape(config.embed_dim, -1).T,
            "bias": weights.take("patch_embed.proj.bias"),
        },
    }
    statistics = {
        "mean": weights.take("batch_norm.running_mean"),
        "var": weights.take("batch_norm.running_var"),
    }
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            prefix = f"layers.{stage}.blocks.{index}"
            params[f"stage_{stage}_block_{index}"] = {
                **weights.layer(prefix, "layernorm_before", "layernorm_after"),
                "position_bias": weights.take(
                    f"{prefix}.attention.self.relative_position_bias_table"
                ),
            }
        if stage < len(config.depths) - 1:
            params[f"merging_{stage}"] = {
                "norm": weights.norm(f"layers.{stage}.downsample.norm"),
                "reduction": weights.dense(f"layers.{stage}.downsample.reduction"),
            }
    unused = {name for name in weights.left if "relative_position_index" not in name}
    assert unused <= {"batch_norm.num_batches_tracked"}
    return {"params": params, "batch_stats": {"input_norm": statistics}}


SMALL = HtsatConfig(embed_dim=32, depths=(1, 1, 2, 1), heads=(2, 4, 4, 8))
SHIFTED = HtsatConfig(embed_dim=16, depths=(2, 2, 2, 2), heads=(2, 4, 4, 8), mlp_ratio=2.0)
NARROW = HtsatConfig(
    spec_size=128, mels=64, embed_dim=16, depths=(2, 2), heads=(2, 4), mlp_ratio=2.0
)


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        (SMALL, 1024),
        (SMALL, 1001),
        (SMALL, 500),
        (SHIFTED, 1024),
        (SHIFTED, 37),
        (SHIFTED, 1),
        (NARROW, 250),
        (htsat_tiny(), 1024),
        (htsat_tiny(), 690),
    ],
)
def test_htsat_equals_clap_audio_model(config, frames):
    theirs = randomised(
        transformers.ClapAudioModel(
            transformers.ClapAudioConfig(
                spec_size=config.spec_size,
                num_mel_bins=config.mels,
                depths=list(config.depths),
                num_attention_heads=list(config.heads),
                patch_embeds_hidden_size=config.embed_dim,
                hidden_size=config.width,
                mlp_ratio=config.mlp_ratio,
            )
        )
    )
    log_mel = (-30 + 20 * np.random.default_rng(0).normal(size=(2, frames, config.mels))).astype(
        np.float32
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(log_mel)[:, None])
    ours = jax.jit(Htsat(config).apply)(htsat_variables(theirs, config), jnp.asarray(log_mel))
    np.testing.assert_allclose(ours.pooled, expected.pooler_output.numpy(), atol=1e-4)
    wanted_map = expected.last_hidden_state.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours.map, wanted_map, atol=1e-4)
    assert np.std(wanted_map) > 0.1


TEXT = TextConfig(
    vocabulary=60, width=48, layers=3, heads=4, mlp_width=96, max_tokens=20, pooling="pooler"
)
STYLES = {
    "roberta": dataclasses.replace(
        TEXT, positions="absolute", position_offset=2, token_types=1, layer_norm_epsilon=1e-5
    ),
    "bert": dataclasses.replace(
        TEXT, positions="absolute", token_types=2, layer_norm_epsilon=1e-12
    ),
}


def text_variables(model, config):
    weights = Weights(model)
    names = {"tokens": "word", "positions": "position", "token_types": "token_type"}
    params = {
        ours: {"embedding": weights.take(f"embeddings.{theirs}_embeddings.weight")}
        for ours, theirs in names.items()
    }
    params["norm"] = weights.norm("embeddings.LayerNorm")
    params["pooler"] = weights.dense("pooler.dense")
    for index in range(config.layers):
        params[f"layer_{index}"] = weights.layer(
            f"encoder.layer.{index}", "attention.output.LayerNorm", "output.LayerNorm"
        )
    assert not weights.left
    return {"params": params}


@pytest.mark.parametrize("style", ["roberta", "bert"])
def test_text_encoder_equals_hugging_face(style):
    config = STYLES[style]
    sizes = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_tokens + config.position_offset,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.layer_norm_epsilon,
        "pad_token_id": 1 if style == "roberta" else 0,
    }
    if style == "roberta":
        theirs = transformers.RobertaModel(transformers.RobertaConfig(**sizes))
    else:
        theirs = transformers.BertModel(transformers.BertConfig(**sizes))
    theirs = randomised(theirs, scale=0.2)
    ids = np.random.default_rng(0).integers(2, config.vocabulary, size=(4, 20))
    mask = np.arange(20) < np.array([20, 13, 2, 1])[:, None]
    ids = np.where(mask, ids, sizes["pad_token_id"])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))
    ours = jax.jit(TextEncoder(config).apply)(
        text_variables(theirs, config), jnp.asarray(ids), jnp.asarray(mask)
    )
    np.testing.assert_allclose(ours.pooled, expected.pooler_output.numpy(), atol=2e-5)
    np.testing.assert_allclose(
        ours.hidden[mask], expected.last_hidden_state.numpy()[mask], atol=1e-4
    )
