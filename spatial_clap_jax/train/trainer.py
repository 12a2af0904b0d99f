"""The training loop, on one screen; it resumes by itself."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spatial_clap_jax.acoustics.directions import phrase_set
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.builders import open_scenes
from spatial_clap_jax.data.labels import LABELS, check_clips, check_labels
from spatial_clap_jax.data.pipeline import TrainBatches, train_batches
from spatial_clap_jax.data.rewritten import read_rewrites
from spatial_clap_jax.data.sentences import Sentences
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.systems.base import Labelled
from spatial_clap_jax.train import processes, sharding, warm_start
from spatial_clap_jax.train.checkpoint import RunCheckpoints, has_checkpoints
from spatial_clap_jax.train.chips import peak_flops
from spatial_clap_jax.train.description import (
    has_description,
    read_description,
    write_description,
)
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.fitting import fitted_to_data
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.metrics_log import MetricsLog
from spatial_clap_jax.train.optim import make_optimizer
from spatial_clap_jax.train.progress import TrainProgress
from spatial_clap_jax.train.step import TrainState, TrainStep, init_state, jit_step

# What may change from one start of a run to the next: it changes no result.
_FREE_TO_CHANGE = ("log_every", "checkpoint_every", "keep", "keep_every", "wandb", "tokenizer")
_FREE_TO_CHANGE_IN = {"data": ("workers", "threads", "prefetch"), "init": ("verbose",)}


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Attributes:
      workdir: the run's folder, which holds its checkpoints and logs.
      step: steps done.
      metrics: the last logged row.
    """

    workdir: Path
    step: int
    metrics: dict[str, float]


def train(
    experiment: Experiment, data: str | Path, workdir: str | Path, *, progress: bool = True
) -> TrainResult:
    """Trains to `experiment.steps`, from the newest checkpoint of `workdir` if it has one.

    Args:
      experiment: the run.
      data: folder of rendered scenes.
      workdir: the run's folder; made when missing.
      progress: show a progress bar (or, where there is no terminal, lines).

    Returns:
      Where the run ended.

    Raises:
      InputError: the data or the folder do not fit the experiment.
    """
    workdir = Path(workdir)
    scenes = open_scenes(data)
    with ExitStack() as stack:
        resumed = _resumed(workdir)
        experiment = fitted_to_data(experiment, scenes, resumed)
        experiment, towers = warm_start.adopt(experiment, resumed)
        tokenizer, description = check_run(experiment, scenes, workdir, towers.tokenizer)
        told = content_labels(experiment, scenes.manifest)
        captions = experiment.data.captions_per_batch
        mesh = sharding.make_mesh(shape=experiment.mesh)
        rows = sharding.rows_here(mesh, captions)
        start, step = build_state_and_step(experiment, mesh)
        processes.wait_for_all("checked")
        checkpoints = RunCheckpoints(workdir, experiment.keep, experiment.keep_every)
        stack.callback(checkpoints.close)
        if description is not None:
            write_description(workdir, description)
            processes.wait_for_all("described")
            # What process 0 has written counts, for all.
            found = read_description(workdir)
            tokenizer = Tokenizer.from_json(found["tokenizer"], found["max_tokens"])
        batches = train_batches(
            scenes,
            experiment.data,
            tokenizer,
            scl=experiment.loss.scl,
            seed=experiment.seed,
            rows=rows.tolist(),
            labels=experiment.build_system().labels,
            rewrites=read_rewrites(data) if experiment.data.rewritten_share else None,
            **told,
        )
        stack.callback(batches.close)
        state, done = restore_or_init(start, towers.arrays, checkpoints, batches)
        log = MetricsLog(workdir, done if done else None, wandb=experiment.wandb)
        stack.callback(log.close)
        bar = stack.enter_context(
            TrainProgress(
                experiment.steps, captions, workers=experiment.data.workers, show=progress
            )
        )
        bar.announce(f"{experiment.name}: {sharding.describe_devices()}; from step {done}")
        for note in long_captions(tokenizer, scenes.manifest["caption_corpus"]):
            bar.announce(note)
        for report in towers.reports:
            for line in report.lines if experiment.init.verbose else [report.summary]:
                bar.announce(line)

        row: dict[str, float] = {}
        metrics: dict[str, Any] = {}
        steps = range(done + 1, experiment.steps + 1)
        if steps:
            # Built while the step compiles.
            batches.start_prefetch()
            program = compile_step(step, state, abstract_batch(experiment, mesh), bar)
        for finished, batch in zip(steps, _on_devices(batches, mesh, captions, bar), strict=False):
            with jax.transfer_guard("disallow"):
                previous, (state, metrics) = metrics, program(state, batch)
            # The step before is waited for, so that the host runs one step ahead, no more.
            jax.block_until_ready(previous)
            last = finished == experiment.steps
            bar.advance(finished)
            if finished % experiment.log_every == 0 or last:
                row = {name: float(value) for name, value in jax.device_get(metrics).items()}
                row |= bar.rates()
                log.write(finished, row)
                bar.show(finished, row)
            if finished % experiment.checkpoint_every == 0 or last:
                checkpoints.save(finished, state._asdict(), batches.get_state(), wait=last)
        return TrainResult(workdir, max(done, experiment.steps), row)


def _resumed(workdir: Path) -> dict[str, Any] | None:
    """The experiment of the run that a folder's checkpoints belong to; None without any."""
    if not has_checkpoints(workdir):
        return None
    if not has_description(workdir):
        raise InputError(
            f"{workdir}: has checkpoints but no description.json; put it back, or take "
            "another --workdir."
        )
    return read_description(workdir).get("experiment")


def _on_devices(
    batches: TrainBatches, mesh: Mesh, captions: int, bar: TrainProgress
) -> Iterator[dict]:
    """Batches on the devices; the time that the loop waits for them is counted."""
    while True:
        began = time.perf_counter()
        batch = sharding.put_batch(next(batches), mesh, captions)
        bar.waited(time.perf_counter() - began)
        yield batch


def compile_step(step: Any, state: TrainState, batch: Any, bar: TrainProgress) -> Any:
    """Compiles the step, and tells the bar what it costs.

    Args:
      step: see `build_state_and_step`.
      state: the state, or its shapes with shardings.
      batch: a batch on the devices, or its shapes with shardings.
      bar: counts time from here on.

    Returns:
      The compiled step.
    """
    began = time.perf_counter()
    traced = step.trace(state, batch)
    flops = count_flops(traced.jaxpr)
    program = traced.lower().compile()
    seconds = time.perf_counter() - began
    bar.announce(f"step compiled in {seconds:.0f} s; {flops / 1e9:,.1f} GFLOPs a step")
    device = jax.devices()[0]
    bar.started(flops, peak_flops(device.device_kind, len(jax.devices())), device.device_kind)
    return program


def abstract_batch(experiment: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of `data.pipeline`, split over a mesh."""
    system, captions = experiment.build_system(), experiment.data.captions_per_batch
    rows = {
        "audio": ((system.channels, system.window_samples), jnp.float32),
        "tokens": ((system.max_tokens,), jnp.int32),
        "token_mask": ((system.max_tokens,), jnp.bool_),
        "group": ((), jnp.int32),
        "meaning": ((), jnp.int32),
    }
    rows |= {name: LABELS[name] for name in system.labels if name in LABELS}
    if isinstance(system, Labelled):
        widths = {"sentence": system.sentence_width, "categories": len(system.classes)}
        rows |= {name: ((widths[name],), jnp.float32) for name in system.labels if name in widths}
    if experiment.data.rivals:
        rows |= {f"rival_{name}": rows[name] for name in ("tokens", "token_mask")}
        rows["has_rival"] = ((), jnp.bool_)
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((captions, *shape), dtype, sharding=place)
        for name, (shape, dtype) in rows.items()
    }


def content_labels(experiment: Experiment, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the labels of contents are read from: `sentences` and `classes`, for `train_batches`.

    Args:
      experiment: says where they are.
      manifest: of the data.

    Raises:
      InputError: the model wants what is not there, or what the data lack.
    """
    system = experiment.build_system()
    if not isinstance(system, Labelled):
        return {}
    folder, width = experiment.data.sentences, system.sentence_width
    sentences = Sentences(folder) if folder is not None and width else None
    if sentences is not None and sentences.width != width:
        raise InputError(
            f"data.sentences: {folder} holds vectors of {sentences.width}, but the model takes "
            f"{width}; set --model.text.width, or embed the captions by another encoder."
        )
    check_labels(system.labels, sentences, system.classes)
    check_clips(manifest, system.labels, sentences, system.classes)
    return {"sentences": sentences, "classes": system.classes}


def build_state_and_step(experiment: Experiment, mesh: Mesh) -> tuple[Any, Any]:
    """The initial state as a jitted function with shardings, and the jitted step.

    Args:
      experiment: the run.
      mesh: the devices.

    Returns:
      `start`, a jitted function of the arrays that are loaded, by path, that draws the rest of
      the sharded `TrainState`, and `step(state, batch) -> (state, metrics)`.
    """
    system = experiment.build_system(mesh.devices.flat[0].platform)
    key = jax.random.key(experiment.seed)
    shapes = jax.eval_shape(system.init, key)["params"]
    optimizer = make_optimizer(experiment.optimizer, experiment.steps, shapes)
    averaged = experiment.ema_decay is not None
    fresh = partial(init_state, system, optimizer, key, averaged=averaged)
    of_parameters = sharding.shard_by_rules(shapes, sharding.parameter_rules(experiment.mesh), mesh)
    shardings = sharding.shard_like_parameters(
        jax.eval_shape(fresh, {}), shapes, of_parameters, mesh
    )
    start = jax.jit(fresh, out_shardings=shardings)
    step = TrainStep(
        system=system,
        optimizer=optimizer,
        rng=jax.random.fold_in(key, 1),
        ema_decay=experiment.ema_decay,
        frozen=experiment.optimizer.frozen,
        mesh=mesh,
        execution=experiment.execution,
        steps=experiment.steps,
    )
    return start, jit_step(step, shardings, sharding.batch_sharding(mesh))


def restore_or_init(
    start: Any,
    loaded: Mapping[str, np.ndarray],
    checkpoints: RunCheckpoints,
    batches: TrainBatches,
) -> tuple[TrainState, int]:
    """The newest checkpoint's state with its place in the data, or a fresh state.

    Args:
      start: see `build_state_and_step`.
      loaded: what a fresh state does not draw.
      checkpoints: of the run.
      batches: whose place is set.

    Returns:
      The state, and the number of steps that it has done.
    """
    done = checkpoints.latest()
    if done is None:
        return start(dict(loaded)), 0
    abstract = jax.tree.map(
        lambda shape, like: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=like),
        start.eval_shape({}),
        start.lower({}).compile().output_shardings,
    )
    saved, data_state = checkpoints.restore(abstract._asdict(), done)
    batches.set_state(data_state)
    return TrainState(**saved), done


def check_run(
    experiment: Experiment, scenes: Any, workdir: Path, tokenizer: Tokenizer | None = None
) -> tuple[Tokenizer, dict[str, Any] | None]:
    """Checks that experiment, data and folder fit each other; writes nothing.

    Args:
      experiment: the run.
      scenes: the opened data.
      workdir: the run's folder.
      tokenizer: of the text encoder that the run starts from.

    Returns:
      The run's tokenizer: the one in `workdir` on a resume, else the experiment's, else that of
      its text encoder, else a small one trained on the captions of the data. And what makes a
      new run loadable without its command; None on a resume, where the folder has it.

    Raises:
      InputError: the folder holds a run of another experiment or other data, or the data
        do not fit the model.
    """
    plain = to_plain(experiment)
    fingerprint = scenes.manifest["fingerprint"]
    if has_description(workdir):
        found = read_description(workdir)
        for key in ("experiment", "data_fingerprint", "tokenizer", "max_tokens"):
            if key not in found:
                raise InputError(
                    f"{workdir}/description.json: has no {key!r}; restore the file, or take "
                    "another --workdir."
                )
        differences = _differences(_comparable(found["experiment"]), _comparable(plain))
        if found["data_fingerprint"] != fingerprint:
            differences.append("data: another recipe, seed or source")
        if differences:
            raise InputError(
                f"{workdir}: holds a run that differs: {'; '.join(differences)}; "
                "take another --workdir, or the same settings."
            )
        return Tokenizer.from_json(found["tokenizer"], found["max_tokens"]), None
    system = experiment.build_system()
    recipe, corpus = scenes.manifest["recipe"], [*scenes.manifest["caption_corpus"]]
    for phrases in experiment.data.phrases:
        corpus += [phrase for phrase in phrase_set(phrases) if phrase not in corpus]
    rate, seconds = recipe["sample_rate_hz"], recipe["duration_s"]
    if rate != system.sample_rate_hz or round(rate * seconds) != system.window_samples:
        raise InputError(
            f"--data: scenes of {seconds:g} s at {rate} Hz, but the model takes "
            f"{system.window_samples / system.sample_rate_hz:g} s at {system.sample_rate_hz} Hz; "
            "render scenes of that length and rate, or set --model.window-s."
        )
    heard = channels_of(recipe)
    if heard != system.channels:
        raise InputError(
            f"--data: scenes of {heard} channels, but the model takes {system.channels}; render "
            "scenes for its receiver (configs/scenes.py for two microphones, "
            "configs/elsa_scenes.py for ambisonics, configs/clips.py for one channel), or train "
            "another model."
        )
    vocabulary = system.vocabulary
    if experiment.tokenizer is None and tokenizer is None:
        # The words that join captions are learned too.
        joined = [f"{a}, and {b}." for a, b in pairwise(corpus)]
        tokenizer = Tokenizer.train(joined, vocabulary, system.max_tokens)
    elif experiment.tokenizer is not None:
        tokenizer = Tokenizer.from_file(experiment.tokenizer, system.max_tokens)
        if tokenizer.vocabulary_size > vocabulary:
            raise InputError(
                f"--tokenizer {experiment.tokenizer}: has {tokenizer.vocabulary_size} tokens, the "
                f"model takes {vocabulary}; set --model.text.vocabulary."
            )
    assert tokenizer is not None
    description = {
        "experiment": plain,
        "data_fingerprint": fingerprint,
        "data": {"source": scenes.manifest["source"]["name"], "recipe": recipe["name"]},
        "tokenizer": tokenizer.to_json(),
        "max_tokens": system.max_tokens,
        "preprocessing": {
            "sample_rate_hz": system.sample_rate_hz,
            "channels": system.channels,
            "window_samples": system.window_samples,
        },
    }
    return tokenizer, description


def channels_of(recipe: Mapping[str, Any]) -> int:
    """Channels of the scenes of a plain recipe: its receiver's."""
    # Two microphones were the only receiver before it said which.
    return {"Foa": 4, "Mono": 1}.get(recipe.get("receiver", {}).get("kind"), 2)


def long_captions(tokenizer: Tokenizer, corpus: list[str]) -> list[str]:
    """A note where the longest captions of two sources are cut in training, else nothing."""
    one, other = sorted(corpus, key=len)[-2:]
    try:
        tokenizer.encode([f"{one} in the front-left, and {other} in the front-right."])
    except InputError as error:
        return [f"captions as long as this are cut; --model.text.max-tokens raises it: {error}"]
    return []


def _comparable(experiment: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in experiment.items() if k not in _FREE_TO_CHANGE}
    for part, free in _FREE_TO_CHANGE_IN.items():
        kept[part] = {k: v for k, v in experiment.get(part, {}).items() if k not in free}
    return kept


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Dotted keys with both values, where two plain trees differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            line
            for key in sorted(there.keys() | here.keys())
            for line in _differences(there.get(key), here.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if there == here else [f"{path} {there!r} there, {here!r} here"]
