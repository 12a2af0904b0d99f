import dataclasses

import numpy as np
import pytest

from spatial_clap_jax.metrics.attributes import ATTRIBUTES, answers
from spatial_clap_jax.metrics.elsa import (
    cluster_distances,
    direction_swap,
    learn_localisation,
    localisation,
    zero_shot_attributes,
)
from spatial_clap_jax.metrics.embedded import EmbeddedSplit, Places
from spatial_clap_jax.metrics.intervals import share_interval
from spatial_clap_jax.metrics.localisation import Localiser
from spatial_clap_jax.metrics.resampling import bootstrap
from spatial_clap_jax.metrics.scores import score_of

PLACES = Places(
    azimuth_deg=np.array([0.0, 90.0, 180.0, -60.0, 45.0, 20.0]),
    elevation_deg=np.array([41.0, -41.0, 0.0, 0.0, 39.0, 10.0]),
    distance_m=np.array([0.5, 3.0, 1.5, 1.0, 2.0, 0.9]),
    floor_area_m2=np.array([20.0, 75.0, 150.0, 49.0, 101.0, 0.0]),
    t30_s=np.array([0.1, 0.5, 1.5, 0.2, np.nan, 0.3]),
)
FOUR = np.eye(8)[:4]


def split_of(audio, places=PLACES, contents=(), categories=(), room=None):
    rows = len(audio)
    return EmbeddedSplit(
        audio=audio,
        text=audio,
        starts=np.arange(rows + 1),
        meaning=np.arange(rows),
        directions=np.zeros((rows, 1), int),
        room=np.arange(rows) if room is None else np.array(room),
        categories=[(name,) for name in categories] or [("",)] * rows,
        contents=[(text,) for text in contents] or [(f"sound {i}",) for i in range(rows)],
        words="elsa",
        places=places,
    )


def test_answers_by_hand():
    found = {name: true.tolist() for name, true in answers(PLACES).items()}
    assert found == {
        "direction_4": [0, 1, 2, 3, -1, 0],
        "direction_8": [0, 2, 4, 7, 1, 0],
        "elevation": [0, 1, -1, -1, -1, -1],
        "distance": [0, 1, -1, -1, -1, 0],
        "room": [0, -1, 1, 0, 1, -1],
        "reverberation": [0, -1, 1, -1, -1, -1],
    }


def test_steep_places_are_not_asked_for_their_direction():
    steep = dataclasses.replace(PLACES, elevation_deg=np.array([75.0, -75.0, 75.1, -75.1, 90, -90]))
    found = {name: true.tolist() for name, true in answers(steep).items()}
    assert found["direction_4"] == [0, 1, -1, -1, -1, -1]
    assert found["direction_8"] == [0, 2, -1, -1, -1, -1]
    assert found["elevation"] == [0, 1, 0, 1, 0, 1]


def test_prompts_say_one_answer_of_every_content():
    prompts = ATTRIBUTES["direction_4"].prompts(("a sound", "rain"))
    assert prompts[1] == ["a sound coming from the left.", "rain coming from the left."]
    said = [p for attribute in ATTRIBUTES.values() for of in attribute.prompts(("x",)) for p in of]
    assert len(said) == 4 + 8 + 2 + 2 + 2 + 2
    for attribute in ATTRIBUTES.values():
        for word, (prompt,) in zip(attribute.words, attribute.prompts(("x",)), strict=True):
            assert word in prompt


def test_the_nearest_prototype_answers():
    prototypes = {name: np.eye(8)[: len(a.words)] for name, a in ATTRIBUTES.items()}
    # Hears the front from everywhere.
    outcomes, confusion = zero_shot_attributes(split_of(np.tile(np.eye(8)[0], (6, 1))), prototypes)
    assert outcomes["direction_4/1"].hits.tolist() == [True, False, False, False, True]
    assert len(set(outcomes["direction_4/1"].cluster)) == 5
    assert outcomes["room/1"].hits.tolist() == [True, False, True, False]
    # Two of five are in front, and always to say so is right as often.
    assert outcomes["direction_4/1"].chance == 2 / 5
    assert outcomes["direction_4/1"].hits.mean() == 2 / 5
    np.testing.assert_array_equal(confusion[:, 0], [2, 1, 1, 1])
    nowhere = Places(*(np.full(6, v) for v in (45.0, 0.0, 1.5, 75.0, 0.5)))
    outcomes, confusion = zero_shot_attributes(split_of(np.eye(8)[:6], nowhere), prototypes)
    assert set(outcomes) == {"direction_8/1"}
    assert confusion is None


def test_scenes_of_a_room_are_one_answer_about_it():
    """Five scenes in each of four rooms: what is known of a room is known of all its scenes."""
    prototypes = {name: np.eye(8)[: len(a.words)] for name, a in ATTRIBUTES.items()}
    room = np.repeat([7, 2, 5, 3], 5)
    # Two small and dampened rooms, two large and reverberant ones; sources in front, up and near.
    large = np.repeat([0, 0, 1, 1], 5)
    places = Places(
        azimuth_deg=np.zeros(20),
        elevation_deg=np.full(20, 45.0),
        distance_m=np.full(20, 0.5),
        floor_area_m2=np.where(large, 150.0, 20.0),
        t30_s=np.where(large, 1.5, 0.1),
    )
    # Three of the four rooms are heard.
    audio = np.eye(8)[np.repeat([0, 0, 1, 0], 5)]
    part = split_of(audio, places, room=room)
    outcomes, _ = zero_shot_attributes(part, prototypes)
    for name in ("room/1", "reverberation/1"):
        outcome = outcomes[name]
        np.testing.assert_array_equal(outcome.cluster, room)
        score = score_of(*outcome)
        assert score["n"] == 20
        # No narrower than that of four queries.
        low, high = share_interval(np.array([True, True, True, False]), np.arange(4))
        assert score["low"] <= low < high <= score["high"]
    # All sources of a room stand at one place here, which is heard or not.
    for name in ("direction_4/1", "direction_8/1", "elevation/1", "distance/1"):
        np.testing.assert_array_equal(
            np.unique(outcomes[name].cluster, return_inverse=True)[1],
            np.unique(room, return_inverse=True)[1],
        )
    # Two models are compared by pairs of the same rooms.
    other, _ = zero_shot_attributes(split_of(np.eye(8)[large], places, room=room), prototypes)
    found = bootstrap(other["room/1"].hits[None], room, outcomes["room/1"].hits[None])
    assert found.value == 1 / 4
    assert found.low == 0.0


def test_scenes_of_a_place_are_no_further_questions_about_it():
    """A place is a room and where the source stands in it: twelve scenes of three places."""
    places = Places(
        azimuth_deg=np.repeat([0.0, 90.0, 0.0], 4),
        **{name: np.ones(12) for name in ("elevation_deg", "distance_m", "floor_area_m2", "t30_s")},
    )
    part = split_of(np.eye(12), places, room=np.repeat([5, 5, 8], 4))
    assert part.place.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    train, localiser = split_of(np.eye(12), places), Localiser(RightOfTheFirst(), 1.0, 1.0)
    errors = []
    for room in (np.repeat([5, 5, 8], 4), np.arange(12)):
        heard = localisation(localiser, train, split_of(np.eye(12), places, room=room))
        score = heard["angular_error_deg/1"]
        errors.append((score["value"], score["high"] - score["low"]))
    (of_places, wide), (of_scenes, narrow) = errors
    assert of_places == of_scenes
    assert wide > 1.5 * narrow


class RightOfTheFirst:
    """Hears a source in front at the first eight of twelve scenes, and on the left at the rest."""

    def predict(self, embeddings):
        heard = np.zeros((len(embeddings), 4))
        heard[:8, 0] = heard[8:, 1] = 1.0
        return heard


def moving(weight):
    """Scenes whose embeddings add a direction and one of two contents, said without a place."""
    places = Places(
        azimuth_deg=np.array([0.0, 90.0, 180.0, -90.0, 45.0]),
        **{name: np.ones(5) for name in ("elevation_deg", "distance_m", "floor_area_m2", "t30_s")},
    )
    kinds = np.array([0, 1, 0, 1, 0])
    contents = np.eye(8)[4:6]
    at = np.vstack([FOUR, FOUR[:1]])
    audio = (weight * at + contents[kinds]) / np.hypot(1, weight)
    names = [("rain falls", "a dog barks")[kind] for kind in kinds]
    part = split_of(audio, places, names, [("rain", "dog")[kind] for kind in kinds])
    return part, ["a dog barks", "rain falls"], contents[::-1]


def test_a_swap_by_hand():
    part, contents, vectors = moving(1.0)
    outcomes, changes = direction_swap(part, FOUR, contents, vectors)
    assert outcomes["direction_4/swapped"].hits.tolist() == [True] * 12
    assert (
        np.unique(outcomes["direction_4/swapped"].cluster, return_counts=True)[1].tolist()
        == [3] * 4
    )
    # 1 / sqrt(2) of the direction was there, 1 is subtracted: what is left points away from it.
    assert outcomes["direction_4/removed"].hits.tolist() == [False] * 4
    for what in ("1", "swapped", "removed"):
        assert outcomes[f"content_r1/{what}"].hits.all(), what
        assert outcomes[f"content_r1/{what}"].chance == 0.5
    assert changes["content_r10_change/swapped"]["value"] == 0.0
    assert changes["content_r10_change/swapped"]["n"] == 12


class Deaf:
    """Localises everything on the left."""

    def predict(self, embeddings):
        return np.tile([0.1, 1.0, 0.5, 0.0], (len(embeddings), 1))


class Reading:
    """Localises by the four first dimensions: front, left, back, right."""

    def predict(self, embeddings):
        front, left, back, right = embeddings[:, :4].T
        nothing = np.zeros(len(embeddings))
        return np.stack([front - back, left - right, nothing, nothing], axis=1)


def test_a_swap_is_heard_by_another_listener():
    part, contents, vectors = moving(1.0)
    outcomes, _ = direction_swap(part, FOUR, contents, vectors, Localiser(Reading(), 0.0, 1.0))
    assert outcomes["direction_4_localised/1"].hits.tolist() == [True] * 4
    assert outcomes["direction_4_localised/swapped"].hits.all()
    # What is left points the other way.
    assert not outcomes["direction_4_localised/removed"].hits.any()
    outcomes, _ = direction_swap(part, FOUR, contents, vectors, Localiser(Deaf(), 0.0, 1.0))
    assert outcomes["direction_4/swapped"].hits.all()
    assert outcomes["direction_4_localised/1"].hits.tolist() == [False, True, False, False]
    assert outcomes["direction_4_localised/swapped"].hits.mean() == 1 / 4


def test_a_swap_that_costs_the_content_is_told():
    part, contents, vectors = moving(1.0)
    # The prototype of the back holds half of each content, and more of the wrong one of two.
    tilted = FOUR.copy()
    tilted[2] = (FOUR[2] + 2 * np.eye(8)[4]) / 5**0.5
    outcomes, changes = direction_swap(part, tilted, contents, vectors)
    hits = outcomes["content_r1/swapped"].hits
    assert 0 < hits.mean() < 1
    change = changes["content_r1_change/swapped"]
    assert change["value"] == pytest.approx(hits.mean() - 1.0)
    assert change["low"] < change["value"] < change["high"] <= 0.0
    assert change["chance"] == 0.0


def around(count, seed):
    rng = np.random.default_rng(seed)
    places = Places(
        azimuth_deg=rng.uniform(-180, 180, count),
        elevation_deg=rng.uniform(-45, 45, count),
        distance_m=rng.uniform(0.5, 4.0, count),
        floor_area_m2=rng.uniform(15, 250, count),
        t30_s=rng.uniform(0.1, 1.3, count),
    )
    azimuth, elevation = np.radians(places.azimuth_deg), np.radians(places.elevation_deg)
    flat = np.cos(elevation)
    held = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation), places.distance_m]
    return places, np.stack(held, axis=1)


def test_localisation_and_its_parts():
    (learnt, known), (asked, held) = around(500, 0), around(200, 1)
    names = ["rain"] * 150 + ["dog"] * 50
    train, test = split_of(known, learnt), split_of(held, asked, categories=names)
    results = localisation(learn_localisation(train), train, test)
    whole = results["angular_error_deg/1"]
    assert whole["value"] < 5
    assert whole["n"] == 200
    assert whole["chance"] > 75
    assert results["distance_error_m/1"]["value"] < 0.1
    assert results["distance_error_m/1"]["chance"] == pytest.approx(0.875, abs=0.1)
    assert results["angular_error_median_deg/1"]["value"] < whole["value"]
    # Every quantity parts all scenes.
    parts = {name.partition("/")[2]: s for name, s in results.items() if ":" in name}
    for quantity in ("azimuth", "elevation", "distance", "floor area", "T30", "category"):
        of_it = [score for name, score in parts.items() if name.startswith(f"{quantity}: ")]
        assert sum(score["n"] for score in of_it) == 200, quantity
        weighed = sum(score["n"] * score["value"] for score in of_it) / 200
        assert weighed == pytest.approx(whole["value"]), quantity
    assert parts["category: dog"]["n"] == 50
    assert parts["distance: below 1 m"]["n"] == (asked.distance_m < 1).sum()
    assert parts["T30: 0.2 to 0.4 s"]["n"] == ((asked.t30_s >= 0.2) & (asked.t30_s < 0.4)).sum()


def test_clusters_of_directions_and_distances():
    rng = np.random.default_rng(0)
    places = Places(
        azimuth_deg=np.repeat([0.0, 90.0, 180.0], 10),
        elevation_deg=np.zeros(30),
        distance_m=np.tile([0.5, 3.0], 15),
        floor_area_m2=np.ones(30),
        t30_s=np.ones(30),
    )
    audio = rng.normal(0, 0.1, (30, 8)) + np.repeat(FOUR[:3], 10, axis=0)
    found = cluster_distances(split_of(audio, places))
    assert set(found) == {
        "wasserstein/front - left",
        "wasserstein/front - back",
        "wasserstein/left - back",
        "wasserstein/near - far",
    }
    assert found["wasserstein/front - left"]["low"] > found["wasserstein/front - left"]["chance"]
    near = found["wasserstein/near - far"]
    assert near["low"] < near["chance"] < near["high"]


def test_scenes_without_places_are_refused():
    with pytest.raises(ValueError, match="no places"):
        cluster_distances(split_of(np.eye(8)[:2], None))
