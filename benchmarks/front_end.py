"""Our log-mel front end in at most a quarter of librosa's time, and no slower than PyTorch's.

    python benchmarks/front_end.py                  # the torch row needs pip install '.[parity]'

Ours is `features.log_mel` under jit on the CPU. The peers are `librosa.feature.melspectrogram` and
`power_to_db`, clip by clip as they are used, and `torch.stft` of the whole batch, a product with
the mel matrix and a logarithm. All at LAION-CLAP's setting (48 kHz, FFT 1024, hop 480, 64
bands), each with the same number of cores. Audio lies where each keeps it (NumPy, a PyTorch
tensor, a JAX array on the CPU); levels must agree to 1e-3 dB before anything is timed.
"""

import importlib.util
import sys
from collections.abc import Callable

import jax
import librosa
import numpy as np
import tyro
from side_by_side import compare, report, use_threads

from spatial_clap_jax import features
from spatial_clap_jax.errors import InputError

FRONT_END = features.LAION_CLAP_LOG_MEL
CLOSE_DB = 1e-3
# Linux wakes both threads of a side on one core, and parts them after some ten milliseconds.
UNTIMED = 5


def main(
    clips: int = 8, seconds: float = 10.0, threads: int = 2, repeats: int = 15, json: bool = False
) -> None:
    """Times the front ends and prints a table.

    Args:
      clips: clips a batch.
      seconds: length of a clip.
      threads: cores for each side.
      repeats: timed passes of each side.
      json: print a line of JSON for each peer.
    """
    use_threads(threads)
    rng = np.random.default_rng(0)
    samples = round(seconds * FRONT_END.sample_rate_hz)
    audio = (0.1 * rng.standard_normal((clips, samples))).astype(np.float32)
    front_end, on_device = jax.jit(features.log_mel), jax.device_put(audio)

    def ours() -> np.ndarray:
        return np.asarray(front_end(on_device))

    peers: dict[str, Callable[[], np.ndarray]] = {"librosa": lambda: librosa_log_mel(audio)}
    if importlib.util.find_spec("torch"):
        peers["torch"] = torch_log_mel(audio, threads)
    else:
        print("torch is not installed; pip install '.[parity]' for its row.", file=sys.stderr)
    found = []
    for name, peer in peers.items():
        difference = np.abs(ours() - peer()).max()
        if not difference < CLOSE_DB:
            raise InputError(f"{name}: levels differ by {difference:.1e} dB, above {CLOSE_DB:g}.")
        found.append(compare(ours, peer, repeats, untimed=UNTIMED, name="log-mel", peer_name=name))
    settings = {"clips": clips, "seconds": seconds, "threads": threads, "repeats": repeats}
    report(found, settings, json)


def librosa_log_mel(audio: np.ndarray) -> np.ndarray:
    """Levels [b, l, m] by librosa, one clip after the other."""
    return np.stack(
        [
            librosa.power_to_db(
                librosa.feature.melspectrogram(
                    y=clip,
                    sr=FRONT_END.sample_rate_hz,
                    n_fft=FRONT_END.n_fft,
                    hop_length=FRONT_END.hop,
                    n_mels=FRONT_END.mels,
                    fmin=FRONT_END.low_hz,
                    fmax=FRONT_END.high_hz,
                    pad_mode="reflect",
                ),
                amin=FRONT_END.amin,
                top_db=None,
            ).T
            for clip in audio
        ]
    )


def torch_log_mel(audio: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """A call that computes the levels [b, l, m] of the batch by PyTorch."""
    import torch

    torch.set_num_threads(threads)
    signals, window = torch.from_numpy(audio), torch.hann_window(FRONT_END.n_fft)
    mel = torch.from_numpy(
        librosa.filters.mel(
            sr=FRONT_END.sample_rate_hz,
            n_fft=FRONT_END.n_fft,
            n_mels=FRONT_END.mels,
            fmin=FRONT_END.low_hz,
            fmax=FRONT_END.high_hz,
        )
    ).T.contiguous()

    @torch.inference_mode()
    def levels() -> np.ndarray:
        spectrum = torch.stft(
            signals, FRONT_END.n_fft, FRONT_END.hop, window=window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        bands = torch.matmul(power.transpose(1, 2), mel)
        return (10 * torch.log10(bands.clamp_min(FRONT_END.amin))).numpy()

    return levels


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
