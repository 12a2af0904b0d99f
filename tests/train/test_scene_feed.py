"""What a run reads beside its scenes is a part of what it is held to."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

from tiny import tiny_experiment

from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.train import scene_feed
from spatial_clap_jax.train.scene_feed import SceneFeed


def fingerprint(folder, **changes) -> str:
    ours = tiny_experiment()
    assert isinstance(ours.data, PipelineConfig)
    ours = dataclasses.replace(ours, data=dataclasses.replace(ours.data, **changes))
    scenes = SimpleNamespace(manifest={"fingerprint": "of the scenes"})
    return SceneFeed(ours, folder, scenes, cast(Any, None)).fingerprint


def test_rewrites_count_where_they_are_read(tmp_path):
    assert fingerprint(tmp_path) == "of the scenes"
    none = fingerprint(tmp_path, rewritten_share=0.5)
    file = tmp_path / "rewritten.jsonl"
    file.write_text("one\n")
    one = fingerprint(tmp_path, rewritten_share=0.5)
    file.write_text("two\n")
    two = fingerprint(tmp_path, rewritten_share=0.5)
    assert len({"of the scenes", none, one, two}) == 4
    assert fingerprint(tmp_path) == "of the scenes"


def test_sentence_vectors_count(tmp_path, monkeypatch):
    headers = {tmp_path / "a": {"captions": "1"}, tmp_path / "b": {"captions": "2"}}
    monkeypatch.setattr(scene_feed, "Sentences", lambda path: SimpleNamespace(header=headers[path]))
    found = {fingerprint(tmp_path, sentences=folder) for folder in (None, *headers)}
    assert len(found) == 3
