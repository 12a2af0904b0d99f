"""Small published-looking weights on disk, made without PyTorch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.pretrained.hf_text import text_entries, text_shapes
from spatial_clap_jax.pretrained.mapping import write_entries

TEXT = TextConfig(
    vocabulary=320,
    width=16,
    layers=1,
    heads=2,
    mlp_width=24,
    max_tokens=40,
    positions="absolute",
    token_types=2,
    pooling="pooler",
    layer_norm_epsilon=1e-12,
)
CORPUS = ["a dog barks on the left side", "rain falls in front, and a bell rings"]


def random_arrays(shapes: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays by path; variances are positive."""
    rng = np.random.default_rng(seed)
    return {
        path: (np.abs if path.endswith("var") else np.asarray)(
            rng.normal(0.5 if path.endswith(("scale", "var")) else 0, 0.2, shape)
        ).astype(np.float32)
        for path, shape in shapes.items()
    }


def save_bert(folder: Path, seed: int = 0, tokenizer: bool = True) -> dict[str, np.ndarray]:
    """Writes a BERT folder of the shape `TEXT`; gives our arrays by path."""
    folder.mkdir(parents=True)
    arrays = random_arrays(text_shapes(TEXT), seed)
    save_file(write_entries(text_entries(TEXT), arrays), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "bert",
                "vocab_size": TEXT.vocabulary,
                "hidden_size": TEXT.width,
                "num_hidden_layers": TEXT.layers,
                "num_attention_heads": TEXT.heads,
                "intermediate_size": TEXT.mlp_width,
                "max_position_embeddings": TEXT.max_tokens,
                "type_vocab_size": TEXT.token_types,
            }
        )
    )
    if tokenizer:
        text = Tokenizer.train(CORPUS, TEXT.vocabulary, TEXT.max_tokens).to_json()
        (folder / "tokenizer.json").write_text(text)
    return arrays
