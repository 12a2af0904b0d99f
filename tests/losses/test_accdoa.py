"""ADPIT against all assignments of sources to tracks, in float64 and loop by loop."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.data.accdoa_targets import adpit_targets
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.accdoa import AccdoaConfig, accdoa_loss, visible_loss

PLAIN = AccdoaConfig()
WEIGHTED = AccdoaConfig(distance_weight=0.25, on_screen_weight=3.0, active_weight=4.0)
RELATIVE = AccdoaConfig(distance_error="relative", distance_weight=0.5, active_weight=2.0)
LABELS, CLASSES = 5, 4
MIRROR = np.array([1, -1, 1, 1], np.float32)[:, None]

loss_of = jax.jit(accdoa_loss, static_argnames="config")


def sources_of(seed):
    """Sources by frame and class, 0 to 3 of each: azimuth, distance, on screen."""
    rng = np.random.default_rng(seed)
    return {
        (frame, c): [
            (float(rng.integers(-90, 91)), float(rng.uniform(0.5, 4)), bool(rng.integers(2)))
            for _ in range((frame + c) % 4)
        ]
        for frame in range(LABELS)
        for c in range(CLASSES)
    }


def targets_of(sources):
    rows = [(frame, c, *one) for (frame, c), each in sources.items() for one in each]
    frame, category, azimuth, distance, on_screen = zip(*rows, strict=True)
    events = SoundEvents(
        np.array(frame, np.int32),
        np.array(category, np.int32),
        np.zeros(len(rows), np.int32),
        np.array(azimuth, np.float32),
        np.array(distance, np.float32),
        np.array(on_screen, bool),
    )
    return adpit_targets(events, LABELS, CLASSES)


def outputs_of(seed, elements=4, clips=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(clips, LABELS, 3, elements, CLASSES)).astype(np.float32)


def brute_force(outputs, clips, config=PLAIN):
    """Every way to give each of three tracks a source, so that each source has a track."""
    totals = np.zeros(3)
    for clip, sources in enumerate(clips):
        for (frame, c), each in sources.items():
            tracks = outputs[clip, frame, :, :, c].astype(np.float64)
            wanted = [
                (math.cos(math.radians(a)), math.sin(math.radians(a)), d, flag)
                for a, d, flag in each
            ] or [(0, 0, 0, 0)]
            ways = [
                way
                for way in itertools.product(range(len(wanted)), repeat=3)
                if len(set(way)) == len(wanted)
            ]
            assert len(ways) == {1: 1, 2: 6, 3: 6}[len(wanted)]
            costs = []
            for way in ways:
                far = near = crossed = 0.0
                for track, source in zip(tracks, way, strict=True):
                    x, y, distance, flag = wanted[source]
                    near += ((track[0] - x) ** 2 + (track[1] - y) ** 2) / 9
                    off = abs(track[2] - distance)
                    if config.distance_error == "squared":
                        off **= 2
                    else:
                        off = off / distance if distance else 0.0
                    far += config.distance_weight * off / 9
                    if len(track) == 4:
                        crossed += math.log(1 + math.exp(-track[3] if flag else track[3])) / 3
                costs.append((near + far, near, far, config.on_screen_weight * crossed))
            weight = config.active_weight if each else 1.0
            totals += np.array(min(costs)[1:]) * weight
    totals /= len(clips) * LABELS * CLASSES
    return [totals.sum(), *totals]


@pytest.mark.parametrize("elements", [3, 4])
@pytest.mark.parametrize(
    "config", [PLAIN, WEIGHTED, RELATIVE], ids=["plain", "weighted", "relative"]
)
def test_loss_equals_brute_force(elements, config):
    clips = [sources_of(1), sources_of(2)]
    outputs, targets = outputs_of(3, elements), np.stack([targets_of(s) for s in clips])
    found = loss_of(outputs, targets, config=config)
    np.testing.assert_allclose(found, brute_force(outputs, clips, config), rtol=2e-6)


def test_right_outputs_in_any_order_of_tracks_cost_nothing():
    sources = sources_of(4)
    for order in itertools.permutations(range(3)):
        outputs = np.zeros((1, LABELS, 3, 4, CLASSES), np.float32)
        for (frame, c), each in sources.items():
            for place, track in enumerate(order):
                if each:
                    a, d, flag = each[place % len(each)]
                    x, y = math.cos(math.radians(a)), math.sin(math.radians(a))
                    outputs[0, frame, track, :, c] = x, y, d, 100.0 if flag else -100.0
                else:
                    outputs[0, frame, track, 3, c] = -100.0
        found = loss_of(outputs, targets_of(sources)[None], config=PLAIN)
        np.testing.assert_allclose(found, 0, atol=1e-12)


def test_nothing_told_where_nothing_sounds():
    outputs, targets = np.zeros((1, 2, 3, 4, 1), np.float32), np.zeros((1, 2, 6, 5, 1), np.float32)
    total, direction, distance, on_screen = map(float, loss_of(outputs, targets, config=PLAIN))
    assert (direction, distance) == (0, 0)
    assert total == on_screen == np.float32(np.log(2))


def test_silence_is_no_way_out_of_two_sources():
    # Zeros as targets of the other groups would make weak outputs free.
    sources = {(0, 0): [(90.0, 1.0, False), (-90.0, 1.0, False)]}
    targets = targets_of(sources)[None]
    outputs = np.zeros((1, LABELS, 3, 3, CLASSES), np.float32)
    found = loss_of(outputs, targets, config=PLAIN)
    # Each track misses one of both: squares of 1 by direction and by distance, over 9.
    assert float(found.direction) == pytest.approx(3 / 9 / (LABELS * CLASSES))
    assert float(found.distance) == pytest.approx(3 / 9 / (LABELS * CLASSES))


def test_left_and_right_cost_the_same():
    clips = [sources_of(5), sources_of(6)]
    outputs, targets = outputs_of(7), np.stack([targets_of(s) for s in clips])
    flipped = np.stack(
        [targets_of({k: [(-a, d, f) for a, d, f in v] for k, v in s.items()}) for s in clips]
    )
    np.testing.assert_array_equal(
        loss_of(outputs * MIRROR, flipped, config=PLAIN), loss_of(outputs, targets, config=PLAIN)
    )
    assert float(loss_of(outputs, flipped, config=PLAIN).total) != float(
        loss_of(outputs, targets, config=PLAIN).total
    )


def test_the_order_is_chosen_without_the_flag():
    # By the flags alone the first track would be the other source's.
    outputs = np.zeros((1, LABELS, 3, 4, CLASSES), np.float32)
    outputs[0, 0, :, :, 0] = [0, 1, 1, -9], [0, -1, 1, 9], [0, -1, 1, 9]
    targets = targets_of({(0, 0): [(90.0, 1.0, True), (-90.0, 1.0, False)]})[None]
    found = loss_of(outputs, targets, config=PLAIN)
    silent = LABELS * CLASSES - 1
    assert float(found.direction) == pytest.approx(0)
    expected = (math.log(1 + math.exp(9)) + silent * math.log(2)) / (silent + 1)
    assert float(found.on_screen) == pytest.approx(expected, rel=1e-5)


def test_each_track_has_the_gradient_of_its_source():
    clips = [sources_of(8)]
    outputs, targets = outputs_of(9, clips=1), jnp.asarray(targets_of(clips[0])[None])
    gradient = jax.jit(jax.grad(lambda x: accdoa_loss(x, targets, PLAIN).total))
    found, step = np.asarray(gradient(outputs)), 1e-3
    rng = np.random.default_rng(10)
    for _ in range(6):
        index = (0, *(rng.integers(n) for n in outputs.shape[1:]))
        ends = []
        for sign in (1, -1):
            moved = outputs.astype(np.float64)
            moved[index] += sign * step
            ends.append(brute_force(moved, clips)[0])
        assert found[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_half_precision_outputs_are_counted_in_float32():
    clips = [sources_of(11), sources_of(12)]
    outputs = jnp.asarray(outputs_of(13), jnp.bfloat16)
    targets = np.stack([targets_of(s) for s in clips])
    found = loss_of(outputs, targets, config=PLAIN)
    assert found.total.dtype == jnp.float32
    wide = np.asarray(outputs.astype(jnp.float32))
    np.testing.assert_array_equal(found, loss_of(wide, targets, config=PLAIN))


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"outputs: 5 elements"):
        loss_of(np.zeros((1, 2, 3, 5, 1)), np.zeros((1, 2, 6, 5, 1)), config=PLAIN)
    for name in ("distance_weight", "on_screen_weight"):
        with pytest.raises(InputError, match=f"AccdoaConfig.{name}: -1"):
            AccdoaConfig(**{name: -1.0})


def test_a_relative_distance_is_not_asked_of_silence():
    outputs, targets = np.zeros((1, 2, 3, 3, 1), np.float32), np.zeros((1, 2, 6, 5, 1), np.float32)
    outputs[:, :, :, 2] = 5.0
    assert float(loss_of(outputs, targets, config=RELATIVE).distance) == 0
    assert float(loss_of(outputs, targets, config=PLAIN).distance) > 0


def test_visible_is_what_sounds_on_screen():
    sources = {
        (0, 0): [(10.0, 1.0, False), (20.0, 2.0, True)],
        (1, 0): [(10.0, 1.0, False)],
        (2, 1): [(0.0, 3.0, True)],
    }
    targets = targets_of(sources)[None]
    logits = np.random.default_rng(0).normal(size=(1, LABELS, CLASSES)).astype(np.float32)
    expected = 0.0
    for frame, c in itertools.product(range(LABELS), range(CLASSES)):
        z = float(logits[0, frame, c])
        is_visible = any(flag for _, _, flag in sources.get((frame, c), ()))
        crossed = math.log(1 + math.exp(-z if is_visible else z))
        expected += crossed * (2.0 if (frame, c) in sources else 1.0)
    config = AccdoaConfig(visible_weight=3.0, active_weight=2.0)
    found = jax.jit(visible_loss, static_argnames="config")(logits, targets, config=config)
    assert float(found) == pytest.approx(3 * expected / (LABELS * CLASSES), rel=1e-6)
