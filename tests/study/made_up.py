"""A study whose trainings and tests are made up, for what becomes of their outcomes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tiny import tiny_experiment, tiny_recipe

from spatial_clap_jax.evaluate import Evaluation, Outcome
from spatial_clap_jax.study import Noise, Phrases, Rendered, Row, Study
from spatial_clap_jax.study import run as module
from spatial_clap_jax.study.outcomes import Findings, SceneMap

TASKS = {
    **{"assignment/2": 0.5, "assignment/3": 1 / 6, "direction/1": 0.2, "content/1": 0.1},
    **{"t2a_r1/2": 0.1, "t2a_r1/3": 0.1},
}


def made_up_study(**changes: Any) -> Study:
    """Two rows, the second ours, and a condition of each kind."""
    experiment = tiny_experiment()
    rows = (Row("one", "row one", experiment), Row("two", "row two", experiment, is_ours=True))
    fields = {
        "comparisons": (("two", "one"),),
        "conditions": (
            Rendered("wider", "spacing +20 %", spacing=1.2),
            Noise("loud", "loud noise", 0.0),
            Phrases("told", "other phrases", "from"),
        ),
        "showcase": "two",
        **changes,
    }
    return Study("made-up", tiny_recipe(), rows, **fields)


def made_up_findings(
    study: Study, name: str, share: float, scenes: int = 40, seed: int = 0
) -> Findings:
    """What a test under a condition might have found, with a map of the showcase."""
    rng = np.random.default_rng(seed)
    outcomes = {
        task: Outcome(rng.random(scenes) < share, np.arange(scenes), chance)
        for task, chance in TASKS.items()
    }
    places = np.arange(scenes) % 5
    shown = SceneMap(
        rng.normal(size=(scenes, 4)).astype(np.float32), places, ["dog", "$rain"] * (scenes // 2)
    )
    confusion = 8 * np.eye(5, dtype=int) + 2 * np.ones((5, 5), int)
    plain = name == "test"
    return Findings(
        outcomes, confusion if plain else None, shown if plain else None, study.changes()[name]
    )


def write_log(folder: Path, shares: Sequence[float], every: int = 1) -> None:
    """A training's log of retrieval."""
    folder.mkdir(parents=True)
    rows = [{"step": every * n, "retrieval": share} for n, share in enumerate(shares, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@dataclass
class Trained:
    """Stands for trainings and their tests in `run_study`; what it was asked for is kept.

    Attributes:
      trained: folders of trainings, in their order.
      tested: splits of the scenes of each test.
    """

    trained: list[Path] = field(default_factory=list)
    tested: list[tuple[str, ...]] = field(default_factory=list)

    def install(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(module, "_trained", self.train)
        monkeypatch.setattr(module, "load", lambda folder: folder)
        monkeypatch.setattr(module, "evaluate_in_detail", self.evaluate)

    def train(self, before: Any, experiment: Any, data: Any, folder: Path, progress: bool) -> Path:
        self.trained.append(folder)
        return folder

    def evaluate(self, model: Path, scenes: Any, **_: Any) -> Evaluation:
        """Two of three scenes are hits, of as many as there are."""
        self.tested.append(tuple(scenes.splits))
        outcomes = {}
        for split, task in (("test_k1", "direction/1"), ("test_k2", "assignment/2")):
            if split in scenes.splits:
                hits = np.arange(len(scenes.source(split))) % 3 > 0
                outcomes[task] = Outcome(hits, np.arange(len(hits)), TASKS[task])
        part = SimpleNamespace(
            starts=np.array([0, 1, 2]),
            audio=np.zeros((2, 3)),
            directions=np.zeros((2, 1), int),
            categories=[("dog",), ("rain",)],
        )
        return Evaluation({}, np.eye(5, dtype=int), {}, outcomes, {1: part})
