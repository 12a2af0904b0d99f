"""What a study may be made of, and the shipped ones."""

import re
import runpy
from dataclasses import replace

import jax
import pytest
from tiny import tiny_experiment, tiny_recipe
from tiny_seld import tiny_seld

from spatial_clap_jax.acoustics.rooms import FloorRanges, RoomRanges
from spatial_clap_jax.data.scenes import SceneRecipe
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.study import Noise, Phrases, Rendered, Row, Study
from spatial_clap_jax.train.experiment import InitConfig, load_config

ROWS = tuple(Row(name, name.upper(), tiny_experiment()) for name in ("one", "two"))


def study(**changes) -> Study:
    return Study(**{"name": "s", "scenes": tiny_recipe(), "rows": ROWS, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rows": ()}, "needs rows"),
        ({"rows": (ROWS[0], ROWS[0])}, "rows 'one' must be .* given once"),
        ({"rows": (replace(ROWS[0], name="../up"),)}, r"rows '\.\./up' must be small letters"),
        ({"comparisons": (("one", "three"),)}, "'three' is none of its rows one, two"),
        ({"showcase": "four"}, "'four' is none of its rows"),
        ({"conditions": (Noise("test", "as they are", 0.0),)}, "no condition of the name 'test'"),
        ({"conditions": (Noise("unchanged", "", 0.0),)}, "no condition of the name .* 'unchanged'"),
        (
            {"rows": (ROWS[0], replace(ROWS[1], experiment=replace(tiny_experiment(), steps=3)))},
            "rows differ in .steps, captions a batch.",
        ),
        (
            {"rows": (ROWS[0], replace(ROWS[1], before=tiny_experiment()))},
            r"rows differ in .*'one': \(\(2, 8\),\), 'two': \(\(2, 8\), \(2, 8\)\)",
        ),
    ],
)
def test_what_is_no_study(changes, text):
    with pytest.raises(InputError, match=text):
        study(**changes)


def test_a_row_starts_from_one_training():
    begun = replace(tiny_experiment(), init=InitConfig(model="runs/other"))
    with pytest.raises(InputError, match=r"row 'one': starts from runs/other \(init\.model\) and"):
        Row("one", "one", begun, before=tiny_experiment())


def test_a_study_is_of_audio_text_models():
    with pytest.raises(InputError, match="row 'events': trains a SeldConfig, and a study compares"):
        Row("events", "events", tiny_seld())


def test_rows_are_chosen_by_name_in_the_studys_order():
    assert study().chosen(["two", "one"]) == ROWS
    assert study().chosen(["two"]) == ROWS[1:]
    assert study().chosen([]) == ROWS


def test_a_condition_changes_what_it_says_and_nothing_else():
    recipe = SceneRecipe()
    rooms = RoomRanges(absorption=(0.1, 0.2))
    changed = Rendered("dry", "", rooms, spacing=1.2).recipe(recipe, singles=3, pairs=5)
    assert changed.splits() == {"test_k1": 3, "test_k2": 5}
    assert changed.rooms == rooms
    assert changed.receiver.spacing_m == pytest.approx(1.2 * recipe.receiver.spacing_m)
    same = replace(
        changed,
        name=recipe.name,
        rooms=recipe.rooms,
        receiver=recipe.receiver,
        group_counts=recipe.group_counts,
    )
    assert same == recipe


def test_no_condition_has_more_scenes_than_the_data():
    given = study(singles=20, pairs=30)
    assert given.held_to({"test_k1": 20, "test_k2": 99, "train_k1": 5}) == given
    held = given.held_to({"test_k1": 7, "test_k3": 9})
    assert held == replace(given, singles=7, pairs=0)
    assert study(conditions=(Noise("n", "", 0.0),)).held_to({"test_k1": 7}).changes()["n"] == {
        "Noise": {"snr_db": 0.0},
        "singles": 7,
        "pairs": 0,
    }


def test_a_condition_of_rooms_is_about_what_is_no_default():
    wet = Rendered("wet", "", RoomRanges(absorption=(0.1, 0.2)))
    assert wet.changes_besides(RoomRanges()) == []
    assert wet.changes_besides(RoomRanges(absorption=(0.6, 0.7))) == []
    other = RoomRanges(width_m=(3.0, 4.0), height_m=(2.5, 3.0))
    assert wet.changes_besides(other) == ["width_m", "height_m"]
    long = Rendered("long", "", RoomRanges(length_m=(20.0, 30.0)))
    assert long.changes_besides(RoomRanges(length_m=(5.0, 6.0))) == []
    assert wet.changes_besides(FloorRanges()) == ["length_m", "width_m", "height_m"]
    assert Rendered("wide", "", spacing=1.2).changes_besides(other) == []


def test_what_a_condition_does_is_told_apart_from_its_name():
    def changes(*conditions, **counts):
        return study(conditions=conditions, **counts).changes()

    loud = changes(Noise("n", "loud", 0.0))
    assert loud == changes(Noise("n", "very loud", 0.0))
    assert list(loud) == ["test", "unchanged", "n"]
    for other in (
        changes(Noise("n", "loud", 5.0)),
        changes(Phrases("n", "loud", "from")),
        changes(Rendered("n", "loud")),
        changes(Noise("n", "loud", 0.0), pairs=7),
    ):
        assert other["n"] != loud["n"]
        assert other["test"] == loud["test"]
    assert changes(Rendered("n", "", spacing=1.2)) != changes(Rendered("n", ""))
    # Nothing is changed where there is nothing to compare it to.
    assert list(changes()) == ["test"]


def test_phrases_must_be_a_known_set():
    with pytest.raises(InputError, match="'nowhere' is none of the sets side"):
        Phrases("new", "", "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["quickstart", "small", "base"])
def test_shipped_studies_build_every_row(size):
    shipped = load_config("spatial_clap_findings", size)
    assert shipped.rows[0].experiment.model.window_s == shipped.scenes.duration_s
    for row in shipped.rows:
        system = row.experiment.build_system()
        params = jax.eval_shape(system.init, jax.random.key(0))["params"]
        assert ("spatial" in params) == (row.name != "mono")
        assert ("logit_bias" in params) == (row.name == "siglip")
        # What comes before is the same but for what tells the scenes. AudioCaps has no classes.
        assert (row.before is None) == (size == "base")
        if row.before is None:
            continue
        before = row.before
        model = replace(before.model, text=LabelsConfig(("bell", "dog")))
        told = replace(before, model=model).build_system()
        labelled = jax.eval_shape(told.init, jax.random.key(0))["params"]
        assert labelled.keys() - params.keys() == {"labels"}
        assert params.keys() - labelled.keys() == {"text", "text_projection"}
        text = row.experiment.model.text
        assert replace(before.model, text=text) == row.experiment.model
        assert (before.loss, before.data) == (row.experiment.loss, row.experiment.data)
        # The audio side moves slowly then, all of it and nothing else.
        *_, (slow, factor) = row.experiment.optimizer.rate_rules
        assert factor < 1
        read = {"text", "text_projection", "logit_scale", "logit_bias"}
        heard = params.keys() - read
        assert "content" in heard
        assert {name for name in params if re.search(slow, f"{name}/")} == heard


def test_the_findings_have_the_papers_rows_and_ours():
    shipped = load_config("spatial_clap_findings", "small")
    rows = {row.name: row for row in shipped.rows}
    assert [name for name, row in rows.items() if not row.is_ours] == [
        "mono",
        "separate",
        "single",
        "no-scl",
        "scl",
    ]
    assert rows["single"].experiment.data.mixture_share == 0
    assert rows["scl"].experiment.loss.scl
    assert not rows["no-scl"].experiment.loss.scl
    # Nothing else differs between training with and without SCL.
    scl = rows["scl"].experiment
    assert replace(scl, loss=replace(scl.loss, scl=False)) == rows["no-scl"].experiment
    trained = {phrases for row in shipped.rows for phrases in row.experiment.data.phrases}
    unseen = [c.phrases for c in shipped.conditions if isinstance(c, Phrases)]
    assert unseen
    assert not trained & set(unseen)


def test_half_is_small_with_half_the_steps():
    sizes = runpy.run_path("configs/studies/spatial_clap_findings.py")["get_config"]
    small, half = sizes("small"), sizes("half")
    longer = tuple(
        replace(
            row,
            before=replace(row.before, steps=2 * row.before.steps),
            experiment=replace(row.experiment, steps=2 * row.experiment.steps),
        )
        for row in half.rows
    )
    assert replace(half, rows=longer) == small
    assert {(row.before.steps, row.experiment.steps) for row in half.rows} == {(900, 400)}
