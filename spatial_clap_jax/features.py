"""What the encoders see: spectra, log-mel, stereo planes, resampling, masks.

Everything here runs inside the jitted step, in float32 whatever the model's compute
type, over any leading axes. Contract of every front end, tested over many lengths:
frame i is centred on sample i * hop, and t samples give t // hop + 1 frames.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import scipy.signal
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.shapes import MelFrames, Signal, Spectrum, Stereo

Parts = tuple[Float32[Array, "*b l _"], Float32[Array, "*b l _"]]  # real, imaginary

# Spectral magnitudes below this are rounding noise: they count as zero, with phase 0.
_SILENT_MAGNITUDE = 1e-15
# A channel counts as at most 60 dB below the other, which bounds the level difference.
_LEVEL_RANGE = 1e-6
# Far below the quietest 16-bit sample, and its square, which gradients divide by, is no zero.
SILENT_POWER = 1e-18
_LARGEST_RATIO = 1000
# Frames of 1024 samples in parts of 64 ask for 0.23 of the products that their halves do; finer
# splits cost more in sums and in small matrices than they save.
_SHORTEST_PART = 64
# Samples in the frames of a block, in all channels: in smaller blocks threads wait more than they
# work, and what lies between the steps of larger ones no longer stays in the cache.
_BLOCK_SAMPLES = 1 << 20
_SHORTEST_BLOCK = 8


def _check_stft(n_fft: int, hop: int) -> None:
    if n_fft < 2 or n_fft % 2 or hop < 1:
        raise InputError(f"stft: n_fft {n_fft}, hop {hop}: n_fft must be even and hop at least 1.")


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """Log-mel front end; the defaults are LAION-CLAP's.

    `level` is of the power in a band: 'decibels', 10 log10(max(power, amin)), or 'natural',
    log(power + amin).

    Reference: LAION-CLAP (arXiv 2211.06687) with its torchlibrosa front end: Slaney
      scale and norm, no top_db.
    """

    sample_rate_hz: int = 48_000
    n_fft: int = 1024
    hop: int = 480
    mels: int = 64
    low_hz: float = 50.0
    high_hz: float = 14_000.0
    norm: Literal["slaney"] | None = "slaney"
    scale: Literal["slaney", "htk"] = "slaney"
    amin: float = 1e-10
    level: Literal["decibels", "natural"] = "decibels"

    def __post_init__(self):
        """Refuses what would only fail, or mislead, deep inside a trace."""
        _check_stft(self.n_fft, self.hop)
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise InputError(
                f"log-mel: low_hz {self.low_hz:g}, high_hz {self.high_hz:g}: need 0 <= low_hz < "
                f"high_hz <= {self.sample_rate_hz / 2:g}; lower high_hz or raise sample_rate_hz."
            )
        if self.mels < 1 or self.amin <= 0:
            raise InputError(
                f"log-mel: mels {self.mels}, amin {self.amin:g}: both must be above zero."
            )


@dataclasses.dataclass(frozen=True)
class StftConfig:
    """Spectra by a periodic Hann window, centred; the defaults are ELSA's.

    Reference: ELSA (arXiv 2409.11369), with the numbers of its re-implementations.
    """

    sample_rate_hz: int = 16_000
    n_fft: int = 400
    hop: int = 100

    def __post_init__(self):
        """Refuses what would only fail deep inside a trace."""
        _check_stft(self.n_fft, self.hop)

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.n_fft // 2 + 1


LAION_CLAP_LOG_MEL = LogMelConfig()
# Of the models that fuse views of long audio: other bands.
CLAP_FUSION_LOG_MEL = LogMelConfig(norm=None, scale="htk")
# M2D's (Niizumi et al., arXiv 2503.22104).
M2D_LOG_MEL = LogMelConfig(
    sample_rate_hz=16_000,
    n_fft=400,
    hop=160,
    mels=80,
    low_hz=50.0,
    high_hz=8000.0,
    amin=1.1920929e-07,
    level="natural",
)


def stft(
    audio: Signal,
    n_fft: int = 1024,
    hop: int = 512,
    win_length: int | None = None,
    window: str = "hann",
    centre: bool = True,
    pad_mode: str = "reflect",
) -> Spectrum:
    """Short-time Fourier transform, librosa's with frames before bins.

    Args:
      audio: samples, any leading axes.
      n_fft: samples a frame; even.
      hop: samples from one frame to the next.
      win_length: samples of the window, centred in the frame; `n_fft` if None.
      window: a periodic window by its SciPy name.
      centre: frame i is centred on sample i * hop; else it begins there.
      pad_mode: what stands beyond both ends when centred, by its NumPy name.

    Returns:
      [*b, l, n_fft // 2 + 1]; l = t // hop + 1 if centred, else (t - n_fft) // hop + 1.

    Raises:
      InputError: no samples, or too few for one frame.

    Reference: librosa.stft.

    Example:
      >>> stft(jnp.ones(8), n_fft=4, hop=4).real   # three frames; a Hann window sums to 2
      Array([[ 2., -1.,  0.], ...
    """
    _check_stft(n_fft, hop)
    audio = centred(audio, n_fft, pad_mode) if centre else jnp.asarray(audio, jnp.float32)
    if audio.shape[-1] < n_fft:
        raise InputError(
            f"stft: audio has {audio.shape[-1]} samples; a frame needs n_fft {n_fft}: "
            "give longer audio, or centre the frames."
        )
    count, bins = (audio.shape[-1] - n_fft) // hop + 1, n_fft // 2 + 1
    even, odd = sorted_spectra(audio, count, n_fft, hop, win_length or n_fft, window, bins, split=2)
    return jax.lax.complex(*(_interleave(*parts) for parts in zip(even, odd, strict=True)))


@functools.lru_cache(maxsize=32)
def mel_filterbank(
    sample_rate_hz: int,
    n_fft: int,
    mels: int,
    low_hz: float,
    high_hz: float,
    norm: Literal["slaney"] | None = "slaney",
    scale: Literal["slaney", "htk"] = "slaney",
) -> Float32[np.ndarray, "f m"]:
    """Triangular mel bands as a matrix that power spectra are multiplied by.

    Args:
      sample_rate_hz: rate of the audio.
      n_fft: samples a frame.
      mels: number of bands.
      low_hz: lower edge of the first band.
      high_hz: upper edge of the last band.
      norm: 'slaney' for bands of equal area, None for bands of peak 1.
      scale: mel formula.

    Returns:
      Weights, one column a band; read-only, since the result is cached.

    Reference: librosa.filters.mel.
    """
    weights = librosa.filters.mel(
        sr=sample_rate_hz,
        n_fft=n_fft,
        n_mels=mels,
        fmin=low_hz,
        fmax=high_hz,
        htk=scale == "htk",
        norm=norm,
        dtype=np.float32,
    ).T
    weights.flags.writeable = False
    return weights


def log_mel(audio: Signal, config: LogMelConfig = LAION_CLAP_LOG_MEL) -> MelFrames:
    """Mel-band power on a logarithmic scale, every channel by itself.

    Args:
      audio: samples at `config.sample_rate_hz`.
      config: the front end.

    Returns:
      [*b, t // hop + 1, mels], in dB or as natural logarithms; silence is the level of amin.

    Reference: LAION-CLAP's front end, by its defaults; M2D's by `M2D_LOG_MEL`.

    Example:
      >>> log_mel(jnp.zeros((2, 48_000))).shape      # 1 s of digital silence, all -100 dB
      (2, 101, 64)
    """

    def levels(audio: Signal, count: int) -> MelFrames:
        powers = [power_of(*parts) for parts in mel_spectra(audio, count, config)]
        mel = mel_sums(powers, config)
        if config.level == "natural":
            return jnp.log(mel + config.amin)
        return decibels(mel, config.amin)

    return by_blocks(levels, audio, config)


def magnitude_phase(audio: Stereo, n_fft: int = 1024, hop: int = 512) -> Float32[Array, "*b l f 4"]:
    """Four planes of a stereo spectrum: magnitude L, R, then phase angle L, R.

    Args:
      audio: stereo samples, L, R.
      n_fft: samples a frame; even.
      hop: samples from one frame to the next.

    Returns:
      Linear magnitudes and angles in radians, (-pi, pi]. Where the magnitude is zero the
      angle is 0 and no gradient flows.

    Reference: the input of Spatial-CLAP's spatial encoder (arXiv 2509.14785).
    """
    spectrum = jnp.moveaxis(stft(audio, n_fft, hop), -3, -1)
    power = power_of(spectrum.real, spectrum.imag)
    silent = power < _SILENT_MAGNITUDE**2
    magnitude = jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, power)))
    phase = jnp.arctan2(
        jnp.where(silent, 0.0, spectrum.imag), jnp.where(silent, 1.0, spectrum.real)
    )
    return jnp.concatenate([magnitude, phase], axis=-1)


def mel_cross(audio: Stereo, config: LogMelConfig) -> Float32[Array, "*b l m 4"]:
    """What sounds, and the phase and level differences that tell where, in mel bands.

    With P_L, P_R the powers in a band and X the sum of mel * L * conj(R) over its bins:

      0  10 log10 of (P_L + P_R) / 2, in dB
      1  Re X / sqrt(P_L P_R)    coherence times the cosine of the phase by which L leads R
      2  Im X / sqrt(P_L P_R)    ... times its sine; the two lie in the unit disc
      3  log10(P_L / P_R)        level difference in tens of dB, within +-6

    Swapping L and R negates planes 2 and 3; a joint gain moves plane 0 alone. In silence
    planes 1 to 3 are 0. If one channel is 60 dB or more below the other, it counts as -60 dB.

    Args:
      audio: stereo samples, L, R, at `config.sample_rate_hz`.
      config: the front end.

    Returns:
      [*b, t // hop + 1, mels, 4].

    Reference: our choice.

    Example:
      >>> mel_cross(jnp.stack([2 * x, x]), config)[..., 3]     # L is 6.02 dB louder
      Array([[0.602, ...
    """
    return mel_cross_and_mono(audio, config)[0]


def mel_cross_and_mono(
    audio: Stereo, config: LogMelConfig
) -> tuple[Float32[Array, "*b l m 4"], MelFrames]:
    """`mel_cross`, and the `log_mel` of (L + R) / 2 at the price of a sum.

    The power of the mean of two signals is a quarter of both their powers and twice the real part
    of their cross-spectrum, bin by bin and so band by band.

    Args:
      audio: stereo samples, L, R, at `config.sample_rate_hz`.
      config: the front end of both.

    Returns:
      The planes [*b, t // hop + 1, mels, 4], and levels in dB without the last axis. Where the
      channels cancel, float32 leaves the levels of the mean about 60 dB below those of L and R.

    Reference: our choice.
    """

    check_decibels(config)
    sums = mel_cross_sums(audio, config)
    power_left, power_right, cosine, _ = sums
    planes = jnp.stack(
        [decibels((power_left + power_right) / 2, config.amin), *channel_differences(*sums)],
        axis=-1,
    )
    power_mono = jnp.maximum((power_left + power_right + 2 * cosine) / 4, 0)
    return planes, decibels(power_mono, config.amin)


def mel_cross_sums(
    audio: Stereo, config: LogMelConfig, win_length: int | None = None
) -> tuple[MelFrames, MelFrames, MelFrames, MelFrames]:
    """Powers of L and of R in mel bands, and the real and imaginary part of L * conj(R) there.

    Args:
      audio: stereo samples, L, R, at `config.sample_rate_hz`.
      config: the front end.
      win_length: samples of the window; None for `config.n_fft`.

    Returns:
      Four times [*b, t // hop + 1, mels].
    """

    def sums(audio: Stereo, count: int) -> Float32[Array, "*b 4 l m"]:
        powers, cosines, sines = [], [], []
        for real, imaginary in mel_spectra(audio, count, config, win_length):
            (left_re, right_re), (left_im, right_im) = _channels(real), _channels(imaginary)
            powers.append(power_of(real, imaginary))
            cosines.append(left_re * right_re + left_im * right_im)
            sines.append(left_im * right_re - left_re * right_im)
        crosses = jnp.stack([mel_sums(cosines, config), mel_sums(sines, config)], axis=-3)
        return jnp.concatenate([mel_sums(powers, config), crosses], axis=-3)

    found = by_blocks(sums, audio, config)
    left, right, cosine, sine = jnp.moveaxis(found, -3, 0)
    return left, right, cosine, sine


def channel_differences(
    power_left: MelFrames, power_right: MelFrames, cosine: MelFrames, sine: MelFrames
) -> tuple[MelFrames, MelFrames, MelFrames]:
    """Coherence times cosine and sine of the phase difference, and the level difference.

    Args:
      power_left: of `mel_cross_sums`.
      power_right: likewise.
      cosine: the real part of the cross-spectrum.
      sine: its imaginary part.

    Returns:
      Planes 1 to 3 of `mel_cross`; zeros in silence.
    """
    floor = jnp.maximum(_LEVEL_RANGE * jnp.maximum(power_left, power_right), SILENT_POWER)
    power_l, power_r = jnp.maximum(power_left, floor), jnp.maximum(power_right, floor)
    scale = jax.lax.rsqrt(power_l) * jax.lax.rsqrt(power_r)
    # The difference of logarithms changes nothing but its sign where L and R are swapped.
    return cosine * scale, sine * scale, jnp.log10(power_l) - jnp.log10(power_r)


def resample_poly(audio: Signal, up: int, down: int) -> Float32[Array, "*b s"]:
    """Changes the rate by up / down through a Kaiser-windowed low-pass.

    Every block of inputs gives a block of outputs by one product with a banded matrix
    that holds all phases of the filter: on a CPU the fastest of the ways tried.

    Args:
      audio: samples, taken as zero beyond both ends.
      up: factor up, a whole number.
      down: factor down, a whole number.

    Returns:
      ceil(t * up / down) samples.

    Raises:
      InputError: a factor below 1, or above 1000 once the fraction is reduced.

    Reference: scipy.signal.resample_poly, with its default filter.

    Example:
      >>> resample_poly(jnp.ones((2, 160)), up=3, down=1).shape
      (2, 480)
    """
    if min(up, down) < 1:
        raise InputError(f"resample: up {up}, down {down}: both must be whole numbers above zero.")
    up, down = up // math.gcd(up, down), down // math.gcd(up, down)
    if max(up, down) > _LARGEST_RATIO:
        raise InputError(
            f"resample: ratio {up}/{down} is above {_LARGEST_RATIO} in lowest terms; "
            "resample with soxr when the audio is read."
        )
    audio = jnp.asarray(audio, jnp.float32)
    if up == down:
        return audio
    length = -(-audio.shape[-1] * up // down)
    matrix, reach, step = _resampling_matrix(up, down)
    blocks = -(-audio.shape[-1] // step)
    ends = (reach, blocks * step - audio.shape[-1] + reach)
    audio = jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [ends])
    frames = _frames(audio, matrix.shape[0], step, blocks)
    out = jnp.matmul(frames, matrix, precision=jax.lax.Precision.HIGHEST)
    return out.reshape(*out.shape[:-2], -1)[..., :length]


def resample(audio: Signal, from_hz: int, to_hz: int) -> Float32[Array, "*b s"]:
    """Changes the sample rate; see `resample_poly`.

    Args:
      audio: samples at `from_hz`.
      from_hz: rate of the audio.
      to_hz: rate wanted.

    Returns:
      ceil(t * to_hz / from_hz) samples at `to_hz`.

    Raises:
      InputError: a rate below 1 Hz, or two without a small common ratio.
    """
    return resample_poly(audio, to_hz, from_hz)


def spec_augment(
    rng: PRNGKeyArray,
    features: Float[Array, "b l m *planes"],
    time_masks: int = 2,
    time_width: int = 64,
    frequency_masks: int = 2,
    frequency_width: int = 8,
    fill: float | Float[Array, "*planes"] = 0.0,
) -> Float[Array, "b l m *planes"]:
    """Hides bands of time and of frequency, drawn anew for every example.

    All planes of an example are hidden at the same places, so that no plane gives away
    what another lost. Widths are uniform over 0 .. width, starts over what then fits.

    Args:
      rng: key.
      features: [b, l, m] or [b, l, m, planes].
      time_masks: bands of time.
      time_width: largest number of frames of one.
      frequency_masks: bands of frequency.
      frequency_width: largest number of mels of one.
      fill: value in the bands; one a plane if planes need different ones.

    Returns:
      Features with the bands filled, same shape and type.

    Reference: SpecAugment (arXiv 1904.08779), without time warping; the default numbers
      are LAION-CLAP's.
    """
    time_rng, frequency_rng = jax.random.split(rng)
    examples, frames, mels = features.shape[:3]
    hidden_frames = _bands(time_rng, examples, frames, time_masks, time_width)
    hidden_mels = _bands(frequency_rng, examples, mels, frequency_masks, frequency_width)
    hidden = hidden_frames[:, :, None] | hidden_mels[:, None, :]
    hidden = hidden.reshape(hidden.shape + (1,) * (features.ndim - 3))
    return jnp.where(hidden, jnp.asarray(fill, features.dtype), features)


def centred(audio: Signal, n_fft: int, pad_mode: str = "reflect") -> Float32[Array, "*b s"]:
    """Audio with half a frame more at both ends, so that frame i is centred on sample i * hop."""
    if not audio.shape[-1]:
        raise InputError("stft: audio has 0 samples; give at least one.")
    ends = [(0, 0)] * (audio.ndim - 1) + [(n_fft // 2, n_fft // 2)]
    return jnp.pad(jnp.asarray(audio, jnp.float32), ends, mode=pad_mode)


def check_decibels(config: LogMelConfig) -> None:
    """Refuses levels that are not in decibels."""
    if config.level != "decibels":
        raise InputError(
            f"log-mel: level {config.level!r}, but levels beside directions are in decibels; set "
            "level 'decibels'."
        )


def by_blocks(
    function: Callable[[Signal, int], Float32[Array, "*planes l m"]],
    audio: Signal,
    config: LogMelConfig | StftConfig,
) -> Float32[Array, "*planes l m"]:
    """`function` of the centred audio; on a CPU, of one block of frames after the other.

    What lies between samples and mel bands is several times as large as either, and through
    main memory it costs a CPU more time than the sums do. The loop is over time alone, so
    that a batch can be spread over devices.

    Args:
      function: from samples, and how many frames to take of them, to mel bands.
      audio: samples.
      config: how long and how far apart frames are.

    Returns:
      The bands of all frames, t // hop + 1.
    """
    n_fft, hop, time = config.n_fft, config.hop, audio.ndim - 1
    samples, half = audio.shape[time], n_fft // 2
    count = samples // hop + 1
    # An exported model's batch has no number yet: it counts as one.
    channels = math.prod(size for size in audio.shape[:time] if isinstance(size, int) and size)
    length = max(_SHORTEST_BLOCK, _BLOCK_SAMPLES // (n_fft * channels))
    width = _hops(length, n_fft, hop) * hop

    def at_once(audio: Signal) -> Float32[Array, "*planes l m"]:
        return function(centred(audio, n_fft), count)

    if length >= count or width > samples:
        return at_once(audio)

    def on_cpu(audio: Signal) -> Float32[Array, "*planes l m"]:
        # Reflections are made for the blocks at both ends alone: all of the audio, written anew
        # between them by one thread, costs a twentieth of the front end's time.
        audio = jnp.asarray(audio, jnp.float32)
        beyond = (count - length) * hop - half + width - samples
        head = centred(audio[..., :width], n_fft)[..., : half + width]
        tail = _at_least(centred(audio[..., -width:], n_fft)[..., half:], width + beyond)

        def block(i: Array, bands: Array) -> Array:
            # The last block reaches back over frames that are there already.
            start = jnp.minimum(i * length, count - length)
            at = start * hop - half
            ends = ((audio, at), (head, at + half), (tail, at + width - samples))
            inside, first, last = (
                jax.lax.dynamic_slice_in_dim(part, where, width, time) for part, where in ends
            )
            piece = jnp.where(at < 0, first, jnp.where(at > samples - width, last, inside))
            return jax.lax.dynamic_update_slice_in_dim(bands, function(piece, length), start, -2)

        one = jax.eval_shape(lambda piece: function(piece, length), audio[..., :width])
        empty = jnp.zeros((*one.shape[:-2], count, one.shape[-1]), one.dtype)
        # Two blocks at a time: a thread that is done with one goes on with the other.
        return jax.lax.fori_loop(0, -(-count // length), block, empty, unroll=2)

    return jax.lax.platform_dependent(audio, cpu=on_cpu, default=at_once)


def sorted_spectra(
    audio: Signal,
    count: int,
    n_fft: int,
    hop: int,
    win_length: int,
    window: str,
    bins: int,
    split: int,
) -> list[Parts]:
    """Real and imaginary parts of `count` frames, in `bins` bins sorted as `sorted_bins` does.

    Products with Fourier matrices, since XLA's FFT cannot be partitioned: it gathers the
    frames of the whole global batch on every device. A frame is first taken as `split` parts of
    equal length, and short transforms across them give what the bins of each remainder
    modulo `split` see: fewer and shorter products. It is the first stage of an FFT.

    On one CPU an FFT would be faster; of frames of 400 samples it was less exact than products.

    Reference: Cooley and Tukey 1965, decimation in frequency.
    """
    audio, width = _at_least(audio, _hops(count, n_fft, hop) * hop), n_fft // split
    parts = [
        _frames(audio[..., i * width :], width, hop, count) * part
        for i, part in enumerate(np.split(_window(window, win_length, n_fft), split))
    ]
    spectra = []
    for across, along in _fourier_stages(n_fft, bins, split):
        sums = jnp.stack([_weighted_sum(parts, weights) for weights in across], axis=-2)
        sums = sums.reshape(*sums.shape[:-2], -1)
        product = jnp.matmul(sums, along, precision=jax.lax.Precision.HIGHEST)
        spectra.append(tuple(jnp.split(product, 2, axis=-1)))
    return spectra


def _weighted_sum(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    terms = [part * weight for part, weight in zip(parts, weights, strict=True) if weight]
    return functools.reduce(operator.add, terms)


def sorted_bins(bins: int, split: int) -> list[np.ndarray]:
    """Bins whose number leaves r or -r modulo `split`, for r = 0 .. split // 2."""
    remainder = np.arange(bins) % split
    return [
        np.flatnonzero((remainder == r) | (remainder == split - r)) for r in range(split // 2 + 1)
    ]


@functools.lru_cache(maxsize=32)
def _fourier_stages(
    n_fft: int, bins: int, split: int
) -> list[tuple[list[list[float]], Float32[np.ndarray, "_ _"]]]:
    """Weights across the parts of a frame and a matrix along them, for each remainder.

    With r and s = -r modulo `split`, the sum z over the parts m of exp(-2 pi i m r / split) times
    the part serves bins of both remainders, those of s by its conjugate. z is real for r = 0 and
    for r = split / 2; else weights and rows of the matrix are those of its real part, then of its
    imaginary part. Columns are the real, then the imaginary parts of bins.
    """
    stages = []
    sample = np.arange(n_fft // split)[:, None]
    for r, numbers in enumerate(sorted_bins(bins, split)):
        turns = sample * numbers % n_fft / n_fft
        cosines, sines = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
        sines[turns * 2 % 1 == 0] = 0  # else the real bin at Nyquist gets a random sign of phase
        sign = np.where(numbers % split == r, 1, -1)
        angles = 2 * np.pi * (np.arange(split) * r % split) / split
        across = [np.cos(angles), -np.sin(angles)]
        along = [np.hstack([cosines, -sines]), np.hstack([sign * sines, sign * cosines])]
        used = 1 if r * 2 % split == 0 else 2
        weights = [np.round(row, 12).tolist() for row in across[:used]]
        stages.append((weights, np.vstack(along[:used]).astype(np.float32)))
    return stages


def _interleave(
    even: Float32[Array, "*b l e"], odd: Float32[Array, "*b l o"]
) -> Float32[Array, "*b l f"]:
    bins = even.shape[-1] + odd.shape[-1]
    odd = jnp.pad(odd, [(0, 0)] * (odd.ndim - 1) + [(0, even.shape[-1] - odd.shape[-1])])
    return jnp.stack([even, odd], axis=-1).reshape(*even.shape[:-1], -1)[..., :bins]


@functools.lru_cache(maxsize=32)
def _window(name: str, length: int, n_fft: int) -> Float32[np.ndarray, "n_fft"]:
    window = np.asarray(scipy.signal.get_window(name, length, fftbins=True))
    return librosa.util.pad_center(window, size=n_fft).astype(np.float32)


def _frames(audio: Signal, width: int, hop: int, count: int) -> Float[Array, "*b l w"]:
    """Frames of `width` samples every `hop`, from shifted slices: no gather, so no scatter back."""
    slices = -(-width // hop)
    rows = count + slices - 1
    audio = _at_least(audio, rows * hop)[..., : rows * hop]
    audio = audio.reshape(*audio.shape[:-1], rows, hop)
    shifted = [audio[..., i : i + count, : min(hop, width - i * hop)] for i in range(slices)]
    return jnp.concatenate(shifted, axis=-1)


def _hops(count: int, n_fft: int, hop: int) -> int:
    """Hops that hold `count` frames, and no part of a frame need be padded to whole hops."""
    return count + -(-n_fft // hop)


def _at_least(audio: Signal, samples: int) -> Float[Array, "*b s"]:
    """The audio with zeros behind, where it is too short; XLA joins this with a pad before it."""
    missing = max(0, samples - audio.shape[-1])
    zeros = jnp.zeros((*audio.shape[:-1], missing), audio.dtype)
    return jnp.concatenate([audio, zeros], axis=-1) if missing else audio


def power_of(real: Float32[Array, "*s"], imaginary: Float32[Array, "*s"]) -> Float32[Array, "*s"]:
    """Squared magnitude of a spectrum in its parts."""
    return real**2 + imaginary**2


def _channels(planes: Float32[Array, "*b 2 l f"]) -> tuple[Array, Array]:
    return planes[..., 0, :, :], planes[..., 1, :, :]


def _weights(config: LogMelConfig) -> Float32[np.ndarray, "f m"]:
    """The filter bank down to its last bin that any band hears."""
    weights = mel_filterbank(
        config.sample_rate_hz,
        config.n_fft,
        config.mels,
        config.low_hz,
        config.high_hz,
        config.norm,
        config.scale,
    )
    return weights[: np.flatnonzero(weights.any(axis=1))[-1] + 1]


def split_of(n_fft: int) -> int:
    """Parts that frames are best taken in; see `sorted_spectra`."""
    finest = max(2, (1 << (n_fft // _SHORTEST_PART).bit_length()) >> 1)
    return math.gcd(n_fft, finest)


def mel_spectra(
    audio: Signal, count: int, config: LogMelConfig, win_length: int | None = None
) -> list[Parts]:
    """Spectra of `count` frames, for `mel_sums`; the window fills a frame if None."""
    n_fft, bins = config.n_fft, len(_weights(config))
    width = win_length or n_fft
    return sorted_spectra(audio, count, n_fft, config.hop, width, "hann", bins, split_of(n_fft))


def mel_sums(quantity: Sequence[Float32[Array, "*b l _"]], config: LogMelConfig) -> MelFrames:
    """Sums over bands of a quantity per bin, given as `sorted_spectra` sorts the bins."""
    weights = _weights(config)
    order = np.concatenate(sorted_bins(len(weights), split_of(config.n_fft)))
    bins = jnp.concatenate(quantity, axis=-1)
    return jnp.matmul(bins, weights[order], precision=jax.lax.Precision.HIGHEST)


def decibels(power: Float32[Array, "*s"], amin: float) -> Float32[Array, "*s"]:
    """Levels of powers, none below that of `amin`."""
    return 10 * jnp.log10(jnp.maximum(power, amin))


@functools.lru_cache(maxsize=32)
def _resampling_matrix(up: int, down: int) -> tuple[Float32[np.ndarray, "w o"], int, int]:
    """Matrix from `step` inputs with `reach` more on either side to step * up / down outputs."""
    half = 10 * max(up, down)
    kernel = np.sinc(np.arange(-half, half + 1) / max(up, down)) * np.kaiser(2 * half + 1, 5.0)
    kernel *= up / kernel.sum()
    reach = half // up + 1
    step = down * max(1, 96 // down)
    inputs = np.arange(-reach, step + reach)[:, None]
    tap = np.arange(step * up // down)[None, :] * down - inputs * up + half
    matrix = np.where((tap >= 0) & (tap <= 2 * half), kernel[np.clip(tap, 0, 2 * half)], 0)
    return matrix.astype(np.float32), reach, step


def _bands(
    rng: PRNGKeyArray, examples: int, size: int, count: int, width: int
) -> Bool[Array, "b size"]:
    """True at the places of an axis that any of `count` drawn bands covers."""
    width_rng, start_rng = jax.random.split(rng)
    shape = (examples, count, 1)
    widths = jax.random.randint(width_rng, shape, 0, min(width, size) + 1)
    starts = jax.random.randint(start_rng, shape, 0, size - widths + 1)
    place = jnp.arange(size)
    return jnp.any((place >= starts) & (place < starts + widths), axis=1)
