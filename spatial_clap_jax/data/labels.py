"""What a batch can say of each row beside its audio and its caption."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from spatial_clap_jax.acoustics.bands import BANDS_HZ
from spatial_clap_jax.acoustics.captions import labels_of
from spatial_clap_jax.acoustics.directions import STEREO_DIRECTIONS
from spatial_clap_jax.acoustics.foa import unit_vectors
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.sentences import Sentences
from spatial_clap_jax.data.wording import member_directions
from spatial_clap_jax.errors import InputError

_ATTRIBUTES = 4 + 2 * len(BANDS_HZ)
# Of each row's place: shape of a row and type. `attributes` are azimuth, elevation, distance,
# volume, then DRR in dB and T30 in s in each of `BANDS_HZ`; NaN where unknown.
LABELS: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "has_place": ((), np.bool_),
    "direction": ((3,), np.float32),
    "distance_m": ((), np.float32),
    "floor_area_m2": ((), np.float32),
    "attributes": ((_ATTRIBUTES,), np.float32),
}
# Of what sounds, in float32: the vector of the row's caption; 1 for each of the classes that it
# has; 1 for each of these in each stereo direction where one of its sources is. `rival_events` are
# those of the row's rival.
CONTENT_LABELS = ("sentence", "categories", "events", "rival_events")
_OF_CLASSES = ("categories", "events", "rival_events")


def check_labels(
    labels: Collection[str], sentences: Sentences | None, classes: Sequence[str]
) -> None:
    """Refuses labels that are unknown, or that what is there cannot tell.

    Args:
      labels: names of `LABELS` and `CONTENT_LABELS`.
      sentences: vectors of the captions.
      classes: names of the classes.

    Raises:
      InputError: a label is unknown, or sentences or classes are missing.
    """
    known = (*LABELS, *CONTENT_LABELS)
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise InputError(f"labels: {unknown[0]!r} is none of {', '.join(known)}; give these.")
    if "sentence" in labels and sentences is None:
        raise InputError(
            "data.sentences: None, but the model learns from sentence embeddings; run "
            "`spatial-clap embed-text` on the data, and give the folder that it wrote."
        )
    if set(_OF_CLASSES) & set(labels) and not classes:
        raise InputError("classes: there are none, but the model learns them; name them.")


def check_clips(
    manifest: Mapping[str, Any],
    labels: Collection[str],
    sentences: Sentences | None,
    classes: Sequence[str],
) -> None:
    """Refuses data of which a label would be missing in the middle of a training.

    Args:
      manifest: of the data.
      labels: see `check_labels`, which comes first.
      sentences: vectors of the captions.
      classes: names of the classes.

    Raises:
      InputError: a caption that a training clip may be told with has no vector, scenes have
        places, whose captions are too many for that, or the data have classes that are not named.
    """
    if "sentence" in labels:
        assert sentences is not None
        if manifest["recipe"]["receiver"]["kind"] != "Mono":
            raise InputError(
                f"data.sentences: {sentences.folder} holds captions of clips, and these scenes "
                "tell places too; render clips (configs/clips.py)."
            )
        sentences.check(manifest["caption_corpus"])
    if set(_OF_CLASSES) & set(labels):
        _positions(manifest["categories"], classes)


def label_rows(
    groups: Sequence[SceneGroup],
    labels: Collection[str],
    sentences: Sentences | None,
    classes: Sequence[str],
) -> dict[str, np.ndarray]:
    """The labels of all members of the groups, in their order.

    Args:
      groups: scene groups.
      labels: see `check_labels`.
      sentences: vectors of their captions.
      classes: names of the classes.

    Returns:
      Arrays [rows, ...] by name.

    Raises:
      InputError: a caption has no vector, or a group's label is no class.
    """
    captions = [caption for group in groups for caption in group.captions]
    found: dict[str, np.ndarray] = {}
    if places_wanted := [name for name in labels if name in LABELS]:
        known = [(_place_labels(group), len(group.captions)) for group in groups]
        places = [place for place, members in known for _ in range(members)]
        for name in places_wanted:
            shape, kind = LABELS[name]
            rows = np.array([place[name] for place in places], kind)
            found[name] = rows.reshape(len(captions), *shape)
    if "sentence" in labels:
        assert sentences is not None
        found["sentence"] = sentences.vectors(captions)
    if "categories" in labels:
        of_group = [multi_hot([" ; ".join(group.categories)], classes) for group in groups]
        members = [len(group.captions) for group in groups]
        found["categories"] = np.repeat(np.concatenate(of_group), members, axis=0)
    if "events" in labels:
        told = [(group, places) for group in groups for places in member_directions(group)]
        found["events"] = np.stack([_events(group, places, classes) for group, places in told])
    if "rival_events" in labels:
        # Of two sources at exchanged places, or of a scene without a rival as it is.
        told = [
            (group, places[::-1] if group.rivals else places)
            for group in groups
            for places in member_directions(group)
        ]
        found["rival_events"] = np.stack([_events(group, at, classes) for group, at in told])
    return found


def _events(
    group: SceneGroup, places: Sequence[int], classes: Sequence[str]
) -> Float32[np.ndarray, "classes directions"]:
    """1 for each class in each direction where a source of a member is that has it."""
    events = np.zeros((len(classes), len(STEREO_DIRECTIONS)), np.float32)
    for clip, category, place in zip(group.clips, group.categories, places, strict=True):
        labels = labels_of(category)
        if not labels:
            raise InputError(
                f"{group.scene_id}: its clip {clip} has no category, so that no label tells it; "
                "render clips that all have one, or train with captions."
            )
        events[_positions(labels, classes), place] = 1.0
    return events


def multi_hot(
    categories: Sequence[str], classes: Sequence[str]
) -> Float32[np.ndarray, "n classes"]:
    """Which of the classes each category holds.

    Args:
      categories: each of one label, several (see `labels_of`), or none.
      classes: names of the classes.

    Returns:
      Rows of 0 and 1.

    Raises:
      InputError: a label is no class.

    Example:
      >>> multi_hot(["rain;wind", ""], ["wind", "rain", "bell"])
      array([[1., 1., 0.],
             [0., 0., 0.]], dtype=float32)
    """
    rows = np.zeros((len(categories), len(classes)), np.float32)
    for row, category in zip(rows, categories, strict=True):
        row[_positions(labels_of(category), classes)] = 1.0
    return rows


def _positions(labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"classes: the data have the class {unknown[0]!r}{more}, which the model's "
            f"{len(classes)} classes lack; name all classes of the data in --model.classes, of a "
            "Spatial-CLAP in --model.text.classes."
        )
    return [list(classes).index(label) for label in labels]


def _place_labels(group: SceneGroup) -> dict[str, Any]:
    """`LABELS` of a group's members; zeros and NaN where there is not exactly one place."""
    attributes = np.full(_ATTRIBUTES, np.nan, np.float32)
    if len(group.azimuth_deg) != 1:
        return {
            "has_place": False,
            "direction": np.zeros(3, np.float32),
            "distance_m": 0.0,
            "floor_area_m2": 0.0,
            "attributes": attributes,
        }
    length_m, width_m, height_m = group.room_size_m.tolist()
    attributes[:3] = group.azimuth_deg[0], group.elevation_deg[0], group.distance_m[0]
    attributes[3] = length_m * width_m * height_m or np.nan
    if group.drr_bands_db.size:
        attributes[4:] = np.concatenate([group.drr_bands_db[0], group.t30_bands_s[0]])
    return {
        "has_place": True,
        "direction": unit_vectors(group.azimuth_deg, group.elevation_deg)[0],
        "distance_m": group.distance_m[0],
        "floor_area_m2": length_m * width_m,
        "attributes": attributes,
    }
