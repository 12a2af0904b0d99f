"""Pretrained towers as the start of a run: their shape and their weights.

An encoder is not only its weights: its width, its positions, its front end and its tokenizer belong
to it. So `adopt` replaces what the experiment says of an encoder by what its source says, but for
what only training knows (dropout) and for the length that texts are padded to.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.pretrained.mapping import Report
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower
from spatial_clap_jax.pretrained.towers import below, shortened
from spatial_clap_jax.train.experiment import Experiment


@dataclass(frozen=True)
class Towers:
    """What a run takes from elsewhere.

    Attributes:
      arrays: variables by '/'-joined path.
      tokenizer: of the text tower, None without one.
      reports: what was read, one a source.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    reports: tuple[Report, ...] = ()


def adopt(
    experiment: Experiment, resumed: Mapping[str, Any] | None = None
) -> tuple[Experiment, Towers]:
    """Reads the towers that `experiment.init` names, and fits the experiment to them.

    Args:
      experiment: as configured.
      resumed: the plain experiment of the run that goes on, which has adopted them already; its
        checkpoint holds the weights, so the sources are not looked at again.

    Returns:
      The experiment with the encoders of its towers, and the towers.

    Raises:
      InputError: a source cannot be read, or has no such tower.
    """
    model = experiment.model
    init = experiment.init
    if resumed is not None:
        there = from_plain(Experiment, dict(resumed)).model
        if init.audio is not None:
            model = dataclasses.replace(model, content=there.content, content_mel=there.content_mel)
        if init.text is not None:
            model = dataclasses.replace(model, text=there.text)
        return dataclasses.replace(experiment, model=model), Towers()
    towers = Towers()
    if init.audio is not None:
        model, towers = _with_audio(model, init.audio)
    if init.text is not None:
        model, text = _with_text(model, init.text)
        if text.tokenizer is None and experiment.tokenizer is None:
            raise InputError(
                f"--init.text {init.text}: brings no tokenizer, and its words cannot be guessed; "
                "put its tokenizer.json beside it, or give --tokenizer FILE."
            )
        towers = Towers(
            {**towers.arrays, **text.arrays}, text.tokenizer, towers.reports + text.reports
        )
    return dataclasses.replace(experiment, model=model), towers


def _with_audio(model: Any, source: str) -> tuple[Any, Towers]:
    tower = read_audio_tower(source)
    config = tower.config
    if isinstance(model.content, HtsatConfig):
        config = dataclasses.replace(
            config,
            attention_dropout=model.content.attention_dropout,
            drop_path=model.content.drop_path,
        )
    model = dataclasses.replace(model, content=config, content_mel=tower.mel)
    return model, Towers(below(tower.arrays, "content"), None, (tower.report,))


def _with_text(model: Any, source: str) -> tuple[Any, Towers]:
    tower = shortened(read_text_tower(source), model.text.max_tokens)
    config = dataclasses.replace(
        tower.config, dropout=model.text.dropout, attention_dropout=model.text.attention_dropout
    )
    model = dataclasses.replace(model, text=config)
    return model, Towers(below(tower.arrays, "text"), tower.tokenizer, (tower.report,))
