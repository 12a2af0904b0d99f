"""Stereo SELD: which events sound when, where, how far away, and whether they are in the picture.

    left, right -> log-mel, level and phase, autocorrelation -> convolutions -> Conformer --+
    (L + R) / 2 -> CLAP's content encoder, a vector each moment --+                         |
    video       -> OWL-ViT's map, a vector each column -----------+-> Cross-Modal Conformer +
                                                                                            |
                        3 tracks x (direction x activity, distance, on screen) x classes <--+

Reference: Berghi and Jackson, arXiv 2509.06598; the task's baseline (DCASE 2025 Task 3) for the
CRNN. Widths, the order of modules and the heads are our choice.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from spatial_clap_jax import features
from spatial_clap_jax.data.accdoa_targets import TRACKS
from spatial_clap_jax.data.images import CLIP_DEVIATION, CLIP_MEAN
from spatial_clap_jax.data.seld_pipeline import Pictures
from spatial_clap_jax.data.sound_events import LABEL_STEP_S
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LAION_CLAP_LOG_MEL, LogMelConfig
from spatial_clap_jax.losses.accdoa import AccdoaConfig, accdoa_loss, visible_loss
from spatial_clap_jax.models.conformer import Conformer, ConformerConfig
from spatial_clap_jax.models.cross_modal import CrossModalConfig, CrossModalConformer
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.layers import gelu
from spatial_clap_jax.models.owlvit import OwlVitImageConfig, OwlVitImageTower
from spatial_clap_jax.models.seld_encoder import (
    Recurrent,
    RecurrentConfig,
    SeldEncoder,
    SeldEncoderConfig,
)
from spatial_clap_jax.stereo_features import AV_SELD, StereoFeaturesConfig, stereo_features
from spatial_clap_jax.systems.base import Batch, Encoded, Variables
from spatial_clap_jax.systems.content import (
    ContentConfig,
    SpecAugmentConfig,
    check_content,
    content_encoder,
    frame_step_s,
    frames_of_audio,
)


@dataclass(frozen=True)
class SeldConfig:
    """Shape of a SELD network; the defaults hear alone, with a Conformer.

    Attributes:
      classes: names of the classes; None takes those of the data.
      sample_rate_hz: rate of the audio that comes in.
      duration_s: its length; a whole number of label frames.
      features: planes that the convolutions take.
      loudest_db: level, as in `features`, that counts as the loudest of every clip, so that how
        loud a clip is tells how near; None takes each clip's own loudest, and no gain matters.
      encoder: the convolutions.
      temporal: what mixes moments after them: a Conformer, or the recurrence of the baseline.
      content: encoder of a CLAP that is listened with in the step, where nothing is cached; None
        for none.
      content_mel: its front end; the mean of both channels is resampled to its rate.
      content_normalisation: mean and standard deviation of a ViT's levels; None for the others.
      heard: (steps, width) of cached CLAP features, told by the cache; None for none.
      heard_step_s: seconds from one to the next, likewise.
      image: OWL-ViT image tower that looks in the step, where nothing is cached; None for none.
      pictures: pictures of a clip that it looks at.
      seen: (pictures, columns, width) of cached OWL-ViT features, told by the cache; None for none.
      merged: whether patches are multiplied by CLS, as OWL-ViT does; a tower that starts from
        nothing learns faster without. Cached features are as their tower gave them.
      column_width: width of a column of a picture.
      sights: kinds of things that are looked for at every place of a picture, whatever the place.
      listens: False leaves the CLAP out, computed or cached.
      looks: False leaves the OWL-ViT out, computed or cached.
      fusion: how audio and the other modalities are joined, where there are any.
      on_screen: whether it is told if an event is in the picture.
      masks: bands of time and frequency that are hidden in training; None for none.
      dropout: before the head.
    """

    classes: tuple[str, ...] | None = None
    sample_rate_hz: int = 24_000
    duration_s: float = 5.0
    features: StereoFeaturesConfig = AV_SELD
    loudest_db: float | None = None
    encoder: SeldEncoderConfig = field(default_factory=SeldEncoderConfig)
    temporal: ConformerConfig | RecurrentConfig = field(default_factory=ConformerConfig)
    content: ContentConfig | None = None
    content_mel: LogMelConfig = LAION_CLAP_LOG_MEL
    content_normalisation: tuple[float, float] | None = None
    heard: tuple[int, int] | None = None
    heard_step_s: float | None = None
    image: OwlVitImageConfig | None = None
    pictures: int = 10
    seen: tuple[int, int, int] | None = None
    merged: bool = True
    column_width: int = 64
    sights: int = 48
    listens: bool = True
    looks: bool = True
    fusion: CrossModalConfig = field(default_factory=CrossModalConfig)
    on_screen: bool = True
    masks: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.content is not None:
            check_content(self.content, self.content_mel, self.content_normalisation)
        if isinstance(self.content, HtsatConfig) and self.heard_from == "step":
            raise InputError(
                "model.content: an HTSAT hears windows of 10 s, which a step would pay for with "
                "every clip; cache its features (spatial-clap embed --kind frames, --data.heard)."
            )
        if (self.heard is None) != (self.heard_step_s is None):
            raise InputError(
                f"model.heard: {self.heard} and model.heard_step_s {self.heard_step_s} come "
                "together; leave both to the cache."
            )
        if self.features.mel.sample_rate_hz != self.sample_rate_hz:
            raise InputError(
                f"model.features.mel.sample_rate_hz: {self.features.mel.sample_rate_hz}, but the "
                f"audio comes at {self.sample_rate_hz}; give both the same."
            )
        labels = self.duration_s / LABEL_STEP_S
        if labels < 1 or abs(labels - round(labels)) > 1e-6:
            raise InputError(
                f"model.duration_s: {self.duration_s} is no whole number of label frames of "
                f"{LABEL_STEP_S} s; give a multiple of that."
            )
        if (self.heard_from or self.seen_from) and self.fusion.width != self.temporal.width:
            raise InputError(
                f"model.fusion.width: {self.fusion.width}, but model.temporal.width is "
                f"{self.temporal.width}; give both the same."
            )
        for name in ("pictures", "column_width", "sights"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}: {getattr(self, name)} must be at least 1.")

    @property
    def labels(self) -> int:
        """Label frames of a clip."""
        return round(self.duration_s / LABEL_STEP_S)

    @property
    def heard_from(self) -> Literal["step", "cache"] | None:
        """Where CLAP features come from."""
        if not self.listens:
            return None
        return "cache" if self.heard else "step" if self.content else None

    @property
    def seen_from(self) -> Literal["step", "cache"] | None:
        """Where OWL-ViT features come from."""
        if not self.looks:
            return None
        return "cache" if self.seen else "step" if self.image else None

    @property
    def looked_at(self) -> Pictures | None:
        """The pictures that come with a batch."""
        if self.image is None or self.seen_from != "step":
            return None
        return Pictures(self.pictures, self.image.image_size)

    def build(self, loss: AccdoaConfig, dtype: DTypeLike = jnp.float32) -> "Seld":
        """The network of this shape, trained by `loss`, computing in `dtype`."""
        return Seld(self, loss, dtype)


class SeldModule(nn.Module):
    """Encoders, fusion and head under one tree of parameters.

    Attributes:
      config: shapes.
      dtype: of the computation; parameters stay float32.
    """

    config: SeldConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config, dense = self.config, partial(nn.Dense, dtype=self.dtype)
        width = config.temporal.width
        self.encoder = SeldEncoder(config.encoder, width, self.dtype)
        if isinstance(config.temporal, ConformerConfig):
            self.temporal: nn.Module = Conformer(config.temporal, self.dtype)
        else:
            self.temporal = Recurrent(config.temporal, self.dtype)
        hears, looks = config.heard_from, config.seen_from
        if hears == "step":
            assert config.content is not None
            self.content = content_encoder(config.content, self.dtype)
        if looks == "step":
            assert config.image is not None
            self.image = OwlVitImageTower(config.image, self.dtype)
        if hears:
            self.heard_norm, self.heard_in = nn.LayerNorm(dtype=self.dtype), dense(width)
        if looks:
            self.seen_norm, self.column = nn.LayerNorm(dtype=self.dtype), dense(config.column_width)
            self.seen_in = dense(width)
        if hears or looks:
            self.fusion = CrossModalConformer(config.fusion, self.dtype)
        self.hidden, self.dropout = dense(width), nn.Dropout(config.dropout)
        assert config.classes is not None
        self.head = nn.Dense(TRACKS * self._entries * len(config.classes))
        if self._tells_visible:
            self.sight_norm, self.sight = nn.LayerNorm(dtype=self.dtype), dense(config.sights)
            self.visible = nn.Dense(len(config.classes))

    @property
    def _entries(self) -> int:
        return 4 if self.config.on_screen else 3

    @property
    def _tells_visible(self) -> bool:
        return self.config.on_screen and self.config.seen_from is not None

    def __call__(self, batch: Batch, train: bool) -> Float[Array, "b l 3 k c"]:
        """Tracks of a batch: x and y within (-1, 1), distance in m above 0, on-screen logit."""
        return self.tracks_and_visible(batch, train)[0]

    def tracks_and_visible(
        self, batch: Batch, train: bool
    ) -> tuple[Float[Array, "b l 3 k c"], Float[Array, "b l c"] | None]:
        """Tracks, and the logit of a class being visible while it sounds, of pictures alone."""
        config = self.config
        x = self.temporal(self.encoder(self._planes(batch["audio"], train), train), train)
        if x.shape[1] != config.labels:
            x = at_labels(x, config.labels, config.duration_s / x.shape[1])
        heard, seen = self.heard(batch, train), self._looked_at(batch, train)
        others = []
        if heard is not None:
            heard = self.heard_in(self.heard_norm(heard))
            others.append(at_labels(heard, config.labels, self._heard_step_s()))
        if seen is not None:
            others.append(self._where(seen))
        if others:
            x = jnp.concatenate(self.fusion(x, sum(others[1:], others[0]), train), axis=-1)
        x = self.dropout(gelu(self.hidden(x)), deterministic=not train)
        assert config.classes is not None
        shape = (*x.shape[:2], TRACKS, self._entries, len(config.classes))
        tracks = self.head(x.astype(jnp.float32)).reshape(shape)
        direction, distance = jnp.tanh(tracks[..., :2, :]), nn.softplus(tracks[..., 2:3, :])
        on_screen, visible = tracks[..., 3:, :], None
        if self._tells_visible and seen is not None:
            # Not shown to the heads: they would know the clips of a small training set by sight.
            visible = self.visible(self._sights(seen).astype(jnp.float32))
            # Sound corrects what pictures tell of the class.
            on_screen = on_screen + visible[:, :, None, None]
        return jnp.concatenate([direction, distance, on_screen], axis=-2), visible

    def _planes(self, audio: Float[Array, "b 2 t"], train: bool) -> Float[Array, "b l m p"]:
        config = self.config
        planes = stereo_features(audio, config.features)
        planes = _scaled(planes, config.features, config.loudest_db)
        if not train or config.masks is None:
            return planes
        masks, (b, frames, mels, _) = config.masks, planes.shape
        # All planes of a clip are hidden at the same places, by their means.
        shown = features.spec_augment(
            self.make_rng("augment"),
            jnp.ones((b, frames, mels)),
            masks.time_masks,
            masks.time_width,
            masks.frequency_masks,
            masks.frequency_width,
        )
        mean = planes.mean(axis=(1, 2), keepdims=True)
        return mean + (planes - mean) * shown[..., None]

    def heard(self, batch: Batch, train: bool) -> Float[Array, "b n e"] | None:
        """CLAP features of moments; None where nobody listens."""
        config = self.config
        if config.heard_from != "step":
            return batch["heard"] if config.heard_from else None
        mono = features.resample(
            batch["audio"].mean(axis=1), config.sample_rate_hz, config.content_mel.sample_rate_hz
        )
        found, _ = frames_of_audio(
            self.content,
            mono,
            config.content_mel,
            config.content_normalisation,
            window_s=config.duration_s,
            train=train,
        )
        return found

    def seen(self, batch: Batch, train: bool) -> Float[Array, "b v w e"] | None:
        """OWL-ViT features of pictures and their columns; None where nobody looks."""
        found = self._looked_at(batch, train)
        # Where from left to right matters for azimuth; how high does not.
        return None if found is None else found.mean(axis=2)

    def _looked_at(self, batch: Batch, train: bool) -> Float[Array, "b v h w e"] | None:
        """Features of pictures at each place; a cache has the mean of all rows."""
        config = self.config
        if config.seen_from != "step":
            return batch["seen"][:, :, None] if config.seen_from else None
        frames = batch["frames"]
        tokens = self.image.tokens(as_image(frames.reshape(-1, *frames.shape[2:])))
        if config.merged:
            found = self.image.merged(tokens)
        else:
            assert config.image is not None
            found = tokens[:, 1:].reshape(tokens.shape[0], *config.image.grid, -1)
        return found.reshape(*frames.shape[:2], *found.shape[1:])

    def _where(self, seen: Float[Array, "b v h w e"]) -> Float[Array, "b l d"]:
        """What stands in which column, in each label frame."""
        columns = gelu(self.column(self.seen_norm(seen.mean(axis=2))))
        moments = self.seen_in(columns.reshape(*columns.shape[:2], -1))
        return at_labels(moments, self.config.labels, self.config.duration_s / moments.shape[1])

    def _sights(self, seen: Float[Array, "b v h w e"]) -> Float[Array, "b l s"]:
        """How much of each kind there is where most of it is, in each label frame.

        What a thing looks like is learnt once for all places, as it is not by columns side by side.
        """
        moments = gelu(self.sight(self.sight_norm(seen))).max(axis=(2, 3))
        return at_labels(moments, self.config.labels, self.config.duration_s / moments.shape[1])

    def _heard_step_s(self) -> float:
        config = self.config
        if config.heard_from == "cache":
            assert config.heard_step_s is not None
            return config.heard_step_s
        assert config.content is not None
        return frame_step_s(config.content, config.content_mel, config.duration_s)


def _scaled(
    planes: Float[Array, "b l m p"], config: StereoFeaturesConfig, loudest_db: float | None
) -> Float[Array, "b l m p"]:
    """Planes of about unit size: levels below a loudest one as [-2, 2].

    Where that is the loudest of both channels (None), a joint gain changes nothing.
    """
    if "log_mel" not in config.planes:
        return planes
    levels, others = planes[..., :2], planes[..., 2:]
    loudest = levels.max(axis=(1, 2, 3), keepdims=True) if loudest_db is None else loudest_db
    levels = (levels - loudest) / (config.range_db / 4) + 2
    return jnp.concatenate([levels, others], axis=-1)


def as_image(frames: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Pictures as CLIP's towers take them."""
    return (frames / 255.0 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_DEVIATION)


def at_labels(x: Float[Array, "b n d"], labels: int, step_s: float) -> Float[Array, "b l d"]:
    """Moments at label frames: linear between their middles, level outside.

    Args:
      x: moments; moment i is about (i + 0.5) `step_s` after the beginning.
      labels: label frames, `LABEL_STEP_S` apart, likewise.
      step_s: seconds from one moment to the next.

    Reference: our choice.
    """
    moments = x.shape[1]
    place = (jnp.arange(labels) + 0.5) * (LABEL_STEP_S / step_s) - 0.5
    place = jnp.clip(place, 0, moments - 1)
    below = jnp.floor(place).astype(jnp.int32)
    share = (place - below).astype(x.dtype)[None, :, None]
    above = jnp.minimum(below + 1, moments - 1)
    return x[:, below] * (1 - share) + x[:, above] * share


@dataclass(frozen=True)
class Seld:
    """A SELD network as pure functions; see `systems.base.Trainable`.

    Attributes:
      config: its shape; the classes are named.
      loss: what it is trained by.
      dtype: of the computation.
    """

    config: SeldConfig
    loss: AccdoaConfig
    dtype: DTypeLike = jnp.float32

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what it tells."""
        if not self.config.classes:
            raise InputError(
                "model.classes: None is left to the data, and there are none here; name them."
            )
        return self.config.classes

    @property
    def channels(self) -> int:
        """Channels of the audio that it takes."""
        return 2

    @property
    def window_samples(self) -> int:
        """Length of the audio that it takes."""
        return round(self.config.duration_s * self.config.sample_rate_hz)

    @cached_property
    def module(self) -> SeldModule:
        return SeldModule(self.config, self.dtype)

    def batch_rows(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of a row of each array of a batch."""
        config = self.config
        rows: dict[str, tuple[tuple[int, ...], Any]] = {
            "audio": ((2, self.window_samples), jnp.float32),
            "targets": ((config.labels, 6, 5, len(self.classes)), jnp.float32),
        }
        if config.looked_at is not None:
            rows["frames"] = (config.looked_at.shape, jnp.uint8)
        for name, source in (("heard", config.heard_from), ("seen", config.seen_from)):
            if source == "cache":
                rows[name] = (getattr(config, name), jnp.float32)
        return rows

    def init(self, rng: jax.Array) -> Variables:
        batch = {
            name: jnp.zeros((2, *shape), dtype)
            for name, (shape, dtype) in self.batch_rows().items()
        }
        variables = self.module.init({"params": rng}, batch, train=False)
        return {"params": variables["params"], "batch_stats": variables["batch_stats"]}

    def encode(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Encoded:
        dropout, augment = jax.random.split(rng)
        forward: Any = self.module.apply(
            variables,
            batch,
            train,
            rngs={"dropout": dropout, "augment": augment},
            mutable=["batch_stats"],
            method="tracks_and_visible",
        )
        (tracks, visible), updated = forward
        rows = {"tracks": tracks} if visible is None else {"tracks": tracks, "visible": visible}
        return Encoded(rows, {}, updated["batch_stats"])

    def objective(
        self,
        rows: dict[str, Array],
        shared: dict[str, Float[Array, ""]],
        batch: Batch,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        found = accdoa_loss(rows["tracks"], batch["targets"], self.loss)
        told = ("direction", "distance", *(["on_screen"] if self.config.on_screen else []))
        parts = {f"{name}_loss": getattr(found, name) for name in told}
        if "visible" in rows:
            parts["visible_loss"] = visible_loss(rows["visible"], batch["targets"], self.loss)
        return found.total + parts.get("visible_loss", 0.0), parts

    def features_of(
        self, variables: Variables, batch: Batch
    ) -> tuple[Float[Array, "b n e"] | None, Float[Array, "b v w e"] | None]:
        """What both towers make of a batch, as caches hold it; None for a tower that is not."""
        heard, seen = (
            cast(Any, self.module.apply(variables, batch, False, method=name))
            for name in ("heard", "seen")
        )
        return heard, seen

    def locate(self, variables: Variables, batch: Batch) -> Float[Array, "b l 3 4 c"]:
        """Tracks of a batch in use: x, y, distance in m, probability of being on screen.

        A network that does not tell who is on screen gives 0.
        """
        tracks: Any = self.module.apply(variables, batch, False)
        if self.config.on_screen:
            shown = nn.sigmoid(tracks[..., 3:, :])
        else:
            shown = jnp.zeros_like(tracks[..., :1, :])
        return jnp.concatenate([tracks[..., :3, :], shown], axis=-2)
