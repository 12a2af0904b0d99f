"""Recordings of any length as what an encoder takes: windows, repeats, views of the whole.

NumPy on the host: a compiled program would be compiled anew for every length.
"""

from collections.abc import Sequence
from typing import Literal

import librosa
import numpy as np
from jaxtyping import Float, Float32, Int

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LAION_CLAP_LOG_MEL, LogMelConfig


def window_starts(samples: int, window: int) -> list[int]:
    """First samples of the windows that a recording is cut into, half a window apart.

    Args:
      samples: length of the recording.
      window: length of a window.

    Returns:
      Ascending; the last window ends where the recording does. One window, which is to be
      padded, where the recording is no longer than that.

    Example:
      >>> window_starts(samples=9, window=4)
      [0, 2, 4, 5]
    """
    if samples <= window:
        return [0]
    return [*range(0, samples - window, max(window // 2, 1)), samples - window]


def window_of(
    clip: Float32[np.ndarray, "c t"],
    start: int,
    samples: int,
    padding: Literal["repeat", "zeros"],
) -> Float32[np.ndarray, "c samples"]:
    """One window of a recording, filled up where it is shorter.

    Args:
      clip: the recording.
      start: first sample.
      samples: length of the window.
      padding: see `repeat_pad`, or 'zeros' at the end.
    """
    part = clip[:, start : start + samples]
    if padding == "repeat":
        return repeat_pad(part, samples)
    return np.pad(part, ((0, 0), (0, samples - part.shape[1])))


def repeat_pad(audio: Float[np.ndarray, "*b t"], samples: int) -> Float[np.ndarray, "*b samples"]:
    """Fills a window with whole repetitions of the audio, then zeros.

    Args:
      audio: samples, any leading axes.
      samples: length of the window.

    Raises:
      InputError: no samples, or more than the window holds.

    Reference: 'repeatpad' of LAION-CLAP (arXiv 2211.06687).

    Example:
      >>> repeat_pad(np.array([1.0, 2.0]), 5)
      array([1., 2., 1., 2., 0.])
    """
    length = audio.shape[-1]
    if not 1 <= length <= samples:
        raise InputError(
            f"repeat_pad: audio has {length} samples, the window {samples}: need 1 to {samples}; "
            "cut longer audio, or take fusion_views of its log-mel."
        )
    repeated = np.tile(audio, samples // length)
    rest = samples - repeated.shape[-1]
    return np.pad(repeated, [(0, 0)] * (audio.ndim - 1) + [(0, rest)])


def log_mel_on_host(
    audio: Float32[np.ndarray, "t"], config: LogMelConfig = LAION_CLAP_LOG_MEL
) -> Float32[np.ndarray, "l m"]:
    """`features.log_mel` of one signal of any length.

    Args:
      audio: samples at `config.sample_rate_hz`.
      config: the front end.

    Returns:
      [t // hop + 1, mels], in dB or as natural logarithms.

    Reference: librosa.feature.melspectrogram.
    """
    # Reflected here: librosa's own reflection of whole hops takes too short a tail.
    half = config.n_fft // 2
    power = librosa.feature.melspectrogram(
        y=np.pad(audio, half, mode="reflect"),
        sr=config.sample_rate_hz,
        n_fft=config.n_fft,
        hop_length=config.hop,
        center=False,
        n_mels=config.mels,
        fmin=config.low_hz,
        fmax=config.high_hz,
        htk=config.scale == "htk",
        norm=config.norm,
    )
    if config.level == "natural":
        return np.log(power.T + np.float32(config.amin)).astype(np.float32)
    return (10 * np.log10(np.maximum(power.T, config.amin))).astype(np.float32)


def fusion_views(
    log_mel: Float32[np.ndarray, "*b l m"], frames: int = 1001, starts: Sequence[int] | None = None
) -> Float32[np.ndarray, "*b 4 frames m"]:
    """Four views of long audio: all of it shrunk in time, and three crops.

    Args:
      log_mel: log-mel frames, `frames` or more; the encoder's `longer` is whether more.
      frames: frames of a view.
      starts: first frame of each crop, 0 to l - frames. If None, those in the middle of the
        first, second and last third of what is possible, the same from call to call.

    Returns:
      [*b, 4, frames, m]; with exactly `frames` frames, four times the input.

    Raises:
      InputError: too few frames, or other than three starts, or one out of range.

    Reference: LAION-CLAP (arXiv 2211.06687), which draws each start from its third at random;
      the middle is our choice. Shrunk without a low-pass, at the places of PyTorch's
      `bilinear` with `align_corners=False`.

    Example:
      >>> fusion_views(np.arange(6, dtype=np.float32)[:, None], frames=3)[..., 0]
      array([[0.5, 2.5, 4.5],
             [0. , 1. , 2. ],
             [2. , 3. , 4. ],
             [3. , 4. , 5. ]], dtype=float32)
    """
    length = log_mel.shape[-2]
    if length < frames:
        raise InputError(
            f"fusion_views: log_mel has {length} frames, a view {frames}: need {frames} or more; "
            "repeat_pad the audio first."
        )
    starts = _middle_starts(length - frames + 1) if starts is None else tuple(starts)
    if len(starts) != 3 or not all(0 <= start <= length - frames for start in starts):
        raise InputError(
            f"fusion_views: starts {starts}: need three from 0 to {length - frames}, so that "
            f"{frames} of {length} frames fit; leave them out for the middle of each third."
        )
    left, right, weight = _shrinking_taps(length, frames)
    shrunk = log_mel[..., left, :] * (1 - weight) + log_mel[..., right, :] * weight
    crops = [log_mel[..., start : start + frames, :] for start in starts]
    return np.stack([shrunk, *crops], axis=-3)


def _middle_starts(count: int) -> tuple[int, ...]:
    """Middle of each third of `count` starts; the first thirds take what is left over."""
    thirds = np.array_split(np.arange(count), 3)
    return tuple(int(third[(len(third) - 1) // 2]) if len(third) else 0 for third in thirds)


def _shrinking_taps(
    source: int, target: int
) -> tuple[Int[np.ndarray, "l"], Int[np.ndarray, "l"], Float32[np.ndarray, "l 1"]]:
    """Two neighbours of each place, and how much the second one counts."""
    # Rounded to float32 as PyTorch does, the step and then each place once (a fused multiply-add):
    # 30 dB from frame to frame show a place's last digits.
    step = np.float64(np.float32(source) / np.float32(target))
    place = np.maximum((step * (np.arange(target) + 0.5) - 0.5).astype(np.float32), 0)
    left = np.minimum(place.astype(np.int64), source - 1)
    weight = (place - left).astype(np.float32)
    return left, np.minimum(left + 1, source - 1), weight[:, None]
