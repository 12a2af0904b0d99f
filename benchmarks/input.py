"""Our input pipeline gives at least twice the clips a second of a PyTorch DataLoader.

    python benchmarks/input.py                                   # needs pip install '.[parity]'
    python benchmarks/input.py --data data/esc10 --workers 2     # on scenes of your own

Ours is `data.pipeline.train_batches` (Grain on ArrayRecord) as configs/spatial_clap.py `small` sets
it. The peer is a `torch.utils.data.DataLoader` over the same scenes as FLAC files, one a mixture,
read by soundfile, tokenised by the same tokenizer, collated to the same float32 [b, 2, t], tokens
and mask; a batch of both is compared, value by value, before anything is timed. Augmentation is
left out on both sides. Both shuffle, have the same number of workers, and find their files in the
page cache. As in `spatial-clap train`, the process keeps what memory it frees, which the peer gains
by too. Batches that lay ready before the clock started are taken but not counted.
"""

import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tyro
from side_by_side import compare, report

from spatial_clap_jax.data.builders import render_scenes
from spatial_clap_jax.data.pipeline import PipelineConfig, collate, train_batches
from spatial_clap_jax.data.records import SceneData, open_scenes
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.experiment import load_config
from spatial_clap_jax.train.host_memory import keep_freed_memory

PLAIN: dict[str, Any] = {"gain_db": (0.0, 0.0), "swap": False, "shift": False, "redraw": False}


def main(
    data: Path | None = None,
    workers: tuple[int, ...] = (0, 2),
    batches: int = 12,
    repeats: int = 5,
    singles: int = 128,
    mixtures: int = 512,
    settle_s: float = 2.0,
    json: bool = False,
) -> None:
    """Times both and prints a table.

    Args:
      data: folder of scenes; without it a few are rendered from the synthetic bank.
      workers: processes that build batches; each number is a comparison of its own.
      batches: batches a timed pass.
      repeats: timed passes of each side.
      singles: one-source scenes to render, at least 2.
      mixtures: two-source scene groups to render, at least 7. Grain draws the place of each record
        by a walk over 2^16 numbers, which costs the more the fewer there are.
      settle_s: pause before each pass, for both sides to fill the queues they keep.
      json: print a line of JSON for each number of workers.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        scenes = open_scenes(data) if data else rendered(Path(folder), singles, mixtures)
        experiment = load_config("spatial_clap.py", "small")
        text = experiment.model.text
        corpus = scenes.manifest["caption_corpus"]
        tokenizer = Tokenizer.train(corpus, text.vocabulary, text.max_tokens)
        config = dataclasses.replace(experiment.data, **PLAIN)
        peer = FlacScenes.write(scenes, tokenizer, Path(folder) / "flac")
        check_same_contents(scenes, peer, tokenizer, config)
        found = []
        for count in workers:
            config = dataclasses.replace(config, workers=count)
            ours = train_batches(scenes, config, tokenizer, scl=True, seed=0)
            loader = torch_batches(peer, tokenizer, config)
            ready, peer_ready = batches_ready(config), config.prefetch * count
            found.append(
                compare(
                    functools.partial(take, ours, batches + ready),
                    functools.partial(take, loader, batches + peer_ready),
                    repeats,
                    name=f"input, {count} workers",
                    peer_name="DataLoader",
                    amount=batches * config.captions_per_batch,
                    unit="clips/s",
                    before=lambda: time.sleep(settle_s),
                )
            )
            ours.close()
            del loader
    report(found, {"batches": batches, "repeats": repeats, "clip_s": peer.clip_s}, json)


def batches_ready(config: PipelineConfig) -> int:
    """Batches of ours that may lie built before they are asked for."""
    if config.workers:
        # Each has sent `prefetch` batches, and one more lies with each of its threads.
        return config.workers * (config.prefetch + config.threads)
    return max(config.prefetch, config.threads)


def rendered(folder: Path, singles: int, mixtures: int) -> SceneData:
    """Scenes of the synthetic bank at the size of `small`."""
    recipe = SceneRecipe(
        name="input",
        room_counts=RoomCounts(train=2),
        group_counts=GroupCounts(singles, mixtures, 0, 0, 0, 0, 0, 0, 0),
        sources=SourceOptions(synthetic_clips=(4, 1, 1)),
    )
    return render_scenes(recipe, "synthetic", folder / "scenes", workers=1, progress=False)


@dataclasses.dataclass(frozen=True)
class FlacScenes:
    """The peer's data set: scene groups whose mixtures are FLAC files, and a table of the rest.

    Attributes:
      table: for each group its number, its files, their scale and captions.
      groups: indices into the table of the groups of one source, and of those of two.
      clip_s: length of a mixture.
    """

    table: tuple[dict[str, Any], ...]
    groups: tuple[tuple[int, ...], ...]
    clip_s: float

    @classmethod
    def write(cls, scenes: SceneData, tokenizer: Tokenizer, folder: Path) -> "FlacScenes":
        """Writes every training mixture as a file of its own."""
        folder.mkdir()
        table, groups, clip_s = [], [], 0.0
        for split in ("train_k1", "train_k2"):
            first = len(table)
            for group in scenes.source(split):
                clip_s = group.audio.shape[-1] / group.sample_rate_hz
                files = []
                for audio in group.audio:
                    files.append(str(folder / f"{len(table)}_{len(files)}.flac"))
                    soundfile.write(files[-1], audio.T, group.sample_rate_hz, subtype="PCM_16")
                table.append(
                    {
                        "group": int(collate([group], tokenizer)["group"][0]),
                        "files": files,
                        "scale": group.scale * 32768,
                        "captions": list(group.captions),
                    }
                )
            groups.append(tuple(range(first, len(table))))
        # As such tables lie on disk, so that both sides hold what a file can hold.
        return cls(tuple(loads(dumps(table))), tuple(groups), clip_s)

    def __getitem__(self, index: int) -> tuple[list[np.ndarray], list[str]]:
        entry = self.table[index]
        audio = [soundfile.read(file, dtype="float32")[0].T for file in entry["files"]]
        return [one * np.float32(entry["scale"]) for one in audio], entry["captions"]


@dataclasses.dataclass(frozen=True)
class Collate:
    """What the DataLoader makes of the groups of a batch."""

    tokenizer: Tokenizer

    def __call__(self, groups: Sequence[tuple[list[np.ndarray], list[str]]]) -> dict[str, Any]:
        import torch

        audio = [torch.from_numpy(one) for mixtures, _ in groups for one in mixtures]
        captions = [caption for _, captions in groups for caption in captions]
        tokens, mask = self.tokenizer.encode(captions, truncate=True)
        return {
            "audio": torch.stack(audio),
            "tokens": torch.from_numpy(tokens),
            "token_mask": torch.from_numpy(mask),
        }


@dataclasses.dataclass(frozen=True)
class EndlessBatches:
    """Batch sampler: singles, then groups of two, reshuffled without end."""

    groups: tuple[tuple[int, ...], ...]
    per_batch: tuple[int, ...]

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        orders = [itertools.chain.from_iterable(_shuffles(rng, kind)) for kind in self.groups]
        while True:
            yield [
                int(index)
                for order, count in zip(orders, self.per_batch, strict=True)
                for index in itertools.islice(order, count)
            ]


def torch_batches(
    peer: FlacScenes, tokenizer: Tokenizer, config: PipelineConfig
) -> Iterator[dict[str, Any]]:
    """Endless batches of the peer, with as many groups of each kind as ours."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        raise InputError("torch is not installed; pip install '.[parity]'.") from None
    mixtures = round(config.captions_per_batch * config.mixture_share / 2)
    settings: dict[str, Any] = {"num_workers": config.workers}
    if config.workers:
        settings |= {"prefetch_factor": config.prefetch, "multiprocessing_context": "spawn"}
    sampler = EndlessBatches(peer.groups, (config.captions_per_batch - 2 * mixtures, mixtures))
    dataset: Any = peer
    return iter(
        DataLoader(
            dataset,
            batch_sampler=sampler,  # pyright: ignore[reportArgumentType]
            collate_fn=Collate(tokenizer),
            **settings,
        )
    )


def check_same_contents(
    scenes: SceneData, peer: FlacScenes, tokenizer: Tokenizer, config: PipelineConfig
) -> None:
    """Refuses to time two sides that give different batches of the same groups."""
    # So few that no group comes twice.
    config = dataclasses.replace(config, captions_per_batch=16)
    batches = train_batches(scenes, config, tokenizer, scl=True, seed=0)
    ours = next(batches)
    batches.close()
    entries = {entry["group"]: index for index, entry in enumerate(peer.table)}
    groups = [peer[entries[number]] for number in dict.fromkeys(ours["group"].tolist())]
    theirs = {name: values.numpy() for name, values in Collate(tokenizer)(groups).items()}
    for name, values in theirs.items():
        if values.dtype != ours[name].dtype or not np.allclose(ours[name], values, atol=1e-7):
            raise InputError(f"{name}: our batch and the DataLoader's hold different values.")


def take(batches: Iterator[Any], count: int) -> None:
    """Asks for some batches, and drops them."""
    for _ in range(count):
        next(batches)


def _shuffles(rng: np.random.Generator, indices: Sequence[int]) -> Iterator[np.ndarray]:
    while True:
        yield rng.permutation(indices)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
