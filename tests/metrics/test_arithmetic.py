import numpy as np

from spatial_clap_jax.metrics.arithmetic import remove, swap


def test_a_swap_exchanges_what_was_subtracted():
    content, left, right = np.eye(3)
    embeddings = np.stack([content + left, content + right]) / 2**0.5
    old, new = np.stack([left, right]) / 2**0.5, np.stack([right, left]) / 2**0.5
    np.testing.assert_allclose(swap(embeddings, old, new), embeddings[::-1])
    np.testing.assert_allclose(swap(embeddings, old, old), embeddings)


def test_what_is_removed_is_gone_and_the_rest_is_a_unit_vector():
    content, left = np.eye(2)
    embeddings = np.array([0.6 * content + 0.8 * left])
    np.testing.assert_allclose(remove(embeddings, 0.8 * left[None]), [content])
    np.testing.assert_array_equal(remove(left[None], left[None]), [[0.0, 0.0]])
