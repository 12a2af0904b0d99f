"""Moving what an embedding says of a direction, by the difference of text prototypes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def swap(
    embeddings: Float[np.ndarray, "n d"],
    old: Float[np.ndarray, "n d"],
    new: Float[np.ndarray, "n d"],
) -> Float[np.ndarray, "n d"]:
    """unit(e - old + new): the same sound from another direction.

    Args:
      embeddings: unit embeddings of audio.
      old: the prototype of the direction that each has.
      new: the prototype of the one that it shall have.

    Returns:
      Unit vectors; zeros where nothing is left.

    Reference: ELSA, arXiv 2409.11369.

    Example:
      >>> e, left, right = np.array([[0.8, 0.6, 0.0]]), np.eye(3)[1:2], np.eye(3)[2:]
      >>> swap(e, 0.6 * left, 0.6 * right)
      array([[0.8, 0. , 0.6]])
    """
    moved = embeddings.astype(np.float64) - old + new
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.where(length > 1e-9, moved / np.maximum(length, 1e-9), 0.0)


def remove(
    embeddings: Float[np.ndarray, "n d"], old: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n d"]:
    """unit(e - old): the same sound without its direction; see `swap`."""
    return swap(embeddings, old, np.zeros_like(old))
