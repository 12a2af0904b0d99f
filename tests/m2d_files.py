"""M2D-CLAP files of small width, with every name of the published ones, made without PyTorch.

The names are written out here, apart from the library's own tables.
"""

import numpy as np

from spatial_clap_jax.models.vit import sincos_positions

LAYERS, WIDTH, PREDICTOR_LAYERS, PREDICTOR_WIDTH = 12, 8, 8, 8
NORMALISATION = (-7.261779308319092, 4.3511505126953125)


class Drawn:
    """Draws tensors of names by and by."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, name: str, *shape: int) -> None:
        noise = self.rng.normal(0, 0.2, shape).astype(np.float32)
        is_scale = "norm" in name.split(".")[-2:][0] and name.endswith("weight")
        self.tensors[name] = noise + np.float32(1) if is_scale else noise

    def layer(self, name: str, width: int, out: int | None = None) -> None:
        self.add(f"{name}.weight", *((width,) if out is None else (out, width)))
        self.add(f"{name}.bias", out or width)

    def block(self, name: str, width: int, mlp: int) -> None:
        self.layer(f"{name}.norm1", width)
        self.layer(f"{name}.attn.qkv", width, 3 * width)
        self.layer(f"{name}.attn.proj", width, width)
        self.layer(f"{name}.norm2", width)
        self.layer(f"{name}.mlp.fc1", width, mlp)
        self.layer(f"{name}.mlp.fc2", mlp, width)

    def positions(self, name: str, columns: int, width: int) -> None:
        self.tensors[name] = np.array(sincos_positions(5, columns, width)[None])

    def encoder(self, prefix: str, columns: int, width: int, layers: int) -> None:
        self.add(f"{prefix}cls_token", 1, 1, width)
        self.positions(f"{prefix}pos_embed", columns, width)
        self.add(f"{prefix}patch_embed.proj.weight", width, 1, 16, 16)
        self.add(f"{prefix}patch_embed.proj.bias", width)
        for index in range(layers):
            self.block(f"{prefix}blocks.{index}", width, 4 * width)
        self.layer(f"{prefix}norm", width)
        self.tensors[f"{prefix}norm_stats"] = np.float32(NORMALISATION)


def published_2024(width: int = WIDTH, layers: int = LAYERS, seed: int = 0) -> dict:
    """The tensors of 2024: 406 of them at 12 layers."""
    drawn = Drawn(seed)
    drawn.encoder("", 38, width, layers)
    for index in range(layers):
        drawn.block(f"target_blocks.{index}", width, 4 * width)
    drawn.layer("target_norm", width)
    drawn.add("mask_token", 1, 1, PREDICTOR_WIDTH)
    drawn.positions("decoder_pos_embed", 38, PREDICTOR_WIDTH)
    drawn.layer("decoder_embed", width, PREDICTOR_WIDTH)
    for index in range(PREDICTOR_LAYERS):
        drawn.block(f"decoder_blocks.{index}", PREDICTOR_WIDTH, 4 * PREDICTOR_WIDTH)
    drawn.layer("decoder_norm", PREDICTOR_WIDTH)
    drawn.layer("decoder_pred", PREDICTOR_WIDTH, width)
    drawn.add("logit_scale")
    drawn.layer("audio_proj.0", width, width)
    drawn.layer("audio_proj.2", width, width)
    return drawn.tensors


def published_2025(
    width: int = WIDTH, layers: int = LAYERS, words: int = 40, seed: int = 1
) -> dict:
    """The tensors of 2025: 166 under `backbone.` at 12 layers, and a BERT."""
    drawn = Drawn(seed)
    drawn.encoder("backbone.", 62, width, layers)
    drawn.add("backbone.audio_proj.sem_token", 1, 1, width)
    drawn.block("backbone.audio_proj.sem_blocks.0", width, width)
    drawn.layer("backbone.audio_proj.norm", width)
    text = "text_encoder.text_encoder."
    for table, rows in (("word", words), ("position", 24), ("token_type", 2)):
        drawn.add(f"{text}embeddings.{table}_embeddings.weight", rows, width)
    drawn.layer(f"{text}embeddings.LayerNorm", width)
    for index in range(2):
        layer = f"{text}encoder.layer.{index}"
        for part in ("query", "key", "value"):
            drawn.layer(f"{layer}.attention.self.{part}", width, width)
        drawn.layer(f"{layer}.attention.output.dense", width, width)
        drawn.layer(f"{layer}.attention.output.LayerNorm", width)
        drawn.layer(f"{layer}.intermediate.dense", width, 12)
        drawn.layer(f"{layer}.output.dense", 12, width)
        drawn.layer(f"{layer}.output.LayerNorm", width)
    drawn.layer(f"{text}pooler.dense", width, width)
    return drawn.tensors
