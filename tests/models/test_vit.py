"""The ViT against a plain NumPy one in float64, token by token; its positions and its subsets."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import executed
from spatial_clap_jax.models.vit import Vit, VitConfig, sincos_positions, take_tokens, vit_blocks

CONFIG = VitConfig(mels=8, frames=12, patch=(4, 3), width=8, layers=2, heads=2, mlp_ratio=1.5)
_ERF = np.vectorize(math.erf)


@functools.cache
def _params() -> dict:
    """Parameters of which none is zero or one."""
    shapes = jax.eval_shape(Vit(CONFIG).init, jax.random.key(0), jnp.zeros((1, 12, 8)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _levels(frames: int = 12, examples: int = 3) -> np.ndarray:
    rng = np.random.default_rng(frames)
    return rng.normal(size=(examples, frames, 8)).astype(np.float32)


@functools.cache
def _encode():
    return jax.jit(lambda levels: Vit(CONFIG).apply({"params": _params()}, levels))


@functools.cache
def _encode_kept():
    def encode(vit, levels, kept):
        return vit.encode(take_tokens(vit.embed(levels), kept))

    return jax.jit(
        lambda levels, kept: Vit(CONFIG).apply({"params": _params()}, levels, kept, method=encode)
    )


def _norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def _dense(x, params):
    return x @ params["kernel"] + params["bias"]


def _reference(levels: np.ndarray, params: dict) -> np.ndarray:
    """CLS and tokens of one example, loop by loop."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    patches = []
    for f in range(2):
        for t in range(len(levels) // 3):
            # A convolution's kernel [mels, frames], as in a picture with time to the right.
            cell = levels[3 * t : 3 * t + 3, 4 * f : 4 * f + 4].T.astype(np.float64)
            kernel = params["patch"]["kernel"].reshape(4, 3, 8)
            angles = [axis / 10000 ** (i / 2) for axis in (t, f) for i in range(2)]
            place = [
                wave(angle)
                for half in (angles[:2], angles[2:])
                for wave in (np.sin, np.cos)
                for angle in half
            ]
            patches.append(np.einsum("mt,mtd->d", cell, kernel) + params["patch"]["bias"] + place)
    x = np.stack([params["cls_token"], *patches])
    for index in range(2):
        block = params[f"block_{index}"]
        qkv = _dense(_norm(x, block["attention_norm"]), block["attention"]["qkv"])
        query, key, value = (qkv[:, 8 * i : 8 * i + 8].reshape(-1, 2, 4) for i in range(3))
        mixed = []
        for head in range(2):
            logits = query[:, head] @ key[:, head].T / 2.0
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ value[:, head])
        x = x + _dense(np.concatenate(mixed, axis=-1), block["attention"]["out"])
        hidden = _dense(_norm(x, block["mlp_norm"]), block["mlp"]["up"])
        hidden = hidden * 0.5 * (1 + _ERF(hidden / np.sqrt(2)))
        x = x + _dense(hidden, block["mlp"]["down"])
    return _norm(x, params["norm"])


# One patch of time; the trained length; a longer one with frames left over.
@pytest.mark.parametrize("frames", [3, 12, 17])
def test_it_is_the_plain_one(frames):
    levels = _levels(frames)
    ours = _encode()(levels)
    expected = np.stack([_reference(example, _params()) for example in levels])
    assert ours.tokens.shape == (3, 2 * (frames // 3), 8)
    np.testing.assert_allclose(ours.cls, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(ours.tokens, expected[:, 1:], atol=1e-5)


def test_tokens_are_frequency_major():
    """Without blocks, a token knows of its own patch alone."""
    vit = Vit(CONFIG)

    def embed(levels):
        return vit.apply({"params": _params()}, levels, method="embed")

    levels = _levels(examples=1)
    changed = levels.copy()
    changed[0, 6:9, 4:] += 1
    moved = np.abs(np.asarray(embed(changed)) - embed(levels)).max(axis=-1)[0]
    # Upper band, third of four patches of time.
    assert np.flatnonzero(moved > 1e-3).tolist() == [1 * 4 + 2]


def test_positions_by_hand():
    table = sincos_positions(mel_patches=2, time_patches=3, width=8)
    assert table.shape == (7, 8)
    assert (table[0] == 0).all()
    # Patch f = 1, t = 2: time first, rates 1 and 1/100.
    expected = [f(x) for f in (np.sin, np.cos) for x in (2, 0.02)]
    expected += [f(x) for f in (np.sin, np.cos) for x in (1, 0.01)]
    np.testing.assert_allclose(table[1 + 1 * 3 + 2], expected, rtol=1e-6)


def test_positions_of_a_shorter_input_are_cut():
    long = sincos_positions(5, 62, 16)[1:].reshape(5, 62, 16)
    short = sincos_positions(5, 38, 16)[1:].reshape(5, 38, 16)
    np.testing.assert_array_equal(short, long[:, :38])


def test_what_is_not_kept_is_not_seen():
    kept = np.array([[0, 3, 5], [1, 2, 7], [0, 1, 2]])
    ours = _encode_kept()(_levels(), kept)
    assert ours.tokens.shape == (3, 3, 8)
    # Patch 4 of the first example is the upper band's first; nobody kept it.
    changed = _levels()
    changed[0, :3, 4:] += 5
    np.testing.assert_array_equal(_encode_kept()(changed, kept).tokens, ours.tokens)
    assert np.abs(_encode()(changed).tokens[0, 0] - _encode()(_levels()).tokens[0, 0]).max() > 1e-3


def test_all_patches_in_another_order_give_the_same_tokens():
    order = np.random.default_rng(0).permuted(np.tile(np.arange(8), (3, 1)), axis=1)
    ours, plain = _encode_kept()(_levels(), order), _encode()(_levels())
    np.testing.assert_allclose(ours.tokens, take_tokens(plain.tokens, order), atol=1e-5)
    np.testing.assert_allclose(ours.cls, plain.cls, atol=1e-5)


def test_an_example_does_not_know_its_batch():
    kept = np.array([[0, 3, 5], [1, 2, 7], [0, 1, 2]])
    together = _encode_kept()(_levels(), kept)
    alone = _encode_kept()(_levels()[1:2], kept[1:2])
    np.testing.assert_allclose(alone.tokens[0], together.tokens[1], atol=1e-6)


@pytest.mark.parametrize(("remat", "scan"), [("none", True), ("blocks", True), ("blocks", False)])
def test_how_it_is_computed_changes_nothing(remat, scan):
    def loss(params):
        return (Vit(CONFIG).apply({"params": params}, _levels(), True).tokens ** 2).sum()

    plain = jax.jit(jax.grad(loss))(_params())
    with executed(remat, scan):
        other = jax.jit(jax.grad(loss))(_params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), other, plain)


def test_blocks_stand_alone_under_the_same_names():
    own = {name: x for name, x in _params().items() if name == "norm" or name[:5] == "block"}
    vit, variables = Vit(CONFIG), {"params": _params()}
    tokens = vit.apply(
        variables, vit.apply(variables, _levels(), method="embed"), method="with_cls"
    )
    through = vit_blocks(CONFIG).apply({"params": own}, tokens)
    np.testing.assert_allclose(through[:, 1:], _encode()(_levels()).tokens, atol=1e-6)


def test_the_base_size_has_the_papers_numbers():
    config = VitConfig()
    assert [config.patches(frames) for frames in (101, 304, 608, 1001, 2001)] == [
        *(30, 95, 190, 310, 625)
    ]
    shapes = jax.eval_shape(Vit(config).init, jax.random.key(0), jnp.zeros((1, 608, 80)))
    leaves = jax.tree.leaves(shapes)
    # ViT-B without a classifier, positions fixed, patches of one channel.
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 12 * 7_087_872 + 1536 + 197_376 + 768


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        InputError, match=r"levels: 2 frames of 8 mels, but the encoder takes 8 mel"
    ):
        jax.eval_shape(_encode(), _levels(2))
    with pytest.raises(InputError, match=r"levels: 12 frames of 7 mels, but the encoder takes 8"):
        jax.eval_shape(_encode(), _levels()[..., :7])
    with pytest.raises(InputError, match=r"VitConfig.patch: \(16, 16\) with 40 mels and 608 frame"):
        VitConfig(mels=40)
    with pytest.raises(InputError, match=r"VitConfig.width: 770 with 12 heads; it must be a multi"):
        VitConfig(width=770)
