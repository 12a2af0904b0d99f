"""Stereo SELD on sound alone: a hundred times as fast as the sound, and faster than PyTorch.

    python benchmarks/seld.py                       # the peer needs pip install '.[parity]'
    python benchmarks/seld.py --model seld.py       # the Conformer; no peer of its shape

Ours is front end and network of configs/seld_crnn.py, size `base`, compiled as one program, from
audio in memory to tracks. The peer is how the baseline of DCASE 2025 Task 3 goes about it: log-mel
by librosa, clip by clip and channel by channel, then the same layers as PyTorch modules (three
blocks of 64, two bidirectional GRU layers of 128, two of self-attention with 8 heads, one hidden
layer: 734,261 parameters) with weights of their own. The figure is seconds of sound a second.
"""

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import jax
import librosa
import numpy as np
import tyro
from side_by_side import compare, report, use_threads

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.stereo_features import BASELINE
from spatial_clap_jax.systems.seld import SeldConfig
from spatial_clap_jax.train.experiment import load_config

CLASSES = 13


def main(
    model: str = "seld_crnn.py",
    size: str = "base",
    clips: int = 16,
    threads: int = 2,
    repeats: int = 7,
    json: bool = False,
) -> None:
    """Times inference and prints a table.

    Args:
      model: a config of SELD; its towers are left out.
      size: of the config.
      clips: clips a batch.
      threads: cores for each side.
      repeats: timed passes of each side.
      json: print a line of JSON.
    """
    use_threads(threads)
    experiment = load_config(model, size)
    config = experiment.model
    if not isinstance(config, SeldConfig):
        raise InputError(f"--model {model}: is no config of SELD; give seld.py or seld_crnn.py.")
    config = replace(config, classes=tuple(map(str, range(CLASSES))), listens=False, looks=False)
    system = replace(experiment, model=config, precision="float32").build_trainable()
    variables = jax.jit(system.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((clips, 2, system.window_samples))).astype(np.float32)
    on_device, locate = jax.device_put(audio), jax.jit(system.locate)

    def ours() -> np.ndarray:
        return np.asarray(locate(variables, {"audio": on_device}))

    seconds = clips * config.duration_s
    settings: dict[str, Any] = {"amount": seconds, "unit": "s of sound/s"}
    if model == "seld_crnn.py" and size == "base" and importlib.util.find_spec("torch"):
        peer, name = torch_baseline(audio, threads), "librosa and torch"
    else:
        print("no peer: ours beside itself.", file=sys.stderr)
        peer, name = ours, "itself"
    found = compare(ours, peer, repeats, name=f"{model} {size}", peer_name=name, **settings)
    report([found], {"clips": clips, "threads": threads}, as_json=json)


def torch_baseline(audio: np.ndarray, threads: int) -> Any:
    """The baseline's way, from audio to tracks."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)

    class Crnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks: list[nn.Module] = []
            before = 2
            for pool in ((5, 4), (1, 4), (1, 2)):
                conv = nn.Conv2d(before, 64, 3, padding=1)
                blocks += [conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(pool)]
                before = 64
            self.blocks = nn.Sequential(*blocks)
            self.gru = nn.GRU(128, 128, 2, batch_first=True, bidirectional=True)
            self.attentions = nn.ModuleList(
                [nn.MultiheadAttention(128, 8, batch_first=True) for _ in range(2)]
            )
            self.norms = nn.ModuleList([nn.LayerNorm(128) for _ in range(2)])
            self.hidden, self.head = nn.Linear(128, 128), nn.Linear(128, 3 * 3 * CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.blocks(x).permute(0, 2, 1, 3).flatten(2)
            forward, backward = self.gru(x)[0].tanh().chunk(2, dim=-1)
            x = forward * backward
            for attention, norm in zip(self.attentions, self.norms, strict=True):
                x = norm(x + attention(x, x, x, need_weights=False)[0])
            return self.head(nn.functional.gelu(self.hidden(x)))

    module, mel = Crnn().eval(), BASELINE.mel

    def levels(channel: np.ndarray) -> np.ndarray:
        power = librosa.feature.melspectrogram(
            y=channel,
            sr=mel.sample_rate_hz,
            n_fft=mel.n_fft,
            hop_length=mel.hop,
            win_length=BASELINE.win_length,
            n_mels=mel.mels,
        )
        return librosa.power_to_db(power).T[:-1]

    def locate() -> np.ndarray:
        planes = np.stack([[levels(channel) for channel in clip] for clip in audio])
        with torch.inference_mode():
            return module(torch.from_numpy(planes)).numpy()

    return locate


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
