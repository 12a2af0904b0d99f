"""Our renderer makes at least three times the scenes a second of plain pyroomacoustics.

    python benchmarks/render.py

A scene is one stereo mixture of one or two sources in a room, at configs/scenes.py `small`. Ours is
what rendering a data set does in a worker: one room simulated, then as many scene groups of one
and of two sources as `small` has in a room, by `data.scenes.draw_group`. The peer renders scenes of
the same groups as pyroomacoustics shows it: a `ShoeBox` a scene, its sources with their signals,
the microphone array, `simulate()`. Rooms, places, signals, absorption and reflection orders are the
same; one process, one thread. Signals lie ready for both (noise, not synthesised in time).

Ours is faster by what it reuses, not by another model: the responses of a room are simulated once
for all of its groups, from two microphones to 25 places (they are the same both ways), and the two
members of a group share the transforms of its clips and responses. The time of ours includes what
the peer's does not: the high-pass at 50 Hz, measured reverberation times, the levels of sources,
captions, 16-bit samples.

Before anything is timed, both must give the same audio: to 2 steps of 16 bits where the peer's
responses are cut as ours are (pyroomacoustics' delay of 40 samples before the sound, all beyond
0.5 s), and at a correlation of 0.9995 as they are.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyroomacoustics as pra
import tyro
from side_by_side import compare, report, use_threads

from spatial_clap_jax.acoustics.render import high_pass
from spatial_clap_jax.acoustics.rirs import RIR_LENGTH_S, RirRoom, simulate_room
from spatial_clap_jax.acoustics.rooms import Room, sample_room
from spatial_clap_jax.data.drawing import draw_group
from spatial_clap_jax.data.scenes import SceneGroup, SceneRecipe
from spatial_clap_jax.data.sources import Clip, active_level_db
from spatial_clap_jax.data.synthetic import CATEGORIES
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.experiment import load_config

ROOM_SEED = 1
# Test scenes: playing speeds, which the peer knows nothing of, are drawn for training alone.
SPLIT = "test"
MOST_STEPS, LEAST_CORRELATION = 2.0, 0.9995


def main(
    singles: int | None = None,
    mixtures: int | None = None,
    peer_scenes: int = 6,
    duration_s: float | None = None,
    repeats: int = 5,
    json: bool = False,
) -> None:
    """Times both and prints a table.

    Args:
      singles: one-source groups a room; as many as `small` has for training, if not given.
      mixtures: two-source groups a room; likewise.
      peer_scenes: scenes that the peer renders in a timed pass, spread over those of ours.
      duration_s: length of a scene; that of `small` if not given.
      repeats: timed passes of each side.
      json: print a line of JSON.
    """
    use_threads(1)
    pra.constants.set("num_threads", 1)
    recipe: SceneRecipe = load_config("scenes.py", "small")
    if duration_s is not None:
        recipe = dataclasses.replace(recipe, duration_s=duration_s)
    recipe = dataclasses.replace(recipe, level_range_db=0.0)
    counts, rooms = recipe.group_counts, recipe.room_counts.train
    singles = round(counts.train_k1 / rooms) if singles is None else singles
    mixtures = round(counts.train_k2 / rooms) if mixtures is None else mixtures
    dry = noises(recipe.length)

    def ours() -> list[SceneGroup]:
        material = ReadyMaterial(dry, our_room(recipe))
        return [
            draw_group(recipe, material, SPLIT, k, index)
            for k, count in ((1, singles), (2, mixtures))
            for index in range(count)
        ]

    groups = ours()
    scenes = [(group, member) for group in groups for member in range(len(group.captions))]
    chosen = [scenes[i * len(scenes) // peer_scenes] for i in range(peer_scenes)]
    room = sample_room(np.random.default_rng(ROOM_SEED), recipe.rooms, "benchmark")
    for group, member in chosen:
        check_same_audio(recipe, room, dry, group, member)
    found = compare(
        ours,
        lambda: [plain(recipe, room, dry, group, member) for group, member in chosen],
        repeats,
        name="render, one core",
        peer_name="pyroomacoustics",
        amount=len(scenes),
        peer_amount=len(chosen),
        unit="scenes/s",
    )
    settings = {
        "scenes_of_ours": len(scenes),
        "scenes_of_peer": len(chosen),
        "scene_s": recipe.duration_s,
        "reflections": reflections(room),
        "repeats": repeats,
    }
    report([found], settings, json)


@dataclasses.dataclass(frozen=True)
class ReadyMaterial:
    """One room, and a clip of each category that has the length of a scene."""

    dry: Mapping[str, np.ndarray]
    room: RirRoom

    @property
    def contents(self) -> Mapping[str, Sequence[Sequence[Clip]]]:
        clips = [Clip(name, name, (f"a {name} sounds",), SPLIT, name) for name in self.dry]
        return {SPLIT: [[clip] for clip in clips]}

    @property
    def rooms(self) -> Mapping[str, Sequence[RirRoom]]:
        return {SPLIT: [self.room]}

    def load(self, clip: Clip, sample_rate_hz: int) -> np.ndarray:
        return self.dry[clip.clip_id]


def noises(length: int) -> dict[str, np.ndarray]:
    """A signal for each category, all of one level: the gains of a scene's sources are equal."""
    rng = np.random.default_rng(0)
    signals = {name: rng.standard_normal(length).astype(np.float32) for name in CATEGORIES}
    return {name: x * np.float32(10 ** (-active_level_db(x) / 20)) for name, x in signals.items()}


def our_room(recipe: SceneRecipe) -> RirRoom:
    """The room as rendering stores it: simulated, responses high-passed."""
    room = simulate_room(
        ROOM_SEED,
        recipe.rooms,
        recipe.receiver,
        recipe.places_per_room,
        recipe.sample_rate_hz,
        "benchmark",
        recipe.distance_range_m,
    )
    return dataclasses.replace(
        room, rirs=high_pass(room.rirs, recipe.sample_rate_hz, recipe.high_pass_hz)
    )


def reflections(room: Room) -> int:
    """Orders until the walls have taken 60 dB, 50 at most, as our rooms are simulated."""
    return min(math.ceil(-60 / (10 * math.log10(1 - room.absorption))), 50)


def plain(
    recipe: SceneRecipe,
    room: Room,
    dry: Mapping[str, np.ndarray],
    group: SceneGroup,
    member: int,
    cut: bool = False,
) -> np.ndarray:
    """A scene [c, t] rendered as pyroomacoustics shows it.

    Args:
      recipe: rate, length and microphones.
      room: the shoebox.
      dry: signals by clip.
      group: whose clips and places are rendered.
      member: which of its permutations.
      cut: cut the responses as ours are.

    Returns:
      The mixture, as long as a scene; level and low frequencies are pyroomacoustics' own.
    """
    box = pra.ShoeBox(
        room.size_m,
        fs=recipe.sample_rate_hz,
        materials=pra.Material(room.absorption),
        max_order=reflections(room),
    )
    center_m = np.array([room.size_m[0] / 2, room.size_m[1] / 2, recipe.receiver.height_m])
    for clip, place in zip(group.clips, group.permutations[member], strict=True):
        angle = math.radians(group.azimuth_deg[place])
        ahead = np.array([math.cos(angle), math.sin(angle), 0.0])
        box.add_source(center_m + group.distance_m[place] * ahead, signal=dry[clip])
    box.add_microphone_array(recipe.receiver.positions_m(center_m).T)
    lag = pra.constants.get("frac_delay_length") // 2
    if cut:
        box.compute_rir()
        end = lag + round(RIR_LENGTH_S * recipe.sample_rate_hz)
        responses: Any = box.rir
        for response in itertools.chain.from_iterable(responses):
            response[:lag] = response[end:] = 0
    box.simulate()
    signals: Any = box.mic_array
    return signals.signals[:, lag : lag + recipe.length]


def check_same_audio(
    recipe: SceneRecipe,
    room: Room,
    dry: Mapping[str, np.ndarray],
    group: SceneGroup,
    member: int,
) -> None:
    """Refuses to time two renderers that do not render the same thing."""
    ours = group.audio[member].astype(np.float64)
    for cut in (True, False):
        peer = plain(recipe, room, dry, group, member, cut).astype(np.float32)
        peer = high_pass(peer, recipe.sample_rate_hz, recipe.high_pass_hz).astype(np.float64)
        # Ours has one scale for a group, and every source its level: here the same for all.
        peer *= np.vdot(peer, ours) / np.vdot(peer, peer)
        difference = np.abs(ours - peer).max()
        correlation = np.corrcoef(ours.ravel(), peer.ravel())[0, 1]
        if (cut and difference > MOST_STEPS) or correlation < LEAST_CORRELATION:
            raise InputError(
                f"{group.scene_id}: ours and pyroomacoustics' differ by {difference:.1f} steps of "
                f"16 bits, correlation {correlation:.6f}."
            )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
