"""M2D-CLAP: one encoder of sound that learns by masked prediction and by language at once.

    audio   -> log-mel -> patches -- seen ----> ViT ----------> audio projection -> embedding
                             |                   |
                             |                   +--> predictor -> tokens of the masked patches
                             +---- masked ---> target ViT (moving average) ---------'  alike

    caption -> cached sentence embedding, or a text encoder -> (linear) -> embedding

Weights of the losses say what is trained: masked prediction, the contrastive loss, categories, or
several of them. The four stages of the paper are configurations of this one system.

Reference: Niizumi et al., M2D-CLAP, Interspeech 2024 and arXiv 2503.22104.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import M2D_LOG_MEL, LogMelConfig
from spatial_clap_jax.losses.contrastive import (
    ContrastiveConfig,
    ring_in_batch_accuracy,
    ring_info_nce,
)
from spatial_clap_jax.losses.labels import label_loss, top_label_accuracy
from spatial_clap_jax.models.layers import unit
from spatial_clap_jax.models.m2d import (
    PredictorConfig,
    draw_masks,
    kept_patches,
    moved_target,
)
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig, vit_blocks
from spatial_clap_jax.systems.base import (
    UNREAD_TOKENS,
    UNREAD_VOCABULARY,
    Batch,
    Encoded,
    Variables,
)
from spatial_clap_jax.systems.content import Augmentation, SpecAugmentConfig
from spatial_clap_jax.systems.m2d_clap_module import Heard, M2dClapModule
from spatial_clap_jax.systems.mixing import mixed_up, random_crop


@dataclass(frozen=True)
class CachedSentences:
    """Texts as embeddings that another model made beforehand (`spatial-clap embed-text`).

    Attributes:
      width: of an embedding.
    """

    width: int = 768

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"CachedSentences.width: {self.width}; give that of the embeddings.")


@dataclass(frozen=True)
class M2dClapConfig:
    """M2D-CLAP's shape and what it is trained on; the defaults are stage 1 of 2024.

    Attributes:
      sample_rate_hz: rate of the audio that comes in.
      window_s: its length in seconds.
      crop_frames: frames of a random crop in training; None for the whole window.
      mel: front end; audio is resampled to its rate.
      normalisation: mean and standard deviation of its levels, by which they are normalised. None:
        a training measures them on random crops of its data and stores them with the run; until
        then levels are taken as they are.
      active_level_db: level while it sounds (`data.sources.active_level_db`) that a recording is
        brought to in use, that of the clips that it was trained on; None: as it comes. Records are
        heard as they were rendered.
      content: the encoder. Its `frames` are the length of the inputs that a recording is cut into
        in use: that of training, `crop_frames` or, without crops, `frames`.
      mask_ratio: share of the patches that the encoder does not see in training; with 0 nothing is
        masked, and nothing predicted.
      masked_weight: of the loss of masked prediction; with 0 there is no predictor and no target.
      predictor: its sizes.
      target_decays: of the target's moving average, at the first step and at the last.
      contrast_weight: of the contrastive loss; with 0 nothing is projected and no text is read.
      projector: of the tokens: 'mlp', two layers of their mean, or 'token', a learned token that
        attends to them.
      joint_width: width of the joint space; with 'token' the encoder's.
      text: a text encoder that trains along, or sentence embeddings; of another width than the
        joint space they are projected linearly.
      classes: categories that a linear head on the mean token tells; None for those of the data,
        stored with the run.
      mixup: both parameters of the Beta distribution that the share of a clip is drawn from, when
        it is mixed with another one; 0 for none.
      spec_augment: masks of time and frequency in training; None for none.
    """

    sample_rate_hz: int = 16_000
    window_s: float = 10.0
    crop_frames: int | None = 608
    mel: LogMelConfig = M2D_LOG_MEL
    normalisation: tuple[float, float] | None = (-7.1, 4.2)
    active_level_db: float | None = None
    content: VitConfig = field(default_factory=VitConfig)
    mask_ratio: float = 0.7
    masked_weight: float = 1.0
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    target_decays: tuple[float, float] = (0.99995, 0.99999)
    contrast_weight: float = 0.01
    projector: Literal["mlp", "token"] = "mlp"
    joint_width: int = 768
    text: TextConfig | CachedSentences = field(default_factory=CachedSentences)
    classes: tuple[str, ...] | None = ()
    mixup: float = 0.0
    spec_augment: SpecAugmentConfig | None = None

    def __post_init__(self) -> None:
        mel, content = self.mel, self.content
        if mel.level != "natural" or mel.mels != content.mels:
            raise InputError(
                f"model.mel: {mel.mels} mels as {mel.level}; M2D takes natural logarithms "
                f"in the {content.mels} mels of its encoder."
            )
        if self.sample_rate_hz < 1:
            raise InputError(f"model.sample_rate_hz: {self.sample_rate_hz}; give samples a second.")
        if not 0 < self.window_s < math.inf or self.frames < content.patch[1]:
            raise InputError(
                f"model.window_s: {self.window_s}; give seconds that hold the {content.patch[1]} "
                "frames of a patch."
            )
        if self.normalisation is not None and not (
            all(map(math.isfinite, self.normalisation)) and self.normalisation[1] > 0
        ):
            raise InputError(
                f"model.normalisation: {self.normalisation}; the second, a standard deviation, "
                "must be above 0, and both finite."
            )
        if self.active_level_db is not None and not -120 <= self.active_level_db <= 0:
            raise InputError(
                f"model.active_level_db: {self.active_level_db}; give dB of full scale within -120 "
                "and 0, or None."
            )
        for name in ("masked_weight", "contrast_weight", "mixup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"model.{name}: {getattr(self, name)}; give 0 or more.")
        if not (self.predicts or self.contrast_weight or self.classes != ()):
            raise InputError(
                "model.masked_weight: nothing is trained; give mask_ratio and masked_weight, "
                "contrast_weight or classes."
            )
        if self.crop_frames is not None and not content.patch[1] <= self.crop_frames <= self.frames:
            raise InputError(
                f"model.crop_frames: {self.crop_frames} of the {self.frames} frames of a window; "
                f"give {content.patch[1]} to that, or None for the whole."
            )
        patches = content.patches(self.crop_frames or self.frames)
        if not 0 <= self.mask_ratio < 1 or not kept_patches(patches, self.mask_ratio):
            raise InputError(
                f"model.mask_ratio: {self.mask_ratio} of {patches} patches; give 0 or more, and "
                "leave one to be seen."
            )
        if self.mask_ratio and kept_patches(patches, self.mask_ratio) == patches:
            raise InputError(
                f"model.mask_ratio: {self.mask_ratio} of {patches} patches masks none; give 0, or "
                "a share such as 0.7."
            )
        if not all(0 <= decay <= 1 for decay in self.target_decays):
            raise InputError(f"model.target_decays: {self.target_decays} must be in [0, 1].")
        if self.joint_width < 1:
            raise InputError(f"model.joint_width: {self.joint_width}; give at least 1.")
        if self.projector == "token" and self.joint_width != content.width:
            raise InputError(
                f"model.joint_width: {self.joint_width}, but the projector 'token' gives the "
                f"{content.width} of the encoder; give that."
            )
        classes = self.classes or ()
        twice = [name for number, name in enumerate(classes) if name in classes[:number]]
        if twice:
            raise InputError(
                f"model.classes: {twice[0]!r} stands twice or more; name each class once."
            )
        if self.mixup and self.contrast_weight:
            raise InputError(
                f"model.mixup: {self.mixup} with a contrastive loss, but no caption tells of a "
                "mixed clip; set mixup or contrast_weight 0."
            )

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return round(self.window_s * self.mel.sample_rate_hz) // self.mel.hop + 1

    @property
    def predicts(self) -> bool:
        """Whether masked patches are predicted."""
        return bool(self.mask_ratio and self.masked_weight)

    def build(self, loss: ContrastiveConfig, dtype: DTypeLike = jnp.float32) -> "M2dClap":
        """The system of this shape, trained by `loss`, computing in `dtype`.

        Raises:
          InputError: a contrastive loss that it has not, or classes that are not known yet.
        """
        if loss.kind != "info_nce" or loss.rival_weight:
            raise InputError(
                f"loss.kind: {loss.kind!r} with rival_weight {loss.rival_weight}; M2D-CLAP is "
                "trained by 'info_nce' without rivals."
            )
        if self.classes is None:
            raise InputError(
                "model.classes: None stands for the categories of the data, which a training "
                "looks up; give their names."
            )
        return M2dClap(self, loss, dtype)


@dataclass(frozen=True)
class M2dClap:
    """M2D-CLAP as pure functions; see `systems.base.System`, `Following` and `Labelled`.

    Variables have a collection `target` where masked patches are predicted: blocks and norm of
    the target encoder, at the paths that the encoder's have.

    Attributes:
      config: its shape.
      contrast: the contrastive loss.
      dtype: of the computation.
    """

    config: M2dClapConfig
    contrast: ContrastiveConfig
    dtype: DTypeLike = jnp.float32

    @property
    def sample_rate_hz(self) -> int:
        return self.config.sample_rate_hz

    @property
    def channels(self) -> int:
        return 1

    @property
    def window_samples(self) -> int:
        return round(self.config.window_s * self.config.sample_rate_hz)

    @property
    def vocabulary(self) -> int:
        text = self.config.text
        return text.vocabulary if isinstance(text, TextConfig) else UNREAD_VOCABULARY

    @property
    def max_tokens(self) -> int:
        text = self.config.text
        return text.max_tokens if isinstance(text, TextConfig) else UNREAD_TOKENS

    @property
    def padding(self) -> Literal["repeat", "zeros"]:
        return "zeros"

    @property
    def labels(self) -> tuple[str, ...]:
        sizes = {"sentence": self.sentence_width, "categories": len(self.classes)}
        return tuple(name for name, size in sizes.items() if size)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes or ()

    @property
    def sentence_width(self) -> int:
        text = self.config.text
        reads = isinstance(text, TextConfig) or not self.config.contrast_weight
        return 0 if reads else text.width

    @cached_property
    def module(self) -> M2dClapModule:
        return M2dClapModule(self.config, self.contrast.initial_scale, self.dtype)

    def init(self, rng: jax.Array) -> Variables:
        config = self.config
        ours, target = jax.random.split(rng)
        frames = config.crop_frames or config.frames
        levels = jnp.zeros((1, frames, config.content.mels))
        patches = config.content.patches(frames)
        masks = draw_masks(ours, 1, patches, config.mask_ratio) if config.mask_ratio else None
        batch = {
            "tokens": jnp.zeros((1, self.max_tokens), jnp.int32),
            "token_mask": jnp.ones((1, self.max_tokens), bool),
            "sentence": jnp.zeros((1, self.sentence_width)),
        }
        heard = Heard(levels, None, masks)
        variables = self.module.init({"params": ours}, heard, batch, None, train=False)
        drawn: Variables = {"params": variables["params"], "batch_stats": {}}
        if config.predicts:
            # Drawn by itself, not copied from the encoder.
            blocks, token = vit_blocks(config.content), jnp.zeros((1, 1, config.content.width))
            drawn["target"] = {"content": blocks.init(target, token)["params"]}
        return drawn

    def encode(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Encoded:
        for_levels, for_masks, dropout = jax.random.split(rng, 3)
        levels, categories = self._training_levels(batch, for_levels if train else None)
        masks = None
        if self.config.mask_ratio:
            patches = self.config.content.patches(levels.shape[1])
            masks = draw_masks(for_masks, len(levels), patches, self.config.mask_ratio)
        return self.encode_heard(variables, Heard(levels, categories, masks), batch, dropout, train)

    def encode_heard(
        self, variables: Variables, heard: Heard, batch: Batch, dropout: jax.Array, train: bool
    ) -> Encoded:
        """`encode` after all that is drawn but dropout."""
        rows: Any = self.module.apply(
            {"params": variables["params"]},
            heard,
            batch,
            variables["target"]["content"] if self.config.predicts else None,
            train,
            rngs={"dropout": dropout},
        )
        if heard.categories is not None:
            rows["categories"] = heard.categories
        shared = {}
        if self.config.contrast_weight:
            shared["logit_scale"] = variables["params"]["logit_scale"]
        return Encoded(rows, shared, {})

    def objective(
        self,
        rows: dict[str, Array],
        shared: dict[str, Float[Array, ""]],
        batch: Batch,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        config, loss, metrics = self.config, jnp.zeros(()), {}
        if "masked_loss" in rows:
            metrics["masked_loss"] = rows["masked_loss"].mean()
            loss += config.masked_weight * metrics["masked_loss"]
        if "audio" in rows:
            audio, text, meaning = rows["audio"], rows["text"], batch["meaning"]
            layout: Any = {"mesh": mesh, "block": self.contrast.block}
            # Its range is kept by `after_update`, which lets every gradient through.
            scale = metrics["scale"] = jnp.exp(shared["logit_scale"])
            told = ring_in_batch_accuracy(audio, text, batch["group"], meaning, **layout)
            # There are no two members of a group to be told apart.
            metrics |= {name: value for name, value in told.items() if name != "assignment"}
            alike = self.contrast.meaning(batch)
            contrast = ring_info_nce(audio, text, scale, alike, **layout)
            metrics["contrastive_loss"] = contrast
            loss += config.contrast_weight * contrast
        if "category_logits" in rows:
            logits, categories = rows["category_logits"], rows["categories"]
            metrics["category_loss"] = label_loss(logits, categories)
            metrics["category_accuracy"] = top_label_accuracy(logits, categories)
            loss += metrics["category_loss"]
        return loss, metrics

    def after_update(self, variables: Variables, progress: Float[Array, ""]) -> Variables:
        """Moves the target after the encoder, and keeps the logit scale in its range."""
        params = dict(variables["params"])
        if "logit_scale" in params:
            low, high = jnp.log(self.contrast.min_scale), jnp.log(self.contrast.max_scale)
            params["logit_scale"] = jnp.clip(params["logit_scale"], low, high)
        moved = {**variables, "params": params}
        if self.config.predicts:
            moved["target"] = moved_target(
                variables["target"], params, progress, self.config.target_decays
            )
        return moved

    def embed_audio(
        self, variables: Variables, audio: Float[Array, "b 1 t"]
    ) -> Float[Array, "b d"]:
        """Unit CLAP embeddings of audio, nothing masked; without CLAP, those of the mean token."""
        return self.project(variables, self.audio_tokens(variables, audio))

    def audio_tokens(
        self, variables: Variables, audio: Float[Array, "b 1 t"]
    ) -> Float[Array, "b n d"]:
        """Tokens of audio of any length, frequency-major; see `models.vit.Vit`."""
        return self._applied(variables, "tokens", self.levels(audio))

    def project(self, variables: Variables, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Unit embeddings of tokens, however many; see `embed_audio`."""
        if not self.config.contrast_weight:
            return unit(tokens.mean(axis=1))
        return self._applied(variables, "project", tokens)

    def classify(self, variables: Variables, tokens: Float[Array, "b n d"]) -> Float[Array, "b k"]:
        """Logits of the `classes`, of tokens, however many."""
        return self._applied(variables, "classify", tokens)

    def embed_text(
        self, variables: Variables, tokens: Int[Array, "b n"], token_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b d"]:
        """Unit embeddings of tokenised text.

        Raises:
          InputError: there is no text encoder.
        """
        if not self.reads:
            raise InputError(
                "model.text: this M2D-CLAP has no text encoder; give it sentence embeddings of "
                "the model that it was trained with."
            )
        return self._applied(variables, "read", {"tokens": tokens, "token_mask": token_mask}, False)

    def embed_sentences(
        self, variables: Variables, sentences: Float[Array, "b e"]
    ) -> Float[Array, "b d"]:
        """Unit embeddings of sentence embeddings; see `CachedSentences`."""
        if not self.sentence_width:
            raise InputError("model.text: this M2D-CLAP takes no sentence embeddings; give texts.")
        return self._applied(variables, "read", {"sentence": sentences}, False)

    @property
    def reads(self) -> bool:
        """Whether it has a text encoder."""
        return isinstance(self.config.text, TextConfig) and bool(self.config.contrast_weight)

    def levels(self, audio: Float[Array, "b 1 t"]) -> Float[Array, "b l m"]:
        """Normalised log-mel of audio of any length."""
        return self._normalised(self._log_mel(audio))

    def _log_mel(self, audio: Float[Array, "b 1 t"]) -> Float[Array, "b l m"]:
        mel = self.config.mel
        heard = features.resample(audio[:, 0], self.config.sample_rate_hz, mel.sample_rate_hz)
        return features.log_mel(heard, mel)

    def _normalised(self, log_mel: Float[Array, "b l m"]) -> Float[Array, "b l m"]:
        mean, deviation = self.config.normalisation or (0.0, 1.0)
        return (log_mel - mean) / deviation

    def _training_levels(
        self, batch: Batch, rng: jax.Array | None
    ) -> tuple[Float[Array, "b l m"], Float[Array, "b k"] | None]:
        """Levels and categories; cropped, mixed and masked where there is a key."""
        config, categories = self.config, batch.get("categories") if self.classes else None
        log_mel = self._log_mel(batch["audio"])
        if rng is None:
            return self._normalised(log_mel), categories
        for_crop, for_mixup, for_masks = jax.random.split(rng, 3)
        if config.crop_frames is not None:
            log_mel = random_crop(for_crop, log_mel, config.crop_frames)
        if config.mixup:
            log_mel, categories = mixed_up(for_mixup, log_mel, categories, config.mixup)
        hidden = Augmentation(config.spec_augment, 0.0, lambda: for_masks)
        return hidden.masked(self._normalised(log_mel)), categories

    def _applied(self, variables: Variables, method: str, *inputs: Any) -> Array:
        params = {"params": variables["params"]}
        return cast(Array, self.module.apply(params, *inputs, method=method))
