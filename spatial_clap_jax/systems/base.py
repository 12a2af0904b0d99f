"""What training, evaluation and export know of a system, and nothing more."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

# {"params": ..., "batch_stats": ...}, and what else a system trains with: plain pytrees of arrays.
Variables = dict[str, Any]
# What a system that reads no captions asks of a tokenizer: the least that one can have.
UNREAD_VOCABULARY, UNREAD_TOKENS = 300, 8
# The collections that a trained system is used with; others only go with it into files.
_IN_USE = ("params", "batch_stats")
# Arrays of one global batch by name; data/pipeline.py says which.
Batch = dict[str, Array]


def in_use(variables: Variables) -> Variables:
    """The collections without which a system embeds nothing; the others only train it."""
    return {name: variables[name] for name in _IN_USE if name in variables}


def reads_texts(system: "Trainable") -> bool:
    """Whether a system embeds tokens: not sentence embeddings of another model, labels, or nothing.

    A system of which some shapes do not says so by `reads`.
    """
    return getattr(system, "reads", isinstance(system, System))


class Encoded(NamedTuple):
    """What a system's encoders make of a batch, before any example is compared with another.

    Attributes:
      rows: arrays with an entry an example.
      shared: learned scalars that the objective takes, the same for every example.
      batch_stats: the running statistics after this batch.
    """

    rows: dict[str, Array]
    shared: dict[str, Float[Array, ""]]
    batch_stats: Variables


@runtime_checkable
class Trainable(Protocol):
    """What a training step knows of a system: pure functions over a pytree of variables."""

    def init(self, rng: jax.Array) -> Variables:
        """Draws fresh variables."""
        ...

    def encode(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Encoded:
        """Encodes a batch, or a part of one: only running statistics look across examples."""
        ...

    def objective(
        self,
        rows: dict[str, Array],
        shared: dict[str, Float[Array, ""]],
        batch: Batch,
        mesh: Mesh | None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """What is minimised, of one global batch whose rows are split over a mesh.

        Args:
          rows: what `encode` made of all of it.
          shared: from `encode`.
          batch: the global batch.
          mesh: the devices; None for one.

        Returns:
          A float32 scalar, and scalars to log.
        """
        ...


@runtime_checkable
class System(Trainable, Protocol):
    """An audio-text model that trains on captioned scenes and embeds sound and words.

    Attributes:
      sample_rate_hz: rate of the audio that it takes.
      channels: channels of the audio that it takes.
      window_samples: length of the audio that it takes.
      vocabulary: token ids that it knows.
      max_tokens: length of the longest token rows that it takes.
      labels: what its objective wants to know of each row, names of `data.pipeline.LABELS`.
      padding: what fills audio that is shorter: whole repeats of it, then 'zeros'; or these alone.
    """

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def window_samples(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def padding(self) -> Literal["repeat", "zeros"]: ...

    def embed_audio(
        self, variables: Variables, audio: Float[Array, "b c t"]
    ) -> Float[Array, "b d"]:
        """Unit embeddings of audio at the system's rate and length."""
        ...

    def embed_text(
        self, variables: Variables, tokens: Int[Array, "b n"], token_mask: Bool[Array, "b n"]
    ) -> Float[Array, "b d"]:
        """Unit embeddings of tokenised text."""
        ...


@runtime_checkable
class Following(Protocol):
    """A system of which something moves after each update, without a gradient of its own."""

    def after_update(self, variables: Variables, progress: Float[Array, ""]) -> Variables:
        """What a step leaves behind.

        Args:
          variables: with the parameters that the optimiser has moved; all other collections are
            as before the step.
          progress: 0 at the first step of a training, 1 at its last.
        """
        ...


@runtime_checkable
class Labelled(Protocol):
    """A system with labels whose length in a row is its own affair.

    Attributes:
      classes: names of the entries of `categories`, `events` and `rival_events`.
      sentence_width: length of `sentence`; 0 where it takes none.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def sentence_width(self) -> int: ...
