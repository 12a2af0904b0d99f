"""Hugging Face's ClapModel with random weights that matter, as the oracle of several tests."""

from pathlib import Path

import torch
import transformers

from spatial_clap_jax.data.tokens import Tokenizer

TEXTS = ["a dog barks", "rain falls on a tin roof, and a bell rings far away"]
VOCABULARY = 320
SIZES = {
    "small": {"patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [1, 1, 2, 1],
              "num_attention_heads": [2, 2, 4, 4]},
    "tiny": {"patch_embeds_hidden_size": 96, "hidden_size": 768},
    "base": {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]},
}  # fmt: skip
TEXT_SIZES = {
    "small": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
              "intermediate_size": 96, "max_position_embeddings": 66},
    # RoBERTa-base but for its vocabulary.
    "base": {},
}  # fmt: skip


def config(size: str, fused: bool, text: str = "small") -> transformers.ClapConfig:
    """The oracle's shape: audio 'small' (quick) or the published 'tiny' and 'base', and text."""
    return transformers.ClapConfig(
        audio_config={**SIZES[size], "enable_fusion": fused},
        text_config={"vocab_size": VOCABULARY, "layer_norm_eps": 1e-5, **TEXT_SIZES[text]},
        projection_dim=24 if size == "small" else 512,
    )


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draws every weight, and statistics of BatchNorm as log-mel spectra have them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "logit_scale" in name:
                continue
            about = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            weight.copy_(about + draw(weight) * (0.2 if weight.ndim == 1 else 0.05))
        for name, buffer in model.named_buffers():
            levels = "batch_norm" in name
            if name.endswith("running_mean"):
                buffer.copy_(draw(buffer) * (5 if levels else 0.1) - (30 if levels else 0))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + draw(buffer).abs() * (200 if levels else 1))
    return model.eval()


def tokenizer(max_tokens: int = 64) -> Tokenizer:
    """A tokenizer of `VOCABULARY` ids at most."""
    return Tokenizer.train(TEXTS, VOCABULARY, max_tokens)


def save(model: transformers.ClapModel, folder: Path) -> Path:
    """Writes the model as users have it: weights, extractor, tokenizer."""
    model.save_pretrained(folder)
    fused = model.config.audio_config.enable_fusion
    transformers.ClapFeatureExtractor(
        truncation="fusion" if fused else "rand_trunc", frequency_min=50
    ).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_json())
    return folder
