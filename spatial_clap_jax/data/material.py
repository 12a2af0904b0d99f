"""What scenes are drawn from: the usable clips of a source, and a bank of rooms on disk."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.acoustics.foa_rirs import simulate_foa_room
from spatial_clap_jax.acoustics.receivers import Foa, StereoPair
from spatial_clap_jax.acoustics.render import high_pass
from spatial_clap_jax.acoustics.rirs import RirRoom, simulate_room
from spatial_clap_jax.acoustics.rooms import FloorRanges, RoomRanges
from spatial_clap_jax.data.drawing import by_content
from spatial_clap_jax.data.scenes import RoomCounts, SceneRecipe
from spatial_clap_jax.data.sources import SPLITS, Clip, Source, SourceOptions, open_source
from spatial_clap_jax.data.workers import WorkerPool
from spatial_clap_jax.errors import InputError

# Above this share of unusable clips something is wrong with the source as a whole.
MOST_BAD_CLIPS = 0.05
CACHE_BYTES = 256 << 20


class SceneMaterial:
    """Clips and rooms of each split; the clips last heard are kept in memory."""

    def __init__(
        self, source: Source, skipped: Collection[str], rooms: Mapping[str, Sequence[RirRoom]]
    ) -> None:
        self.source, self.rooms = source, rooms
        usable = [clip for clip in source.clips if clip.clip_id not in skipped]
        self.clips = {
            split: tuple(clip for clip in usable if clip.split == split) for split in SPLITS
        }
        self.contents = {split: by_content(clips) for split, clips in self.clips.items()}
        self._heard: collections.OrderedDict[tuple[str, int], np.ndarray]
        self._heard, self._bytes = collections.OrderedDict(), 0

    def load(self, clip: Clip, sample_rate_hz: int) -> Float32[np.ndarray, "t"]:
        """Samples of a clip, mono; not to be written to."""
        key = (clip.clip_id, sample_rate_hz)
        if key in self._heard:
            self._heard.move_to_end(key)
            return self._heard[key]
        audio = self.source.load(clip, sample_rate_hz)
        self._heard[key] = audio
        self._bytes += audio.nbytes
        while self._bytes > CACHE_BYTES and len(self._heard) > 1:
            self._bytes -= self._heard.popitem(last=False)[1].nbytes
        return audio


def store_material(folder: Path, skipped: Mapping[str, str], rooms: Mapping[str, int]) -> None:
    """Note which clips are skipped and how many rooms lie in `folder/rooms/{split}`."""
    (folder / "material.json").write_text(json.dumps({"skipped": skipped, "rooms": rooms}))


@functools.lru_cache(maxsize=1)
def open_material(folder: Path, sources: str, options: SourceOptions) -> SceneMaterial:
    """The material that a folder notes; each worker opens it once."""
    noted = json.loads((folder / "material.json").read_text())
    rooms = {split: StoredRooms(folder / "rooms" / split, n) for split, n in noted["rooms"].items()}
    return SceneMaterial(open_source(sources, options), noted["skipped"], rooms)


def check_clips(
    pool: WorkerPool, source: Source, sources: str, options: SourceOptions, sample_rate_hz: int
) -> dict[str, str]:
    """Loads all clips of a source once, spread over workers.

    Args:
      pool: the workers.
      source: the clips.
      sources: what the source is opened from there.
      options: how it is read.
      sample_rate_hz: rate that the clips must be had at.

    Returns:
      The reasons of those that are left out, by clip id.

    Raises:
      InputError: more than 5 % of the clips are bad.
    """
    check = functools.partial(_fault, sources, options, sample_rate_hz)
    checks = (functools.partial(check, number) for number in range(len(source.clips)))
    faults = pool.run(checks, title="clips checked", total=len(source.clips))
    return skipped_clips(source, faults)


def _fault(sources: str, options: SourceOptions, sample_rate_hz: int, number: int) -> str | None:
    source = _opened(sources, options)
    return clip_fault(source, source.clips[number], sample_rate_hz)


_opened = functools.lru_cache(maxsize=1)(open_source)


def clip_fault(source: Source, clip: Clip, sample_rate_hz: int) -> str | None:
    """Why a clip cannot be used, or None."""
    try:
        audio = source.load(clip, sample_rate_hz)
    except InputError as error:
        return str(error)
    return None if np.any(audio) else f"{clip.clip_id}: is silent from end to end."


def skipped_clips(source: Source, faults: Iterable[str | None]) -> dict[str, str]:
    """Reasons of the clips that are left out, by clip id.

    Deciding this for all clips before anything is drawn keeps the draws the same, whatever
    worker meets a bad clip first.

    Args:
      source: the clips.
      faults: for each clip of `source.clips`, the answer of `clip_fault`.

    Returns:
      The reasons.

    Raises:
      InputError: more than 5 % of the clips are bad.
    """
    skipped = {
        clip.clip_id: fault
        for clip, fault in zip(source.clips, faults, strict=True)
        if fault is not None
    }
    if len(skipped) > MOST_BAD_CLIPS * len(source.clips):
        raise InputError(
            f"{source.name}: {len(skipped)} of {len(source.clips)} clips cannot be used, and at "
            f"most {MOST_BAD_CLIPS:.0%} may be skipped; repair or remove them. The first: "
            f"{next(iter(skipped.values()))}"
        )
    return skipped


class StoredRooms(Sequence[RirRoom]):
    """Rooms in a folder, mapped into memory, so that all workers share one copy."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._read = functools.cache(functools.partial(_read_room, folder))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        return self._read(range(self._count)[index])


def high_passed(room: RirRoom, high_pass_hz: float) -> RirRoom:
    """The room with its responses high-passed.

    The filter is linear: on the responses it acts on every mixture, once for all of them.
    """
    rirs = high_pass(room.rirs, room.sample_rate_hz, high_pass_hz)
    return dataclasses.replace(room, rirs=rirs)


def store_room(folder: Path, index: int, room: RirRoom) -> None:
    """Write room number `index` of a `StoredRooms` folder."""
    np.save(folder / f"{index}.npy", room.rirs)
    np.savez(
        folder / f"{index}.npz",
        name=room.name,
        size_m=np.asarray(room.size_m),
        t60_s=room.t60_s,
        azimuth_deg=room.azimuth_deg,
        elevation_deg=room.elevation_deg,
        distance_m=room.distance_m,
        sample_rate_hz=room.sample_rate_hz,
        t30_s=room.t30_s,
        drr_bands_db=room.drr_bands_db,
        t30_bands_s=room.t30_bands_s,
    )


def store_simulated_room(recipe: SceneRecipe, folder: Path, split: str, index: int) -> float:
    """Simulate and write room `index` of a split: the same room wherever it is done.

    Returns:
      Its reverberation time in seconds.
    """
    room = _simulated(recipe, split, index)
    store_room(folder, index, room)
    return room.t60_s


def _simulated(recipe: SceneRecipe, split: str, index: int) -> RirRoom:
    seed = np.random.SeedSequence((recipe.seed, zlib.crc32(f"rooms {split}".encode()), index))
    name = f"{split}_{index:05d}"
    if isinstance(recipe.receiver, Foa):
        assert isinstance(recipe.rooms, FloorRanges)
        return simulate_foa_room(
            seed,
            recipe.rooms,
            recipe.receiver,
            recipe.places_per_room,
            recipe.sample_rate_hz,
            name,
            recipe.distance_range_m,
            recipe.elevation_range_deg,
            recipe.response_s,
            recipe.high_pass_hz,
        )
    assert isinstance(recipe.rooms, RoomRanges)
    assert isinstance(recipe.receiver, StereoPair)
    room = simulate_room(
        seed,
        recipe.rooms,
        recipe.receiver,
        recipe.places_per_room,
        recipe.sample_rate_hz,
        name,
        recipe.distance_range_m,
    )
    return high_passed(room, recipe.high_pass_hz)


def divide_rooms(
    rooms: Sequence[RirRoom], counts: RoomCounts, splits: Sequence[str], seed: int
) -> dict[str, list[RirRoom]]:
    """Measured rooms divided among splits: each room in one split, each split at least one.

    Args:
      rooms: all measured rooms.
      counts: what the numbers of rooms should be in proportion to.
      splits: the splits that need rooms.
      seed: which room goes where.

    Returns:
      Rooms by split.

    Raises:
      InputError: fewer rooms than splits.

    Example:
      Five rooms for counts 300 / 20 / 40 become 3 / 1 / 1.
    """
    if len(rooms) < len(splits):
        raise InputError(
            f"--rirs: {len(rooms)} rooms ({', '.join(room.name for room in rooms)}) for the splits "
            f"{', '.join(splits)}; splits share no room, so give at least {len(splits)} rooms."
        )
    wanted = {split: max(1, getattr(counts, split)) for split in splits}
    shares = {split: len(rooms) * wanted[split] / sum(wanted.values()) for split in splits}
    sizes = dict.fromkeys(splits, 1)
    for _ in range(len(rooms) - len(splits)):
        sizes[max(splits, key=lambda split: shares[split] - sizes[split])] += 1
    by_name = sorted(rooms, key=lambda room: room.name)
    shuffled = iter(np.random.default_rng((seed, len(rooms))).permutation(len(rooms)))
    return {split: [by_name[next(shuffled)] for _ in range(sizes[split])] for split in splits}


def rooms_fingerprint(rooms: Sequence[RirRoom]) -> str:
    """Digest of measured rooms: names, places and responses."""
    digest = hashlib.sha256()
    for room in rooms:
        digest.update(f"{room.name} {room.sample_rate_hz} {room.rirs.shape}".encode())
        for array in (room.azimuth_deg, room.elevation_deg, room.distance_m, room.rirs):
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


def _read_room(folder: Path, index: int) -> RirRoom:
    with np.load(folder / f"{index}.npz") as facts:
        return RirRoom(
            name=str(facts["name"]),
            size_m=tuple(facts["size_m"].tolist()),
            t60_s=float(facts["t60_s"]),
            rirs=np.load(folder / f"{index}.npy", mmap_mode="r"),
            azimuth_deg=facts["azimuth_deg"],
            elevation_deg=facts["elevation_deg"],
            distance_m=facts["distance_m"],
            sample_rate_hz=int(facts["sample_rate_hz"]),
            t30_s=facts["t30_s"],
            drr_bands_db=facts["drr_bands_db"],
            t30_bands_s=facts["t30_bands_s"],
        )
