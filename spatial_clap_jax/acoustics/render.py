"""Mixtures of dry clips in a room, with channels treated alike."""

import numpy as np
from jaxtyping import Float32, Int, Int16
from scipy import fft, signal


def high_pass(
    audio: Float32[np.ndarray, "*b t"],
    sample_rate_hz: int,
    cutoff_hz: float = 50.0,
    order: int = 4,
) -> Float32[np.ndarray, "*b t"]:
    """Butterworth high-pass, the same on every channel, along the last axis.

    It is linear and so commutes with rendering: filtering the responses of a room
    once gives the same mixtures as filtering each mixture.

    Args:
      audio: signals or impulse responses.
      sample_rate_hz: rate of `audio`.
      cutoff_hz: frequency that loses 3 dB.
      order: order of the filter.

    Returns:
      The filtered audio.

    Reference: sarulab-speech/Moving-CLAP (50 Hz, 4th order); Butterworth is our choice.
    """
    if not 0 < cutoff_hz < sample_rate_hz / 2:
        raise ValueError(
            f"cutoff_hz {cutoff_hz:g} must lie between 0 and half of sample_rate_hz "
            f"({sample_rate_hz / 2:g})."
        )
    sections = signal.butter(order, cutoff_hz, "highpass", fs=sample_rate_hz, output="sos")
    # In float32 the poles so near to 1 would lose their precision.
    filtered = signal.sosfilt(sections, audio.astype(np.float64), axis=-1)
    return np.asarray(filtered, np.float32)


def render_members(
    dry: Float32[np.ndarray, "k t"],
    rirs: Float32[np.ndarray, "k c r"],
    permutations: Int[np.ndarray, "p k"],
) -> Float32[np.ndarray, "p c t"]:
    """Mixtures of a scene group: the same clips, permuted over the same places.

    Clip j of member i stands at place `permutations[i, j]`. Each clip and each response
    is transformed once; the members are sums of products in the frequency domain.

    Args:
      dry: k mono clips.
      rirs: responses from the k places to the c channels, at the rate of the clips.
      permutations: each row a permutation of 0..k-1.

    Returns:
      The p mixtures (plain sums), cut to the clips' length; what of the reverberation
      comes later is lost.

    Reference: Spatial-CLAP, arXiv 2509.14785 (permuted pairs); scene groups are our form.

    Example:
      With clips a, b and responses h, g, `permutations=[[0, 1], [1, 0]]` gives
      a * h + b * g and a * g + b * h.
    """
    count, samples = dry.shape
    if rirs.shape[0] != count:
        raise ValueError(f"{count} clips and {rirs.shape[0]} places; give a place to each clip.")
    if not (np.sort(permutations, axis=1) == np.arange(count)).all():
        raise ValueError(f"permutations {permutations.tolist()} must permute 0..{count - 1}.")
    rirs = rirs[..., :samples]
    length = fft.next_fast_len(samples + rirs.shape[-1] - 1, real=True)
    clips = np.asarray(fft.rfft(dry, length))
    places = np.asarray(fft.rfft(rirs, length))
    members = np.stack(
        [sum(clips[clip] * places[place] for clip, place in enumerate(row)) for row in permutations]
    )
    return np.ascontiguousarray(np.asarray(fft.irfft(members, length))[..., :samples])


def quantise_jointly(
    audio: Float32[np.ndarray, "p c t"], peak: float = 0.9
) -> tuple[Int16[np.ndarray, "p c t"], float]:
    """16-bit samples with one scale for all channels of all members of a group.

    Args:
      audio: the members' mixtures.
      peak: where the largest sample of the group goes, as a share of full scale.

    Returns:
      The samples, and the scale that undoes it: `audio == samples * scale` to within
      half a step. Silence has the scale 1 / 32767.

    Reference: our choice.

    Example:
      >>> quantise_jointly(np.array([[[0.5, -0.25]]], np.float32), peak=1.0)
      (array([[[ 32767, -16384]]], dtype=int16), 1.5259254737998596e-05)
    """
    if not 0 < peak <= 1:
        raise ValueError(f"peak {peak:g} must be in (0, 1].")
    largest = float(np.max(np.abs(audio), initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("audio holds NaN or infinite samples; refuse such clips before rendering.")
    scale = largest / (peak * 32767) if largest > 0 else 1 / 32767
    return np.rint(audio / np.float64(scale)).astype(np.int16), scale
