"""A trained model in use: audio and texts in, unit embeddings out.

`load` takes the folder of a run, or one that `export` wrote. Computation is in float32 at full
precision on every device, in batches of one shape, so that an answer depends neither on what else
is embedded at the same time nor on the machine.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import Float, Float32, Float64

from spatial_clap_jax.acoustics.foa import FoaFormat, as_acn_sn3d, check_declared, mono_as_foa
from spatial_clap_jax.data.audio import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, resample
from spatial_clap_jax.data.sentences import Sentences, check_encoder
from spatial_clap_jax.data.sources import at_active_level
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import check_finite, embed_in_batches
from spatial_clap_jax.pretrained.read import read_text_tower
from spatial_clap_jax.scene_embeddings import PatchTokens, patch_tokens
from spatial_clap_jax.stored import (
    EVENTS,
    LONGEST_WINDOW,
    MANIFEST,
    PROGRAMS,
    TOKENIZER,
    checked_manifest,
    find_model,
    one_line,
    read_trained,
)
from spatial_clap_jax.systems.base import System, Variables, in_use
from spatial_clap_jax.systems.clap import Clap
from spatial_clap_jax.systems.m2d_clap import M2dClap
from spatial_clap_jax.text_embeddings import (
    embed_texts,
    encoder_digest,
    load_text,
    text_lengths,
    text_model,
)
from spatial_clap_jax.windows import fusion_views, log_mel_on_host, window_of, window_starts

__all__ = [
    "AudioTextModel",
    "audio_text_model",
    "embedding_functions",
    "load",
    "load_text",
    "text_lengths",
    "text_model",
]

# Rows of every batch: small, because a single recording costs as much as a full batch.
_BATCH = 8
_FOA_CHANNELS = 4
_NUMBERS = (int, float, np.integer, np.floating)


@dataclass(frozen=True, eq=False)
class AudioTextModel:
    """Embeds audio of any length and rate, and texts, into one space.

    Attributes:
      sample_rate_hz: rate that the model computes at.
      channels: channels that it takes.
      window_samples: length that it takes at once.
      tokenizer: of its texts; None where it has no text encoder.
      step: training steps behind it.
      audio_program: [b, c, window_samples] float32 -> [b, d] unit embeddings.
      text_program: tokens [b, n] int32, mask [b, n] bool -> [b, d] unit embeddings.
      padding: what fills a recording that is shorter than the window: 'zeros', or 'repeat', as
        many whole repeats as fit and then zeros.
      text_lengths: values of n that the text program is called with, ascending; the tokenizer's
        length alone where empty.
      whole_program: embeds one recording [c, t] that is longer than the window as a whole, [d];
        None where it is cut into windows.
      patches: tokens of an M2D-CLAP, by which it embeds recordings of any length as a whole; None
        for other models.
      sentence_program: sentence embeddings [b, e] of another model -> [b, d] unit embeddings; None
        for models that have a text encoder.
      classes: what an M2D-CLAP has learnt to tell by `classify`.
      active_level_db: level while it sounds that every recording is brought to, that of the clips
        that an M2D-CLAP was trained on; None: as it comes.
      sentences: vectors of the only texts that a model without a text encoder reads; None for none.
    """

    sample_rate_hz: int
    channels: int
    window_samples: int
    tokenizer: Tokenizer | None
    step: int
    audio_program: Callable[..., Any]
    text_program: Callable[..., Any]
    padding: Literal["repeat", "zeros"] = "zeros"
    text_lengths: tuple[int, ...] = ()
    whole_program: Callable[..., Any] | None = None
    patches: PatchTokens | None = None
    sentence_program: Callable[..., Any] | None = None
    classes: tuple[str, ...] = ()
    active_level_db: float | None = None
    sentences: Sentences | None = None

    @property
    def window_s(self) -> float:
        """Seconds that the model takes at once."""
        return self.window_samples / self.sample_rate_hz

    @property
    def max_tokens(self) -> int:
        """Length of the longest text, in tokens; 0 where it has no text encoder."""
        return 0 if self.tokenizer is None else self.tokenizer.max_tokens

    @property
    def reads_texts(self) -> bool:
        """Whether it embeds texts, all or some."""
        return self.tokenizer is not None or self.sentences is not None

    def embed_audio(
        self,
        audio: Float[np.ndarray, "*b c t"],
        sample_rate_hz: float,
        *,
        plain: bool = False,
        foa_format: FoaFormat = "acn-sn3d",
    ) -> Float32[np.ndarray, "*b d"]:
        """Unit embeddings of recordings.

        Another rate than the model's is resampled, all channels alike. What is shorter than the
        model's window is padded at the end, see `padding`; what is longer is cut into windows,
        half a window apart, the last one at the end, and their unit embeddings are averaged and
        scaled to length one. So a longer recording is embedded as the mean of its parts: it does
        not tell when something sounds. A fused CLAP embeds it as a whole, from a shrunk view of
        all of it and the middles of its thirds; an M2D-CLAP embeds any length as a whole, from the
        tokens of all of it, and pads none.

        Args:
          audio: one recording [c, t] or several of one length [b, c, t], floats, full scale 1.
            No channel is ever duplicated, dropped or scaled, but as these arguments say:
          sample_rate_hz: its rate.
          plain: the recording is of one channel and has no place; for a model of first-order
            ambisonics, which hears it in all four channels, as it was trained to.
          foa_format: how a recording of first-order ambisonics orders and scales its channels;
            what is not in ACN order with SN3D gains is converted.

        Returns:
          One embedding [d], or [b, d].

        Raises:
          InputError: wrong rank, channels or rate; no samples, or NaN or infinite ones; `plain`
            or `foa_format` of a model that does not take ambisonics.

        Reference: windows and their mean are our choice.
        """
        check_declared(self.channels, plain, foa_format)
        if plain and np.ndim(audio) > 1 and np.shape(audio)[-2] != 1:
            raise InputError(
                f"plain=True: audio has {np.shape(audio)[-2]} channels, a recording without "
                "a place one; give that one [1, samples], or leave plain out."
            )
        clips = _checked_audio(audio, 1 if plain else self.channels)
        if self.channels == _FOA_CHANNELS:
            clips = mono_as_foa(clips[:, 0]) if plain else as_acn_sn3d(clips, foa_format)
        rate_hz = _checked_rate(sample_rate_hz)
        if self.patches is not None:
            rows = self.patches.embed(*self._levelled(clips, rate_hz))
            return rows if np.ndim(audio) == 3 else rows[0]
        clips = resample(clips, rate_hz, self.sample_rate_hz)
        if self.whole_program is not None and clips.shape[-1] > self.window_samples:
            rows = np.stack([np.asarray(self.whole_program(clip)) for clip in clips])
            rows = check_finite(rows, "audio")
            return rows if np.ndim(audio) == 3 else rows[0]
        starts = window_starts(clips.shape[-1], self.window_samples)
        windows = (
            window_of(clip, start, self.window_samples, self.padding)
            for clip in clips
            for start in starts
        )
        rows = embed_in_batches(
            windows, lambda batch: np.asarray(self.audio_program(np.stack(batch))), _BATCH, "audio"
        )
        mean = rows.reshape(len(clips), len(starts), -1).mean(axis=1, dtype=np.float64)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        embeddings = mean.astype(np.float32)
        return embeddings if np.ndim(audio) == 3 else embeddings[0]

    def embed_scene(
        self, audio: Float[np.ndarray, "*b c t"], sample_rate_hz: float
    ) -> Float32[np.ndarray, "*b d"]:
        """What an M2D-CLAP's encoder hears in recordings, for tasks of one's own; not unit.

        The mean over time of `embed_frames`.

        Args:
          audio: see `embed_audio`.
          sample_rate_hz: its rate.

        Raises:
          InputError: see `embed_audio`, or a model of another kind.
        """
        return self.embed_frames(audio, sample_rate_hz)[0].mean(axis=-2)

    def classify(
        self, audio: Float[np.ndarray, "*b c t"], sample_rate_hz: float
    ) -> Float32[np.ndarray, "*b k"]:
        """Logits of the `classes` that an M2D-CLAP has learnt; the sigmoid makes them shares.

        Args:
          audio: see `embed_audio`.
          sample_rate_hz: its rate.

        Raises:
          InputError: see `embed_audio`, or a model that has learnt no classes.
        """
        if self.patches is None or not self.classes:
            raise InputError("classify: this model has learnt no classes; give one that has.")
        clips = _checked_audio(audio, self.channels)
        rows = self.patches.classify(*self._levelled(clips, _checked_rate(sample_rate_hz)))
        return rows if np.ndim(audio) == 3 else rows[0]

    def embed_frames(
        self, audio: Float[np.ndarray, "*b c t"], sample_rate_hz: float
    ) -> tuple[Float32[np.ndarray, "*b l d"], Float64[np.ndarray, "l"]]:
        """What an M2D-CLAP's encoder hears at every moment, 160 ms apart; not unit.

        Args:
          audio: see `embed_audio`.
          sample_rate_hz: its rate.

        Returns:
          A feature a moment, the tokens of all frequencies one behind the other; and the middles of
          the moments in milliseconds.

        Raises:
          InputError: see `embed_audio`, or a model of another kind.
        """
        if self.patches is None:
            raise InputError(
                "embed_frames: this model has no tokens of moments; give an M2D-CLAP, or take "
                "embed_audio."
            )
        clips = _checked_audio(audio, self.channels)
        heard = self._levelled(clips, _checked_rate(sample_rate_hz))
        rows, times_ms = self.patches.frames(*heard)
        return (rows if np.ndim(audio) == 3 else rows[0]), times_ms

    def embed_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "b d"]:
        """Unit embeddings of texts.

        Args:
          texts: at least one.

        Raises:
          InputError: no text, a blank one, or one of more tokens than the model reads; a model
            without a text encoder, or one that is not among its `sentences`.
        """
        if self.sentences is not None:
            self.check_texts(texts)
            return self.embed_sentences(self.sentences.vectors(texts))
        if self.tokenizer is None and self.sentence_program is None and self.patches is None:
            raise InputError(
                "embed_text: this model reads nothing; train it with captions first, from its run "
                "or this export by --init.model (--init.branch for spatial attributes)."
            )
        if self.tokenizer is None:
            raise InputError(
                "embed_text: this model has no text encoder, its texts are sentence embeddings of "
                "another model; load it with text_encoder=DIR of that or sentences=DIR of its "
                "vectors, or give embed_sentences."
            )
        return embed_texts(self.tokenizer, self.text_program, self.text_lengths, texts)

    def embed_sentences(self, sentences: Float[np.ndarray, "b e"]) -> Float32[np.ndarray, "b d"]:
        """Unit embeddings of sentence embeddings that another model made.

        Args:
          sentences: of the model that this one was trained with.

        Raises:
          InputError: a model that has a text encoder, or sentence embeddings of another width.
        """
        if self.sentence_program is None:
            raise InputError(
                "embed_sentences: this model takes no sentence embeddings; one with a text encoder "
                "reads the texts themselves by embed_text."
            )
        given = np.asarray(sentences, np.float32)
        return check_finite(np.asarray(self.sentence_program(given)), "sentences")

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuses texts that are not among the `sentences`, all at once.

        Raises:
          InputError: some are not.
        """
        missing = [] if self.sentences is None else self.sentences.missing(texts)
        if self.sentences is not None and missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{self.sentences.folder}: has no vector of {missing[0]!r}{more}; embed the "
                "captions and prompts of the data (spatial-clap embed-text DATA --split test), or "
                "a csv with a column caption."
            )

    def of_records(self) -> "AudioTextModel":
        """The model as it hears records that have been brought to their level already."""
        return replace(self, active_level_db=None)

    def _levelled(
        self, clips: Float32[np.ndarray, "b 1 t"], rate_hz: int
    ) -> tuple[Float32[np.ndarray, "b 1 t"], int]:
        """Clips at the level of those that were learnt from, and their rate.

        The level is measured at the rate that records have, as it was when they were rendered.
        """
        if self.active_level_db is None:
            return clips, rate_hz
        clips = resample(clips, rate_hz, self.sample_rate_hz)
        levelled = [at_active_level(clip[0], self.active_level_db) for clip in clips]
        return np.stack(levelled)[:, None], self.sample_rate_hz


def _checked_audio(audio: Any, channels: int) -> Float32[np.ndarray, "b c t"]:
    array = np.asarray(audio)
    if array.ndim not in (2, 3):
        raise InputError(
            f"audio: has shape {list(array.shape)}; it must be [channels, samples], or "
            "[recordings, channels, samples] for several: reshape it."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"audio: holds {array.dtype}; samples must be floats of full scale 1: divide "
            "integers by their full scale (32768 for 16 bits)."
        )
    if array.size == 0:
        raise InputError(f"audio: has shape {list(array.shape)}, no samples; give at least one.")
    if array.shape[-2] != channels:
        layouts = {2: " (left, right)", _FOA_CHANNELS: " (ambisonics: W, Y, Z, X)"}
        remedy = f"give a recording with {channels} channels"
        if channels == _FOA_CHANNELS and array.shape[-2] == 1:
            remedy = "say plain=True if it is a mono recording without a place"
        elif array.shape[-1] == channels:
            remedy = "transpose it, samples come last"
        raise InputError(
            f"audio: has {array.shape[-2]} channel(s); this model takes "
            f"{channels}{layouts.get(channels, '')}, and none is duplicated, mixed or dropped "
            f"silently: {remedy}."
        )
    # float64 beyond float32's range becomes infinite, and is refused for that.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(
            f"audio: {bad} of {array.size} samples are NaN or infinite; every sample must be "
            "finite: repair the recording."
        )
    return array.reshape(-1, *array.shape[-2:])


def _checked_rate(rate_hz: Any) -> int:
    value = float(rate_hz) if isinstance(rate_hz, _NUMBERS) else -1.0
    if not LOWEST_RATE_HZ <= value <= HIGHEST_RATE_HZ or not value.is_integer():
        raise InputError(
            f"sample_rate_hz: {rate_hz!r}; it must be a whole number of Hz within "
            f"{LOWEST_RATE_HZ} and {HIGHEST_RATE_HZ}: give the rate of the recording."
        )
    return int(value)


def load(
    path: str | Path,
    step: int | None = None,
    text_encoder: str | Path | None = None,
    active_level_db: float | None = None,
    sentences: str | Path | None = None,
) -> AudioTextModel:
    """Loads a trained model, ready for use.

    Args:
      path: the folder of a run (its moving average is taken where it kept one); or a folder that
        `export` wrote to, the outer one or one of its 'stablehlo' and 'safetensors'. Of two
        exports of the same weights the compiled programs are taken.
      step: checkpoint of a run; the newest when None.
      text_encoder: for an M2D-CLAP of sentence embeddings, what made these; see `load_text`.
      active_level_db: for an M2D-CLAP whose run says nothing of it, the level that recordings are
        brought to; -30 for clips that were rendered at level 'reference'. None: what its run says.
      sentences: in place of `text_encoder`, a folder of vectors that `embed-text` wrote; their
        captions are the only texts that the model then reads.

    Raises:
      InputError: there is no model, it cannot be read, or it is damaged; a text encoder for a
        model that takes none, or vectors for one, or both at once, or of another encoder than that
        it learnt from; a level for another model than an M2D-CLAP.

    Example:
      >>> model = load("runs/esc10")
      >>> model.embed_text(["a dog barks on the left side"]) @ model.embed_audio(audio, 44_100)
      array([0.8], dtype=float32)
    """
    folder = find_model(path)
    if (folder / MANIFEST).is_file():
        manifest = checked_manifest(folder, step)
        if manifest.get("task") == EVENTS:
            raise InputError(
                f"{folder}: holds a SELD network, which locates events and embeds nothing; use "
                "`spatial-clap detect`, or give an audio-text model."
            )
        if manifest["format"] == "stablehlo":
            programs = _at_level(_load_programs(folder, manifest), active_level_db)
            return _with_texts(programs, text_encoder, sentences, None)
    model = read_trained(folder, step)
    loaded = audio_text_model(
        model.audio_text, in_use(model.variables), model.tokenizer, model.step
    )
    levelled, learnt = _at_level(loaded, active_level_db), model.provenance.get("sentences")
    return _with_texts(levelled, text_encoder, sentences, learnt)


def _at_level(model: AudioTextModel, active_level_db: float | None) -> AudioTextModel:
    """The model with another level of recordings, if one is given."""
    if active_level_db is None:
        return model
    if model.patches is None or not -120 <= active_level_db <= 0:
        raise InputError(
            f"active_level_db {active_level_db:g}: is dB of full scale within -120 and 0, for an "
            "M2D-CLAP alone; give such a level, or leave it out."
        )
    return replace(model, active_level_db=active_level_db)


def audio_text_model(
    system: System, variables: Variables, tokenizer: Tokenizer | None, step: int
) -> AudioTextModel:
    """A system with its variables, ready for use; its programs are compiled once a system.

    Args:
      system: of the model.
      variables: those in use.
      tokenizer: of its texts.
      step: training steps behind it.
    """
    variables = jax.device_put(variables)
    audio, text = _jitted(system)
    is_m2d = isinstance(system, M2dClap)
    return AudioTextModel(
        sample_rate_hz=system.sample_rate_hz,
        channels=system.channels,
        window_samples=system.window_samples,
        tokenizer=tokenizer,
        step=step,
        audio_program=partial(audio, variables),
        text_program=partial(text, variables),
        padding=system.padding,
        text_lengths=text_lengths(system.max_tokens),
        whole_program=_whole_program(system, variables),
        patches=patch_tokens(system, variables) if is_m2d else None,
        sentence_program=_sentence_program(system, variables) if is_m2d else None,
        classes=system.classes if is_m2d else (),
        active_level_db=system.config.active_level_db if is_m2d else None,
    )


@lru_cache(maxsize=4)
def _jitted(system: System) -> tuple[Callable[..., Any], Callable[..., Any]]:
    audio, text = embedding_functions(system)
    return jax.jit(audio), jax.jit(text)


def _with_texts(
    model: AudioTextModel,
    text_encoder: str | Path | None,
    sentences: str | Path | None,
    learnt: Any,
) -> AudioTextModel:
    """The model with what gives it sentence embeddings like those `learnt`, if something does."""
    if sentences is None:
        return _with_text_encoder(model, text_encoder, learnt)
    if model.sentence_program is None or text_encoder is not None:
        what = "a text encoder is given too" if text_encoder else "this model takes no vectors"
        raise InputError(f"sentences {sentences}: {what}; leave it out.")
    opened = Sentences(sentences)
    check_encoder(f"sentences {sentences}", opened.header, learnt)
    return replace(model, sentences=opened)


def _with_text_encoder(
    model: AudioTextModel, source: str | Path | None, learnt: Any
) -> AudioTextModel:
    """The model with the encoder of its sentence embeddings, if one is given."""
    if source is None:
        return model
    sentences = model.sentence_program
    if sentences is None:
        raise InputError(
            f"text_encoder {source}: this model takes no sentence embeddings; leave it out."
        )
    tower = read_text_tower(source)
    text = text_model(tower)
    if learnt is not None:
        digest = encoder_digest(tower.arrays, text.tokenizer, repr(tower.config))
        header = {"encoder": Path(source).expanduser().name, "fingerprint": digest}
        check_encoder(f"text_encoder {source}", header, learnt)
    return replace(
        model,
        tokenizer=text.tokenizer,
        text_program=lambda tokens, mask: sentences(text.text_program(tokens, mask)),
        text_lengths=text.text_lengths,
    )


def _sentence_program(system: M2dClap, variables: Variables) -> Callable[..., Any] | None:
    if not system.sentence_width:
        return None

    @jax.jit
    def embed(variables: Variables, sentences: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.embed_sentences(variables, sentences)

    def checked(sentences: Any) -> Any:
        if np.ndim(sentences) != 2 or sentences.shape[1] != system.sentence_width:
            raise InputError(
                f"sentences: have shape {list(np.shape(sentences))}; this model takes "
                f"[b, {system.sentence_width}]: give those of the encoder that it was trained with."
            )
        return embed(variables, sentences)

    return checked


def _whole_program(system: System, variables: Variables) -> Callable[..., Any] | None:
    """How a fused CLAP embeds a recording that is longer than its window."""
    if not isinstance(system, Clap) or not system.config.content.fusion:
        return None
    mel = system.config.content_mel
    frames = round(system.config.window_s * mel.sample_rate_hz) // mel.hop + 1

    @jax.jit
    def embed(variables: Variables, views: Any, longer: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.embed_views(variables, views, longer)

    def whole(clip: Float32[np.ndarray, "c t"]) -> Any:
        mono = clip.mean(axis=0, keepdims=True)
        heard = resample(mono, system.sample_rate_hz, mel.sample_rate_hz)
        # On the host: a program of the whole would be compiled for every length.
        log_mel = log_mel_on_host(heard[0], mel)
        views = fusion_views(log_mel, frames)
        return embed(variables, views[None], np.array([len(log_mel) > frames]))[0]

    return whole


def embedding_functions(system: System) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two embedding functions of (variables, inputs), with products in full float32."""

    def audio(variables: Variables, batch: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.embed_audio(variables, batch)

    def text(variables: Variables, tokens: Any, mask: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.embed_text(variables, tokens, mask)

    return audio, text


def _load_programs(folder: Path, manifest: dict[str, Any]) -> AudioTextModel:
    held = manifest["preprocessing"]
    tokens = (held["max_tokens"],)
    takes = {
        "audio": [((held["channels"], held["window_samples"]), "float32")],
        "text": [(tokens, "int32"), (tokens, "bool")],
    }
    programs = {name: _read_program(folder / file, takes[name]) for name, file in PROGRAMS.items()}
    if not 1 <= held["window_samples"] <= LONGEST_WINDOW:
        raise InputError(
            f"{folder / MANIFEST}: a window of {held['window_samples']} samples; it must lie "
            f"within 1 and {LONGEST_WINDOW}: copy the export again."
        )
    if not LOWEST_RATE_HZ <= held["sample_rate_hz"] <= HIGHEST_RATE_HZ or (
        held.get("padding", "zeros") not in ("zeros", "repeat")
    ):
        raise InputError(
            f"{folder / MANIFEST}: sample_rate_hz {held['sample_rate_hz']} and padding "
            f"{held.get('padding')!r}; a rate within {LOWEST_RATE_HZ} and {HIGHEST_RATE_HZ} and "
            "'zeros' or 'repeat' are known: copy the export again."
        )
    return AudioTextModel(
        sample_rate_hz=held["sample_rate_hz"],
        channels=held["channels"],
        window_samples=held["window_samples"],
        tokenizer=Tokenizer.from_file(folder / TOKENIZER, held["max_tokens"]),
        step=manifest["step"],
        audio_program=programs["audio"],
        text_program=programs["text"],
        padding=held.get("padding", "zeros"),
    )


def _read_program(
    path: Path, takes: Sequence[tuple[tuple[int, ...], str]]
) -> Callable[..., Float32[np.ndarray, "b d"]]:
    """A compiled program that takes arrays of these shapes (but for the batch) and types."""

    @contextlib.contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        # The reader raises whatever a foreign or newer layout leads it to; what is inside is
        # parsed when it is first run.
        except Exception as error:
            raise InputError(
                f"{path}: cannot be read by jax {jax.__version__} ({one_line(error)}); update jax, "
                "or export the model again."
            ) from error

    with reading():
        exported = jax_export.deserialize(bytearray(path.read_bytes()))
        inputs = [(tuple(aval.shape[1:]), str(aval.dtype)) for aval in exported.in_avals]
        outputs = [(len(aval.shape), str(aval.dtype)) for aval in exported.out_avals]
    if inputs != list(takes) or outputs != [(2, "float32")]:
        raise InputError(
            f"{path}: takes {inputs} a row, and {MANIFEST} tells of {list(takes)} and of one "
            "embedding each; copy the export again."
        )
    program = jax.jit(exported.call)

    def run(*arrays: Any) -> Float32[np.ndarray, "b d"]:
        with reading():
            return np.asarray(program(*arrays))

    return run
