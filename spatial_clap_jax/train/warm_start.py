"""Pretrained towers as the start of a run: their shape and their weights.

An encoder is not only its weights: its width, its positions, its front end and its tokenizer belong
to it. So `adopt` replaces what the experiment says of an encoder by what its source says, but for
what only training knows (dropout) and for the length that texts are padded to. ELSA's branch is
pre-trained by this library, and comes out of that run's folder.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from spatial_clap_jax.configs_io import from_plain
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.mapping import Entry, Left, Report, Taking
from spatial_clap_jax.pretrained.ours import (
    audio_tower_of,
    find_export,
    read_exported,
    take_part,
)
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower
from spatial_clap_jax.pretrained.towers import below, inside, shortened
from spatial_clap_jax.systems.attributes import AttributesConfig
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.checkpoint import load_params
from spatial_clap_jax.train.description import has_description, read_description
from spatial_clap_jax.train.experiment import Experiment, InitConfig
from spatial_clap_jax.train.optim import map_by_path, matches

# What a source decides of the model's shape.
_AUDIO = ("content", "content_mel", "content_normalisation", "mel", "normalisation")
_TEXT = ("text", "projected")
_BRANCH = ("attributes", "intensity", "intensity_scale")
_HEARD = ("content", "content_mel", "content_normalisation")
_PLACED = ("spatial", "spatial_planes", "spatial_mel")
_STAGES: dict[type, tuple[str, ...]] = {
    M2dClapConfig: ("content", "mel", "normalisation", *_TEXT),
    SpatialClapConfig: (*_HEARD, *_PLACED, *_TEXT),
}


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
        for source, names in (
            (init.model, _STAGES.get(type(model), ())),
            (init.audio, _AUDIO),
            (init.text, _TEXT),
            (init.branch, _BRANCH),
        ):
            if source is not None:
                kept = {name: getattr(there, name) for name in names if hasattr(there, name)}
                model = dataclasses.replace(model, **kept)
        return dataclasses.replace(experiment, model=model), Towers()
    towers = Towers()
    if init.model is not None:
        assert isinstance(experiment.loss, ContrastiveConfig)
        model, towers = _with_stage(model, init.model, init.anew, experiment.loss)
    if init.audio is not None:
        model, audio = _with_audio(model, init.audio)
        kept = {p: x for p, x in towers.arrays.items() if not p.startswith("params/content/")}
        towers = dataclasses.replace(
            towers, arrays={**kept, **audio.arrays}, reports=towers.reports + audio.reports
        )
    if init.text is not None:
        model, text = _with_text(model, init.text)
        if text.tokenizer is None and experiment.tokenizer is None:
            raise InputError(
                f"--init.text {init.text}: brings no tokenizer, and its words cannot be guessed; "
                "put its tokenizer.json beside it, or give --tokenizer FILE."
            )
        kept = {path: x for path, x in towers.arrays.items() if not path.startswith("params/text/")}
        towers = Towers({**kept, **text.arrays}, text.tokenizer, towers.reports + text.reports)
    if init.branch is not None:
        model, branch = _with_branch(model, init.branch)
        towers = dataclasses.replace(
            towers,
            arrays={**towers.arrays, **branch.arrays},
            reports=towers.reports + branch.reports,
        )
    return dataclasses.replace(experiment, model=model), towers


def notes_on_drawn(experiment: Experiment, taken: Collection[str]) -> list[str]:
    """What a new run leaves as it was drawn at random, where a person hardly wants that.

    Args:
      experiment: fitted to its towers.
      taken: paths of the variables that are not drawn.

    Returns:
      A line for parts that are frozen though nothing was loaded into them, one for parts that are
      slowed down so, and one for an encoder of M2D-CLAP that is fine-tuned on labels from nothing.
    """
    model, frozen = experiment.model, experiment.optimizer.frozen
    slowed = tuple(rule for rule, rate in experiment.optimizer.rate_rules if rate < 1.0)
    is_m2d = isinstance(model, M2dClapConfig)
    is_tuned = is_m2d and not (model.predicts or model.contrast_weight)
    if not frozen and not slowed and not is_tuned:
        return []
    paths: list[str] = []
    shapes = jax.eval_shape(experiment.build_trainable().init, jax.random.key(0))
    map_by_path(lambda path, leaf: paths.append(path), shapes["params"])
    loaded = {path.partition("/")[0] for path in paths if f"params/{path}" in taken}
    still = {path.partition("/")[0] for path in paths if matches(frozen, path)} - loaded
    slow = {path.partition("/")[0] for path in paths if matches(slowed, path)} - loaded - still
    notes = []
    from_run = ["--init.model RUN"] if type(model) in _STAGES else []
    if slow:
        notes.append(
            f"{', '.join(sorted(slow))}: slowed down (--optimizer.rate-rules) though drawn at "
            "random, as for what has learnt already; "
            + ("--init.model RUN loads it" if from_run else "give the full rate")
        )
    if still:
        options = {"content": "audio", "text": "text", "branch": "branch"}
        known = [f"--init.{options[part]}" for part in sorted(still & options.keys())]
        remedy = " and ".join(from_run if is_m2d else known or from_run)
        notes.append(
            f"{', '.join(sorted(still))}: frozen (--optimizer.frozen) as drawn at random, so that "
            f"nothing of it is ever learnt; {f'{remedy} loads it' if remedy else 'free it'}"
        )
    if is_tuned and "content" not in loaded | still:
        notes.append(
            "content: begins as drawn at random; --init.model RUN loads the encoder of stage 1"
        )
    return notes


def _check_parts(model: Any, init: InitConfig) -> None:
    is_elsa = isinstance(model, ElsaConfig)
    has_stages = type(model) in _STAGES
    reads = isinstance(getattr(model, "text", None), TextConfig)
    for name, source, has_it, what in (
        ("model", init.model, has_stages, "stages"),
        ("audio", init.audio, hasattr(model, "content"), "audio encoder"),
        ("text", init.text, reads, "text encoder"),
        ("branch", init.branch, is_elsa and model.branch == "learned", "learned branch"),
    ):
        if source is not None and not has_it:
            raise InputError(
                f"--init.{name} {source}: the model, {type(model).__name__}, has no {what}; leave "
                "it out."
            )


def _with_stage(
    model: M2dClapConfig | SpatialClapConfig,
    source: str,
    anew: tuple[str, ...],
    loss: ContrastiveConfig,
) -> tuple[Any, Towers]:
    config = "m2d_clap.py" if isinstance(model, M2dClapConfig) else "spatial_clap_labels.py"
    experiment, arrays = _saved("model", source, config)
    ours = model.text
    there = from_plain(Experiment, experiment).model
    if isinstance(model, M2dClapConfig) and isinstance(there, M2dClapConfig):
        model = dataclasses.replace(
            model,
            content=dataclasses.replace(there.content, frames=model.content.frames),
            mel=there.mel,
            normalisation=there.normalisation,
        )
    elif isinstance(model, SpatialClapConfig) and isinstance(there, SpatialClapConfig):
        # A monaural CLAP stays one, and brings no second ear.
        both = model.spatial is not None and there.spatial is not None
        names = (*_HEARD, *_PLACED) if both else _HEARD
        taken = {name: getattr(there, name) for name in names}
        taken["content"] = _with_drops_of(model.content, there.content)
        if isinstance(model.text, TextConfig) and isinstance(there.text, TextConfig):
            # Together, whatever the source pools by.
            taken |= {"text": there.text, "projected": there.projected}
        model = dataclasses.replace(model, **taken)
    else:
        wanted = {M2dClapConfig: "M2D-CLAP", SpatialClapConfig: "Spatial-CLAP"}[type(model)]
        raise InputError(
            f"--init.model {source}: holds a {type(there).__name__}; give a run of {wanted}."
        )
    tokenizer = None
    if isinstance(ours, TextConfig) and isinstance(there.text, TextConfig):
        model = dataclasses.replace(model, text=_with_dropout_of(ours, there.text))
        tokenizer = _saved_tokenizer(source, there.text.max_tokens)
    shapes: dict[str, tuple[int, ...]] = {}
    fresh = jax.eval_shape(model.build(loss).init, jax.random.key(0))
    map_by_path(lambda path, leaf: shapes.update({path: leaf.shape}), fresh)
    for rule in anew:
        if not any(re.search(rule, path.partition("/")[2]) for path in (*arrays, *shapes)):
            raise InputError(f"--init.anew: {rule!r} matches no parameter; mend or leave it out.")
    left = {}
    for path, array in arrays.items():
        if matches(anew, path.partition("/")[2]):
            left[path] = "drawn anew"
        elif shapes.get(path) != array.shape:
            left[path] = "of another shape here" if path in shapes else "no part of this stage"
    # What lies beside it is counted as left, and what is missing is drawn.
    wanted = {path: shape for path, shape in shapes.items() if path in arrays.keys() - left.keys()}
    taking = Taking(source, arrays)
    taken = taking.take([Entry(path, (path,)) for path in wanted], wanted)
    for path in shapes.keys() - wanted.keys():
        taking.make(path, "drawn")
    report = taking.finish([Left(re.escape(path), why) for path, why in left.items()])
    return model, Towers(taken, tokenizer, (report,))


def _with_audio(model: Any, source: str) -> tuple[Any, Towers]:
    if has_description(source):
        experiment, arrays = _saved("audio", source)
        tower = audio_tower_of(source, experiment["model"], arrays)
    else:
        tower = read_audio_tower(source)
    config, is_vit = tower.config, isinstance(tower.config, VitConfig)
    if isinstance(model, M2dClapConfig):
        if not isinstance(config, VitConfig):
            raise InputError(
                f"--init.audio {source}: is an HTSAT, and the encoder of M2D-CLAP a ViT; give "
                "weights of M2D."
            )
        fitted = {
            "content": dataclasses.replace(config, frames=model.content.frames),
            "mel": tower.mel,
            "normalisation": tower.normalisation,
        }
    else:
        fitted = {
            "content": _with_drops_of(model.content, config),
            "content_mel": tower.mel,
        }
        if is_vit:
            fitted["content_normalisation"] = tower.normalisation
    model = dataclasses.replace(model, **fitted)
    return model, Towers(below(tower.arrays, "content"), None, (tower.report,))


def _with_text(model: Any, source: str) -> tuple[Any, Towers]:
    tower = shortened(read_text_tower(source), model.text.max_tokens)
    config, arrays = _with_dropout_of(model.text, tower.config), below(tower.arrays, "text")
    ours = model.text
    if (
        isinstance(model, M2dClapConfig)
        and isinstance(ours, TextConfig)
        and ours.pooling == "first"
    ):
        # Stage 2 takes BERT's first token as it is, not through the pooler.
        config = dataclasses.replace(config, pooling="first")
        arrays = {path: x for path, x in arrays.items() if "/text/pooler/" not in path}
    fitted: dict[str, Any] = {"text": config}
    if isinstance(model, SpatialClapConfig) and config.pooling != "mean":
        # What was made to be pooled otherwise has no tokens to be averaged.
        fitted["projected"] = "text"
    model = dataclasses.replace(model, **fitted)
    return model, Towers(arrays, tower.tokenizer, (tower.report,))


def _with_dropout_of(ours: TextConfig, there: TextConfig) -> TextConfig:
    return dataclasses.replace(
        there, dropout=ours.dropout, attention_dropout=ours.attention_dropout
    )


def _with_drops_of(ours: Any, there: Any) -> Any:
    """A content encoder from elsewhere with what only a training knows of ours."""
    if not isinstance(there, HtsatConfig) or not isinstance(ours, HtsatConfig):
        return there
    return dataclasses.replace(
        there, attention_dropout=ours.attention_dropout, drop_path=ours.drop_path
    )


def _with_branch(model: ElsaConfig, source: str) -> tuple[ElsaConfig, Towers]:
    experiment, arrays = _saved("branch", source, "elsa_attributes.py")
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


def _saved(
    name: str, source: str, config: str = ""
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plain experiment and the variables of a run or of an export."""
    if not has_description(source):
        folder = find_export(source)
        if folder is None:
            raise InputError(
                f"--init.{name} {source}: is neither a run nor an export of one; give the "
                f"--workdir of a training of configs/{config}."
            )
        return read_exported(folder)
    description = read_description(source)
    if not isinstance(description.get("experiment"), dict):
        raise InputError(f"{source}/description.json: has no 'experiment'; restore the file.")
    trees, _ = load_params(source)
    arrays: dict[str, np.ndarray] = {}
    # What is averaged replaces what is not.
    for tree in (trees["variables"], trees.get("average", {})):
        map_by_path(lambda path, leaf: arrays.update({path: leaf}), tree)
    return description["experiment"], arrays


def _saved_tokenizer(source: str, max_tokens: int) -> Tokenizer | None:
    """The tokenizer of a run or of an export."""
    if has_description(source):
        return Tokenizer.from_json(read_description(source)["tokenizer"], max_tokens)
    folder = find_export(source)
    return None if folder is None else Tokenizer.from_folder(folder, max_tokens)
