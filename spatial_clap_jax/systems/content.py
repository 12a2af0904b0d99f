"""The content side that systems share: its encoders, their levels, and how they are augmented."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LAION_CLAP_LOG_MEL, M2D_LOG_MEL, LogMelConfig
from spatial_clap_jax.models.cnn import Cnn, CnnConfig, CnnOutput
from spatial_clap_jax.models.htsat import Htsat, HtsatConfig, HtsatOutput, htsat_base
from spatial_clap_jax.models.vit import Vit, VitConfig, VitOutput

_CNN_LOG_MEL = LogMelConfig(sample_rate_hz=16_000, n_fft=512, hop=320, mels=64, high_hz=8000.0)
# Of each encoder a small one and the published one, with their front ends.
CONTENT_NAMES: dict[str, tuple[tuple[Any, LogMelConfig], tuple[Any, LogMelConfig]]] = {
    "htsat": ((HtsatConfig(), LAION_CLAP_LOG_MEL), (htsat_base(), LAION_CLAP_LOG_MEL)),
    "cnn": (
        (CnnConfig(channels=(48, 64, 96), width=192), _CNN_LOG_MEL),
        (CnnConfig(), _CNN_LOG_MEL),
    ),
    "m2d": ((VitConfig(width=192, layers=4, heads=3), M2D_LOG_MEL), (VitConfig(), M2D_LOG_MEL)),
}
# Levels reach this far below the loudest cell, and span 4 units.
_DEPTH_DB = 80.0
_DB_PER_UNIT = _DEPTH_DB / 4


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Bands of time and frequency that are hidden from the content encoder in training.

    The spatial encoder is not masked: tying contents to places is what is hard to learn, and
    it is the less well learned the less both can be seen together.

    Attributes:
      time_masks: bands of time.
      time_width: their greatest width in frames.
      frequency_masks: bands of frequency.
      frequency_width: their greatest width in mel bands.
    """

    time_masks: int = 2
    time_width: int = 64
    frequency_masks: int = 2
    frequency_width: int = 8


@dataclass(frozen=True)
class Augmentation:
    """What is done to mel levels in training.

    Attributes:
      masks: bands that are hidden from the content encoder; None for none.
      equaliser_db: spread of the random smooth equaliser; 0 for none.
      draw: gives a fresh key with each call; None in evaluation, where nothing is done.
    """

    masks: SpecAugmentConfig | None
    equaliser_db: float
    draw: Callable[[], jax.Array] | None

    def equalised(self, level: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        """Levels of `below_peak`, of each example with a curve of its own."""
        if self.draw is None or not self.equaliser_db:
            return level
        b, _, m = level.shape
        spread = self.equaliser_db / _DB_PER_UNIT
        return level + random_equaliser(self.draw(), b, m, spread)[:, None, :]

    def masked(self, level: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        """Levels in any unit, with bands at each example's mean."""
        masks = self.masks
        if self.draw is None or masks is None:
            return level
        mean = level.mean(axis=(1, 2), keepdims=True)
        hidden = features.spec_augment(
            self.draw(),
            level - mean,
            masks.time_masks,
            masks.time_width,
            masks.frequency_masks,
            masks.frequency_width,
        )
        return hidden + mean


# Levels as they are.
_STILL = Augmentation(None, 0.0, None)
ContentConfig = HtsatConfig | CnnConfig | VitConfig
# Mean and standard deviation of the levels that the public weights of M2D take.
_M2D_NORMALISATION = (-7.1, 4.2)


def content_encoder(config: ContentConfig, dtype: DTypeLike) -> Htsat | Cnn | Vit:
    """The encoder of a shape, not yet named."""
    match config:
        case HtsatConfig():
            return Htsat(config, dtype)
        case VitConfig():
            return Vit(config, dtype)
    return Cnn(config, dtype)


def encode_content(
    encoder: Htsat | Cnn | Vit,
    log_mel: Float[Array, "b l m"],
    augmentation: Augmentation,
    train: bool,
    normalisation: tuple[float, float] | None = None,
) -> Float[Array, "b d"]:
    """What sounds: HTSAT takes levels in dB, a CNN those below the peak, a ViT normalised ones.

    Args:
      encoder: of the content.
      log_mel: of its front end.
      augmentation: what is done to them in training.
      train: whether the encoder is trained.
      normalisation: mean and standard deviation that a ViT's levels are normalised by.

    Reference: that a ViT's tokens are averaged is our choice; so is it M2D-CLAP's of 2024.
    """
    output = _encoded(encoder, log_mel, augmentation, train, normalisation)
    return output.tokens.mean(axis=1) if isinstance(output, VitOutput) else output.pooled


def content_frames(
    encoder: Htsat | Cnn | Vit,
    log_mel: Float[Array, "b l m"],
    mel: LogMelConfig,
    normalisation: tuple[float, float] | None = None,
    train: bool = False,
) -> tuple[Float[Array, "b n d"], float]:
    """What sounds at every moment, by the very computation that `encode_content` pools.

    HTSAT's map and a ViT's tokens are averaged over frequency, of a CNN they are what its attention
    pools. So HTSAT's mean over time is its pooled vector.

    Args:
      encoder: of the content.
      log_mel: of its front end; of an HTSAT its whole window, which it would stretch other
        lengths to.
      mel: that front end.
      normalisation: see `encode_content`.
      train: whether the encoder is trained.

    Returns:
      A feature a moment, and the seconds from one to the next: moment i is about i + 0.5 of them
      after the beginning. 0.3125 of HTSAT's window of 10 s.

    Reference: that tokens and maps are averaged over frequency is our choice.
    """
    output = _encoded(encoder, log_mel, _STILL, train, normalisation)
    # Frames are centred: the last one lies a window after the first.
    window_s = (log_mel.shape[1] - 1) * mel.hop / mel.sample_rate_hz
    step_s = frame_step_s(encoder.config, mel, window_s)
    if isinstance(output, HtsatOutput):
        return output.map.mean(axis=1, dtype=jnp.float32).astype(output.map.dtype), step_s
    if isinstance(output, VitOutput):
        assert isinstance(encoder, Vit)
        b, _, d = output.tokens.shape
        return output.tokens.reshape(b, encoder.config.mel_patches, -1, d).mean(axis=1), step_s
    return output.frames, step_s


def frame_step_s(content: ContentConfig, mel: LogMelConfig, window_s: float) -> float:
    """Seconds from one of `content_frames` to the next.

    Args:
      content: shape of the encoder.
      mel: its front end.
      window_s: length of the audio that an HTSAT is given, which sees any as of one length.

    Example:
      >>> frame_step_s(HtsatConfig(), LAION_CLAP_LOG_MEL, 10.0)
      0.3125
    """
    hop_s = mel.hop / mel.sample_rate_hz
    match content:
        case HtsatConfig():
            return window_s / (content.segments * content.side(len(content.depths) - 1))
        case VitConfig():
            return content.patch[1] * hop_s
    return content.frame_stride * hop_s


def frames_of_audio(
    encoder: Htsat | Cnn | Vit,
    audio: Float[Array, "b t"],
    mel: LogMelConfig,
    normalisation: tuple[float, float] | None = None,
    *,
    window_s: float,
    padding: Literal["repeat", "zeros"] = "repeat",
    train: bool = False,
) -> tuple[Float[Array, "b n d"], float]:
    """`content_frames` of audio of any length.

    An HTSAT is given whole windows behind each other. The last one is filled up as a recording is
    that it embeds, and of the steps those are kept that the recording reaches. A ViT is given
    inputs of the length that it was trained on, the last one filled up to a whole patch by the mean
    level, as `embed_frames` of an M2D-CLAP does. A CNN takes any length as it is.

    Args:
      encoder: of the content.
      audio: one channel, at the rate of `mel`.
      mel: front end.
      normalisation: see `encode_content`.
      window_s: length that an HTSAT was trained on.
      padding: what fills its window: 'repeat', as many whole repeats as fit and then zeros, or
        'zeros'.
      train: whether the encoder is trained.

    Returns:
      A feature a moment, and the seconds from one to the next; see `content_frames`. Where an input
      of a ViT is no whole number of patches, the next one begins up to a patch later than that.

    Reference: windows without overlap are our choice; repeats are LAION-CLAP's (arXiv 2211.06687).
    """
    if isinstance(encoder, Vit):
        assert normalisation is not None
        log_mel = features.log_mel(audio, mel)
        return _frames_of_inputs(encoder, log_mel, mel, normalisation, train)
    if not isinstance(encoder, Htsat):
        return content_frames(encoder, features.log_mel(audio, mel), mel, normalisation, train)
    window, samples, made, step_s = round(window_s * mel.sample_rate_hz), audio.shape[1], [], 0.0
    for start in range(0, samples, window):
        part = audio[:, start : start + window]
        length = part.shape[1]
        if padding == "repeat":
            part = jnp.tile(part, (1, window // length))
        part = jnp.pad(part, ((0, 0), (0, window - part.shape[1])))
        frames, step_s = content_frames(encoder, features.log_mel(part, mel), mel, None, train)
        # A step that the recording only just does not reach, by rounding, is none.
        reached = math.ceil(length / mel.sample_rate_hz / step_s - 1e-6)
        made.append(frames[:, :reached])
    return jnp.concatenate(made, axis=1), step_s


def _frames_of_inputs(
    encoder: Vit,
    log_mel: Float[Array, "b l m"],
    mel: LogMelConfig,
    normalisation: tuple[float, float],
    train: bool,
) -> tuple[Float[Array, "b n d"], float]:
    made, step_s = [], 0.0
    for start, steps in encoder.config.inputs(log_mel.shape[1]):
        part = log_mel[:, start : start + steps * encoder.config.patch[1]]
        missing = steps * encoder.config.patch[1] - part.shape[1]
        part = jnp.pad(part, ((0, 0), (0, missing), (0, 0)), constant_values=normalisation[0])
        frames, step_s = content_frames(encoder, part, mel, normalisation, train)
        made.append(frames)
    return jnp.concatenate(made, axis=1), step_s


def _encoded(
    encoder: Htsat | Cnn | Vit,
    log_mel: Float[Array, "b l m"],
    augmentation: Augmentation,
    train: bool,
    normalisation: tuple[float, float] | None,
) -> HtsatOutput | CnnOutput | VitOutput:
    if isinstance(encoder, Htsat):
        return encoder(augmentation.masked(log_mel), train)
    if isinstance(encoder, Vit):
        assert normalisation is not None
        mean, deviation = normalisation
        return encoder(augmentation.masked((log_mel - mean) / deviation), train)
    level = augmentation.equalised(below_peak(log_mel))
    return encoder(augmentation.masked(level), train)


def check_content(
    content: ContentConfig, mel: LogMelConfig, normalisation: tuple[float, float] | None
) -> None:
    """Refuses a front end that is not its encoder's.

    Args:
      content: the encoder.
      mel: its front end.
      normalisation: of its levels; a ViT's alone.
    """
    is_vit, kind, wanted = isinstance(content, VitConfig), type(content).__name__, "decibels"
    fits = mel.level == "decibels"
    if isinstance(content, VitConfig):
        wanted = f"natural logarithms in {content.mels} mels"
        fits = mel.level == "natural" and mel.mels == content.mels
    if not fits:
        raise InputError(
            f"model.content_mel: {mel.mels} mels as {mel.level}, but {kind} takes {wanted}; set "
            "its own front end (--model.content sets both)."
        )
    if is_vit != (normalisation is not None) or (normalisation and not normalisation[1] > 0):
        wanted = "a mean and a standard deviation above 0" if is_vit else "None"
        raise InputError(
            f"model.content_normalisation: {normalisation}, but {kind} takes {wanted}; set that."
        )


def named_content(name: str, size: str) -> dict[str, Any]:
    """The fields of a model that its content encoder decides, by the encoder's name.

    Args:
      name: one of `CONTENT_NAMES`.
      size: of the experiment: 'base' for what is published, another for what a CPU trains.

    Raises:
      InputError: no such encoder.
    """
    if name not in CONTENT_NAMES:
        raise InputError(
            f"--model.content {name}: unknown; choose one of {', '.join(CONTENT_NAMES)}"
        )
    content, mel = CONTENT_NAMES[name][size == "base"]
    normalisation = _M2D_NORMALISATION if isinstance(content, VitConfig) else None
    return {"content": content, "content_mel": mel, "content_normalisation": normalisation}


def below_peak(level_db: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
    """Levels relative to each example's loudest cell, floored 80 dB below, as [-2, 2].

    A joint gain then changes nothing: how loud a recording was made is neither content
    nor place.
    """
    peak = level_db.max(axis=(1, 2), keepdims=True)
    return jnp.maximum(level_db - peak, -_DEPTH_DB) / _DB_PER_UNIT + 2


def level_plane(
    level_db: Float[Array, "b l m"], reference_db: float | None, augmentation: Augmentation
) -> Float[Array, "b l m"]:
    """Levels as a plane for a network: below each example's peak (None), or about a reference.

    Above a reference of `reference_db` a plane is positive; 40 dB to either side it ends.
    """
    if reference_db is None:
        return augmentation.equalised(below_peak(level_db))
    # An equaliser would move sources nearer and farther.
    return jnp.clip((level_db - reference_db) / _DB_PER_UNIT, -2, 2)


def random_equaliser(
    rng: jax.Array, examples: int, mels: int, spread: float, order: int = 4
) -> Float[Array, "b m"]:
    """Smooth random curves over mel bands, sums of the first cosines.

    Args:
      rng: key.
      examples: curves to draw.
      mels: bands.
      spread: standard deviation of the curve, in the units it will be added to.
      order: cosines; the highest has `order` half periods over the bands.

    Returns:
      One curve an example. All channels share it, so level differences stay.

    Reference: our choice.
    """
    band = (jnp.arange(mels) + 0.5) / mels
    cosines = jnp.cos(jnp.pi * band * jnp.arange(1, order + 1)[:, None])
    return jax.random.normal(rng, (examples, order)) @ cosines * (spread * (2 / order) ** 0.5)
