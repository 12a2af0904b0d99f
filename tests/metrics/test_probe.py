"""Accuracy and mean average precision of labels, and the linear probe on features made by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embedded import LabelledClips
from spatial_clap_jax.metrics.labels import labels_matrix, mean_average_precision, score_labels
from spatial_clap_jax.metrics.probe import STRENGTHS, linear_probe
from spatial_clap_jax.metrics.retrieval import average_precision
from spatial_clap_jax.metrics.scores import score_of

CLASSES = ("bell", "dog", "rain")


def numbers(count: int) -> np.ndarray:
    return np.arange(count)


def test_labels_become_a_matrix():
    found = labels_matrix(["rain; bell", "", "gong|dog"], CLASSES)
    assert found.tolist() == [[True, False, True], [False] * 3, [False, True, False]]


def test_mean_average_precision_by_hand():
    # The first class is at ranks 1 and 3 of four, the second at 2; the third has no clip.
    scores = np.array([[4.0, 1.0, 0.0], [3.0, 4.0, 0.0], [2.0, 3.0, 0.0], [1.0, 2.0, 0.0]])
    true = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    score = mean_average_precision(scores, true, numbers(4))
    assert score["value"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    # One of one in four: 1, 1/2, 1/3 or 1/4. Two: the mean over the six places that they can have.
    of_two = (1 + 5 / 6 + 3 / 4 + 7 / 12 + 1 / 2 + 5 / 12) / 6
    assert score["chance"] == pytest.approx((25 / 48 + of_two) / 2)
    # A tie with a clip that has not the label goes against it, and so does rounding.
    barely = np.where(true, 1e-12, 0.0)
    assert mean_average_precision(barely, true, numbers(4))["value"] == pytest.approx(
        ((1 / 3 + 2 / 4) / 2 + 1 / 4) / 2
    )
    level = mean_average_precision(np.zeros((4, 3)), true, numbers(4))
    assert level["value"] == pytest.approx(((1 / 3 + 2 / 4) / 2 + 1 / 4) / 2)


def test_mean_average_precision_is_that_of_others():
    rng = np.random.default_rng(0)
    scores, true = rng.normal(size=(60, 5)), rng.random((60, 5)) < 0.3
    scores[true] += 0.7
    found = mean_average_precision(scores, true, numbers(60))
    assert found["value"] == pytest.approx(average_precision_score(true, scores, average="macro"))
    assert found["value"] == pytest.approx(average_precision(scores.T, true.T, 60).mean())
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] < 0.3
    assert found["n"] == 60
    random = [
        mean_average_precision(rng.normal(size=(60, 5)), true, numbers(60), draws=1)["value"]
        for _ in range(300)
    ]
    assert found["chance"] == pytest.approx(np.mean(random), abs=0.01)


def test_clips_are_resampled_with_all_their_records():
    rng = np.random.default_rng(1)
    scores, true = rng.normal(size=(30, 2)), rng.random((30, 2)) < 0.4
    alone = mean_average_precision(scores, true, numbers(30))
    four = mean_average_precision(
        np.tile(scores, (4, 1)), np.tile(true, (4, 1)), np.tile(numbers(30), 4)
    )
    # Four records of a clip tell no more than one.
    assert four["high"] - four["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.2)


def test_single_labels_have_an_accuracy_and_several_have_none():
    scores = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 3.0], [9.0, 0.0, 0.0]])
    true = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    outcomes, measures = score_labels("content", scores, true, numbers(4), 1 / 3)
    # The tie is wrong, and the clip without a label is not asked.
    assert outcomes["content/plain"].hits.tolist() == [True, False, True]
    assert set(measures) == {"content_map/plain"}
    true[3] = True
    outcomes, measures = score_labels("content", scores, true, numbers(4), 1 / 3)
    assert outcomes == {}
    assert measures["content_map/plain"]["n"] == 4
    assert score_labels("content", scores, np.zeros((4, 3), bool), numbers(4), 1 / 3) == ({}, {})
    assert score_labels("content", scores[:, :1], true[:, :1], numbers(4), 1.0) == ({}, {})


def clips(split: int, count: int, classes=CLASSES, noise: float = 0.3, several=False):
    """Features that tell the class, on scales far apart, and others that say nothing."""
    rng = np.random.default_rng([split, count])
    held = np.zeros((count, len(classes)), bool)
    held[np.arange(count), np.arange(count) % len(classes)] = True
    if several:
        held |= rng.random(held.shape) < 0.4
    told = held + noise * rng.normal(size=held.shape)
    features = np.concatenate(
        [told * [1e-3, 1.0, 1e3][: len(classes)], rng.normal(size=(count, 20))], axis=1
    )
    names = [";".join(np.array(classes)[row].tolist()) for row in held]
    return LabelledClips(features.astype(np.float32), tuple(names), tuple(map(str, range(count))))


def test_a_probe_reads_what_the_features_hold():
    probe = linear_probe(clips(0, 90), clips(1, 30), clips(2, 60))
    score = score_of(*probe.outcomes["probe/plain"])
    assert score["value"] > 0.8
    assert score["chance"] == pytest.approx(1 / 3)
    assert score["n"] == 60
    assert probe.measures["probe_map/plain"]["value"] > 0.9
    assert probe.strength in STRENGTHS


def test_a_probe_of_noise_stays_at_chance():
    probe = linear_probe(*(clips(split, 60, noise=1e3) for split in range(3)))
    score = score_of(*probe.outcomes["probe/plain"])
    assert score["low"] < 1 / 3 < score["high"]


def test_a_probe_of_several_labels_has_mean_average_precision_alone():
    probe = linear_probe(*(clips(split, 60, several=True) for split in range(3)))
    assert probe.outcomes == {}
    assert probe.measures["probe_map/plain"]["value"] > 0.9
    assert probe.measures["probe_map/plain"]["chance"] < 0.7


def test_the_validation_clips_choose_and_the_test_clips_do_not():
    train = clips(0, 60)
    # Many numbers that say nothing: little regularisation learns them by heart.
    rng = np.random.default_rng(0)

    def crowded(part):
        rest = rng.normal(size=(len(part.features), 200))
        return part._replace(features=np.concatenate([part.features, rest], axis=1))

    parts = [crowded(train), crowded(clips(1, 60, noise=0.8)), crowded(clips(2, 60))]
    chosen = linear_probe(*parts).strength
    assert linear_probe(parts[0], parts[1], crowded(clips(3, 30, noise=9.0))).strength == chosen
    backwards = parts[1]._replace(categories=parts[1].categories[1:] + parts[1].categories[:1])
    assert linear_probe(parts[0], backwards, parts[2]).strength != chosen


def test_classes_of_the_test_alone_are_never_right():
    test = clips(2, 30)
    renamed = tuple(name.replace("rain", "gong") for name in test.categories)
    probe = linear_probe(clips(0, 60), clips(1, 30), test._replace(categories=renamed))
    hits = probe.outcomes["probe/plain"].hits
    assert not hits[np.array(renamed) == "gong"].any()
    assert hits[np.array(renamed) != "gong"].mean() > 0.8


def test_two_classes_and_clips_without_a_label():
    parts = [clips(split, 30, classes=("bell", "dog")) for split in range(3)]
    test = parts[2]._replace(categories=("", *parts[2].categories[1:]))
    probe = linear_probe(parts[0], parts[1], test)
    assert probe.outcomes["probe/plain"].hits.mean() > 0.9
    assert len(probe.outcomes["probe/plain"].hits) == 29


def test_probes_that_cannot_be():
    good = clips(0, 30)
    nameless = good._replace(categories=("",) * 30)
    with pytest.raises(InputError, match="no clip of split 'validation' has a category"):
        linear_probe(good, nameless, good)
    with pytest.raises(InputError, match="the training clips are of one class"):
        linear_probe(good._replace(categories=("bell",) * 30), good, good)
