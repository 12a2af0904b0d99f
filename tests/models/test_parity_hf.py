"""Our encoders answer like the Hugging Face ones, given the same random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.models.htsat import Htsat, HtsatConfig
from spatial_clap_jax.models.text import TextConfig, TextEncoder

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity


def randomised(model, scale=0.05, seed=0):
    """Fills every weight with noise, scales about 1, and positive running variances.

    Those of the input are of levels in dB, those of the fusion of numbers near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if "fusion_model" in name and name.endswith("running_var"):
            tensor.copy_(0.1 + noise.abs())
        elif "fusion_model" in name and (name.endswith("running_mean") or tensor.ndim > 1):
            tensor.copy_(0.5 * noise)
        elif name.endswith("running_var"):
            tensor.copy_(1 + 300 * noise.abs())
        elif name.endswith("running_mean"):
            tensor.copy_(-30 + 10 * noise)
        elif ("norm" in name.lower() or "fusion_model" in name) and name.endswith("weight"):
            tensor.copy_(1 + 0.2 * noise)
        else:
            tensor.copy_(scale * noise)
    return model.eval()


class Weights:
    """A state dict that hands out Flax sub-trees by prefix and counts what was taken."""

    def __init__(self, state):
        self.left = {name: value.numpy() for name, value in state.items()}

    def take(self, name):
        return self.left.pop(name)

    def dense(self, *prefixes):
        weights = [self.take(f"{prefix}.weight").T for prefix in prefixes]
        tree = {"kernel": np.concatenate(weights, axis=1)}
        if f"{prefixes[0]}.bias" in self.left:
            tree["bias"] = np.concatenate([self.take(f"{prefix}.bias") for prefix in prefixes])
        return tree

    def patches(self, prefix):
        kernel = self.take(f"{prefix}.weight")
        return {
            "kernel": kernel.reshape(kernel.shape[0], -1).T,
            "bias": self.take(f"{prefix}.bias"),
        }

    def statistics(self, prefix):
        return {kind: self.take(f"{prefix}.running_{kind}") for kind in ("mean", "var")}

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


# Place of each layer of the fusion's attention after `local_att.`; the global one pools before.
FUSION_LAYERS = {"reduce": 0, "norm_in": 1, "expand": 3, "norm_out": 4}


def htsat_variables(state, config):
    weights = Weights(state)
    params = {
        "input_norm": weights.norm("batch_norm"),
        "patch_norm": weights.norm("patch_embed.norm"),
        "norm": weights.norm("norm"),
        "patch_embedding": weights.patches("patch_embed.proj"),
    }
    statistics = {"input_norm": weights.statistics("batch_norm")}
    if config.fusion:
        params["crop_embedding"] = weights.patches("patch_embed.mel_conv2d")
        params["fusion"] = {"local": {}, "global": {}}
        statistics["fusion"] = {"local": {}, "global": {}}
        for scale in ("local", "global"):
            for layer, place in FUSION_LAYERS.items():
                prefix = f"patch_embed.fusion_model.{scale}_att.{place + (scale == 'global')}"
                if layer in ("reduce", "expand"):
                    params["fusion"][scale][layer] = weights.patches(prefix)
                else:
                    params["fusion"][scale][layer] = weights.norm(prefix)
                    statistics["fusion"][scale][layer] = weights.statistics(prefix)
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
    counters = ("relative_position_index", "num_batches_tracked")
    assert not [name for name in weights.left if not name.endswith(counters)]
    return {"params": params, "batch_stats": statistics}


SMALL = HtsatConfig(embed_dim=32, depths=(1, 1, 2, 1), heads=(2, 4, 4, 8))
SHIFTED = HtsatConfig(embed_dim=16, depths=(2, 2, 2, 2), heads=(2, 4, 4, 8), mlp_ratio=2.0)
NARROW = HtsatConfig(
    spec_size=128, mels=64, embed_dim=16, depths=(2, 2), heads=(2, 4), mlp_ratio=2.0
)


def fused(config, **changes):
    return dataclasses.replace(config, fusion=True, **changes)


@functools.cache
def encoder(config):
    return jax.jit(Htsat(config).apply)


def clap_audio_model(config, seed=0, **options):
    sizes = transformers.ClapAudioConfig(
        spec_size=config.spec_size,
        num_mel_bins=config.mels,
        depths=list(config.depths),
        num_attention_heads=list(config.heads),
        patch_embeds_hidden_size=config.embed_dim,
        hidden_size=config.width,
        mlp_ratio=config.mlp_ratio,
        enable_fusion=config.fusion,
        aff_block_r=config.fusion_reduction,
        **options,
    )
    return randomised(transformers.ClapAudioModel(sizes), seed=seed)


def levels(*shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    return (-30 + 20 * noise).astype(np.float32)


def assert_same_output(ours, theirs):
    np.testing.assert_allclose(ours.pooled, theirs.pooler_output.detach().numpy(), atol=1e-4)
    wanted_map = theirs.last_hidden_state.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours.map, wanted_map, atol=1e-4)
    assert np.std(wanted_map) > 0.1


@pytest.mark.parametrize(
    ("config", "frames", "seed"),
    [
        (SMALL, 1001, 0),
        (SMALL, 1001, 1),
        (SMALL, 1001, 2),
        (SHIFTED, 1024, 0),
        (SHIFTED, 37, 0),
        (SHIFTED, 37, 1),
        (SHIFTED, 37, 2),
        (SHIFTED, 1, 0),
        (NARROW, 250, 0),
    ],
)
def test_htsat_equals_clap_audio_model(config, frames, seed):
    theirs = clap_audio_model(config, seed)
    log_mel = levels(2, frames, config.mels, seed=seed)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(log_mel)[:, None])
    variables = htsat_variables(theirs.audio_encoder.state_dict(), config)
    assert_same_output(encoder(config)(variables, log_mel), expected)


# The published sizes are held to theirs in tests/pretrained/test_clap_parity.py.
FUSED_CASES = [
    (fused(SMALL), 1001, [True, False, True, False]),
    (fused(SMALL), 1001, [False, False, False, False]),
    (fused(SMALL), 1001, [True, True, True, True]),
    (fused(SHIFTED, fusion_reduction=3), 37, [False, True, True]),
    (fused(SHIFTED), 1, [True, False]),
    (fused(NARROW, fusion_reduction=2), 250, [False, True]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "frames", "longer", "seed"),
    [(*case, seed) for case in FUSED_CASES for seed in (0, 1, 2)],
)
def test_fused_htsat_equals_clap_audio_model(config, frames, longer, seed):
    theirs = clap_audio_model(config, seed)
    views = levels(len(longer), 4, frames, config.mels, seed=seed)
    # As Hugging Face's feature extractor gives them: [b, 1] flags.
    with torch.no_grad():
        expected = theirs(torch.from_numpy(views), is_longer=torch.tensor(longer)[:, None])
    variables = htsat_variables(theirs.audio_encoder.state_dict(), config)
    ours = encoder(config)(variables, views, longer=jnp.array(longer))
    assert_same_output(ours, expected)


@pytest.mark.slow
def test_gradients_of_the_fused_htsat_equal_clap_audio_model():
    """Every weight, by the relative error of its whole gradient."""
    config = fused(SMALL)
    theirs = clap_audio_model(config)
    views, longer = levels(3, 4, 700, config.mels), [True, False, True]
    probe = np.random.default_rng(1).normal(size=(3, config.width)).astype(np.float32)
    pooled = theirs(torch.from_numpy(views), is_longer=torch.tensor(longer)).pooler_output
    (pooled * torch.from_numpy(probe)).sum().backward()
    state = theirs.audio_encoder.state_dict()
    variables = htsat_variables(state, config)
    gradients = {name: weight.grad for name, weight in theirs.audio_encoder.named_parameters()}
    expected = htsat_variables({**state, **gradients}, config)["params"]

    def scalar(params):
        out = Htsat(config).apply({**variables, "params": params}, views, longer=jnp.array(longer))
        return (out.pooled * probe).sum()

    ours = jax.jit(jax.grad(scalar))(variables["params"])
    error = jax.tree.map(
        lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), ours, expected
    )
    assert max(jax.tree.leaves(error)) <= 1e-3, error


@pytest.mark.slow
def test_training_statistics_of_the_fusion_equal_clap_audio_model():
    """PyTorch keeps the unbiased variance, Flax the biased one: n / (n - 1) lies between."""
    config = fused(SMALL, drop_path=0.0)
    rates = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}
    theirs = clap_audio_model(config, **rates)
    before = htsat_variables(
        {name: value.clone() for name, value in theirs.audio_encoder.state_dict().items()}, config
    )
    views, longer = levels(4, 4, 1001, config.mels), [True, False, True, True]
    with torch.no_grad():
        expected = theirs.train()(torch.from_numpy(views), is_longer=torch.tensor(longer))
    after = htsat_variables(theirs.audio_encoder.state_dict(), config)["batch_stats"]
    train = jax.jit(
        lambda variables: Htsat(config).apply(
            variables, views, train=True, longer=jnp.array(longer), mutable=["batch_stats"]
        )
    )
    ours, state = train(before)
    assert_same_output(ours, expected)
    clips, places = sum(longer), config.side(0) ** 2
    counts = {
        "input_norm": views.size // config.mels,
        "fusion/local/norm_in": clips * places,
        "fusion/local/norm_out": clips * places,
        "fusion/global/norm_in": clips,
        "fusion/global/norm_out": clips,
    }
    for path, count in counts.items():
        old, new, wanted = before["batch_stats"], state["batch_stats"], after
        for name in path.split("/"):
            old, new, wanted = old[name], new[name], wanted[name]
        assert np.abs(wanted["mean"] - old["mean"]).max() > 1e-3
        np.testing.assert_allclose(new["mean"], wanted["mean"], rtol=1e-4, atol=1e-5)
        added = (new["var"] - 0.9 * old["var"]) * count / (count - 1)
        np.testing.assert_allclose(
            0.9 * old["var"] + added, wanted["var"], rtol=1e-4, atol=1e-6, err_msg=path
        )


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
    weights = Weights(model.state_dict())
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
