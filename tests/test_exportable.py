"""Every shipped network can be traced with a number of rows that is not known, as exports are."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export as jax_export

from spatial_clap_jax.inference import embedding_functions
from spatial_clap_jax.systems.base import in_use
from spatial_clap_jax.systems.content import CONTENT_NAMES
from spatial_clap_jax.systems.seld import Seld, SeldConfig
from spatial_clap_jax.train.experiment import Experiment, load_config


def traced(experiment: Experiment) -> None:
    if isinstance(experiment.model, SeldConfig):
        experiment = replace(experiment, model=replace(experiment.model, classes=("dog", "rain")))
    system = experiment.build_trainable()
    variables = in_use(jax.eval_shape(system.init, jax.random.key(0)))
    (b,) = jax_export.symbolic_shape("b")

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    if isinstance(system, Seld):
        shapes = {name: rows(*row) for name, row in system.batch_rows().items()}
        del shapes["targets"]
        jax.jit(system.locate).trace(variables, shapes)
        return
    audio, text = embedding_functions(system)
    heard = rows((system.channels, system.window_samples), jnp.float32)
    jax.jit(audio).trace(variables, heard)
    read = (system.max_tokens,)
    jax.jit(text).trace(variables, rows(read, jnp.int32), rows(read, jnp.bool_))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ("seld.py", "quickstart"),
        ("seld.py", "small"),
        ("seld.py", "base"),
        ("seld_crnn.py", "small"),
        ("spatial_clap.py", "small"),
        ("spatial_clap.py", "base"),
        ("elsa.py", "small"),
        ("elsa.py", "base"),
    ],
)
def test_a_shipped_network_is_exported(config, size):
    traced(load_config(config, size))


@pytest.mark.parametrize("content", CONTENT_NAMES)
def test_a_network_with_another_content_encoder_is_exported(content):
    experiment = load_config("spatial_clap.py", "small")
    (encoder, mel), _ = CONTENT_NAMES[content]
    changes = {
        "content": encoder,
        "content_mel": mel,
        "content_normalisation": (-7.0, 4.0) if content == "m2d" else None,
    }
    model: Any = replace(experiment.model, **changes)
    traced(replace(experiment, model=model))
