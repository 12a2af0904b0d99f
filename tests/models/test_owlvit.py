"""OWL-ViT by hand and by law; equality with Hugging Face's is in pretrained/test_owlvit_parity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.layers import executed
from spatial_clap_jax.models.owlvit import (
    BoxHead,
    ClassHead,
    OwlVit,
    OwlVitConfig,
    OwlVitImageConfig,
    OwlVitImageTower,
    OwlVitTextConfig,
    OwlVitTextTower,
    box_bias,
    image_patches,
    owlvit_base_patch16,
    owlvit_base_patch32,
    owlvit_large_patch14,
)

# Wider than high, as video is.
IMAGE = OwlVitImageConfig((16, 24), patch=8, width=16, layers=2, heads=2, mlp_width=24)
TEXT = OwlVitTextConfig(vocabulary=50, width=8, layers=2, heads=2, mlp_width=12, max_tokens=6)
CONFIG = OwlVitConfig(IMAGE, TEXT, joint_width=8)
# Begin, two words, end, padding.
TOKENS = np.int32([[48, 5, 9, 49, 0, 0], [48, 7, 49, 0, 0, 0]])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tower(images):
    """Variables of an image tower, and the tower compiled."""
    module = OwlVitImageTower(IMAGE)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    return variables, jax.jit(module.apply)


@pytest.fixture(scope="module")
def reader():
    """Variables of a text tower, and the tower compiled."""
    module = OwlVitTextTower(TEXT)
    variables = jax.jit(module.init)(jax.random.key(1), TOKENS)
    return variables, jax.jit(module.apply)


def test_patches_are_those_of_a_convolution():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cut = image_patches(jnp.asarray(images, jnp.float32), 2)
    assert cut.shape == (2, 2, 3, 12)
    # Second row, third column of the second image: rows 2 and 3, columns 4 and 5.
    np.testing.assert_array_equal(cut[1, 1, 2], images[1, 2:4, 4:6].transpose(2, 0, 1).ravel())


def test_boxes_begin_where_their_patches_end():
    shares = 1 / (1 + np.exp(-box_bias(2, 4).astype(np.float64)))
    assert shares.shape == (8, 4)
    # Second row, first column: its right edge at 1/4, its lower edge at the bottom.
    np.testing.assert_allclose(shares[4], [0.25, 1.0, 0.25, 0.5], atol=2e-4)
    assert np.isfinite(box_bias(1, 1)).all()


@pytest.mark.parametrize(
    ("published", "tokens", "parameters"),
    [
        (owlvit_base_patch32(), 577, 87.9e6),
        (owlvit_base_patch16(), 2305, None),
        (owlvit_large_patch14(), 3601, 306.6e6),
    ],
)
def test_published_sizes(published, tokens, parameters):
    rows, columns = published.image.grid
    assert 1 + rows * columns == tokens
    pixels = jax.ShapeDtypeStruct((1, *published.image.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(OwlVitImageTower(published.image).init, jax.random.key(0), pixels)
    if parameters:
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert count == pytest.approx(parameters, abs=0.06e6)


def test_the_map_is_patches_times_cls_normalised(images, tower):
    variables, run = tower
    tokens = jax.jit(functools.partial(OwlVitImageTower(IMAGE).apply, method="tokens"))(
        variables, images
    )
    assert tokens.shape == (2, 7, 16)
    product = np.asarray(tokens[:, 1:] * tokens[:, :1], np.float64)
    expected = (product - product.mean(-1, keepdims=True)) / np.sqrt(
        product.var(-1, keepdims=True) + 1e-5
    )
    map = run(variables, images)
    assert map.shape == (2, 2, 3, 16)
    np.testing.assert_allclose(map.reshape(2, 6, 16), expected, atol=2e-4)


def test_an_image_is_itself_beside_any_other(images, tower):
    variables, run = tower
    both = run(variables, images)
    alone = run(variables, np.stack([images[1], images[1]]))
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_the_epsilon_of_the_merged_norm_counts(tower):
    variables, _ = tower
    tokens = jnp.linspace(-1.0, 1.0, 7 * 16).reshape(1, 7, 16)
    maps = [
        OwlVitImageTower(dataclasses.replace(IMAGE, merged_epsilon=epsilon)).apply(
            variables, tokens, method="merged"
        )
        for epsilon in (1e-5, 0.1)
    ]
    assert np.abs(maps[0] - maps[1]).max() > 1e-3


@pytest.mark.slow
def test_looped_and_recomputed_blocks_are_the_same_function(images, tower):
    variables, run = tower

    def loss(params):
        map = OwlVitImageTower(IMAGE).apply({"params": params}, images)
        return jnp.sum(map[..., 0] ** 2), map

    def differentiated():
        return jax.jit(jax.grad(lambda params: loss(params), has_aux=True))(variables["params"])

    plain, _ = differentiated()
    with executed("blocks", True):
        gradients, looped = differentiated()
    np.testing.assert_allclose(looped, run(variables, images), atol=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # All of it learns.
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))


def test_a_text_is_read_at_its_end_whatever_the_padding(reader):
    variables, run = reader
    rows = run(variables, TOKENS)
    padded = TOKENS.copy()
    padded[0, 4:], padded[1, 3:] = 17, 49
    np.testing.assert_allclose(run(variables, padded), rows, atol=1e-6)
    shorter = run(variables, TOKENS[:, :4])
    np.testing.assert_allclose(shorter, rows, atol=1e-6)
    changed = TOKENS.copy()
    changed[0, 1] = 6
    assert np.abs(run(variables, changed)[0] - rows[0]).max() > 1e-3


def test_order_of_words_is_heard(reader):
    variables, run = reader
    turned = TOKENS.copy()
    turned[0, 1:3] = TOKENS[0, 2:0:-1]
    assert np.abs(run(variables, turned)[0] - run(variables, TOKENS)[0]).max() > 1e-3


def test_class_logits_by_hand():
    eye = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    shift = {"kernel": jnp.array([[1.0], [0.0]]), "bias": jnp.zeros(1)}
    scale = {"kernel": jnp.array([[0.0], [1.0]]), "bias": jnp.zeros(1)}
    params = {"embedding": eye, "shift": shift, "scale": scale}
    patches = jnp.array([[[3.0, 4.0], [1.0, -1.0]]])
    queries = jnp.array([[1.0, 0.0]])
    logits, embeddings = ClassHead(2).apply({"params": params}, patches, queries)
    # (cosine 0.6 + shift 3) x (ELU(4) + 1 = 5); (0.7071 + 1) x (e^-1 - 1 + 1).
    np.testing.assert_allclose(logits[0, :, 0], [18.0, 1.70711 * np.exp(-1)], rtol=1e-5)
    np.testing.assert_allclose(embeddings[0, 0], [0.6, 0.8], rtol=1e-5)


def test_both_gelus_of_the_box_head():
    map = jnp.linspace(-1.0, 1.0, 8).reshape(1, 1, 2, 4)
    exact = BoxHead("exact")
    variables = exact.init(jax.random.key(0), map)
    boxes, other = (head.apply(variables, map) for head in (exact, BoxHead("tanh")))
    assert 1e-7 < np.abs(boxes - other).max() < 1e-3


@pytest.mark.slow
def test_queries_for_all_images_or_for_each(images):
    module = OwlVit(CONFIG)
    variables = jax.jit(module.init)(jax.random.key(0), images, TOKENS)
    run = jax.jit(module.apply)
    shared = run(variables, images, TOKENS)
    own = run(variables, images, np.stack([TOKENS, TOKENS[::-1]]))
    assert shared.logits.shape == (2, 6, 2)
    assert shared.boxes.shape == (2, 6, 4)
    np.testing.assert_allclose(own.logits[0], shared.logits[0], atol=1e-5)
    np.testing.assert_allclose(own.logits[1, :, ::-1], shared.logits[1], atol=1e-5)
    np.testing.assert_array_equal(own.boxes, shared.boxes)
    none = np.stack([TOKENS[0], np.zeros(6, np.int32)])
    logits = run(variables, images, none).logits
    assert (logits[..., 1] == np.finfo(np.float32).min).all()
    np.testing.assert_allclose(logits[..., 0], shared.logits[..., 0], atol=1e-5)


def test_what_cannot_be_is_refused(images):
    with pytest.raises(InputError, match=r"image_size: \(16, 20\) .* multiples of the patch"):
        dataclasses.replace(IMAGE, image_size=(16, 20))
    with pytest.raises(InputError, match=r"OwlVitImageConfig\.heads: 3 does not divide .* 16"):
        dataclasses.replace(IMAGE, heads=3)
    with pytest.raises(InputError, match=r"OwlVitTextConfig\.heads: 5 does not divide"):
        dataclasses.replace(TEXT, heads=5)
    with pytest.raises(InputError, match=r"joint_width: 9, but the class head .* the 8 of"):
        dataclasses.replace(CONFIG, joint_width=9)
    with pytest.raises(InputError, match=r"images: 24 x 16 pixels, .* takes 16 x 24; resize"):
        OwlVitImageTower(IMAGE).init(jax.random.key(0), images.swapaxes(1, 2))
    with pytest.raises(InputError, match=r"tokens: 7 a text, .* at most 6; shorten"):
        OwlVitTextTower(TEXT).init(jax.random.key(0), np.zeros((1, 7), np.int32))
