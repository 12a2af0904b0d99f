"""What is saved beside the arrays is taken as runs save it, and refused where its types differ."""

import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clap_jax.train.checkpoint import RunCheckpoints
from spatial_clap_jax.train.health import HealthConfig, HealthWatch
from spatial_clap_jax.train.metrics_log import MetricsLog
from spatial_clap_jax.train.place import check_place

ROW = '{"step": 4, "loss": 0.5}\n'
INCIDENT = '{"step": 4, "kind": "spike", "samples": ["a"]}\n'
WHOLE = {
    "step": 4,
    "log": [ROW],
    "health": {
        "losses": [0.5, 2],
        "bad": [{"step": 4, "kind": "not finite", "loss": "nan", "samples": ["a"]}],
        "waiting": [INCIDENT],
        "records": {"times": 2, "names": ["a"]},
    },
}


@pytest.mark.parametrize(
    "place",
    [
        WHOLE,
        # As older versions saved it.
        {},
        {"step": 4},
        {"step": 4, "health": {"losses": [], "bad": []}},
        {"step": 4, "health": {"records": {}}},
    ],
)
def test_what_runs_save_is_taken(tmp_path, place):
    check_place(place)
    watch = HealthWatch(HealthConfig(), tmp_path, 4, lambda step: ["a"], print, place.get("health"))
    check_place({"health": watch.get_state()})
    MetricsLog(tmp_path, 4, waiting=place.get("log", ())).close()


HEALTH = [
    ([1], r"health: \[1\] is no object"),
    ({"losses": 5}, "losses: 5 is no list"),
    ({"losses": ["a"] * 30}, "losses: 'a' is no number"),
    ({"losses": [True]}, "losses: True is no number"),
    ({"losses": [10**400]}, "losses: int too large"),
    ({"bad": {}}, "bad: {} is no list"),
    ({"bad": [5]}, "bad: it has no kind"),
    ({"bad": [{"kind": "not finite", "step": "4"}]}, "bad: '4' is no whole number"),
    ({"waiting": [5]}, "waiting: 5 is no line"),
    ({"waiting": ["{}\n"]}, "waiting: it has no kind"),
    ({"waiting": ['{"step": 4, "kind": "bad records"}\n']}, "waiting: None is no whole number"),
    ({"waiting": [INCIDENT.strip()]}, "is no line"),
    ({"waiting": [INCIDENT * 2]}, "is no line"),
    ({"records": []}, r"records: \[\] is no object"),
    ({"records": {"times": "2", "names": []}}, "times: '2' is no whole number"),
    ({"records": {"times": 1, "names": [[1]]}}, r"names: \[1\] is no name"),
    ({"records": {"times": 1, "names": "a"}}, "names: 'a' is no list"),
]
PLACES = [
    ([1], r"data_state: \[1\] is no object"),
    (None, "None is no object"),
    ({"step": -1}, "step: -1 is no whole number"),
    ({"log": {}}, "log: {} is no list"),
    ({"log": [5]}, "log: 5 is no line"),
    ({"log": ["x"]}, "log: 'x' is no line"),
    ({"log": ["x\n"]}, "log: Expecting value"),
    ({"log": ["{}\n"]}, "log: 'step'"),
    ({"log": ['{"step": 4, "loss": []}\n']}, r"log: \[\] is no number"),
    *(({"health": health}, message) for health, message in HEALTH),
]


@pytest.mark.parametrize(("place", "message"), PLACES)
def test_what_no_run_saves_is_refused(place, message):
    with pytest.raises(ValueError, match=message):
        check_place(place)


def test_the_checkpoint_before_is_used(tmp_path):
    checkpoints, told = RunCheckpoints(tmp_path), []
    state = {"a": jnp.ones(2)}
    checkpoints.save(10, state, {"step": 10})
    checkpoints.save(20, state, {"step": 20, "health": [1]}, wait=True)
    restored, place, step = checkpoints.restore_newest(state, told.append, check_place)
    checkpoints.close()
    assert (step, place) == (10, {"step": 10})
    np.testing.assert_array_equal(restored["a"], state["a"])
    assert "must be whole (data_state: health: [1] is no object)" in told[0]
    assert (tmp_path / "set_aside" / "20").is_dir()


def test_a_row_that_waits_counts_by_its_number(tmp_path):
    """The log is read so too."""
    MetricsLog(tmp_path, 4, waiting=['{"step": "4", "loss": 0.5}\n']).close()
