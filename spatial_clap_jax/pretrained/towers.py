"""What a published checkpoint holds, once it is ours."""

import dataclasses
from typing import Any, Literal, TypeVar

import numpy as np

from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.mapping import Report

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class AudioTower:
    """A pretrained content encoder.

    Attributes:
      config: its shape.
      mel: its front end.
      arrays: variables of `Htsat(config)` or `Vit(config)` by path, `params/` or `batch_stats/`
        first.
      report: what became of the source's tensors.
      normalisation: mean and standard deviation that the levels of a ViT are normalised by; None
        for an HTSAT.
    """

    config: HtsatConfig | VitConfig
    mel: LogMelConfig
    arrays: dict[str, np.ndarray]
    report: Report
    normalisation: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class TextTower:
    """A pretrained text encoder.

    Attributes:
      config: its shape and habits.
      arrays: variables of `TextEncoder(config)` by path, `params/` first.
      tokenizer: of its vocabulary; None where the source brings none.
      report: what became of the source's tensors.
    """

    config: TextConfig
    arrays: dict[str, np.ndarray]
    tokenizer: Tokenizer | None
    report: Report

    def __post_init__(self) -> None:
        # An id beyond the table would be read as the last row, in silence.
        if self.tokenizer and self.tokenizer.vocabulary_size > self.config.vocabulary:
            raise InputError(
                f"{self.report.source}: the tokenizer has {self.tokenizer.vocabulary_size} tokens "
                f"and the text encoder knows {self.config.vocabulary}; give the tokenizer of its "
                "vocabulary."
            )


@dataclasses.dataclass(frozen=True)
class ClapWeights:
    """A whole CLAP: two encoders, their projections into one space, and its scales.

    Attributes:
      audio: content encoder.
      text: text encoder.
      arrays: `params/` of audio_projection, text_projection, logit_scale_audio and
        logit_scale_text, by path.
      joint_width: width of the joint space.
      window_s: seconds of audio that it takes.
      padding: what fills a shorter clip: 'repeat' (whole repeats, then zeros) or 'zeros'.
      report: what became of the source's tensors.
    """

    audio: AudioTower
    text: TextTower
    arrays: dict[str, np.ndarray]
    joint_width: int
    window_s: float
    padding: Literal["repeat", "zeros"]
    report: Report

    @property
    def htsat(self) -> HtsatConfig:
        """Shape of the content encoder, which is an HTSAT in every CLAP of this kind."""
        config = self.audio.config
        assert isinstance(config, HtsatConfig)
        return config


def below(arrays: dict[str, T], name: str) -> dict[str, T]:
    """Variables (or their shapes) of a module as those of a sub-module `name` of another.

    Example:
      >>> list(below({"params/norm/scale": scale}, "text"))
      ['params/text/norm/scale']
    """
    moved = {}
    for path, array in arrays.items():
        collection, rest = path.split("/", 1)
        moved[f"{collection}/{name}/{rest}"] = array
    return moved


def inside(arrays: dict[str, T], name: str) -> dict[str, T]:
    """The variables (or shapes) of a sub-module, as of a module by itself; undoes `below`."""
    parts = {tuple(path.split("/", 2)): array for path, array in arrays.items()}
    return {
        f"{collection}/{rest[0]}": array
        for (collection, top, *rest), array in parts.items()
        if top == name and rest
    }


def shortened(tower: TextTower, max_tokens: int) -> TextTower:
    """The tower for shorter texts, of which it computes the same.

    Args:
      tower: with a table of positions, or a bias of distance.
      max_tokens: length that texts will be padded to; a greater one than the tower's is cut
        to that.
    """
    config = tower.config
    shorter = dataclasses.replace(config, max_tokens=min(max_tokens, config.max_tokens))
    if shorter == config:
        return tower
    tokenizer = _cut(tower.tokenizer, shorter.max_tokens)
    if config.positions != "absolute":
        return dataclasses.replace(tower, config=shorter, tokenizer=tokenizer)
    path = "params/positions/embedding"
    table = tower.arrays[path]
    rows = shorter.max_tokens + config.position_offset
    cut = (f"{path} rows {rows} to {len(table) - 1}", "positions of longer texts")
    return TextTower(
        config=shorter,
        arrays={**tower.arrays, path: np.ascontiguousarray(table[:rows])},
        tokenizer=tokenizer,
        report=dataclasses.replace(tower.report, left=(*tower.report.left, cut)),
    )


def _cut(tokenizer: Tokenizer | None, max_tokens: int) -> Any:
    return tokenizer and Tokenizer.from_json(tokenizer.to_json(), max_tokens)
