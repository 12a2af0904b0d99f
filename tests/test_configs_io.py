"""Configurations survive JSON, and each mistake in the JSON is named by its key."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.errors import InputError


@dataclass(frozen=True)
class Conv:
    width: int = 3
    rate: float = 1.0


@dataclass(frozen=True)
class Attention:
    width: int = 3
    names: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class Model:
    head: Conv = Conv()
    encoder: "Conv | Attention" = Attention()
    layers: tuple[Conv | Attention, ...] = (Conv(), Attention())
    extra: Conv | None = None
    either: Conv | Attention | None = None
    mode: Literal["mean", 2] = "mean"
    folder: Path = Path("runs")
    rules: tuple[tuple[str, float], ...] = (("kernel", 0.5),)
    blocks: tuple[tuple[Conv, ...], ...] = ()
    seed: int | None = None
    scl: bool = True
    sizes: list[int] = field(default_factory=list)
    named: dict[str, Conv] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    name: str
    model: Model = Model()

    def __post_init__(self):
        if self.name == "bad":
            raise InputError("'bad' is no name; choose another.")


FULL = Experiment(
    "run",
    Model(
        head=Conv(rate=1e-30),
        encoder=Conv(7),
        layers=(Attention(names=("größe", "")), Conv()),
        extra=Conv(1),
        either=Attention(4),
        mode=2,
        folder=Path("a/b"),
        rules=(("a", 1.0), ("b", 0.1)),
        blocks=((Conv(1), Conv(2)), ()),
        seed=5,
        scl=False,
        sizes=[1, 2],
        named={"q": Conv(9)},
    ),
)


@pytest.mark.parametrize("config", [Experiment("default"), FULL])
def test_round_trip_through_json_text(config):
    plain = to_plain(config)
    assert json.loads(json.dumps(plain)) == plain
    restored = from_plain(Experiment, json.loads(json.dumps(plain)))
    assert restored == config
    assert type(restored.model.layers) is tuple
    assert isinstance(restored.model.folder, Path)


def test_the_plain_form_by_hand():
    plain = to_plain(Model(layers=(Conv(2),)))
    assert plain["head"] == {"width": 3, "rate": 1.0}
    assert plain["layers"] == [{"kind": "Conv", "width": 2, "rate": 1.0}]
    assert plain["encoder"] == {"kind": "Attention", "width": 3, "names": ["x"]}
    assert plain["rules"] == [["kernel", 0.5]]
    assert plain["folder"] == "runs"


@dataclass(frozen=True)
class Older:
    kind: str = "mean"
    kind_by_default: ClassVar[bool] = True


@dataclass(frozen=True)
class Newer:
    width: int = 3


@dataclass(frozen=True)
class Chosen:
    one: Older | Newer = Older()


def test_a_field_of_the_tags_name_keeps_it():
    for config in (Chosen(), Chosen(Older("max")), Chosen(Newer(5))):
        assert from_plain(Chosen, to_plain(config)) == config
    assert to_plain(Chosen()) == {"one": {"class": "Older", "kind": "mean"}}


def test_what_is_older_than_a_choice_is_of_the_first_class():
    assert from_plain(Chosen, {"one": {"kind": "max"}}) == Chosen(Older("max"))
    with pytest.raises(InputError, match='needs a "class", one of Older, Newer; add it'):
        from_plain(Chosen, {"one": {"class": "Oldest"}})


def test_missing_keys_take_their_defaults_and_whole_numbers_are_numbers():
    config = from_plain(Model, {"head": {"rate": 2}})
    assert config == Model(head=Conv(rate=2.0))
    assert type(config.head.rate) is float


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"modle": {}}, "unknown key model.modle; did you mean model.mode? keys here: head, enc"),
        ({"head": {"widht": 3}}, "unknown key model.head.widht; did you mean model.head.width?"),
        ({"encoder": {"kind": "Conv", "names": []}}, "unknown key model.encoder.names; did you"),
        ({"layers": [{"kind": "Conv"}, {"kind": "Conv", "w": 1}]}, "unknown key model.layers.1.w"),
        ({"head": {"width": "3"}}, "model.head.width: '3' is no whole number"),
        ({"head": {"width": 2.5}}, "model.head.width: 2.5 is no whole number"),
        ({"head": {"width": True}}, "model.head.width: True is no whole number"),
        ({"head": {"rate": "fast"}}, "model.head.rate: 'fast' is no number"),
        ({"head": 3}, "model.head: 3 does not fit Conv"),
        ({"extra": []}, "model.extra: [] does not fit "),
        ({"scl": "false"}, "model.scl: 'false' is no boolean"),
        ({"folder": 3}, "model.folder: 3 is no path"),
        ({"mode": "max"}, "model.mode: 'max' is none of 'mean', 2"),
        ({"mode": 2.0}, "model.mode: 2.0 is none of 'mean', 2"),
        ({"encoder": {"width": 3}}, "model.encoder: {'width': 3} needs a \"kind\", one of Conv, "),
        ({"encoder": {"kind": "Mlp"}}, "model.encoder: {'kind': 'Mlp'} needs a \"kind\", one of "),
        ({"encoder": None}, 'model.encoder: None needs a "kind"'),
        ({"rules": [["a", 1.0], ["b"]]}, "model.rules.1: ['b'] has not 2 items"),
        ({"rules": [["a", 1.0], ["b", "c"]]}, "model.rules.1.1: 'c' is no number"),
        ({"encoder": {"kind": "Attention", "names": "abc"}}, "model.encoder.names: 'abc' is no li"),
        ({"sizes": [1, None]}, "model.sizes.1: None is no whole number"),
        ({"named": {"q": {"width": []}}}, "model.named.q.width: [] is no whole number"),
        ({"named": 3}, "model.named: 3 does not fit dict"),
    ],
)
def test_mistakes_are_named_by_their_dotted_key(data, message):
    with pytest.raises(InputError) as caught:
        from_plain(Experiment, {"name": "run", "model": data})
    assert str(caught.value).startswith(f"Experiment: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "Experiment: name is missing; give it a value."),
        ({"name": "bad"}, "Experiment: 'bad' is no name; choose another."),
        ([], "Experiment: value: [] does not fit Experiment"),
    ],
)
def test_mistakes_at_the_top(data: Any, message):
    with pytest.raises(InputError) as caught:
        from_plain(Experiment, data)
    assert str(caught.value).startswith(message)


def test_a_configuration_that_would_not_come_back_is_refused():
    with pytest.raises((TypeError, InputError)):
        to_plain(Model(seed=2.5))  # pyright: ignore[reportArgumentType]

    @dataclass(frozen=True)
    class Wider(Conv):
        depth: int = 1

    with pytest.raises(TypeError, match="a field holds what its type does not say"):
        to_plain(Model(head=Wider(depth=4)))


@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_what_json_has_no_number_for_is_refused_by_its_key(rate):
    message = rf"Experiment: model.layers.1.rate {rate} must be a finite number; give a large one"
    with pytest.raises(InputError, match=message):
        to_plain(Experiment("run", Model(layers=(Attention(), Conv(rate=rate)))))
