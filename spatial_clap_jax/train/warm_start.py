"""Pretrained towers as the start of a run: their shape and their weights.

An encoder is not only its weights: its width, its positions, its front end and its tokenizer belong
to it. So `adopt` replaces what the experiment says of an encoder by what its source says, but for
what only training knows (dropout) and for the length that texts are padded to. ELSA's branch is
pre-trained by this library, and comes out of that run's folder.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.pretrained.mapping import Report
from spatial_clap_jax.pretrained.ours import find_export, read_exported, take_part
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower
from spatial_clap_jax.pretrained.towers import below, inside, shortened
from spatial_clap_jax.systems.attributes import AttributesConfig
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.description import has_description, read_description
from spatial_clap_jax.train.experiment import Experiment, InitConfig
from spatial_clap_jax.train.optim import map_by_path

# What a source decides of the model's shape.
_AUDIO = ("content", "content_mel")
_TEXT = ("text",)
_BRANCH = ("attributes", "intensity", "intensity_scale")


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
    # Each of the sources is for kinds of models that have what it brings.
    model: Any = experiment.model
    init = experiment.init
    _check_parts(model, init)
    if resumed is not None:
        there: Any = from_plain(Experiment, dict(resumed)).model
        for source, names in zip(
            (init.audio, init.text, init.branch), (_AUDIO, _TEXT, _BRANCH), strict=True
        ):
            if source is not None:
                kept = {name: getattr(there, name) for name in names}
                model = dataclasses.replace(model, **kept)
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
    if init.branch is not None:
        model, branch = _with_branch(model, init.branch)
        towers = dataclasses.replace(
            towers,
            arrays={**towers.arrays, **branch.arrays},
            reports=towers.reports + branch.reports,
        )
    return dataclasses.replace(experiment, model=model), towers


def _check_parts(model: Any, init: InitConfig) -> None:
    is_elsa = isinstance(model, ElsaConfig)
    for name, source, has_it in (
        ("audio", init.audio, hasattr(model, "content")),
        ("text", init.text, hasattr(model, "text")),
        ("branch", init.branch, is_elsa and model.branch == "learned"),
    ):
        if source is not None and not has_it:
            what = "learned branch" if name == "branch" else f"{name} encoder"
            raise InputError(
                f"--init.{name} {source}: the model, {type(model).__name__}, has no {what}; leave "
                "it out."
            )


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


def _with_branch(model: ElsaConfig, source: str) -> tuple[ElsaConfig, Towers]:
    experiment, arrays = _saved(source)
    held = from_plain(Experiment, experiment)
    there = held.model
    if not isinstance(there, AttributesConfig | ElsaConfig) or (
        isinstance(there, ElsaConfig) and there.branch != "learned"
    ):
        raise InputError(
            f"--init.branch {source}: holds a {type(there).__name__} without a learned branch; "
            "give a run of configs/elsa_attributes.py."
        )
    if there.attributes.pooling == "flatten" and there.window_s != model.window_s:
        raise InputError(
            f"--init.branch {source}: has a weight for each frame of {there.window_s:g} s, and the "
            f"model hears {model.window_s:g} s; train both on one length."
        )
    whole = jax.eval_shape(held.build_system().init, jax.random.key(0))
    shapes: dict[str, tuple[int, ...]] = {}
    map_by_path(lambda path, leaf: shapes.update({path: leaf.shape}), whole)
    taken, report = take_part(source, arrays, "branch", inside(shapes, "branch"))
    attributes = dataclasses.replace(there.attributes, dropout=model.attributes.dropout)
    fitted = {name: getattr(there, name) for name in _BRANCH}
    model = dataclasses.replace(model, **{**fitted, "attributes": attributes})
    return model, Towers(below(taken, "branch"), None, (report,))


def _saved(source: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plain experiment and the variables of a run or of an export."""
    if not has_description(source):
        folder = find_export(source)
        if folder is None:
            raise InputError(
                f"--init.branch {source}: is neither a run nor an export of one; give the "
                "--workdir of a training of configs/elsa_attributes.py."
            )
        return read_exported(folder)
    description = read_description(source)
    if not isinstance(description.get("experiment"), dict):
        raise InputError(f"{source}/description.json: has no 'experiment'; restore the file.")
    trees, _ = load_params(source)
    averaged = jax.tree.leaves(trees.get("average", {}))
    arrays: dict[str, np.ndarray] = {}
    map_by_path(
        lambda path, leaf: arrays.update({path: leaf}),
        trees["average" if averaged else "variables"],
    )
    return description["experiment"], arrays
