"""First-order ambisonics: encoding, other conventions, tetrahedral microphones, rotation.

Here FOA is W, Y, Z, X (ACN order) with SN3D gains: a plane wave has the same level in W as in the
figure-of-eight that looks at it. x is ahead, y left, z up.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from spatial_clap_jax.errors import InputError

FoaFormat = Literal["acn-sn3d", "acn-n3d", "fuma"]

# Where the four cardioids of a tetrahedral microphone look: front-left-up, front-right-down,
# back-left-down, back-right-up (x, y, z).
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)


def unit_vectors(
    azimuth_deg: Float[np.ndarray, "*n"], elevation_deg: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 3"]:
    """Directions as vectors of length one (x ahead, y left, z up).

    Example:
      >>> unit_vectors(np.array([90.0]), np.array([0.0])).round(6)
      array([[0., 1., 0.]])
    """
    azimuth = np.radians(np.asarray(azimuth_deg, np.float64))
    elevation = np.radians(np.asarray(elevation_deg, np.float64))
    level = np.cos(elevation)
    return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=-1)


def foa_gains(direction: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 4"]:
    """Gains of a plane wave in W, Y, Z, X.

    Args:
      direction: unit vectors to where the wave comes from (x, y, z).

    Returns:
      (1, y, z, x): SN3D gains.

    Reference: Nachbar et al. 2011, AmbiX.

    Example:
      >>> foa_gains(np.array([[0.0, 1.0, 0.0]]))
      array([[1., 1., 0., 0.]])
    """
    x, y, z = np.moveaxis(direction, -1, 0)
    return np.stack([np.ones_like(x), y, z, x], axis=-1)


def as_acn_sn3d(
    audio: Float[np.ndarray, "*b c t"], declared: str = "acn-sn3d"
) -> Float[np.ndarray, "*b c t"]:
    """FOA of a declared convention as W, Y, Z, X with SN3D gains.

    Args:
      audio: four channels; nothing in them tells their convention.
      declared: 'acn-sn3d' (AmbiX), 'acn-n3d' (W, Y, Z, X with figures-of-eight sqrt(3) louder)
        or 'fuma' (W, X, Y, Z with W 3 dB softer).

    Returns:
      The converted audio; `audio` itself where it is in ACN order with SN3D gains already.

    Raises:
      InputError: an unknown convention, other than four channels, or samples that are no floats.

    Reference: Malham 2003 (FuMa weights); Nachbar et al. 2011 (AmbiX).
    """
    check_declared(4, False, declared)
    channels = audio.shape[-2]
    if channels != 4:
        raise InputError(
            f"audio: {channels} channels where first-order ambisonics have 4; give a recording in "
            "B-format, or declare a mono one as such (mono_as_foa)."
        )
    _check_floating(audio)
    if declared == "acn-sn3d":
        return audio
    gains = {"acn-n3d": [1, 3**-0.5, 3**-0.5, 3**-0.5], "fuma": [2**0.5, 1, 1, 1]}[declared]
    scaled = audio * np.asarray(gains, audio.dtype)[:, None]
    return scaled if declared == "acn-n3d" else scaled[..., [0, 2, 3, 1], :]


def check_declared(channels: int, plain: bool, foa_format: str) -> None:
    """Refuses words about ambisonics where no ambisonics are heard, and unknown conventions.

    Args:
      channels: that the model takes.
      plain: whether recordings are declared to be mono and without a place.
      foa_format: the convention that they are declared to have.

    Raises:
      InputError: either is said to a model of other channels, or there is no such convention.
    """
    if channels != 4 and (plain or foa_format != "acn-sn3d"):
        argument = "plain=True" if plain else f"foa_format={foa_format!r}"
        raise InputError(
            f"{argument}: is said to a model of first-order ambisonics, and this one takes "
            f"{channels} channel(s); leave it out."
        )
    if foa_format not in get_args(FoaFormat):
        raise InputError(
            f"foa_format {foa_format!r} is none of {', '.join(get_args(FoaFormat))}; give one."
        )


def mono_as_foa(audio: Float[np.ndarray, "*b t"]) -> Float[np.ndarray, "*b 4 t"]:
    """A mono recording in all four channels: the mark of a clip without a place.

    Reference: takamichi-lab/disentangle.
    """
    return np.repeat(audio[..., None, :], 4, axis=-2)


def cardioids(foa: Float[np.ndarray, "*b c t"]) -> Float[np.ndarray, "*b c t"]:
    """What four coincident cardioids of a tetrahedron hear of a field (A-format).

    Args:
      foa: W, Y, Z, X.

    Returns:
      The cardioids in the order of `TETRAHEDRON`, with gain 1 straight ahead of each.

    Raises:
      InputError: samples that are no floats.
    """
    _check_floating(foa)
    return np.einsum("ac,...ct->...at", 0.5 * foa_gains(TETRAHEDRON), foa).astype(foa.dtype)


def a_to_b(cardioid: Float[np.ndarray, "*b c t"]) -> Float[np.ndarray, "*b c t"]:
    """A-format to W, Y, Z, X; the inverse of `cardioids`.

    W is half of the sum, and each figure-of-eight is sqrt(3) / 2 times the capsules on its
    positive side less those on the other: Y takes front-left and back-left, Z front-left and
    back-right, which a slip in the order of capsules exchanges.

    Args:
      cardioid: capsules in the order of `TETRAHEDRON`.

    Raises:
      InputError: samples that are no floats.

    Reference: Gerzon 1975.
    """
    _check_floating(cardioid)
    # The sum over capsules of u u^T is 4/3, so that the figures-of-eight take three times W's
    # share.
    matrix = 0.5 * foa_gains(TETRAHEDRON).T * np.array([1, 3, 3, 3])[:, None]
    return np.einsum("ca,...at->...ct", matrix, cardioid).astype(cardioid.dtype)


def rotate_foa(
    foa: Float[np.ndarray, "*b c t"], yaw_deg: float, mirror: bool = False
) -> Float[np.ndarray, "*b c t"]:
    """The field turned about the vertical axis; W and Z stay.

    Args:
      foa: W, Y, Z, X.
      yaw_deg: how far counter-clockwise: a source at azimuth a is at a + yaw_deg afterwards.
      mirror: exchange left and right first, so that it is at yaw_deg - a.

    Returns:
      A new array.

    Raises:
      InputError: samples that are no floats.

    Example:
      A source ahead has Y = 0 and X = W; turned by 90 degrees, Y = W and X = 0.
    """
    _check_floating(foa)
    w, y, z, x = np.moveaxis(foa, -2, 0)
    y = -y if mirror else y
    angle = np.radians(np.float64(yaw_deg))
    sine, cosine = foa.dtype.type(np.sin(angle)), foa.dtype.type(np.cos(angle))
    return np.stack([w, y * cosine + x * sine, z, x * cosine - y * sine], axis=-2)


def _check_floating(audio: np.ndarray) -> None:
    """Refuses integers, which gains below one would turn into zeros."""
    if not np.issubdtype(audio.dtype, np.floating):
        raise InputError(
            f"audio: holds {audio.dtype}; samples must be floats of full scale 1: divide "
            "integers by their full scale (32768 for 16 bits)."
        )
