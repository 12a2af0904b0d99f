"""Our whole training step in at most 0.7 of the time of Hugging Face's ClapModel in PyTorch.

    python benchmarks/step.py                       # needs pip install '.[parity]'
    python benchmarks/step.py --compile-peer --precision bfloat16 --batch 128     # on a GPU

Both sides: HTSAT-tiny, RoBERTa-base and two-layer projections (153 M parameters), 10 s at 48 kHz,
77 tokens, symmetric contrastive loss over the batch, dropout as in each one's training, AdamW with
a clip of the gradient's norm. Ours starts from the waveform; the peer is handed log-mel features
that were computed beforehand, since its own extractor runs one clip at a time on the host: the
comparison is unfair to us by that much. Weights are random; no optimiser state is shared. As in
`spatial-clap train`, the process keeps what memory it frees; the peer gains by that too. On a card
both sides hold their memory at the same time: take a batch that fits twice.
"""

import os
import sys
from typing import Literal

# Of a card, as much as each side needs, and not three quarters of it for us.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from side_by_side import compare, report, use_threads

from spatial_clap_jax.features import LAION_CLAP_LOG_MEL
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.htsat import htsat_tiny
from spatial_clap_jax.models.text import roberta_base
from spatial_clap_jax.systems.clap import ClapConfig
from spatial_clap_jax.train.chips import chip
from spatial_clap_jax.train.experiment import Experiment, compute_dtype
from spatial_clap_jax.train.flops import count_flops
from spatial_clap_jax.train.host_memory import keep_freed_memory
from spatial_clap_jax.train.optim import OptimizerConfig
from spatial_clap_jax.train.sharding import batch_sharding, make_mesh
from spatial_clap_jax.train.trainer import build_state_and_step


def main(
    batch: int = 8,
    seconds: float = 10.0,
    tokens: int = 77,
    threads: int = 2,
    repeats: int = 5,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    compile_peer: bool = False,
    layers: int = 12,
    json: bool = False,
) -> None:
    """Times whole training steps and prints a table.

    Args:
      batch: clips with captions a step.
      seconds: length of a clip.
      tokens: length of a caption.
      threads: cores for each side.
      repeats: timed steps of each side.
      precision: of the computation; auto is bfloat16 on accelerators. The peer runs under
        autocast where it is bfloat16.
      compile_peer: give the peer `torch.compile`.
      layers: of both text encoders, fewer for a trial.
      json: print a line of JSON.
    """
    is_kept = keep_freed_memory()
    use_threads(threads)
    ours, flops = our_step(batch, seconds, tokens, precision, layers)
    theirs = peer_step(batch, tokens, precision, compile_peer, layers)
    name = f"training step, batch {batch}"
    peer_name = "ClapModel, compiled" if compile_peer else "ClapModel"
    found = compare(ours, theirs, repeats, warmups=2, name=name, peer_name=peer_name)
    device = jax.devices()[0]
    settings = {
        "batch": batch,
        "seconds": seconds,
        "tokens": tokens,
        "layers": layers,
        "threads": threads,
        "repeats": repeats,
        "precision": str(jnp.dtype(compute_dtype(precision))),
        "peer_tf32": torch.backends.cuda.matmul.allow_tf32,
        "device": device.device_kind,
        "clips_per_s": batch / found.ours.median,
        "gflops_per_step": flops / 1e9,
        "gflops_per_s": flops / found.ours.median / 1e9,
        "keeps_freed_memory": is_kept,
        "memory": device.memory_stats() or "unknown",
    }
    if torch.cuda.is_available():
        settings["peer_peak_bytes"] = torch.cuda.max_memory_allocated()
    if known := chip(device.device_kind):
        settings["mfu"] = flops / found.ours.median / known.flops_per_s(precision)
    report([found], settings, json)


def our_step(batch: int, seconds: float, tokens: int, precision: str, layers: int):
    """A call that takes one step from waveforms, and its FLOPs."""
    text = roberta_base()
    model = ClapConfig(
        channels=1,
        sample_rate_hz=48_000,
        window_s=seconds,
        content=htsat_tiny(),
        content_mel=LAION_CLAP_LOG_MEL,
        text=type(text)(**{**vars(text), "layers": layers}),
    )
    experiment = Experiment(
        name="step",
        model=model,
        loss=ContrastiveConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1),
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    mesh = make_mesh(jax.devices()[:1])
    start, step = build_state_and_step(experiment, mesh)
    rng = np.random.default_rng(0)
    samples = round(seconds * 48_000)
    arrays = {
        "audio": rng.normal(size=(batch, 1, samples)).astype(np.float32) * 0.1,
        "tokens": rng.integers(4, text.vocabulary, (batch, tokens)).astype(np.int32),
        "token_mask": np.ones((batch, tokens), bool),
        "group": np.arange(batch, dtype=np.int32),
        "meaning": np.arange(batch, dtype=np.int32),
    }
    placed = jax.device_put(arrays, batch_sharding(mesh))
    state = start({})
    traced = step.trace(state, placed)
    program, flops = traced.lower().compile(), count_flops(traced.jaxpr)
    held = [state]

    def call() -> None:
        held[0], metrics = program(held[0], placed)
        jax.block_until_ready((held[0], metrics))

    return call, flops


def peer_step(batch: int, tokens: int, precision: str, compiled: bool, layers: int):
    """A call that takes one step of ClapModel from features."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As JAX multiplies float32 on a GPU; PyTorch by itself does so in convolutions alone.
    torch.backends.cuda.matmul.allow_tf32 = device == "cuda"
    torch.backends.cudnn.allow_tf32 = device == "cuda"
    text = transformers.ClapTextConfig(num_hidden_layers=layers)
    model = transformers.ClapModel(transformers.ClapConfig(text_config=text.to_dict())).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 1, 1001, 64, generator=generator).to(device)
    ids = torch.randint(4, 50_000, (batch, tokens), generator=generator).to(device)
    mask = torch.ones_like(ids)
    labels = torch.arange(batch, device=device)
    forward = torch.compile(model) if compiled else model
    is_bfloat16 = compute_dtype(precision) == jnp.bfloat16  # pyright: ignore[reportArgumentType]

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=is_bfloat16):
            out = forward(input_ids=ids, attention_mask=mask, input_features=features)
            logits = out.logits_per_audio.float()
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    if "--help" not in sys.argv:
        torch.manual_seed(0)
    tyro.cli(main, description=__doc__)
