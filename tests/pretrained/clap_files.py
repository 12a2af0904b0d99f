"""Small CLAPs of random weights, in transformers' form and under LAION's first names.

The names are changed here by plain replacement, apart from the library's own tables.
"""

import re

import librosa
import torch
import transformers
from random_models import randomised

AUDIO = "audio_model.audio_encoder."


def hf_clap(fused: bool = False, seed: int = 0, **audio) -> transformers.ClapModel:
    """A `ClapModel` whose text encoder has one head of 64, as LAION's files imply."""
    config = transformers.ClapConfig(
        text_config={
            "vocab_size": 60,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "intermediate_size": 80,
            "max_position_embeddings": 22,
            "layer_norm_eps": 1e-5,
        },
        audio_config={
            "patch_embeds_hidden_size": 16,
            "hidden_size": 128,
            "depths": [1, 1, 2, 1],
            "num_attention_heads": [2, 2, 4, 4],
            "mlp_ratio": 2.0,
            "enable_fusion": fused,
            **audio,
        },
        projection_dim=24,
    )
    return randomised(transformers.ClapModel(config), seed)


def laion_names(state: dict, prefix: str = "audio_branch.", module: str = "module.") -> dict:
    """The tensors of a `ClapModel` as LAION's training code names them, and what lies beside."""
    there = {}
    for name, tensor in state.items():
        if name.startswith(AUDIO):
            there[prefix + laion_audio_name(name.removeprefix(AUDIO))] = tensor
        else:
            name = name.replace("text_model.", "text_branch.")
            there[name.replace("linear1", "0").replace("linear2", "2")] = tensor
    for query in [name for name in there if name.startswith(prefix) and ".query." in name]:
        parts = [there.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        there[query.replace("attn.self.query", "attn.qkv")] = torch.cat(parts)
    mel = librosa.filters.mel(
        sr=48000, n_fft=1024, n_mels=64, fmin=50, fmax=14000, htk=False, norm="slaney"
    )
    there |= {
        f"{prefix}spectrogram_extractor.stft.conv_real.weight": torch.ones(513, 1, 8),
        f"{prefix}spectrogram_extractor.stft.conv_imag.weight": torch.ones(513, 1, 8),
        f"{prefix}logmel_extractor.melW": torch.from_numpy(mel.T.copy()),
        f"{prefix}tscam_conv.weight": torch.ones(527, 128, 2, 3),
        f"{prefix}tscam_conv.bias": torch.ones(527),
        f"{prefix}head.weight": torch.ones(527, 527),
        f"{prefix}head.bias": torch.ones(527),
        # Shifted windows of the third stage: a grid of 16 has four windows.
        f"{prefix}layers.2.blocks.1.attn_mask": torch.zeros(4, 64, 64),
    }
    return {module + name: tensor.clone() for name, tensor in there.items()}


def laion_audio_name(name: str) -> str:
    """The name of one of HTSAT's tensors in LAION's code."""
    name = re.sub(r"^batch_norm\.", "bn0.", name)
    name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
    name = name.replace("attention.output.dense", "attn.proj")
    name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
    name = name.replace("attention.self.relative_position", "attn.relative_position")
    return name.replace("attention.self", "attn.self")


def laion_heads(state: dict, module: str = "module.") -> dict:
    """What LAION's whole model has beside the encoders and projections."""
    return state | {
        f"{module}text_branch.embeddings.position_ids": torch.arange(22)[None],
        f"{module}audio_transform.sequential.0.weight": torch.ones(24, 24),
        f"{module}text_transform.sequential.3.bias": torch.ones(24),
    }
