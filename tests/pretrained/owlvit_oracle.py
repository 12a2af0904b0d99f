"""Hugging Face's OWL-ViT with random weights that matter, as the oracle of several tests."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = ["a photo of a dog", "the bell", "a man's face, 2 cars?"]
CORPUS = [*TEXTS, "a dog barks at the bell of a car", "photos of faces", "men and dogs"]
MAX_TOKENS = 16
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def tokenizer() -> Tokenizer:
    """A vocabulary in CLIP's way: padding first, begin and end last."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def save_tokenizer(folder: Path) -> int:
    """Writes CLIP's two files of a vocabulary; gives the number of its ids."""
    described = json.loads(tokenizer().to_str())["model"]
    names = [name for name in described["vocab"] if name != "!"]
    # Every byte both within a word and at its end.
    names += [f"{c}</w>" for c in pre_tokenizers.ByteLevel.alphabet() if f"{c}</w>" not in names]
    names = ["!", *names, _BEGIN, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {name: index for index, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in described["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return len(names)


def model(
    vocabulary: int, patch: int, image_size: int, seed: int, published: bool = False
) -> transformers.OwlViTForObjectDetection:
    """Random weights: small towers, or those of ViT-B."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    sizes = {} if published else small
    config = transformers.OwlViTConfig(
        text_config={
            "vocab_size": vocabulary,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            **(small | {"hidden_size": 24} if not published else {}),
        },
        vision_config={"image_size": image_size, "patch_size": patch, **sizes},
        projection_dim=512 if published else 24,
    )
    found = transformers.OwlViTForObjectDetection(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            # A scale that differs from place to place shows a norm that is left out.
            about = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 0.3 if weight.ndim < 2 else 1.5 * weight.shape[-1] ** -0.5
            if "patch_embedding" in name:
                spread = 1.5 * weight[0].numel() ** -0.5
            weight.copy_(about + spread * torch.randn(weight.shape, generator=generator))
    return found.eval()
