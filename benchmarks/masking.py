"""A stage-1 step of M2D-CLAP at mask ratio 0.7 beside two that show the encoder all patches.

    python benchmarks/masking.py                                        # ViT-B on this machine
    python benchmarks/masking.py --batch 256 --precision bfloat16       # on an accelerator

Each side is a whole step of configs/m2d_clap.py: front end, encoders, predictor, losses, gradients,
optimiser, moving average. Ours runs the online encoder on the patches that are seen and the target
on those that are masked. There are two peers, timed in one run:

- all patches: the same step, with the same masks and the same predictor, whose two encoders both
  run on all patches, and whose tokens that are not wanted are dropped behind them. Ours should
  take at most 0.6 of its time.
- no masks: the step of `--model.mask-ratio 0`, one encoder on all patches, with neither target nor
  predictor: language alone.

FLOPs stand beside the times.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from side_by_side import compare, report, use_threads

from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.m2d import Masks
from spatial_clap_jax.models.vit import VitOutput, take_tokens, vit_blocks
from spatial_clap_jax.systems.base import Variables
from spatial_clap_jax.systems.m2d_clap import M2dClap, M2dClapConfig
from spatial_clap_jax.systems.m2d_clap_module import M2dClapModule
from spatial_clap_jax.train.experiment import Experiment, compute_dtype, load_config
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.sharding import batch_sharding, make_mesh
from spatial_clap_jax.train.step import Execution
from spatial_clap_jax.train.trainer import build_state_and_step


class WholeModule(M2dClapModule):
    """Both encoders see every patch, whatever is wanted of them."""

    def see(self, patches: Float[Array, "b n d"], masks: Masks | None, train: bool) -> VitOutput:
        """The wanted ones of the tokens of all patches."""
        seen = self.content.encode(patches, train)
        return seen if masks is None else VitOutput(take_tokens(seen.tokens, masks.kept), seen.cls)

    def aim(
        self, patches: Float[Array, "b n d"], masks: Masks, target: Variables
    ) -> Float[Array, "b h d"]:
        """The target's tokens of the masked patches, of which it has seen all."""
        blocks = vit_blocks(self.config.content, self.dtype)
        shown = jax.lax.stop_gradient(self.content.with_cls(patches))
        tokens = cast(Array, blocks.apply({"params": target}, shown))
        return take_tokens(tokens[:, 1:], masks.masked)


class Whole(M2dClap):
    """The system of `WholeModule`."""

    @cached_property
    def module(self) -> WholeModule:
        return WholeModule(self.config, self.contrast.initial_scale, self.dtype)


@dataclass(frozen=True)
class WholeConfig(M2dClapConfig):
    """The shape of `Whole`."""

    def build(self, loss: ContrastiveConfig, dtype: DTypeLike = jnp.float32) -> Whole:
        return Whole(self, loss, dtype)


def main(
    size: Literal["quickstart", "small", "base"] = "base",
    mask_ratio: float = 0.7,
    batch: int = 8,
    threads: int = 2,
    repeats: int = 5,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    scan_layers: bool = True,
    json: bool = False,
) -> None:
    """Times whole training steps and prints a table a peer.

    Args:
      size: of configs/m2d_clap.py.
      mask_ratio: share of the patches that is masked.
      batch: clips a step.
      threads: cores for each side.
      repeats: timed steps of each side of a table.
      precision: of the computation; auto is bfloat16 on accelerators.
      scan_layers: compile equal layers once, which takes a fraction of the time on a CPU.
      json: print a line of JSON a peer.
    """
    use_threads(threads)
    execution = Execution(scan_layers=scan_layers)
    experiment = replace(load_config("m2d_clap.py", size), precision=precision, execution=execution)
    model = experiment.model
    assert isinstance(model, M2dClapConfig)
    model = replace(model, mask_ratio=mask_ratio)
    whole = WholeConfig(**{field.name: getattr(model, field.name) for field in fields(model)})
    ours, flops = step_of(replace(experiment, model=model), batch)
    name = f"stage-1 step, {size}, mask ratio {mask_ratio:g}"
    found, of_peers = [], {}
    for peer_name, peer_model in (
        ("all patches", cast(Any, whole)),
        ("no masks", replace(model, mask_ratio=0.0)),
    ):
        peer, of_peers[peer_name] = step_of(replace(experiment, model=peer_model), batch)
        found.append(compare(ours, peer, repeats, warmups=2, name=name, peer_name=peer_name))
    settings = {
        "batch": batch,
        "threads": threads,
        "repeats": repeats,
        "scan_layers": scan_layers,
        "precision": str(jnp.dtype(compute_dtype(precision))),
        "device": jax.devices()[0].device_kind,
        "gflops": flops / 1e9,
        "gflops_all_patches": of_peers["all patches"] / 1e9,
        "gflops_no_masks": of_peers["no masks"] / 1e9,
        "flops_ratio_all_patches": flops / of_peers["all patches"],
        "flops_ratio_no_masks": flops / of_peers["no masks"],
    }
    report(found, settings, json)


def batch_of(experiment: Experiment, clips: int) -> dict[str, np.ndarray]:
    """Random clips with captions of every kind that the system may take."""
    system, rng = experiment.build_system(), np.random.default_rng(0)
    assert isinstance(system, M2dClap)
    audio = 0.1 * rng.standard_normal((clips, 1, system.window_samples))
    arrays = {
        "audio": audio.astype(np.float32),
        "tokens": rng.integers(4, system.vocabulary, (clips, system.max_tokens), np.int32),
        "token_mask": np.ones((clips, system.max_tokens), bool),
        "group": np.arange(clips, dtype=np.int32),
        "meaning": np.arange(clips, dtype=np.int32),
    }
    if system.sentence_width:
        sentence = rng.standard_normal((clips, system.sentence_width))
        arrays["sentence"] = sentence.astype(np.float32)
    return arrays


def step_of(experiment: Experiment, clips: int):
    """A call that takes one step from waveforms, and its FLOPs."""
    mesh = make_mesh(jax.devices()[:1])
    start, step = build_state_and_step(experiment, mesh)
    placed = jax.device_put(batch_of(experiment, clips), batch_sharding(mesh))
    held = [start({})]
    traced = step.trace(held[0], placed)
    program, flops = traced.lower().compile(), count_flops(traced.jaxpr)

    def call() -> None:
        held[0], metrics = program(held[0], placed)
        jax.block_until_ready((held[0], metrics))

    return call, flops


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
