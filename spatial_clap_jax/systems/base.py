"""What training, evaluation and export know of a system, and nothing more."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

# {"params": ..., "batch_stats": ...}: plain pytrees of arrays.
Variables = dict[str, Any]
# Arrays of one global batch by name; data/pipeline.py says which.
Batch = dict[str, Array]


class Loss(NamedTuple):
    """What one forward pass of a system gives to the training step.

    Attributes:
      value: what is minimised, a float32 scalar.
      metrics: scalars to log.
      batch_stats: the running statistics after this batch.
    """

    value: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    batch_stats: Variables


@runtime_checkable
class System(Protocol):
    """An audio-text model as pure functions over a pytree of variables.

    Attributes:
      sample_rate_hz: rate of the audio that it takes.
      channels: channels of the audio that it takes.
      window_samples: length of the audio that it takes.
      max_tokens: length of the longest token rows that it takes.
      padding: what fills audio that is shorter: whole repeats of it, then 'zeros'; or these alone.
    """

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def window_samples(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def padding(self) -> Literal["repeat", "zeros"]: ...

    def init(self, rng: jax.Array) -> Variables:
        """Draws fresh variables."""
        ...

    def loss(self, variables: Variables, batch: Batch, rng: jax.Array, train: bool) -> Loss:
        """The training objective of one global batch."""
        ...

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
