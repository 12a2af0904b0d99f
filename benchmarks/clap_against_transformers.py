"""Our CLAP beside transformers' ClapModel, same random weights: differences, bfloat16, time.

    pip install '.[parity]' && python benchmarks/clap_against_transformers.py

Tells, for each published shape, the greatest difference of unit embeddings, the lowest cosine
between bfloat16 and float32, and the time of a forward pass of ours and theirs, in turn.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from side_by_side import Comparison, compare, report

from spatial_clap_jax.models.htsat import Htsat
from spatial_clap_jax.models.text import TextEncoder
from spatial_clap_jax.pretrained.hf_clap import read_hf_clap
from spatial_clap_jax.pretrained.mapping import nested

WIDTHS = {
    "tiny": {},
    "base": {
        "patch_embeds_hidden_size": 128,
        "hidden_size": 1024,
        "depths": [2, 2, 12, 2],
    },
}


def main(batch: int = 4, repeats: int = 5, json: bool = False) -> None:
    """Runs all shapes.

    Args:
      batch: clips and texts at once.
      repeats: timed passes of each side.
      json: print a line of JSON for each shape.
    """
    found = []
    for size, widths in WIDTHS.items():
        for fused in (False, True):
            model = randomised({**widths, "enable_fusion": fused})
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                weights = read_hf_clap(folder)
            name = f"HTSAT-{size}{', fused' if fused else ''}"
            found.append(compare_audio(name, model, weights, batch, repeats))
    found.append(compare_text(model, weights, batch, repeats))
    report(found, {"batch": batch, "repeats": repeats}, json)


def randomised(audio: dict[str, Any]) -> transformers.ClapModel:
    """A ClapModel with noise in every weight and in BatchNorm's statistics."""
    torch.manual_seed(0)
    config = transformers.ClapConfig(audio_config=audio, text_config={"layer_norm_eps": 1e-5})
    model = transformers.ClapModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                scales = "norm" in name.lower() and name.endswith("weight")
                weight.copy_(torch.randn_like(weight) * 0.2 + scales)
            elif weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * 0.04)
        for name, buffer in model.named_buffers():
            levels = "batch_norm" in name
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) - (30 if levels else 0))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) * (400 if levels else 1) + 0.5)
    return model.eval()


def compare_audio(name: str, model: Any, weights: Any, batch: int, repeats: int) -> Comparison:
    """An audio encoder."""
    fused = weights.audio.config.fusion
    shape = (batch, 4, 1001, 64) if fused else (batch, 1001, 64)
    levels = (-30 + 20 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    longer = np.arange(batch) % 2 == 0 if fused else None
    theirs_in = torch.from_numpy(levels if fused else levels[:, None])
    theirs_longer = torch.from_numpy(longer)[:, None] if longer is not None else None
    variables = jax.device_put(nested(weights.audio.arrays))

    def encoder(dtype: Any) -> Callable[[], Any]:
        module = Htsat(weights.audio.config, dtype)
        apply = jax.jit(lambda v, x: module.apply(v, x, False, longer).pooled)
        return lambda: jax.block_until_ready(apply(variables, levels))

    @torch.no_grad()
    def theirs() -> np.ndarray:
        return model.audio_model(theirs_in, is_longer=theirs_longer).pooler_output.numpy()

    return compare_encoders(name, encoder(jnp.float32), encoder(jnp.bfloat16), theirs, repeats)


def compare_text(model: Any, weights: Any, batch: int, repeats: int) -> Comparison:
    """The text encoder."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, weights.text.config.vocabulary, (batch, 77))
    mask = np.arange(77) < rng.integers(5, 78, batch)[:, None]
    ids = np.where(mask, ids, 1)
    variables = jax.device_put(nested(weights.text.arrays))

    def encoder(dtype: Any) -> Callable[[], Any]:
        apply = jax.jit(TextEncoder(weights.text.config, dtype).apply)
        return lambda: jax.block_until_ready(apply(variables, ids, mask).pooled)

    @torch.no_grad()
    def theirs() -> np.ndarray:
        tokens = torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
        return model.text_model(*tokens).pooler_output.numpy()

    full, coarse = encoder(jnp.float32), encoder(jnp.bfloat16)
    return compare_encoders("RoBERTa-base", full, coarse, theirs, repeats)


def compare_encoders(
    name: str,
    ours: Callable[[], Any],
    low: Callable[[], Any],
    theirs: Callable[[], np.ndarray],
    repeats: int,
) -> Comparison:
    """Differences and the cosine of bfloat16, which stand in the name, and times."""
    full, coarse, expected = unit(ours()), unit(low()), unit(theirs())
    difference = np.abs(full - expected).max()
    cosine = (full * coarse).sum(axis=1).min()
    told = f"{name} (difference {difference:.1e}, bfloat16 cosine {cosine:.6f})"
    return compare(ours, theirs, repeats, name=told, peer_name="transformers")


def unit(rows: Any) -> np.ndarray:
    """Rows scaled to length one."""
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    tyro.cli(main)
