"""Images as what an image tower takes: resized by bicubic interpolation, normalised as CLIP's are.

NumPy: a video's frames are made smaller where they are read.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float32, UInt8

from spatial_clap_jax.errors import InputError

# Mean and standard deviation of red, green and blue in CLIP's training, of full scale 1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def resized(
    images: UInt8[np.ndarray, "*b y x c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "*b height width c"]:
    """Images of another size, by bicubic interpolation that averages where they are made smaller.

    Args:
      images: any number of them, of one size.
      size: height and width wanted; what is not in proportion is stretched.

    Raises:
      InputError: a side below 1 pixel.

    Reference: Keys 1981 with a = -0.5, widened by the scale, columns first and rounded in between:
      Pillow's `BICUBIC`, which CLIP's preprocessing is defined by.
    """
    height, width = size
    if min(*size, *images.shape[-3:-1]) < 1:
        raise InputError(
            f"images: of {images.shape[-3]} x {images.shape[-2]} pixels to {height} x {width}; "
            "every side must be 1 or more."
        )
    across = _interpolated(images.swapaxes(-3, -2), width).swapaxes(-3, -2)
    return np.ascontiguousarray(_interpolated(across, height))


def clip_normalised(images: UInt8[np.ndarray, "*b y x 3"]) -> Float32[np.ndarray, "*b y x 3"]:
    """Pixels with CLIP's mean taken off, over CLIP's deviation.

    Args:
      images: red, green and blue, 0 to 255.

    Example:
      >>> clip_normalised(np.full((1, 1, 3), 128, np.uint8)).round(2).tolist()
      [[[0.08, 0.17, 0.34]]]
    """
    mean, deviation = (np.array(x, np.float32) for x in (CLIP_MEAN, CLIP_DEVIATION))
    return (images.astype(np.float32) / 255 - mean) / deviation


def _interpolated(
    images: UInt8[np.ndarray, "*b y x c"], size: int
) -> UInt8[np.ndarray, "*b y2 x c"]:
    source = images.shape[-3]
    if source == size:
        return images
    flat = images.reshape(*images.shape[:-2], -1).astype(np.float32)
    mixed = np.matmul(_bicubic_matrix(source, size), flat)
    whole = np.clip(np.floor(mixed + 0.5), 0, 255).astype(np.uint8)
    return whole.reshape(*whole.shape[:-1], *images.shape[-2:])


@functools.lru_cache(maxsize=16)
def _bicubic_matrix(source: int, target: int) -> Float32[np.ndarray, "target source"]:
    """Matrix that resizes a row of pixels; see `resized`."""
    scale = source / target
    wide = max(scale, 1.0)
    middle = (np.arange(target)[:, None] + 0.5) * scale
    x = np.abs((np.arange(source) + 0.5 - middle) / wide)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    matrix = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix
