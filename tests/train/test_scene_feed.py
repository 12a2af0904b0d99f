"""What a run reads beside its scenes is a part of what it is held to."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

from tiny import CAPTIONS, tiny_experiment

from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.data.tokens import Tokenizer
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


def test_another_tokenizer_than_that_of_the_run_is_told(tmp_path):
    first, second = (Tokenizer.train(CAPTIONS[:n], 300, 64) for n in (1, 2))
    path = tmp_path / "tokenizer.json"
    path.write_text(first.to_json(), "utf-8")
    scenes = SimpleNamespace(manifest={"caption_corpus": ["a dog", "rain"]})
    ours = dataclasses.replace(tiny_experiment(), tokenizer=path)
    feed = SceneFeed(ours, tmp_path, scenes, cast(Any, SimpleNamespace(reports=())))
    feed.adopt({"tokenizer": first.to_json(), "max_tokens": 64})
    assert feed.notes() == []
    feed.adopt({"tokenizer": second.to_json(), "max_tokens": 64})
    (note,) = feed.notes()
    assert note.startswith(f"--tokenizer {path}: not read; the run goes on with the tokenizer that")
    path.unlink()
    assert feed.notes() == [note]


def test_the_data_are_told_in_words(tmp_path):
    ours = tiny_experiment()
    assert isinstance(ours.data, PipelineConfig)
    data = dataclasses.replace(ours.data, rewritten_share=0.5)
    ours = dataclasses.replace(ours, data=data)
    manifest = {"fingerprint": "a", "recipe": {"seed": 1}, "groups": {"train_k1": 8}, "t60_s": {}}
    feed = SceneFeed(ours, tmp_path, SimpleNamespace(manifest=manifest), cast(Any, None))
    assert feed.dataset == {
        "recipe": {"seed": 1},
        "source": None,
        "rirs": None,
        "groups": {"train_k1": 8},
        "rewrites": None,
    }
