"""Procedural sound events: a dozen classes drawn by seed, so that nothing need be downloaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.fft
from jaxtyping import Float, Float32

from spatial_clap_jax.data.audio import resample

# Part of every fingerprint: raise it when a sound changes.
VERSION = 1
RATE_HZ = 16_000
HIGHEST_HZ = 7_600.0
SHORTEST_S, LONGEST_S = 2, 5
_TABLE = 8192

Samples = Float[np.ndarray, "t"]
Times = Float[np.ndarray, "events"]


def synthesise(
    category: str, key: tuple[int, ...], sample_rate_hz: int
) -> Float32[np.ndarray, "t"]:
    """One clip of an event class, 2 to 5 s, a pure function of its arguments.

    Every class spreads over 250 Hz to 7.6 kHz, since level differences and delays of a narrow
    tone say little about its place. The sound is made at 16 kHz and resampled, so that a clip is
    the same event at every rate.

    Args:
      category: a name in `CATEGORIES`.
      key: seed, split, number and the like; different keys draw different clips.
      sample_rate_hz: rate wanted.

    Returns:
      Mono samples with a peak between 0.25 and 0.9 (at 16 kHz).

    Reference: our choice throughout; the bell's partials are those of Risset's bell (1969).
    """
    rng = np.random.default_rng([*key, CATEGORIES.index(category)])
    # Whole tenths of a second keep the FFT lengths smooth.
    length = int(rng.integers(SHORTEST_S * 10, LONGEST_S * 10 + 1)) * RATE_HZ // 10
    audio = _MAKERS[category](rng, length)
    audio *= rng.uniform(0.25, 0.9) / np.abs(audio).max()
    return resample(audio.astype(np.float32), RATE_HZ, sample_rate_hz)


def _siren(rng: np.random.Generator, length: int) -> Samples:
    low_hz = rng.uniform(450, 750)
    wail = 0.5 - 0.5 * np.cos(_turns(length, rng.uniform(0.3, 2.5), rng.uniform()))
    frequency_hz = low_hz * rng.uniform(1.7, 2.6) ** wail
    tone = _tone(
        frequency_hz, 1.0 / np.arange(1, _harmonics(frequency_hz) + 1) ** rng.uniform(0.7, 1.2)
    )
    return tone + _noise(rng, length, 100.0, HIGHEST_HZ, -2.0, level=0.08)


def _beeps(rng: np.random.Generator, length: int) -> Samples:
    pitch_hz, period_s = rng.uniform(700, 2200), rng.uniform(0.2, 0.7)
    tone = _tone(
        np.full(length, pitch_hz), 1.0 / np.arange(1, _harmonics(pitch_hz) + 1, dtype=float)
    )
    on = (_seconds(length) / period_s + rng.uniform()) % 1.0 < rng.uniform(0.35, 0.6)
    gate = _smooth(on.astype(float), 48)
    # The loudspeaker's click at both edges, and its hiss while it sounds.
    click = np.abs(np.diff(gate, prepend=gate[0])) * 20.0
    return gate * (tone + _noise(rng, length, 150.0, HIGHEST_HZ, -1.0, 0.1)) + click * _noise(
        rng, length, 150.0, HIGHEST_HZ, 0.0, 0.5
    )


def _footsteps(rng: np.random.Generator, length: int) -> Samples:
    thud_hz, scuff_hz = rng.uniform(70, 160), rng.uniform(900, 2500)
    heel_to_toe_s = rng.uniform(0.06, 0.12)

    def step(_: int) -> Samples:
        t = _seconds(int(0.3 * RATE_HZ))
        thud = np.sin(2 * np.pi * thud_hz * rng.uniform(0.9, 1.1) * t) * np.exp(-t / 0.03)
        scuff = _noise(rng, t.size, 0.5 * scuff_hz, 3.5 * scuff_hz, -4.0)
        scuff += _noise(rng, t.size, 200.0, HIGHEST_HZ, -2.0, 0.5)
        grit = scuff * (np.exp(-t / 0.012) + 0.6 * np.exp(-(((t - heel_to_toe_s) / 0.025) ** 2)))
        return (thud + 0.5 * grit) * rng.uniform(0.6, 1.0)

    times_s = _regular(rng, length, rng.uniform(0.4, 0.7), jitter=0.05)
    return _place(length, times_s, step) + _noise(rng, length, 100.0, HIGHEST_HZ, -3.0, 0.002)


def _engine(rng: np.random.Generator, length: int) -> Samples:
    idle_hz = rng.uniform(28, 65)
    revs = 1.0 + rng.uniform(0.0, 0.6) * _drift(rng, length, 0.5)
    frequency_hz = idle_hz * revs * (1.0 + 0.01 * _drift(rng, length, 20.0))
    order = np.arange(1, _harmonics(frequency_hz) + 1)
    firing = np.exp(-order * idle_hz / rng.uniform(300, 700)) * rng.uniform(0.2, 1.0, order.size)
    tone = _tone(frequency_hz, firing + 0.01 / order, phases=rng.uniform(0, 1, order.size))
    exhaust = _noise(rng, length, 80.0, HIGHEST_HZ, -5.0, rng.uniform(0.25, 0.45))
    return tone / tone.std() + exhaust * (1.0 + 0.8 * tone / np.abs(tone).max())


def _wind(rng: np.random.Generator, length: int) -> Samples:
    gusts = 0.15 + np.abs(_drift(rng, length, rng.uniform(0.4, 1.5))) ** 1.5
    rumble = _noise(rng, length, 60.0, HIGHEST_HZ, rng.uniform(-9.0, -7.0))
    howl_hz = rng.uniform(300, 600)
    howl = _noise(rng, length, 0.8 * howl_hz, 1.25 * howl_hz, 0.0, rng.uniform(0.2, 0.6))
    return gusts * (rumble + howl * gusts) + _noise(rng, length, 500.0, HIGHEST_HZ, -3.0, 0.02)


def _bell(rng: np.random.Generator, length: int) -> Samples:
    ratios = np.array([0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.0, 3.76, 4.07, 6.1])
    base_hz = rng.uniform(350, 900)
    ratios = ratios[ratios * base_hz < HIGHEST_HZ] * (1.0 + rng.uniform(-0.02, 0.02))
    weights = rng.uniform(0.4, 1.0, ratios.size)
    decay_s = rng.uniform(0.5, 1.2)
    t = _seconds(int(1.6 * RATE_HZ)).astype(np.float32)
    partials = np.exp(-np.outer(ratios**0.7 / decay_s, t).astype(np.float32))
    partials *= np.sin(np.outer(2 * np.pi * base_hz * ratios, t).astype(np.float32))
    ring = (weights @ partials) * (1.0 - t / t[-1])

    def stroke(_: int) -> Samples:
        clapper = _noise(rng, t.size, 200.0, HIGHEST_HZ, 0.0, 2.0) * np.exp(-t / 0.006)
        return (ring + clapper) * rng.uniform(0.7, 1.0)

    return _place(length, _regular(rng, length, rng.uniform(0.9, 1.8), jitter=0.02), stroke)


def _whistle(rng: np.random.Generator, length: int) -> Samples:
    pitch_hz = rng.uniform(1300, 2600)
    melody = pitch_hz * 2.0 ** (0.35 * _drift(rng, length, 1.5))
    vibrato = 1.0 + rng.uniform(0.005, 0.02) * np.sin(_turns(length, rng.uniform(4.5, 7.0)))
    period_s = rng.uniform(0.8, 1.6)
    blown = (_seconds(length) / period_s + rng.uniform()) % 1.0 < rng.uniform(0.6, 0.85)
    breath = _noise(rng, length, 200.0, HIGHEST_HZ, -1.0, rng.uniform(0.08, 0.14))
    return _smooth(blown.astype(float), 900) * (
        _tone(melody * vibrato, np.array([1.0, 0.06])) + breath
    )


def _knocking(rng: np.random.Generator, length: int) -> Samples:
    modes_hz = rng.uniform(1.0, 1.2) * np.array([190.0, 420.0, 780.0, 1350.0, 2300.0])
    weights = rng.uniform(0.3, 1.0, modes_hz.size)
    t = _seconds(int(0.15 * RATE_HZ))
    wood = (
        weights[:, None]
        * np.sin(2 * np.pi * modes_hz[:, None] * t)
        * np.exp(-t * (20.0 + modes_hz[:, None] / 12.0))
    ).sum(0)

    def knock(_: int) -> Samples:
        knuckle = _noise(rng, t.size, 300.0, HIGHEST_HZ, -3.0, 1.5) * np.exp(-t / 0.003)
        return (wood + knuckle) * rng.uniform(0.6, 1.0)

    gap_s, pause_s = rng.uniform(0.12, 0.22), rng.uniform(0.5, 0.9)
    times_s, now_s = [], rng.uniform(0.0, 0.3)
    while now_s < length / RATE_HZ:
        group = now_s + gap_s * np.arange(rng.integers(2, 6)) * rng.uniform(0.95, 1.05)
        times_s.extend(group)
        now_s = group[-1] + pause_s
    return _place(length, np.array(times_s), knock)


def _water_drops(rng: np.random.Generator, length: int) -> Samples:
    rate_per_s, base_hz = rng.uniform(4, 12), rng.uniform(500, 1100)

    def drop(_: int) -> Samples:
        t = _seconds(int(0.12 * RATE_HZ))
        start_hz = base_hz * rng.uniform(0.6, 1.8)
        # A bubble's pitch rises while it closes.
        cycles = start_hz * (t + rng.uniform(4.0, 12.0) * t**2)
        bubble = np.sin(2 * np.pi * cycles) * np.exp(-t / rng.uniform(0.012, 0.03))
        splash = _noise(rng, t.size, 200.0, HIGHEST_HZ, 0.0, 0.8) * np.exp(-t / 0.004)
        return (bubble + splash) * rng.uniform(0.3, 1.0)

    count = max(3, rng.poisson(rate_per_s * length / RATE_HZ))
    times_s = np.sort(rng.uniform(0, length / RATE_HZ, count))
    return _place(length, times_s, drop) + _noise(rng, length, 200.0, HIGHEST_HZ, -2.0, 0.004)


def _buzz(rng: np.random.Generator, length: int) -> Samples:
    pitch_hz = rng.uniform(110, 240) * (1.0 + 0.04 * _drift(rng, length, 3.0))
    order = np.arange(1, _harmonics(pitch_hz) + 1)
    weights = order ** rng.uniform(-0.5, -0.2) * rng.uniform(0.5, 1.0, order.size)
    tone = _tone(pitch_hz, weights, phases=0.15 * rng.uniform(0, 1, order.size))
    return tone * (1.0 + 0.3 * _drift(rng, length, 4.0)) + _noise(
        rng, length, 200.0, HIGHEST_HZ, 0.0, 0.05
    )


def _chirps(rng: np.random.Generator, length: int) -> Samples:
    from_hz, to_hz = rng.uniform(2200, 4200), rng.uniform(4500, 6500)
    if rng.uniform() < 0.5:
        from_hz, to_hz = to_hz, from_hz
    t = _seconds(int(rng.uniform(0.04, 0.11) * RATE_HZ))
    envelope = np.sin(np.pi * np.arange(t.size) / t.size) ** 2

    def chirp(_: int) -> Samples:
        turn = rng.uniform(0.93, 1.07)
        cycles = turn * (from_hz * t + (to_hz - from_hz) * t**2 / (2 * t[-1]))
        wings = _noise(rng, t.size, 250.0, HIGHEST_HZ, -2.0, 0.2)
        # The octave below: a syrinx has two voices.
        voice = np.sin(2 * np.pi * cycles) + 0.15 * np.sin(np.pi * cycles)
        return envelope * (voice + wings) * rng.uniform(0.6, 1.0)

    gap_s = t[-1] + rng.uniform(0.02, 0.07)
    times_s, now_s = [], rng.uniform(0.0, 0.3)
    while now_s < length / RATE_HZ:
        trill = now_s + gap_s * np.arange(rng.integers(3, 9))
        times_s.extend(trill)
        now_s = trill[-1] + rng.uniform(0.2, 0.7)
    return _place(length, np.array(times_s), chirp) + _noise(
        rng, length, 150.0, HIGHEST_HZ, -1.0, 0.01
    )


def _static_noise(rng: np.random.Generator, length: int) -> Samples:
    hiss = _noise(rng, length, rng.uniform(40, 150), HIGHEST_HZ, rng.uniform(-1.0, 1.0))
    crackle = (rng.uniform(size=length) < rng.uniform(10, 60) / RATE_HZ) * rng.normal(0, 6, length)
    return hiss * (1.0 + 0.1 * _drift(rng, length, 2.0)) + crackle


_MAKERS: dict[str, Callable[[np.random.Generator, int], Samples]] = {
    "siren": _siren,
    "beeps": _beeps,
    "footsteps": _footsteps,
    "engine": _engine,
    "wind": _wind,
    "bell": _bell,
    "whistle": _whistle,
    "knocking": _knocking,
    "water drops": _water_drops,
    "buzz": _buzz,
    "chirps": _chirps,
    "static noise": _static_noise,
}
CATEGORIES = tuple(_MAKERS)


def _seconds(length: int) -> Samples:
    return np.arange(length) / RATE_HZ


def _turns(length: int, frequency_hz: float, start: float = 0.0) -> Samples:
    return 2 * np.pi * (frequency_hz * _seconds(length) + start)


def _harmonics(frequency_hz: Samples | float) -> int:
    return int(HIGHEST_HZ / np.max(frequency_hz))


def _tone(
    frequency_hz: Samples,
    weights: Float[np.ndarray, "h"],
    phases: Float[np.ndarray, "h"] | None = None,
) -> Samples:
    # One period stands in a table, so that many harmonics cost as much as one.
    spectrum = np.zeros(_TABLE // 2 + 1, complex)
    turns = -0.25 if phases is None else phases
    spectrum[1 : len(weights) + 1] = 0.5 * _TABLE * weights * np.exp(2j * np.pi * turns)
    table = np.fft.irfft(spectrum)
    cycles = np.cumsum(frequency_hz) / RATE_HZ
    return table[(cycles * _TABLE).astype(np.int64) % _TABLE]


def _noise(
    rng: np.random.Generator,
    length: int,
    low_hz: float,
    high_hz: float,
    tilt_db_per_octave: float,
    level: float = 1.0,
) -> Samples:
    bins = length // 2 + 1
    frequency_hz = np.arange(bins) * (RATE_HZ / length)
    inside = slice(*np.searchsorted(frequency_hz, [low_hz, high_hz]))
    shape = (frequency_hz[inside] / low_hz) ** (tilt_db_per_octave / 6.02)
    spectrum = np.zeros(bins, np.complex64)
    spectrum[inside] = rng.standard_normal((shape.size, 2), np.float32).view(np.complex64)[:, 0]
    spectrum[inside] *= shape
    rms = 2.0 * np.sqrt(np.sum(shape**2)) / length
    return scipy.fft.irfft(spectrum, length) * (level / rms)


def _drift(rng: np.random.Generator, length: int, rate_hz: float) -> Samples:
    """A slow random curve within -1 and 1, about `rate_hz` turns a second."""
    seconds = length / RATE_HZ
    knots = rng.uniform(-1, 1, int(np.ceil(2 * rate_hz * seconds)) + 2)
    return np.interp(np.arange(length) * (2 * rate_hz / RATE_HZ), np.arange(knots.size), knots)


def _smooth(gate: Samples, width: int) -> Samples:
    total = np.cumsum(np.concatenate([np.full(width, gate[0]), gate]))
    return (total[width:] - total[:-width]) / width


def _regular(rng: np.random.Generator, length: int, period_s: float, jitter: float) -> Times:
    times_s = np.arange(rng.uniform(0, 0.3), length / RATE_HZ, period_s)
    return times_s + period_s * jitter * rng.uniform(0, 1, times_s.size)


def _place(length: int, times_s: Times, event: Callable[[int], Samples]) -> Samples:
    """Sums `event(i)` at each time; what runs past the end is cut."""
    audio = np.zeros(length)
    for number, time_s in enumerate(times_s):
        start = int(time_s * RATE_HZ)
        sound = event(number)[: max(0, length - start)]
        audio[start : start + sound.size] += sound
    return audio
