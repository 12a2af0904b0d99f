"""Scene groups of one split, embedded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from rich.progress import Progress

from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.wording import meanings, member_directions
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import Embedder, embed_in_batches, embed_texts

# Of recordings [b, c, t] and their rate in Hz.
EmbedAudio = Callable[[Float32[np.ndarray, "b c t"], int], Float32[np.ndarray, "b d"]]


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the one source of each scene is, and in what room.

    Attributes:
      azimuth_deg, elevation_deg: counter-clockwise, 0 ahead, +90 left; up positive.
      distance_m: from the receiver.
      floor_area_m2: of the room; 0 where it is unknown.
      t30_s: reverberation time, measured from the response; NaN where it is unknown.
    """

    azimuth_deg: Float[np.ndarray, "s"]
    elevation_deg: Float[np.ndarray, "s"]
    distance_m: Float[np.ndarray, "s"]
    floor_area_m2: Float[np.ndarray, "s"]
    t30_s: Float[np.ndarray, "s"]


class LabelledClips(NamedTuple):
    """What was read from each of some clips, and what they are.

    Attributes:
      features: a row a clip.
      categories: its category, '' where unknown; of several labels as `labels_of` reads them.
      clips: its id.
    """

    features: Float[np.ndarray, "n d"]
    categories: tuple[str, ...]
    clips: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EmbeddedSplit:
    """The scene groups of one split: every member embedded, its audio forgotten.

    Attributes:
      audio, text: embeddings of all members and their captions, groups one after another.
      starts: the row of each group's first member, the identity; then the number of rows.
      meaning, directions, categories: of the identity members; equal numbers mean the same.
        Directions are indices into `STEREO_DIRECTIONS`, or, of scenes in ELSA's words, into
        `DIRECTIONS_8`.
      room: of each scene; scenes of equal numbers stand in one room.
      contents: what the first clip of each scene may be described with.
      words: the style of the captions, 'stereo' or 'elsa'.
      places: of scenes of one source in ELSA's words; None of others.
      clips: id of the first clip of each scene.
    """

    audio: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    starts: Int[np.ndarray, "s_and_1"]
    meaning: Int[np.ndarray, "s"]
    directions: Int[np.ndarray, "s k"]
    room: Int[np.ndarray, "s"]
    categories: list[tuple[str, ...]]
    contents: list[tuple[str, ...]]
    words: str
    places: Places | None = None
    clips: tuple[str, ...] = ()

    @property
    def identities(self) -> Float[np.ndarray, "s d"]:
        """Audio embeddings of the identity members, one a scene."""
        return self.audio[self.starts[:-1]]

    @property
    def place(self) -> Int[np.ndarray, "s"]:
        """Which place of which room each scene's source stands at, where `places` tells.

        Scenes of one place have one response, so that a question about it is not asked anew.
        """
        assert self.places is not None, "scenes of one source in ELSA's words have places"
        known = (self.places.azimuth_deg, self.places.elevation_deg, self.places.distance_m)
        table = np.stack([self.room.astype(np.float64), *known], axis=1)
        return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)


def embed_split(
    embedder: Embedder, name: str, groups: Sequence[SceneGroup], batch_size: int, bar: Progress
) -> EmbeddedSplit:
    """Embeds every member and caption of the groups, reading each group twice, one at a time.

    A model of one channel hears W, the omnidirectional channel, of first-order ambisonics.

    Args:
      embedder: the model.
      name: of the split, for the bar and for messages.
      groups: at least one, all of one sample rate.
      batch_size: rows embedded at once.
      bar: where the progress is shown.

    Returns:
      The embedded groups, in order.

    Raises:
      InputError: rates differ, the model takes other channels, or an embedding is not finite.
    """
    captions: list[str] = []
    starts = [0]
    meaning, directions, rooms, categories = [], [], [], []
    contents, places, clips = [], [], []
    sample_rate_hz, held, words = _kind(groups[0])
    heard = _whole_or_w_alone(embedder, name, held, words)
    for index in range(len(groups)):
        group = groups[index]
        _check_rate(group, sample_rate_hz)
        clips.append(group.clips[0])
        captions.extend(group.captions)
        starts.append(len(captions))
        meaning.append(meanings(group)[0])
        directions.append(member_directions(group)[0])
        rooms.append(group.room)
        categories.append(group.categories)
        contents.append(group.contents[0])
        if words == "elsa" and len(group.azimuth_deg) == 1:
            places.append(_place(group))
    # Texts first: a caption that is too long for the model is found before the long part.
    try:
        text = embed_texts(embedder, captions, batch_size, bar, f"{name} captions")
    except InputError as error:
        raise InputError(f"{name}: {error}") from error

    def members() -> Iterator[Float32[np.ndarray, "c t"]]:
        # Read again: the audio of a split need not fit into memory.
        for index in bar.track(range(len(groups)), description=name):
            yield from heard(groups[index].waveforms())

    embed = _of_stacked(embedder.embed_audio, sample_rate_hz)
    audio = embed_in_batches(members(), embed, batch_size, f"audio of {name}")
    return EmbeddedSplit(
        audio=audio,
        text=text,
        starts=np.array(starts),
        meaning=np.array(meaning),
        directions=np.array(directions, dtype=int).reshape(len(groups), -1),
        room=np.unique(rooms, return_inverse=True)[1],
        categories=categories,
        contents=contents,
        words=words,
        places=Places(*np.array(places, np.float64).T) if places else None,
        clips=tuple(clips),
    )


def embed_clips(
    embedder: Embedder,
    read: EmbedAudio,
    name: str,
    groups: Sequence[SceneGroup],
    batch_size: int,
    bar: Progress,
) -> LabelledClips:
    """Reads something from each plain clip, such as the features that a probe is trained on.

    Args:
      embedder: the model, which says what it hears.
      read: one of its functions of audio.
      name: of the split, for the bar and for messages.
      groups: at least one, all plain clips of one sample rate.
      batch_size: rows embedded at once.
      bar: where the progress is shown.

    Returns:
      A row a clip, in order.

    Raises:
      InputError: rates differ, the model takes other channels, or a number is not finite.
    """
    sample_rate_hz, held, words = _kind(groups[0])
    heard = _whole_or_w_alone(embedder, name, held, words)
    categories, clips = [], []

    def members() -> Iterator[Float32[np.ndarray, "c t"]]:
        for index in bar.track(range(len(groups)), description=name):
            group = groups[index]
            _check_rate(group, sample_rate_hz)
            categories.append(group.categories[0])
            clips.append(group.clips[0])
            yield from heard(group.waveforms())

    embed = _of_stacked(read, sample_rate_hz)
    features = embed_in_batches(members(), embed, batch_size, f"audio of {name}")
    return LabelledClips(features, tuple(categories), tuple(clips))


def _of_stacked(
    read: EmbedAudio, sample_rate_hz: int
) -> Callable[[list[Float32[np.ndarray, "c t"]]], Float32[np.ndarray, "b d"]]:
    return lambda batch: read(np.stack(batch), sample_rate_hz)


def _check_rate(group: SceneGroup, sample_rate_hz: int) -> None:
    if group.sample_rate_hz != sample_rate_hz:
        raise InputError(
            f"{group.scene_id}: sample_rate_hz {group.sample_rate_hz}; all scenes of a "
            f"split must have the rate of the first, {sample_rate_hz}: render them again."
        )


def _kind(group: SceneGroup) -> tuple[int, int, str]:
    """Sample rate, channels, words."""
    return int(group.sample_rate_hz), group.audio.shape[1], group.words


def _whole_or_w_alone(
    embedder: Embedder, name: str, held: int, words: str
) -> Callable[[Float32[np.ndarray, "p c t"]], Float32[np.ndarray, "p h t"]]:
    """What of the channels the model is given."""
    # A model that does not say what it takes is given all there is.
    takes = getattr(embedder, "channels", held)
    if takes == held:
        return lambda audio: audio
    if takes == 1 and words == "elsa":
        return lambda audio: audio[:, :1]
    what = {4: "first-order ambisonics (W, Y, Z, X)", 2: "stereo (left, right)"}.get(held, "mono")
    raise InputError(
        f"{name}: the scenes are {what}, {held} channels, and this model takes {takes}; give "
        f"scenes that fit it, or a model of {held} channels."
    )


def _place(group: SceneGroup) -> tuple[float, ...]:
    length_m, width_m, _ = group.room_size_m.tolist()
    return (
        float(group.azimuth_deg[0]),
        float(group.elevation_deg[0]),
        float(group.distance_m[0]),
        length_m * width_m,
        float(group.t30_s[0]),
    )
