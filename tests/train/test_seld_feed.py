"""What tells the data of a SELD network from others."""

from types import SimpleNamespace
from typing import Any, cast

from tiny_seld import CLASSES, tiny_seld, write_tiny_clips

from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.train import seld_feed
from spatial_clap_jax.train.seld_feed import SeldFeed


def test_features_of_another_tower_are_other_data(tmp_path, monkeypatch):
    clips = open_clips(write_tiny_clips(tmp_path / "clips", video=False))
    caches = {"heard": None, "seen": SimpleNamespace(header={"tower": "one"})}
    found = iter([*caches.values(), None, SimpleNamespace(header={"tower": "two"})])
    monkeypatch.setattr(seld_feed, "cached", lambda path, clips: next(found))
    feed = SeldFeed(tiny_seld(), clips, cast(Any, None))
    first, second = feed.dataset, feed.dataset
    assert first["caches"] == {"seen": "one"}
    assert second == {**first, "caches": {"seen": "two"}}
    assert first["classes"] == list(CLASSES)
    assert first["splits"]["train"] == 6
    assert first["fingerprint"] == clips.fingerprint
