"""How soon a text encoder binds a place to its clause, by its positions and its projection.

    python benchmarks/text_positions.py

Captions of two sources and those of the same sources at exchanged places are held to targets that a
perfect audio side would give: the sum of a fixed random vector for each (content, direction).
Nothing but the text encoder and two projections learns. Every 50 steps new captions are asked
whether their own target is nearer than that of the exchanged places; at the end, captions of three
sources, which were never trained on, among all six permutations.
"""

import itertools
import json as json_module
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from spatial_clap_jax.acoustics.captions import category_phrasings, compose_caption
from spatial_clap_jax.data.synthetic import CATEGORIES
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.losses.contrastive import info_nce
from spatial_clap_jax.models.layers import ProjectionMlp, unit
from spatial_clap_jax.models.text import TextConfig, TextEncoder, mean_over_tokens

_PAIRS, _SCALE, _DIRECTIONS = 32, 20.0, 5


class Towers(nn.Module):
    """A text encoder, and a linear layer in place of an audio encoder."""

    text: TextConfig
    projected: str

    @nn.compact
    def __call__(self, tokens, mask, targets):
        read = TextEncoder(self.text, name="encoder")(tokens, mask)
        projection = ProjectionMlp(512, 256, name="projection")
        if self.projected == "tokens":
            said = mean_over_tokens(projection(read.hidden), mask)
        else:
            said = projection(read.pooled)
        return unit(said), unit(nn.Dense(256, name="heard")(targets))


class Captions:
    """Captions and targets of drawn scenes, each with all its permutations side by side."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.phrasings = [category_phrasings(name) for name in CATEGORIES]
        self.vectors = np.random.default_rng(0).normal(size=(len(CATEGORIES), _DIRECTIONS, 64))

    def draw(self, scenes: int, sources: int) -> tuple[list[str], np.ndarray]:
        captions, targets = [], []
        for _ in range(scenes):
            contents = self.rng.permutation(len(self.phrasings))[:sources]
            places = self.rng.permutation(_DIRECTIONS)[:sources]
            for order in itertools.permutations(range(sources)):
                there = places[list(order)]
                said = [self.phrasings[c][self.rng.integers(4)] for c in contents]
                mentioned = self.rng.permutation(sources).tolist()
                captions.append(compose_caption(said, there.tolist(), mentioned))
                targets.append(self.vectors[contents, there].sum(axis=0))
        return captions, np.stack(targets).astype(np.float32)


def main(
    positions: tuple[str, ...] = ("alibi", "absolute", "sided"),
    projected: tuple[str, ...] = ("text", "tokens"),
    steps: int = 250,
    learning_rate: float = 2e-3,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Trains an encoder for each kind of positions and of projection.

    Args:
      positions: values of `TextConfig.positions`.
      projected: values of `SpatialClapConfig.projected`.
      steps: training steps of 32 scenes with both permutations.
      learning_rate: highest one of AdamW; a quarter of the steps warm up, then a cosine.
      seed: of weights and captions.
      json: print a line of JSON for each.
    """
    small = TextConfig(
        1024, width=128, layers=2, heads=4, mlp_width=512, max_tokens=48, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    for kind, what in itertools.product(positions, projected):
        config = replace(small, positions=kind)
        curve, three = learn(config, what, steps, learning_rate, seed)
        if json:
            found = {"positions": kind, "projected": what, "two": curve, "three": three}
            print(json_module.dumps(found))
            continue
        points = "  ".join(f"{step}: {100 * share:.1f}" for step, share in curve.items())
        print(
            f"{kind:>9} {what:>6}  two sources (chance 50)  {points}  three (17) {100 * three:.1f}"
        )


def learn(
    config: TextConfig, projected: str, steps: int, learning_rate: float, seed: int
) -> tuple[dict[int, float], float]:
    """Shares of right answers for two sources as training goes on, and for three at its end."""
    captions, asked = Captions(seed), Captions(seed + 1)
    tokenizer = Tokenizer.train(captions.draw(1000, 2)[0], config.vocabulary, config.max_tokens)
    towers = Towers(config, projected)

    def inputs(drawn: tuple[list[str], np.ndarray]) -> tuple[Any, ...]:
        return *tokenizer.encode(drawn[0]), drawn[1]

    params = towers.init(jax.random.key(seed), *inputs(captions.draw(1, 2)))
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, max(steps // 4, 1), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    state = optimizer.init(params)
    embed = jax.jit(towers.apply)

    @jax.jit
    def step(params, state, *batch):
        def loss(params):
            said, heard = towers.apply(params, *batch)
            return info_nce(heard, said, _SCALE, jnp.arange(len(said)))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def share(scenes: int, sources: int) -> float:
        members = len(list(itertools.permutations(range(sources))))
        said, heard = embed(params, *inputs(asked.draw(scenes, sources)))
        said, heard = (np.asarray(x).reshape(scenes, members, -1) for x in (said, heard))
        chosen = np.einsum("shd,scd->shc", heard, said).argmax(axis=-1)
        return float((chosen == np.arange(members)).mean())

    curve = {}
    for number in range(1, steps + 1):
        params, state = step(params, state, *inputs(captions.draw(_PAIRS, 2)))
        if number % 50 == 0 or number == steps:
            curve[number] = share(200, 2)
    return curve, share(60, 3)


if __name__ == "__main__":
    tyro.cli(main)
