"""A whole CLAP computes what Hugging Face's does: encoders, embeddings, gradients, both ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")

import clap_oracle as oracle  # noqa: E402

import spatial_clap_jax  # noqa: E402
from spatial_clap_jax.convert import convert  # noqa: E402
from spatial_clap_jax.export import export  # noqa: E402
from spatial_clap_jax.losses.contrastive import ContrastiveConfig, info_nce  # noqa: E402
from spatial_clap_jax.models.htsat import Htsat  # noqa: E402
from spatial_clap_jax.models.text import TextEncoder  # noqa: E402
from spatial_clap_jax.pretrained.hf_clap import read_hf_clap  # noqa: E402
from spatial_clap_jax.pretrained.mapping import nested  # noqa: E402
from spatial_clap_jax.pretrained.towers import below  # noqa: E402
from spatial_clap_jax.systems.clap import Clap, ClapConfig  # noqa: E402

pytestmark = pytest.mark.parity


def log_mels(rng, fused):
    """Two examples of 1001 frames; of a fused model, four views, the first example longer."""
    shape = (2, 4, 1001, 64) if fused else (2, 1001, 64)
    levels = (-30 + 20 * rng.standard_normal(shape)).astype(np.float32)
    return levels, np.array([True, False]) if fused else None


def system_of(weights) -> Clap:
    shape = ClapConfig(
        content=weights.audio.config,
        content_mel=weights.audio.mel,
        text=weights.text.config,
        joint_width=weights.joint_width,
    )
    return Clap(shape, ContrastiveConfig())


def variables_of(weights) -> dict:
    return nested(
        {
            **below(weights.audio.arrays, "content"),
            **below(weights.text.arrays, "text"),
            **weights.arrays,
        }
    )


@functools.cache
def compiled(config, text):
    """Encoders of a shape, compiled once for all seeds."""
    audio = jax.jit(lambda v, x, longer: Htsat(config).apply(v, x, False, longer))
    return audio, jax.jit(TextEncoder(text).apply)


@functools.cache
def compiled_heads(system):
    module = system.module

    def project(variables, pooled, name):
        bound = module.bind(variables)
        projected = getattr(bound, name)(pooled)
        return projected / jnp.linalg.norm(projected, axis=-1, keepdims=True)

    return jax.jit(project, static_argnames="name")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("size", "fused", "text"),
    [
        # RoBERTa-base once: it is the same beside every audio encoder.
        ("tiny", False, "base"),
        ("tiny", True, "small"),
        ("base", False, "small"),
        ("base", True, "small"),
    ],
)
def test_published_sizes_compute_the_same(size, fused, text, seed, tmp_path):
    model = oracle.randomise(transformers.ClapModel(oracle.config(size, fused, text)), seed)
    model.save_pretrained(tmp_path / "clap")
    weights = read_hf_clap(tmp_path / "clap")
    assert weights.audio.config.fusion == fused
    assert weights.text.config.layers == (12 if text == "base" else 2)

    rng = np.random.default_rng(seed)
    levels, longer = log_mels(rng, fused)
    ids = rng.integers(3, oracle.VOCABULARY, (3, 40))
    mask = np.arange(40) < np.array([40, 17, 2])[:, None]
    ids = np.where(mask, ids, 1)
    theirs_in = torch.from_numpy(levels if fused else levels[:, None])
    with torch.no_grad():
        audio = model.audio_model(theirs_in, is_longer=torch.from_numpy(longer) if fused else None)
        text = model.text_model(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))
        audio_units = torch.nn.functional.normalize(model.audio_projection(audio.pooler_output))
        text_units = torch.nn.functional.normalize(model.text_projection(text.pooler_output))

    encode_audio, encode_text = compiled(weights.audio.config, weights.text.config)
    heard = encode_audio(nested(weights.audio.arrays), levels, longer)
    read = encode_text(nested(weights.text.arrays), ids, mask)
    project, variables = compiled_heads(system_of(weights)), variables_of(weights)
    hidden = audio.last_hidden_state.permute(0, 2, 3, 1).numpy()
    assert hidden.std() > 0.1
    np.testing.assert_allclose(heard.map, hidden, atol=1e-4)
    np.testing.assert_allclose(read.hidden[mask], text.last_hidden_state.numpy()[mask], atol=1e-4)
    ours = project(variables, heard.pooled, "audio_projection")
    np.testing.assert_allclose(ours, audio_units.numpy(), atol=2e-6)
    ours = project(variables, read.pooled, "text_projection")
    np.testing.assert_allclose(ours, text_units.numpy(), atol=2e-6)


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def converted(request, tmp_path_factory):
    """The oracle, its folder, and where it was converted to."""
    folder = tmp_path_factory.mktemp("clap")
    model = oracle.randomise(transformers.ClapModel(oracle.config("small", request.param)), 3)
    oracle.save(model, folder / "hf")
    _, report = convert(folder / "hf", folder / "ours")
    assert not report.made
    return model, folder


@pytest.mark.slow
def test_a_converted_clap_opens_and_embeds_waveforms_and_texts(converted):
    model, folder = converted
    ours = spatial_clap_jax.load(folder / "ours")
    assert (ours.sample_rate_hz, ours.channels, ours.window_s) == (48_000, 1, 10.0)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder / "hf")
    rng = np.random.default_rng(0)
    for samples in (7, 30_001, 479_999, 480_000):
        audio = (0.1 * rng.standard_normal(samples)).astype(np.float32)
        features = extractor(audio, sampling_rate=48_000, return_tensors="pt")
        # With no long clip in a batch the extractor calls one of them long, by chance.
        longer = torch.zeros(1, 1, dtype=torch.bool)
        with torch.no_grad():
            theirs = model.get_audio_features(features["input_features"].float(), longer)
        np.testing.assert_allclose(
            ours.embed_audio(audio[None], 48_000), theirs.pooler_output[0].numpy(), atol=2e-6
        )
    # A tokenizer of their own, from the same file.
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "hf" / "tokenizer.json"), pad_token="<pad>"
    )
    tokens = tokenizer(oracle.TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    np.testing.assert_allclose(
        ours.embed_text(oracle.TEXTS), theirs.pooler_output.numpy(), atol=2e-6
    )


def test_a_fused_clap_embeds_a_long_recording_as_a_whole(converted, monkeypatch):
    model, folder = converted
    ours = spatial_clap_jax.load(folder / "ours")
    audio = (0.1 * np.random.default_rng(1).standard_normal(700_000)).astype(np.float32)
    if not model.config.audio_config.enable_fusion:
        windows = [audio[s : s + 480_000] for s in (0, 220_000)]
        parts = np.stack([ours.embed_audio(window[None], 48_000) for window in windows])
        mean = parts.mean(axis=0)
        expected = mean / np.linalg.norm(mean)
        # Half a window apart, and the last one at the end: 0 and 220,000.
        np.testing.assert_allclose(ours.embed_audio(audio[None], 48_000), expected, atol=1e-6)
        return
    # Their crops begin anywhere in each third of the possible starts, ours in the middle.
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder / "hf")
    features = extractor(audio, sampling_rate=48_000, return_tensors="pt")
    assert features["is_longer"].item()
    with torch.no_grad():
        theirs = model.get_audio_features(
            features["input_features"].float(), features["is_longer"]
        ).pooler_output[0]
    embedding = ours.embed_audio(audio[None], 48_000)
    np.testing.assert_allclose(embedding, theirs.numpy(), atol=2e-6)
    np.testing.assert_array_equal(ours.embed_audio(audio[None], 48_000), embedding)


@pytest.mark.slow
def test_gradients_of_the_loss_are_the_same_for_every_weight(converted):
    model, folder = converted
    fused = model.config.audio_config.enable_fusion
    weights = read_hf_clap(folder / "hf")
    rng = np.random.default_rng(2)
    levels, longer = log_mels(rng, fused)
    ids = rng.integers(3, oracle.VOCABULARY, (2, 12))
    mask = np.arange(12) < np.array([12, 7])[:, None]
    ids = np.where(mask, ids, 1)
    model.zero_grad()
    found = model(
        torch.from_numpy(ids),
        torch.from_numpy(levels if fused else levels[:, None]),
        torch.from_numpy(longer)[:, None] if fused else None,
        torch.from_numpy(mask.astype(np.int64)),
    )
    # Their own return_loss takes both cross entropies over the same axis.
    labels, entropy = torch.arange(2), torch.nn.functional.cross_entropy
    loss = (entropy(found.logits_per_audio, labels) + entropy(found.logits_per_text, labels)) / 2
    loss.backward()

    system, variables = system_of(weights), variables_of(weights)

    def ours(params):
        bound = system.module.bind({**variables, "params": params})
        pooled = bound.content(levels, False, longer).pooled
        audio = bound.audio_projection(pooled)
        text = bound.text_projection(bound.text(ids, mask).pooled)
        units = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (audio, text)]
        scales = [jnp.exp(bound.logit_scale_audio), jnp.exp(bound.logit_scale_text)]
        return info_nce(*units, scales[0], None, scales[1])

    value, gradients = jax.jit(jax.value_and_grad(ours))(variables["params"])
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)

    # The gradients of theirs, brought here by the very tables that bring the weights.
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.grad if weight.grad is not None else torch.zeros_like(weight))
    oracle.save(model, folder / "gradients")
    theirs = variables_of(read_hf_clap(folder / "gradients"))["params"]
    leaves, _ = jax.tree_util.tree_flatten_with_path(theirs)
    compared = jax.tree.leaves(gradients)
    whole = np.sqrt(sum(float(np.sum(leaf**2)) for _, leaf in leaves))
    for (path, expected), got in zip(leaves, compared, strict=True):
        name = jax.tree_util.keystr(path)
        # Keys' biases move no softmax: their gradient is rounding noise.
        size = max(float(np.linalg.norm(expected)), 1e-6 * whole)
        assert np.linalg.norm(np.asarray(got) - expected) <= 1e-3 * size, name


def test_the_way_back_loads_strictly_and_is_the_same_bit_for_bit(converted, tmp_path):
    _, folder = converted
    files = export(folder / "ours", tmp_path, "hf-clap")
    back = tmp_path / "hf-clap"
    assert {path.name for path in files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    fresh = transformers.ClapModel(transformers.ClapConfig.from_pretrained(back))
    from safetensors.torch import load_file

    fresh.load_state_dict(load_file(back / "model.safetensors"), strict=True)
    loaded, info = transformers.ClapModel.from_pretrained(back, output_loading_info=True)
    assert not any(info.values()), info
    original = transformers.ClapModel.from_pretrained(folder / "hf").state_dict()
    for state in (fresh.state_dict(), loaded.state_dict()):
        assert state.keys() == original.keys()
        for name, tensor in original.items():
            assert torch.equal(state[name], tensor), name
    tokens = transformers.AutoTokenizer.from_pretrained(back)(oracle.TEXTS)["input_ids"]
    ids, mask = oracle.tokenizer().encode(oracle.TEXTS)
    assert tokens == [row[own].tolist() for row, own in zip(ids, mask, strict=True)]
    extractor = transformers.ClapFeatureExtractor.from_pretrained(back)
    there = transformers.ClapFeatureExtractor.from_pretrained(folder / "hf").to_dict()
    assert extractor.to_dict() == there
