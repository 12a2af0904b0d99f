"""What a ViT on patches says of recordings of any length: as a whole, and at every moment.

The levels of a recording are cut into inputs of the length that the encoder was trained on, one
behind the other; the last one is as long as what is left, filled up to a whole patch by the mean
level. So nothing is repeated, and nothing but the last moment is padded. One input is encoded at a
time: it has hundreds of tokens, so that a batch would gain little, and what is embedded beside a
recording cannot matter. A program is compiled for every length of a last input, a patch apart.

Reference: the public code of M2D (nttcslab/m2d, `portable_m2d.py`), of which inputs, the filling
  and stacked features are; the times are exact here, and spread evenly over the recording there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Float64

from spatial_clap_jax.data.audio import resample
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.metrics.embed import check_finite
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.systems.base import Variables
from spatial_clap_jax.systems.m2d_clap import M2dClap
from spatial_clap_jax.windows import log_mel_on_host


@dataclass(frozen=True, eq=False)
class PatchTokens:
    """Tokens of recordings of any length, and what is made of them.

    Attributes:
      config: of the encoder.
      mel: its front end.
      normalisation: mean and standard deviation of its levels.
      encode: normalised levels [1, l, m] -> tokens [1, n, d], frequency-major.
      project: tokens [1, n, d], however many -> unit embeddings [1, e].
      tell: tokens [1, n, d], however many -> logits of classes [1, k]; None without classes.
    """

    config: VitConfig
    mel: LogMelConfig
    normalisation: tuple[float, float]
    encode: Callable[..., Any]
    project: Callable[..., Any]
    tell: Callable[..., Any] | None = None

    def embed(
        self, clips: Float32[np.ndarray, "b 1 t"], rate_hz: int
    ) -> Float32[np.ndarray, "b d"]:
        """Unit embeddings of recordings; the tokens of all their inputs are projected together.

        Args:
          clips: recordings of one length and one channel.
          rate_hz: their rate.
        """
        return self._of_all_tokens(self.project, clips, rate_hz)

    def classify(
        self, clips: Float32[np.ndarray, "b 1 t"], rate_hz: int
    ) -> Float32[np.ndarray, "b k"]:
        """Logits of classes; see `embed` for the arguments."""
        assert self.tell is not None
        return self._of_all_tokens(self.tell, clips, rate_hz)

    def frames(
        self, clips: Float32[np.ndarray, "b 1 t"], rate_hz: int
    ) -> tuple[Float32[np.ndarray, "b l d"], Float64[np.ndarray, "l"]]:
        """Features of every moment, and its middle in ms; see `embed` for the arguments.

        A feature holds the tokens of all frequencies, the lowest first.
        """
        levels = [self._levels(clip, rate_hz) for clip in clips]
        grids = np.stack([self._grid(level) for level in levels])
        rows = grids.swapaxes(1, 2).reshape(len(grids), grids.shape[2], -1)
        return check_finite(rows, "audio"), self._times_ms(len(levels[0]))

    def _of_all_tokens(
        self, read: Callable[..., Any], clips: Float32[np.ndarray, "b 1 t"], rate_hz: int
    ) -> Float32[np.ndarray, "b d"]:
        rows = []
        for clip in clips:
            grid = self._grid(self._levels(clip, rate_hz))
            rows.append(np.asarray(read(grid.reshape(1, -1, grid.shape[-1])))[0])
        return check_finite(np.stack(rows), "audio")

    def _levels(self, clip: Float32[np.ndarray, "1 t"], rate_hz: int) -> Float32[np.ndarray, "l m"]:
        heard = resample(clip, rate_hz, self.mel.sample_rate_hz)
        mean, deviation = self.normalisation
        # On the host: a program of the whole would be compiled for every length.
        return (log_mel_on_host(heard[0], self.mel) - np.float32(mean)) / np.float32(deviation)

    def _grid(self, levels: Float32[np.ndarray, "l m"]) -> Float32[np.ndarray, "f l d"]:
        """Tokens over frequency and time."""
        parts = []
        for start, steps in self.config.inputs(len(levels)):
            frames = steps * self.config.patch[1]
            part = levels[start : start + frames]
            part = np.pad(part, ((0, frames - len(part)), (0, 0)))
            tokens = np.asarray(self.encode(part[None]), np.float32)
            parts.append(tokens.reshape(self.config.mel_patches, steps, -1))
        return np.concatenate(parts, axis=1)

    def _times_ms(self, frames: int) -> Float64[np.ndarray, "l"]:
        patch = self.config.patch[1]
        middles = [
            start + step * patch + (patch - 1) / 2
            for start, steps in self.config.inputs(frames)
            for step in range(steps)
        ]
        return np.array(middles) * (1000 * self.mel.hop / self.mel.sample_rate_hz)


def patch_tokens(system: M2dClap, variables: Variables) -> PatchTokens:
    """The tokens of a trained M2D-CLAP, with products in full float32."""

    @jax.jit
    def encode(variables: Variables, levels: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.module.apply({"params": variables["params"]}, levels, method="tokens")

    @jax.jit
    def project(variables: Variables, tokens: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.project(variables, tokens)

    @jax.jit
    def tell(variables: Variables, tokens: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.classify(variables, tokens)

    config = system.config
    return PatchTokens(
        config=config.content,
        mel=config.mel,
        normalisation=config.normalisation or (0.0, 1.0),
        encode=partial(encode, variables),
        project=partial(project, variables),
        tell=partial(tell, variables) if system.classes else None,
    )
