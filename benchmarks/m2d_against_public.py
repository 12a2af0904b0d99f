"""Our M2D-CLAP beside the public code's portable runtime, same random weights, same files.

    git clone https://github.com/nttcslab/m2d
    pip install --no-deps timm einops nnAudio
    pip install '.[parity]' && python benchmarks/m2d_against_public.py m2d/examples

Files of 2024 and of 2025 are written with random weights under the published names, opened by
both, and recordings of several lengths are heard by both. Prints the greatest differences of
log-mel, features, scenes and CLAP embeddings, relative to the greatest entry; nothing is timed.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import sys
import tempfile
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import spatial_clap_jax
from spatial_clap_jax.convert import convert
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.models.vit import sincos_positions
from spatial_clap_jax.windows import log_mel_on_host

_RATE_HZ = 16_000
# As the files of each year lie; the public code reads sizes from the folder's name.
_FOLDERS = {
    2024: "m2d_clap_vit_base-80x608p16x16-240128",
    2025: "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025",
}
_FRAMES = {2024: 608, 2025: 1001}
_WIDTH, _PREDICTOR, _BANDS, _PATCH = 768, 512, 80, 16


def main(
    public: tyro.conf.Positional[Path],
    seconds: tuple[float, ...] = (1.0, 3.0, 6.01, 10.0, 20.0),
    seed: int = 0,
) -> None:
    """Compares both.

    Args:
      public: folder of `portable_m2d.py`.
      seconds: lengths of the recordings.
      seed: of weights and recordings.
    """
    code = public_module(public)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    for year in _FOLDERS:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / _FOLDERS[year] / "checkpoint-30.pth"
            file.parent.mkdir()
            torch.save({"model": tensors_of(code, year)}, file)
            tokenizer = Path(name) / "tokenizer.json"
            tokenizer.write_text(Tokenizer.train(["a dog barks"], 300, 24).to_json())
            convert(file, Path(name) / "ours", tokenizer=tokenizer if year == 2025 else None)
            ours = spatial_clap_jax.load(Path(name) / "ours")
            # As it is told to be opened for features, and for CLAP.
            with contextlib.redirect_stdout(io.StringIO()):
                theirs = [code.PortableM2D(str(file), flat_features=flat) for flat in (False, True)]
        worst: dict[str, float] = {}
        for length in seconds:
            recording = 0.1 * rng.normal(size=(1, round(length * _RATE_HZ))).astype(np.float32)
            for what, difference in heard(ours, *theirs, recording).items():
                worst[what] = max(worst.get(what, 0.0), difference)
        for what, difference in worst.items():
            print(f"{year}, {what}: {difference:.1e}")


class _Anything(type):
    """A class with whatever attribute it is asked for."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Absent(types.ModuleType):
    """A module that is imported and not used: it has whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _WithoutTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an absent module for every one of torchvision's."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def public_module(folder: Path) -> Any:
    """The portable runtime; timm asks for torchvision, of which M2D needs nothing."""
    finder = _WithoutTorchvision()
    sys.path.insert(0, str(folder))
    sys.meta_path.append(finder)
    try:
        return importlib.import_module("portable_m2d")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            if isinstance(sys.modules[name], _Absent):
                del sys.modules[name]


def tensors_of(code: Any, year: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of a published file, positions as they are there."""
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    size, columns = [_BANDS, _FRAMES[year]], _FRAMES[year] // _PATCH
    encoder = code.LocalViT(
        in_chans=1,
        img_size=size,
        patch_size=[_PATCH, _PATCH],
        embed_dim=_WIDTH,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        norm_layer=norm,
    )
    if year == 2025:
        encoder.audio_proj = code.add_semantic_audio_proj(1, _WIDTH)
    else:
        encoder.audio_proj = code.get_MLP_projector(_WIDTH, _WIDTH, _WIDTH)
    tensors = randomised(encoder)
    tensors["pos_embed"] = positions(columns, _WIDTH)
    tensors["norm_stats"] = torch.tensor([-7.26, 4.35])
    if year == 2025:
        text = randomised(bert())
        named = {f"text_encoder.text_encoder.{name}": x for name, x in text.items()}
        return {**{f"backbone.{name}": x for name, x in tensors.items()}, **named}
    block = partial(code.timm.models.vision_transformer.Block, qkv_bias=True, norm_layer=norm)
    rest = torch.nn.ModuleDict(
        {
            "target_blocks": torch.nn.ModuleList([block(_WIDTH, 12, 4) for _ in range(12)]),
            "target_norm": norm(_WIDTH),
            "decoder_embed": torch.nn.Linear(_WIDTH, _PREDICTOR),
            "decoder_blocks": torch.nn.ModuleList([block(_PREDICTOR, 16, 4) for _ in range(8)]),
            "decoder_norm": norm(_PREDICTOR),
            "decoder_pred": torch.nn.Linear(_PREDICTOR, _WIDTH),
        }
    )
    return {
        **tensors,
        **randomised(rest),
        "mask_token": torch.randn(1, 1, _PREDICTOR),
        "decoder_pos_embed": positions(columns, _PREDICTOR),
        "logit_scale": torch.tensor(3.0),
    }


def bert() -> torch.nn.Module:
    """A small BERT; what it makes of texts is compared elsewhere."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=300,
            hidden_size=_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=12,
            intermediate_size=_WIDTH,
            max_position_embeddings=64,
        )
    )


def randomised(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters of a model, drawn so that no layer is trivial."""
    drawn = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        is_scale = "norm" in name.lower() and name.endswith("weight")
        drawn[name] = 1 + 0.1 * noise if is_scale else 0.03 * noise
    return drawn


def positions(columns: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.array(sincos_positions(_BANDS // _PATCH, columns, width))[None])


@torch.no_grad()
def heard(ours: Any, theirs: Any, theirs_clap: Any, recording: np.ndarray) -> dict[str, float]:
    """Greatest differences of what both make of a recording [1, t], relative to the greatest."""
    batch = torch.from_numpy(recording)
    mel = log_mel_on_host(recording[0], M2D_LOG_MEL)
    frames, _ = ours.embed_frames(recording, _RATE_HZ)
    clap = theirs_clap.encode_clap_audio(batch)[0]
    pairs = {
        "log-mel": (mel, theirs.to_log_mel_spec(batch)[0, 0].T),
        "features": (frames, theirs.encode(batch)[0]),
        "scene": (ours.embed_scene(recording, _RATE_HZ), theirs.get_scene_embeddings(batch)[0]),
        "CLAP embedding": (ours.embed_audio(recording, _RATE_HZ), clap / clap.norm()),
    }
    return {what: gap(np.asarray(a), np.asarray(b)) for what, (a, b) in pairs.items()}


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    ours = ours.reshape(ours.shape[-theirs.ndim :])
    if ours.shape != theirs.shape:
        raise SystemExit(f"ours has the shape {ours.shape}, theirs {theirs.shape}")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


if __name__ == "__main__":
    tyro.cli(main)
