"""Evaluation of scenes in ELSA's words."""

import dataclasses

import numpy as np
import pytest
import soundfile
from fakes import FakeScenes
from foa_scenes import AZIMUTHS_DEG, FoaScenes, Knowing

from spatial_clap_jax.acoustics.spatial_words import (
    DIRECTIONS,
    DIRECTIONS_8,
    direction_word,
    direction_word_8,
)
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate, evaluate_in_detail, evaluate_recordings
from spatial_clap_jax.metrics.scores import score_of
from spatial_clap_jax.report import unit_of

SCENES = FoaScenes()
ATTRIBUTES = {"direction_4", "direction_8", "elevation", "distance", "room", "reverberation"}


@pytest.fixture(scope="module")
def found():
    return evaluate_in_detail(Knowing(SCENES), SCENES, progress=False)


def test_what_is_asked_of_ambisonic_scenes(found):
    retrieved = {
        f"{way}_{at}/{k}"
        for way in ("t2a", "a2t")
        for at in ("r1", "r5", "r10", "map10")
        for k in ("plain", "1", "2")
    }
    whole = {key for key in found.results if ":" not in key and "wasserstein" not in key}
    assert whole == (
        retrieved
        | {f"{name}/1" for name in ATTRIBUTES}
        | {"content/1", "assignment/2", "direction_4/swapped", "direction_4/removed"}
        | {f"direction_4_localised/{what}" for what in ("1", "swapped", "removed")}
        | {f"content_r{at}/{what}" for at in (1, 10) for what in ("1", "swapped", "removed")}
        | {f"content_r{at}_change/{what}" for at in (1, 10) for what in ("swapped", "removed")}
        | {"angular_error_deg/1", "angular_error_median_deg/1", "distance_error_m/1"}
    )
    for name, score in found.results.items():
        assert set(score) == {"value", "low", "high", "chance", "n"}, name
        assert score["low"] <= score["value"] <= score["high"], name


def test_a_model_that_knows_everything_scores_one(found):
    for name in ATTRIBUTES:
        assert found.results[f"{name}/1"]["value"] == 1.0, name
    for name in ("t2a_r1/plain", "a2t_map10/plain", "content/1", "assignment/2", "a2t_r1/2"):
        assert found.results[name]["value"] == 1.0, name
    shares = np.bincount([DIRECTIONS_8.index(direction_word_8(a)) for a in AZIMUTHS_DEG])
    assert found.results["direction_8/1"]["chance"] == shares.max() / len(AZIMUTHS_DEG)
    assert found.results["direction_4_localised/swapped"]["chance"] == 1 / 4


def test_only_scenes_with_a_word_are_asked(found):
    groups = SCENES.source("test_k1")
    said = [direction_word(float(group.azimuth_deg[0])) for group in groups]
    asked = [i for i, word in enumerate(said) if word]
    assert 0 < len(asked) < len(groups)
    place = found.embedded[1].place
    np.testing.assert_array_equal(found.outcomes["direction_4/1"].cluster, place[asked])
    np.testing.assert_array_equal(found.outcomes["direction_8/1"].cluster, place)
    assert found.results["direction_8/1"]["n"] == len(groups)
    assert found.results["elevation/1"]["n"] == sum(g.elevation_deg[0] != 0 for g in groups)
    assert found.results["distance/1"]["n"] == sum(g.distance_m[0] != 1.5 for g in groups)
    assert found.results["room/1"]["n"] == sum(g.room_size_m[0] != 9 for g in groups)
    counts = [said.count(word) for word in DIRECTIONS]
    np.testing.assert_array_equal(found.direction_confusion, np.diag(counts))


def test_a_room_is_asked_about_once(found):
    groups = SCENES.source("test_k1")
    rooms = np.array([group.room for group in groups])
    for name, asked in (
        ("room", [group.room_size_m[0] != 9 for group in groups]),
        ("reverberation", [group.t30_s[0] != np.float32(0.5) for group in groups]),
    ):
        cluster, of = found.outcomes[f"{name}/1"].cluster, rooms[np.array(asked)]
        same = of[:, None] == of
        assert same.sum() > len(of)
        np.testing.assert_array_equal(cluster[:, None] == cluster, same)


def test_every_share_can_be_counted_again(found):
    for name, outcome in found.outcomes.items():
        assert found.results[name] == score_of(*outcome), name
    rest = found.results.keys() - found.outcomes.keys()
    assert all(unit_of(name) is not None or "map10" in name or "change" in name for name in rest)


def test_what_the_embeddings_hold_is_localised(found):
    assert found.results["angular_error_deg/1"]["value"] < 15
    assert found.results["angular_error_deg/1"]["chance"] > 60
    assert (
        found.results["distance_error_m/1"]["high"] < found.results["distance_error_m/1"]["chance"]
    )
    assert len(found.learnt.starts) == 48 + 1
    fewer = evaluate_in_detail(Knowing(SCENES), SCENES, progress=False, localise=10).learnt
    assert len(fewer.starts) == 10 + 1


def test_localisation_is_left_out_where_it_cannot_be_learnt():
    test_alone = dataclasses.replace(SCENES, splits=("test_k1",))
    for scenes, options in (
        (SCENES, {"localise": 0}),
        (test_alone, {}),
        (SCENES, {"split": "train"}),
    ):
        found = evaluate_in_detail(Knowing(SCENES), scenes, progress=False, **options)
        assert found.learnt is None
        assert not any("angular" in name for name in found.results)
        assert "direction_4/1" in found.results


def test_a_model_of_one_channel_hears_contents_alone():
    results = evaluate(Knowing(SCENES, channels=1), SCENES, progress=False)
    assert results["t2a_r1/plain"]["value"] == results["content/1"]["value"] == 1.0
    # It hears no direction; a tie with another one is wrong.
    assert results["direction_4/1"]["high"] < 0.3
    assert results["assignment/2"]["value"] < 1.0


def test_other_channels_are_refused():
    stereo = Knowing(SCENES)
    stereo.channels = 2
    with pytest.raises(InputError, match=r"test_k0: .* first-order ambisonics .* takes 2; give"):
        evaluate(stereo, SCENES, progress=False)
    with pytest.raises(InputError, match=r"test_k1: .* stereo \(left, right\), 2 .* takes 4; give"):
        evaluate(Knowing(SCENES), FakeScenes(splits=("test_k1",)), progress=False)
    with pytest.raises(InputError, match="localise -1: must be at least 0"):
        evaluate_in_detail(Knowing(SCENES), SCENES, progress=False, localise=-1)


def test_recordings_have_the_channels_of_the_model(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.zeros((50, 2)), 16_000)
    (tmp_path / "my.csv").write_text("filename,caption,wrong_captions\ntwo.wav,rain falls,\n")
    with pytest.raises(InputError, match=r"has 2 channel\(s\); .* ambisonics \(acn-sn3d\); give"):
        evaluate_recordings(Knowing(SCENES), tmp_path / "my.csv", progress=False)


class Pointing:
    """Embeds a recording as the direction of its intensity, a text as the one that it names."""

    channels = 4

    def __init__(self):
        self.heard = []

    def embed_audio(self, audio, sample_rate_hz):
        self.heard.append(audio)
        vectors = (audio[:, :1] * audio[:, 1:]).sum(axis=-1)
        return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def embed_text(self, texts):
        along = {"left": (1, 0, 0), "above": (0, 1, 0), "front": (0, 0, 1)}
        return np.float32([along[next(word for word in along if word in t)] for t in texts])


def write_waves(folder, foa_format="acn-sn3d"):
    """Plane waves from the left, from above and from ahead, and their table."""
    rng, rows = np.random.default_rng(0), ["filename,caption,wrong_captions"]
    places = ("left", "above", "front")
    for place, (y, z, x) in zip(places, np.eye(3), strict=True):
        signal = 0.1 * rng.normal(size=80)
        gains = {
            "acn-sn3d": (1, y, z, x),
            "acn-n3d": (1, 3**0.5 * y, 3**0.5 * z, 3**0.5 * x),
            "fuma": (2**-0.5, x, y, z),
        }[foa_format]
        wave = np.outer(signal, gains)
        soundfile.write(folder / f"{place}.wav", wave, 16_000, subtype="FLOAT")
        wrong = "|".join(f"a dog barks {other}" for other in places if other != place)
        rows.append(f"{place}.wav,a dog barks {place},{wrong}")
    (folder / "my.csv").write_text("\n".join(rows) + "\n")
    return folder / "my.csv"


def test_recordings_of_a_declared_convention_score_as_their_twins(tmp_path):
    usual = Pointing()
    expected = evaluate_recordings(usual, write_waves(tmp_path), progress=False)
    assert expected["assignment/recordings"]["value"] == 1.0
    for foa_format in ("acn-n3d", "fuma"):
        model, table = Pointing(), write_waves(tmp_path, foa_format)
        found = evaluate_recordings(model, table, progress=False, foa_format=foa_format)
        np.testing.assert_allclose(model.heard, usual.heard, atol=1e-7)
        assert found == expected
    # Not declared, FuMa has its directions exchanged.
    undeclared = evaluate_recordings(Pointing(), table, progress=False)
    assert undeclared["assignment/recordings"]["value"] < 1.0


def test_recordings_without_a_place_are_declared(tmp_path):
    signal = np.float32([0.1, -0.2, 0.3])
    soundfile.write(tmp_path / "one.wav", signal, 16_000, subtype="FLOAT")
    (tmp_path / "my.csv").write_text("filename,caption,wrong_captions\none.wav,front,\n")
    model = Pointing()
    evaluate_recordings(model, tmp_path / "my.csv", progress=False, plain=True)
    np.testing.assert_allclose(model.heard[0], [[signal] * 4], atol=1e-7)
    with pytest.raises(InputError, match=r"has 1 channel\(s\); .* ambisonics \(fuma\); give a 4"):
        evaluate_recordings(model, tmp_path / "my.csv", progress=False, foa_format="fuma")
    with pytest.raises(InputError, match=r"has 4 channel\(s\); recordings must be mono; give a 1"):
        evaluate_recordings(model, write_waves(tmp_path), progress=False, plain=True)


@pytest.mark.parametrize("how", [{"plain": True}, {"foa_format": "fuma"}])
def test_nothing_of_ambisonics_is_said_to_a_stereo_model(tmp_path, how):
    model = Pointing()
    model.channels = 2
    with pytest.raises(InputError, match="is said to a model of first-order ambisonics, and this"):
        evaluate_recordings(model, tmp_path / "absent.csv", progress=False, **how)


def test_an_unknown_convention_is_named(tmp_path):
    with pytest.raises(InputError, match="foa_format 'ambix' is none of acn-sn3d, acn-n3d, fuma"):
        evaluate_recordings(Pointing(), tmp_path / "absent.csv", False, foa_format="ambix")
