"""What a study is made of: rows that are trained alike, and conditions that all are tested in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spatial_clap_jax.acoustics.directions import phrase_set
from spatial_clap_jax.acoustics.receivers import StereoPair
from spatial_clap_jax.acoustics.rooms import FloorRanges, RoomRanges
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.train.experiment import Experiment

# The condition of the test scenes as they are, and of as many of them as every other condition has.
PLAIN = "test"
UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Row:
    """One way to train, in several seeds.

    Attributes:
      name: of its folder.
      title: in tables and figures.
      experiment: the training; the study sets its seed.
      is_ours: whether it goes past the paper.
      before: a training with the same seed that this one starts from (`init.model`); None for none.
    """

    name: str
    title: str
    experiment: Experiment
    is_ours: bool = False
    before: Experiment | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.experiment.loss, ContrastiveConfig):
            raise InputError(
                f"row {self.name!r}: trains a {type(self.experiment.model).__name__}, and a study "
                "compares audio-text models; leave it out."
            )
        if self.before is not None and self.experiment.init.model is not None:
            raise InputError(
                f"row {self.name!r}: starts from {self.experiment.init.model} (init.model) and "
                "from a training before it; give one of the two."
            )


@dataclass(frozen=True)
class Rendered:
    """Test clips in other rooms, or before other microphones; rendered anew.

    Attributes:
      name: of the condition.
      title: in tables.
      rooms: ranges of rooms, of which those that are no default are what the condition is about;
        None for those of the data.
      spacing: factor on the distance between the microphones.
    """

    name: str
    title: str
    rooms: RoomRanges | None = None
    spacing: float = 1.0

    def recipe(self, of_data: SceneRecipe, singles: int, pairs: int) -> SceneRecipe:
        """The recipe of the data with this one change, for test scenes alone."""
        none = dict.fromkeys(GroupCounts.__dataclass_fields__, 0)
        counts = GroupCounts(**{**none, "test_k1": singles, "test_k2": pairs})
        receiver = of_data.receiver
        if not isinstance(receiver, StereoPair):
            raise InputError(
                f"condition {self.name!r} is about two microphones, and the scenes have a receiver "
                f"{type(receiver).__name__}; give a study with stereo scenes."
            )
        return replace(
            of_data,
            name=f"{of_data.name}_{self.name}",
            rooms=self.rooms or of_data.rooms,
            receiver=replace(receiver, spacing_m=receiver.spacing_m * self.spacing),
            group_counts=counts,
        )

    def changes_besides(self, of_data: RoomRanges | FloorRanges) -> list[str]:
        """Ranges of the data's rooms that this would change, and is not about."""
        if self.rooms is None:
            return []
        default = RoomRanges()
        return [
            name
            for name in RoomRanges.__dataclass_fields__
            if getattr(self.rooms, name) == getattr(default, name) != getattr(of_data, name, None)
        ]


@dataclass(frozen=True)
class Noise:
    """Test scenes in pink noise, other in each channel."""

    name: str
    title: str
    snr_db: float


@dataclass(frozen=True)
class Phrases:
    """Test scenes told with other direction phrases, in captions and in prompts."""

    name: str
    title: str
    phrases: str

    def __post_init__(self) -> None:
        phrase_set(self.phrases)


Condition = Rendered | Noise | Phrases


@dataclass(frozen=True)
class Study:
    """Rows under the same conditions.

    Attributes:
      name: of the study.
      scenes: recipe of the data, where they are to be rendered.
      rows: what is trained, each with as many steps and captions.
      comparisons: pairs of rows (better as expected, worse as expected) that are tested by pairs.
      conditions: in which the test scenes are changed.
      singles: test scenes of one source in a condition.
      pairs: test scenes of two sources in a condition.
      showcase: the row whose embeddings are mapped.
    """

    name: str
    scenes: SceneRecipe
    rows: tuple[Row, ...]
    comparisons: tuple[tuple[str, str], ...] = ()
    conditions: tuple[Condition, ...] = field(default_factory=tuple)
    singles: int = 200
    pairs: int = 300
    showcase: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        for kind, given in (("rows", names), ("conditions", [c.name for c in self.conditions])):
            for name in given:
                if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or given.count(name) > 1:
                    raise InputError(
                        f"study {self.name}: {kind} {name!r} must be small letters, digits, '_' "
                        "and '-', and be given once; rename it."
                    )
        if not self.rows or {PLAIN, UNCHANGED} & {c.name for c in self.conditions}:
            raise InputError(
                f"study {self.name}: needs rows, and no condition of the name {PLAIN!r} or "
                f"{UNCHANGED!r}; give them."
            )
        for name in [*sum(self.comparisons, ()), *filter(None, [self.showcase])]:
            if name not in names:
                raise InputError(
                    f"study {self.name}: {name!r} is none of its rows {', '.join(names)}."
                )
        budgets = {
            row.name: tuple((e.steps, e.data.rows) for e in (row.before, row.experiment) if e)
            for row in self.rows
        }
        if len(set(budgets.values())) > 1:
            raise InputError(
                f"study {self.name}: rows differ in (steps, captions a batch) of their trainings, "
                f"{budgets}; give all the same, or the comparison is of budgets."
            )

    def changes(self) -> dict[str, Any]:
        """What is done to the test scenes under each condition, as JSON, by its name."""
        counts = {"singles": self.singles, "pairs": self.pairs}
        changes: dict[str, Any] = {PLAIN: {}}
        if self.conditions:
            changes[UNCHANGED] = counts
        for condition in self.conditions:
            told = {k: v for k, v in to_plain(condition).items() if k not in ("name", "title")}
            changes[condition.name] = {type(condition).__name__: told, **counts}
        return changes

    def held_to(self, groups: Mapping[str, int]) -> Study:
        """The study with no more test scenes in a condition than there are.

        Args:
          groups: scenes of the data by split.
        """
        singles, pairs = groups.get("test_k1", 0), groups.get("test_k2", 0)
        return replace(self, singles=min(self.singles, singles), pairs=min(self.pairs, pairs))

    def chosen(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows of these names, in the study's order; all without names.

        Raises:
          InputError: a name is none of a row.
        """
        for name in names:
            if name not in [row.name for row in self.rows]:
                known = ", ".join(row.name for row in self.rows)
                raise InputError(f"--rows {name}: is none of the study's rows {known}.")
        return tuple(row for row in self.rows if not names or row.name in names)
