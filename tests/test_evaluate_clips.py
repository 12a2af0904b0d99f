"""Evaluation of mono clips: retrieval, labels by prompt and by a head, and the linear probe."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from fakes import CATEGORIES, FakeScenes

from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate, evaluate_in_detail
from spatial_clap_jax.metrics.scores import score_of

NAMES = [name for name in CATEGORIES if name]
HELD = ("train_k0", "validation_k0", "test_k0")
RECALLS = {f"{way}_r{at}/plain" for way in ("t2a", "a2t") for at in (1, 5, 10)}


@dataclasses.dataclass(frozen=True)
class Clips(FakeScenes):
    """The clips of `FakeScenes` that have a category, each changed."""

    splits: tuple[str, ...] = HELD
    groups: int = 30
    change: Callable[[SceneGroup], SceneGroup] = lambda group: group

    def source(self, split):
        return [self.change(group) for group in super().source(split) if group.categories[0]]


def tones(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """How much of each category's tone is in the audio."""
    time_s = np.arange(audio.shape[-1]) / sample_rate_hz
    waves = np.stack([np.exp(2j * np.pi * CATEGORIES[name][0] * time_s) for name in NAMES])
    return np.abs(audio[:, 0] @ waves.T).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.float32(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


class Hearing:
    """Embeds the tones that it hears, and the categories that it reads of."""

    channels = 1

    def __init__(self):
        self.texts = set()

    def embed_audio(self, audio, sample_rate_hz):
        return unit(tones(audio, sample_rate_hz))

    def embed_text(self, texts):
        self.texts.update(texts)
        read = [
            [name in text or any(c in text for c in CATEGORIES[name][1]) for name in NAMES]
            for text in texts
        ]
        return unit(np.array(read, np.float32) + 1e-6)


class Mute(Hearing):
    """Hears, and reads nothing, as a model without a text encoder."""

    reads_texts = False
    # As an M2D-CLAP has, whose features are not its embeddings.
    patches = ()

    def embed_text(self, texts):
        raise AssertionError

    def embed_audio(self, audio, sample_rate_hz):
        raise AssertionError

    def embed_scene(self, audio, sample_rate_hz):
        return 100.0 * tones(audio, sample_rate_hz)


class Headed(Mute):
    """Has learnt the categories, in an order of its own, and one more."""

    classes = (*reversed(NAMES), "never heard")

    def classify(self, audio, sample_rate_hz):
        logits = tones(audio, sample_rate_hz)[:, ::-1]
        return np.concatenate([logits, np.zeros((len(logits), 1), np.float32)], axis=1)


def test_a_model_that_hears_scores_one():
    model, scenes = Hearing(), Clips()
    found = evaluate_in_detail(model, scenes, progress=False, probe=True)
    labels = {f"{task}/plain" for task in ("content", "content_map", "probe", "probe_map")}
    assert set(found.results) == RECALLS | labels
    count = len(scenes.source("test_k0"))
    for name, score in found.results.items():
        assert score["value"] == score["high"] == 1.0, name
        assert score["n"] == count
    assert {f"{name} can be heard." for name in NAMES} <= model.texts
    assert found.results["content/plain"]["chance"] == 1 / 4
    held = [group.categories[0] for group in scenes.source("test_k0")]
    assert found.results["content_map/plain"]["chance"] == pytest.approx(0.25, abs=0.1)
    assert found.results["probe/plain"]["chance"] in [held.count(n) / count for n in NAMES]
    assert found.results["probe/plain"] == score_of(*found.outcomes["probe/plain"])
    assert found.probe_strength is not None
    without = evaluate_in_detail(model, scenes, progress=False)
    assert without.probe_strength is None
    assert not any("probe" in name for name in without.results)


def test_all_captions_of_a_clip_are_asked_over_the_whole_split():
    # Each clip is told in its category's words; nothing tells two clips of one apart.
    scenes = Clips()
    clips = {g.clips[0]: g for g in scenes.source("test_k0")}.values()
    found = evaluate_in_detail(Hearing(), scenes, progress=False, captions="all", gallery=2)
    recalls = {f"{way}_all_r{at}/plain" for way in ("t2a", "a2t") for at in (1, 5, 10)}
    labels = {"content/plain", "content_map/plain"}
    assert set(found.results) == RECALLS | recalls | labels
    # Every caption of every clip is a query; the gallery does not matter.
    queries = sum(len(group.contents[0]) for group in clips)
    assert found.results["t2a_all_r1/plain"]["n"] == queries
    assert found.results["a2t_all_r1/plain"]["n"] == len(clips)
    assert found.results["t2a_all_r1/plain"]["value"] == 1.0
    texts = sum(len(CATEGORIES[name][1]) for name in NAMES)
    chances = [len(group.contents[0]) / texts for group in clips]
    assert found.results["a2t_all_r1/plain"]["chance"] == pytest.approx(np.mean(chances))
    with pytest.raises(
        InputError, match=r"captions 'all': needs .* \(test_k0\) and a model that r"
    ):
        evaluate_in_detail(Headed(), scenes, progress=False, captions="all")


def test_clips_of_several_labels_have_mean_average_precision_alone():
    def changed(group):
        # A second label, heard as well as the first.
        first = group.categories[0]
        second = NAMES[(NAMES.index(first) + 1) % len(NAMES)]
        time_s = np.arange(800) / 16_000
        wave = 0.3 / group.scale * np.sin(2 * np.pi * CATEGORIES[second][0] * time_s)
        audio = np.clip(group.audio * 0.3 + wave, -32767, 32767).astype(np.int16)
        return dataclasses.replace(group, audio=audio, categories=(f"{first}; {second}",))

    results = evaluate(Hearing(), Clips(change=changed), progress=False)
    assert "content/plain" not in results
    assert results["content_map/plain"]["value"] > 0.9


def test_records_of_one_clip_count_as_one():
    scenes = Clips(change=lambda group: dataclasses.replace(group, clips=("same",)))
    found = evaluate_in_detail(Hearing(), scenes, progress=False)
    assert set(found.outcomes["content/plain"].cluster) == {0}
    assert found.results["content/plain"]["low"] < 0.3


def test_a_model_that_reads_nothing_is_probed():
    found = evaluate_in_detail(Mute(), Clips(), progress=False, probe=True)
    assert set(found.results) == {"probe/plain", "probe_map/plain"}
    assert found.results["probe/plain"]["value"] == 1.0
    with pytest.raises(
        InputError, match=r"reads no texts, .*give the text encoder .* vectors, .* and a probe"
    ):
        evaluate(Mute(), Clips(), progress=False)


def test_a_head_is_asked_for_what_it_has_learnt():
    results = evaluate(Headed(), Clips(), progress=False)
    assert set(results) == {"labels/plain", "labels_map/plain"}
    assert results["labels/plain"]["value"] == results["labels_map/plain"]["value"] == 1.0
    assert results["labels/plain"]["chance"] == 1 / 5


def test_probes_need_clips_of_all_splits_and_categories():
    some = Clips(splits=("train_k0", "test_k0"))
    with pytest.raises(InputError, match=r"no plain clips validation_k0; render some"):
        evaluate_in_detail(Hearing(), some, progress=False, probe=True)
    # Told by captions alone, clips are still retrieved.
    assert set(evaluate(Hearing(), FakeScenes(splits=("test_k0",)), progress=False)) > RECALLS
    nameless = Clips(change=lambda group: dataclasses.replace(group, categories=(" ; ",)))
    with pytest.raises(InputError, match="no clip of split 'train' has a category"):
        evaluate_in_detail(Hearing(), nameless, progress=False, probe=True)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_probe_is_not_tested_on_what_it_learnt_from(split):
    with pytest.raises(InputError, match=rf"--probe: learns from .* --split {split} would test it"):
        # Before anything is embedded.
        evaluate_in_detail(None, Clips(), split, progress=False, probe=True)


def test_classes_without_a_clip_compete():
    """A clip of another split is enough for its label to be asked for in this one."""

    class Told(Clips):
        manifest = {"categories": [*NAMES, "thunder"]}  # noqa: RUF012

    held = Told(change=lambda group: dataclasses.replace(group, categories=(NAMES[0],)))
    model = Hearing()
    results = evaluate(model, held, progress=False)
    assert results["content/plain"]["chance"] == 1 / 5
    assert results["content/plain"]["value"] < 1
    assert "thunder can be heard." in model.texts


def test_other_channels_are_refused():
    stereo = Hearing()
    stereo.channels = 2
    with pytest.raises(
        InputError, match=r"test_k0: the scenes are mono, 1 channels, and .* takes 2"
    ):
        evaluate(stereo, Clips(), progress=False)
