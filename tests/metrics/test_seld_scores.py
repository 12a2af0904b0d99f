"""The scorers by hand, on what the public code of the task does, and on its quirks."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from spatial_clap_jax.acoustics.stereo_view import fold_azimuth_deg
from spatial_clap_jax.data.sound_events import SoundEvents, no_events
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.seld import score, seld_results
from spatial_clap_jax.report import measures_table, results_table

CLASSES = ("speech", "bell", "door")
LABELS = 10
both = pytest.mark.parametrize("official", [False, True])


def events(*rows):
    """Rows of frame, class, azimuth, distance and, if given, the on-screen flag."""
    rows = [(*row, 0)[:5] for row in rows]
    frame, category, azimuth, distance, on_screen = np.array(rows, float).reshape(-1, 5).T
    return SoundEvents(
        frame.astype(np.int32),
        category.astype(np.int32),
        np.zeros(len(rows), np.int32),
        azimuth.astype(np.float32),
        distance.astype(np.float32),
        on_screen.astype(bool),
    )


# Speech at the end of a clip, so that the official scorer sees all that stands before.
END = (LABELS - 1, 0, 0, 1)


def scored(predicted, true, official=False, **settings):
    """Of one clip."""
    return score(
        {"a": events(*predicted)}, {"a": events(*true)}, CLASSES, LABELS, official, **settings
    )


def speech(predicted, true, official, **settings):
    true = [*true, END] if official else true
    return scored(predicted, true, official, **settings).by_class["speech"]


def test_azimuths_are_folded_as_the_task_folds_them():
    given = np.array([-180.0, -170, -91, -90, 0, 90, 91, 179, 180, 270, -350])
    np.testing.assert_array_equal(
        fold_azimuth_deg(given), [0, -10, -89, -90, 0, 90, 89, 1, 0, -90, 10]
    )


@both
@pytest.mark.parametrize(
    ("azimuth", "distance", "hit"),
    [(20, 1, 1), (20.6, 1, 0), (0, 2, 1), (0, 2.01, 0), (170, 1, 1), (-20, 0, 1)],
)
def test_what_is_a_hit(azimuth, distance, hit, official):
    found = speech([(1, 0, azimuth, distance)], [(1, 0, 0, 1)], official)
    # The public code adds 2e-16 to every divisor.
    assert found.f.value == pytest.approx(hit, abs=1e-15 if official else 0)
    assert found.matched == 1


def test_half_a_degree_counts_where_no_file_rounds_it():
    assert speech([(1, 0, 20.5, 1)], [(1, 0, 0, 1)], False).f.value == 0


@both
def test_two_predictions_of_one_reference(official):
    found = speech([(1, 0, 40, 1), (1, 0, 5, 1.5)], [(1, 0, 0, 1)], official)
    assert found.f.value == pytest.approx(2 / 3, abs=1e-15)
    assert (found.doae_deg.value, found.rde.value) == (pytest.approx(5), pytest.approx(0.5))


@both
def test_matching_minimises_the_sum_of_errors(official):
    # The nearest pair alone, 0 and 1, would leave 40 and -40.
    true = [(1, 0, 0, 1), (1, 0, 40, 1), (2, 1, 3, 1)]
    predicted = [(1, 0, 1, 1), (1, 0, -18, 1), (3, 0, 9, 1)]
    found = speech(predicted, true, official)
    assert found.doae_deg.value == pytest.approx((18 + 39) / 2)
    assert found.f.value == pytest.approx(2 * 1 / (2 + 3))


@both
def test_on_screen_is_asked_for_only_where_told(official):
    predicted, true = [(1, 0, 0, 1, 0), (2, 0, 0, 1, 1)], [(1, 0, 0, 1, 1), (2, 0, 0, 1, 1)]
    assert speech(predicted, true, official).f.value == pytest.approx(1)
    needed = speech(predicted, true, official, on_screen=True)
    assert needed.f.value == pytest.approx(1 / 2)
    assert needed.on_screen.value == pytest.approx(1 / 2)


def test_the_last_active_reference_frame_is_not_scored_by_the_official():
    perfect = [(1, 0, 0, 1), (2, 0, 0, 1)]
    missed = [(1, 0, 0, 1)]
    assert scored(missed, perfect, official=True).micro.f.value == pytest.approx(1)
    assert scored(missed, perfect).micro.f.value == pytest.approx(2 / 3)


def test_later_predictions_are_ignored_by_the_official():
    true = [(1, 0, 0, 1), (2, 0, 0, 1)]
    predicted = [*true, (3, 1, 0, 1), (7, 0, 0, 1)]
    assert scored(predicted, true, official=True).micro.f.value == pytest.approx(1)
    assert scored(predicted, true).micro.f.value == pytest.approx(2 * 2 / 6)


def test_clips_without_references_are_ignored_by_the_official():
    true = {"a": events((1, 0, 0, 1), END), "b": no_events()}
    told = {"a": events((1, 0, 0, 1), END), "b": events((4, 0, 0, 1))}
    assert score(told, true, CLASSES, LABELS, official=True).micro.f.value == pytest.approx(1)
    assert score(told, true, CLASSES, LABELS).micro.f.value == pytest.approx(4 / 5)


def test_clips_without_predictions_are_ignored_by_the_official():
    true = {"a": events((1, 0, 0, 1), END), "b": events((1, 0, 0, 1), END)}
    told = {"a": true["a"]}
    assert score(told, true, CLASSES, LABELS, official=True).micro.f.value == pytest.approx(1)
    assert score(told, true, CLASSES, LABELS).micro.f.value == pytest.approx(4 / 6)


def test_classes_that_never_sound_count_zero_in_the_official_mean():
    true = [(1, 0, 0, 1), END]
    assert scored(true, true, official=True).macro.f.value == pytest.approx(1 / 3)
    assert scored(true, true).macro.f.value == pytest.approx(1)
    # A class that is only predicted is wrong for both.
    assert scored([*true, (1, 1, 0, 1)], true).macro.f.value == pytest.approx(1 / 2)


def test_the_official_reads_whole_degrees_and_centimetres():
    predicted, true = [(1, 0, 5.4, 1.004)], [(1, 0, 0, 1), END]
    official, corrected = scored(predicted, true, True), scored(predicted, true)
    assert (official.micro.doae_deg.value, official.micro.rde.value) == (pytest.approx(5), 0)
    assert corrected.micro.doae_deg.value == pytest.approx(5.4)
    assert corrected.micro.rde.value == pytest.approx(0.004, rel=1e-3)


@both
def test_means_over_classes_leave_out_errors_that_are_not_there(official):
    true = [(1, 0, 0, 1), (1, 1, 10, 1), (2, 1, 10, 1), END]
    predicted = [(1, 0, 6, 1), (1, 1, 12, 1), (2, 1, 12, 1)]
    found = scored(predicted, true, official)
    assert found.macro.doae_deg.value == pytest.approx((6 + 2) / 2)
    assert found.micro.doae_deg.value == pytest.approx((6 + 2 + 2) / 3)
    assert np.isnan(found.by_class["door"].doae_deg.value)


def drawn(seed, clips=6):
    """Random whole-number truths, and predictions near them with slips."""
    rng = np.random.default_rng(seed)
    true, told = {}, {}
    for clip in range(clips):
        rows = []
        for _ in range(rng.integers(0, 25)):
            frame, category = rng.integers(LABELS), rng.integers(len(CLASSES))
            row = (
                frame,
                category,
                rng.integers(-90, 91),
                rng.integers(1, 500) / 100,
                rng.integers(2),
            )
            rows.append(tuple(map(float, row)))
        rows.sort()
        near = [
            (
                f,
                c,
                float(np.clip(a + rng.integers(-30, 31), -90, 90)),
                d * 1.5,
                float(rng.integers(2)),
            )
            for f, c, a, d, _ in rows
            if rng.random() < 0.8
        ] + [(float(f), 0.0, 10.0, 1.0, 0.0) for f in rng.integers(LABELS, size=3)]
        true[f"clip{clip}"], told[f"clip{clip}"] = events(*rows), events(*sorted(near))
    return told, true


def by_loops(told, true, on_screen):
    """The public scorer's sums, frame by frame, by class: hits, F's denominator and errors."""
    sums = np.zeros((len(CLASSES), 6))
    for name in told:
        last = max(true[name].frame.tolist(), default=0)
        for frame in range(last):
            for category in range(len(CLASSES)):
                cells = [
                    e.taken((e.frame == frame) & (e.category == category))
                    for e in (true[name], told[name])
                ]
                (one, other), sizes = cells, [len(cell) for cell in cells]
                sums[category, 1] += sum(sizes) / 2
                if not all(sizes):
                    continue
                cost = np.abs(one.azimuth_deg[:, None] - other.azimuth_deg[None])
                pairs = list(zip(*scipy.optimize.linear_sum_assignment(cost), strict=True))
                for i, j in pairs:
                    metres = (
                        round(100 * float(one.distance_m[i])),
                        round(100 * float(other.distance_m[j])),
                    )
                    relative = abs(metres[0] - metres[1]) / metres[0]
                    right = one.on_screen[i] == other.on_screen[j]
                    near = cost[i, j] <= 20 and relative <= 1 and (right or not on_screen)
                    sums[category] += [near, 0, 1, cost[i, j], relative, right]
    return sums


@pytest.mark.parametrize("on_screen", [False, True])
def test_the_official_equals_its_loops(on_screen):
    told, true = drawn(1)
    sums = by_loops(told, true, on_screen)
    found = score(told, true, CLASSES, LABELS, official=True, on_screen=on_screen)
    f = sums[:, 0] / sums[:, 1]
    assert 0.1 < f.mean() < 0.9
    assert found.macro.f.value == pytest.approx(f.mean(), rel=1e-12)
    assert found.micro.f.value == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum(), rel=1e-12)
    assert [m.f.value for m in found.by_class.values()] == pytest.approx(f.tolist(), rel=1e-12)
    errors = sums[:, 3:] / sums[:, 2:3]
    for index, name in enumerate(("doae_deg", "rde", "on_screen")):
        macro, micro = (getattr(part, name).value for part in (found.macro, found.micro))
        assert macro == pytest.approx(errors[:, index].mean(), rel=1e-12)
        assert micro == pytest.approx(sums[:, 3 + index].sum() / sums[:, 2].sum(), rel=1e-12)


@both
def test_intervals_leave_out_one_clip_after_the_other(official):
    told, true = drawn(2)
    found = score(told, true, CLASSES, LABELS, official).macro
    parts = []
    for out in true:
        rest = [{k: v for k, v in held.items() if k != out} for held in (told, true)]
        parts.append(score(*rest, CLASSES, LABELS, official).macro)
    n = len(parts)
    for name in ("f", "doae_deg", "rde", "on_screen"):
        value, low, high = getattr(found, name)
        partial = np.array([getattr(part, name).value for part in parts])
        estimate = n * value - (n - 1) * partial.mean()
        error = np.sqrt((n - 1) / n * ((partial - partial.mean()) ** 2).sum())
        half = scipy.stats.t(n - 1).ppf(0.975) * error
        assert (low, high) == pytest.approx((estimate - half, estimate + half), rel=1e-9)


def test_a_class_of_one_clip_has_no_official_interval():
    true = {name: events((1, 0, 0, 1), END) for name in "abc"}
    true["c"] = events((1, 0, 0, 1), (2, 1, 5, 1), END)
    told = dict(true, a=events((1, 0, 9, 1)))
    official = score(told, true, CLASSES, LABELS, official=True).by_class["bell"].doae_deg
    corrected = score(told, true, CLASSES, LABELS).by_class["bell"].doae_deg
    assert np.isnan([official.low, official.high]).all()
    assert (corrected.low, corrected.high) == (0, 0)


@both
def test_left_and_right_score_the_same(official):
    told, true = drawn(3)
    mirrored = [{k: v.mirrored() for k, v in held.items()} for held in (told, true)]
    np.testing.assert_equal(
        score(*mirrored, CLASSES, LABELS, official), score(told, true, CLASSES, LABELS, official)
    )


def test_rows_have_intervals_and_the_chance_of_other_clips():
    told, true = drawn(4)
    results = seld_results(told, true, CLASSES, LABELS, on_screen=True)
    found = score(told, true, CLASSES, LABELS)
    row = results["seld_f/macro"]
    assert row["value"] == found.macro.f.value
    assert row["low"] <= row["value"] <= row["high"]
    assert row["n"] == sum(map(len, true.values()))
    names = sorted(true)
    turns = [
        dict(zip(names, [told[n] for n in names[k:] + names[:k]], strict=True)) for k in range(1, 6)
    ]
    others = [score(turn, true, CLASSES, LABELS).macro.f.value for turn in turns]
    assert row["chance"] == pytest.approx(np.mean(others))
    assert row["chance"] < row["value"]
    assert results["seld_doae_deg/class: bell"]["n"] == found.by_class["bell"].matched
    needed = score(told, true, CLASSES, LABELS, on_screen=True)
    assert results["seld_f_on_screen/micro"]["value"] == needed.micro.f.value
    assert results["seld_on_screen/macro"]["value"] == needed.macro.on_screen.value
    assert not any("on_screen" in key for key in seld_results(told, true, CLASSES, LABELS))
    shares = list(map(str, results_table(results).columns[0].cells))
    errors = list(map(str, measures_table(results).columns[0].cells))
    assert "events, F, on-screen right" in shares
    assert {"events, azimuth error", "events, relative distance"} <= set(errors)
    assert set(map(str, measures_table(results).columns[5].cells)) == {"deg", "ratio"}


@both
def test_chance_of_a_distance_and_of_a_flag_is_the_best_constant(official):
    told, true = drawn(4)
    results = seld_results(told, true, CLASSES, LABELS, official=official, on_screen=True)

    def constant(**given):
        changed = {
            name: dataclasses.replace(e, **{k: np.full(len(e), v) for k, v in given.items()})
            for name, e in told.items()
        }
        return score(changed, true, CLASSES, LABELS, official).micro

    distances = np.quantile(np.concatenate([e.distance_m for e in true.values()]), [0.1, 0.3, 0.5])
    chance = results["seld_rde_ratio/micro"]["chance"]
    assert chance <= min(constant(distance_m=np.float32(d)).rde.value for d in distances)
    assert chance > 0
    flags = [constant(on_screen=flag).on_screen.value for flag in (False, True)]
    assert sum(flags) == pytest.approx(1)
    assert results["seld_on_screen/micro"]["chance"] == max(flags)


def test_what_cannot_be_scored_is_refused():
    one = {"a": events((1, 0, 0, 1))}
    with pytest.raises(InputError, match="clip 'b' has no reference"):
        score({"b": no_events()}, one, CLASSES, LABELS)
    with pytest.raises(InputError, match="no clip to score"):
        score({}, one, CLASSES, LABELS, official=True)
    for name, value in (("frame", LABELS), ("category", 3), ("frame", -1)):
        wrong = dataclasses.replace(one["a"], **{name: np.array([value], np.int32)})
        with pytest.raises(InputError, match=f"predictions: {name} {value} must lie in 0"):
            score({"a": wrong}, one, CLASSES, LABELS)
    with pytest.raises(InputError, match="one clip has no interval"):
        seld_results(one, one, CLASSES, LABELS)
