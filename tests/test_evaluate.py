import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import pytest
import soundfile
from fakes import FakeScenes, fake_group

from spatial_clap_jax.acoustics.captions import category_phrasings, compose_caption
from spatial_clap_jax.acoustics.directions import (
    STEREO_DIRECTIONS,
    direction_index,
    phrase_set,
)
from spatial_clap_jax.data.scenes import SceneGroup
from spatial_clap_jax.data.wording import meanings, member_directions
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate, evaluate_in_detail, evaluate_recordings
from spatial_clap_jax.metrics.scores import score_of

CATEGORIES = ("dog bark", "rain", "rooster", "sea waves", "helicopter")
DIRECTIONS = len(STEREO_DIRECTIONS)
SCORE_KEYS = {"value", "low", "high", "chance", "n"}


def coded_group(split, k, index):
    """A group whose audio is a table: row = category, column = direction class."""
    plain = fake_group(split, k, index)
    names = np.random.default_rng([k, index]).permutation(CATEGORIES)[:k].tolist()
    at = [direction_index(float(azimuth)) for azimuth in plain.azimuth_deg]
    audio = np.zeros((len(plain.permutations), 2, len(CATEGORIES) * DIRECTIONS), np.int16)
    captions = []
    for member, places in enumerate(plain.permutations):
        directions = [at[place] for place in places]
        for name, direction in zip(names, directions, strict=True):
            audio[member, :, CATEGORIES.index(name) * DIRECTIONS + direction] = 1000
        captions.append(compose_caption([category_phrasings(n)[0] for n in names], directions))
    return dataclasses.replace(
        plain, audio=audio, scale=1e-3, categories=tuple(names), captions=tuple(captions)
    )


@dataclasses.dataclass(frozen=True)
class CodedScenes(FakeScenes):
    change: Callable[[SceneGroup], SceneGroup] = lambda group: group

    def source(self, split):
        name, k = split.split("_k")
        return [self.change(coded_group(name, int(k), i)) for i in range(self.groups)]


def unit(vectors):
    return np.float32(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


class Coded:
    """Reads the table that `coded_group` writes, and captions into one; embeds a view of it."""

    def __init__(self, view=lambda table: table.reshape(len(table), -1)):
        self.view = view
        self.texts = set()

    def embed_audio(self, audio, sample_rate_hz):
        assert audio.dtype == np.float32
        assert sample_rate_hz == 16_000
        return unit(self.view(audio.mean(axis=1).reshape(-1, len(CATEGORIES), DIRECTIONS)))

    def embed_text(self, texts):
        self.texts.update(texts)
        tables = np.zeros((len(texts), len(CATEGORIES), DIRECTIONS), np.float32)
        for table, text in zip(tables, texts, strict=True):
            for clause in text.rstrip(".").split(", and "):
                (d,) = (i for i, s in enumerate(STEREO_DIRECTIONS) if clause.endswith(s.phrase))
                content = clause.removesuffix(STEREO_DIRECTIONS[d].phrase).strip()
                rows = [i for i, c in enumerate(CATEGORIES) if content in category_phrasings(c)]
                table[rows or slice(None), d] += 1.0
        return unit(self.view(tables))


def unbound(table):
    """What sounds and where, but not what is where."""
    return np.concatenate([table.sum(axis=1), table.sum(axis=2)], axis=-1)


def test_a_perfect_model_scores_one_everywhere():
    results = evaluate(Coded(), CodedScenes(groups=30), progress=False)
    recalls = {f"{way}_r{at}/{k}" for way in ("t2a", "a2t") for at in (1, 5, 10) for k in (1, 2, 3)}
    assert set(results) == recalls | {"direction/1", "content/1", "assignment/2", "assignment/3"}
    for key, score in results.items():
        assert set(score) == SCORE_KEYS
        assert score["value"] == score["high"] == 1.0, key
        assert score["low"] > score["chance"] or "r10" in key or "r5" in key
        assert score["n"] == {"assignment/2": 60, "assignment/3": 180}.get(key, 30)
    chances = {key: results[key]["chance"] for key in results if "_r" not in key}
    assert chances == pytest.approx(
        {"direction/1": 1 / 5, "content/1": 1 / 5, "assignment/2": 1 / 2, "assignment/3": 1 / 6}
    )


def test_a_model_without_binding_knows_contents_and_places_but_assigns_nothing():
    results = evaluate(Coded(unbound), CodedScenes(groups=30), progress=False)
    assert results["direction/1"]["value"] == results["content/1"]["value"] == 1.0
    # All captions of a group tie, and ties are wrong.
    assert results["assignment/2"]["value"] == results["assignment/3"]["value"] == 0.0
    assert results["assignment/3"]["high"] < 0.15


def test_swapped_channels_are_seen_in_the_confusion():
    swapped = Coded()
    swapped.embed_text = lambda texts: Coded(
        lambda table: table[:, :, ::-1].reshape(len(table), -1)
    ).embed_text(texts)
    found = evaluate_in_detail(swapped, CodedScenes(groups=30), progress=False)
    truth = [direction_index(float(coded_group("test", 1, i).azimuth_deg[0])) for i in range(30)]
    counts = np.bincount(truth, minlength=DIRECTIONS)
    np.testing.assert_array_equal(found.direction_confusion, np.diag(counts)[:, ::-1])
    assert found.results["direction/1"]["value"] == counts[2] / 30


def test_content_by_category_adds_up():
    found = evaluate_in_detail(Coded(unbound), CodedScenes(groups=30), progress=False)
    assert set(found.content_by_category) <= set(CATEGORIES)
    assert sum(score["n"] for score in found.content_by_category.values()) == 30


class Hashed:
    """Embeddings that say nothing, but the same for the same input."""

    def __init__(self):
        self.rows = set()

    def _embed(self, seeds):
        self.rows.add(len(seeds))
        return unit(np.stack([np.random.default_rng(s).standard_normal(16) for s in seeds]))

    def embed_audio(self, audio, sample_rate_hz):
        return self._embed([list(np.int16(row * 1000).tobytes()) for row in audio])

    def embed_text(self, texts):
        return self._embed([list(text.encode()) for text in texts])


def test_scores_depend_on_neither_batch_size_nor_run():
    scenes = CodedScenes(groups=20)
    every = []
    for batch_size in (1, 7, 32, 32):
        embedder = Hashed()
        every.append(evaluate(embedder, scenes, progress=False, batch_size=batch_size))
        assert embedder.rows == {batch_size}  # one shape, one compilation
    assert every[0] == every[1] == every[2] == every[3]
    assert every[0]["assignment/2"]["low"] < 0.5 < every[0]["assignment/2"]["high"]


def test_every_score_can_be_counted_again_from_its_outcome():
    found = evaluate_in_detail(Hashed(), CodedScenes(groups=12), gallery=5, progress=False)
    assert found.outcomes.keys() == found.results.keys()
    for name, outcome in found.outcomes.items():
        assert found.results[name]["value"] == pytest.approx(outcome.hits.mean()), name
        assert found.results[name]["n"] == len(outcome.hits) == len(outcome.cluster)
        assert found.results[name] == score_of(*outcome), name
        # Scenes are told by their place in the split.
        assert set(outcome.cluster.tolist()) <= set(range(12))
    scenes = {
        name: np.bincount(outcome.cluster, minlength=12).tolist()
        for name, outcome in found.outcomes.items()
    }
    assert scenes["direction/1"] == scenes["content/1"] == [1] * 12
    # Every member of every group; two galleries of five leave two scenes out.
    assert scenes["assignment/2"] == [2] * 12
    assert scenes["assignment/3"] == [6] * 12
    assert sorted(scenes["t2a_r1/2"]) == [0] * 2 + [1] * 10
    # Some of each, or the values would say nothing.
    assert 0 < found.outcomes["assignment/3"].hits.sum() < 72


def test_a_hit_of_retrieval_is_that_of_its_scene():
    found = evaluate_in_detail(Hashed(), CodedScenes(groups=12), progress=False)
    part = found.embedded[2]
    text, audio = (x[part.starts[:-1]] for x in (part.text, part.audio))
    same = part.meaning[:, None] == part.meaning
    for name, scores in (("t2a_r5/2", text @ audio.T), ("a2t_r5/2", audio @ text.T)):
        nearest = np.argsort(-scores, axis=1)[:, :5]
        expected = np.take_along_axis(same, nearest, axis=1).any(axis=1)
        outcome = found.outcomes[name]
        assert 0 < expected.sum() < 12
        np.testing.assert_array_equal(outcome.hits, expected[outcome.cluster])


def test_the_embedded_scenes_are_given_back():
    scenes, model = CodedScenes(groups=5), Coded()
    embedded = evaluate_in_detail(model, scenes, progress=False).embedded
    assert set(embedded) == {1, 2, 3}
    for k, part in embedded.items():
        groups = scenes.source(f"test_k{k}")
        members = math.factorial(k)
        np.testing.assert_array_equal(part.starts, np.arange(6) * members)
        for group, start in zip(groups, part.starts[:-1], strict=True):
            rows = slice(start, start + members)
            audio = model.embed_audio(group.waveforms(), group.sample_rate_hz)
            np.testing.assert_allclose(part.audio[rows], audio, atol=1e-6)
            np.testing.assert_allclose(part.text[rows], model.embed_text(group.captions), atol=1e-6)
        assert part.meaning.tolist() == [meanings(group)[0] for group in groups]
        assert part.directions.tolist() == [member_directions(group)[0] for group in groups]
        assert part.categories == [group.categories for group in groups]


class Translated(Coded):
    """Understands the phrases of another set alike, class by class; keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = set()

    def embed_text(self, texts):
        self.asked.update(texts)
        translated = []
        for text in texts:
            for phrase, direction in zip(phrase_set("from"), STEREO_DIRECTIONS, strict=True):
                text = text.replace(f" {phrase}.", f" {direction.phrase}.")
            translated.append(text)
        return super().embed_text(translated)


def test_prompts_take_the_phrases_of_another_set_and_captions_stay():
    scenes = CodedScenes(groups=6, splits=("test_k1",))
    usual, other = Translated(), Translated()
    results = evaluate(usual, scenes, progress=False)
    found = evaluate_in_detail(other, scenes, progress=False, phrases="from").results
    assert found == results
    assert found["direction/1"]["value"] == found["content/1"]["value"] == 1.0
    groups = scenes.source("test_k1")
    captions = {caption for group in groups for caption in group.captions}
    contents = {c for group in groups for c in category_phrasings(group.categories[0])}
    for model, name in ((usual, "side"), (other, "from")):
        prompts = {
            compose_caption([content], [direction], phrases=phrase_set(name))
            for content in contents
            for direction in range(DIRECTIONS)
        }
        assert model.asked == prompts | captions


def test_galleries_are_disjoint_and_of_the_stated_size():
    scenes = CodedScenes(groups=25)
    ten = evaluate(Hashed(), scenes, gallery=10, progress=False)
    assert ten["t2a_r1/2"]["n"] == ten["a2t_r1/2"]["n"] == 20
    assert ten["t2a_r10/2"] == {**ten["t2a_r10/2"], "value": 1.0, "chance": 1.0}
    assert ten["assignment/2"]["n"] == 50
    everything = evaluate(Hashed(), scenes, gallery=200, progress=False)
    assert everything["t2a_r1/2"]["n"] == 25
    assert everything["t2a_r1/2"]["chance"] < ten["t2a_r1/2"]["chance"]
    assert evaluate(Hashed(), scenes, gallery=10, seed=1, progress=False) != ten


def test_an_item_of_the_same_meaning_is_a_hit():
    def one_meaning(group):
        return dataclasses.replace(group, categories=("rain",), azimuth_deg=np.float32([70.0]))

    scenes = CodedScenes(groups=8, splits=("test_k1",), change=one_meaning)
    results = evaluate(Hashed(), scenes, progress=False)
    assert results["t2a_r1/1"] == {**results["t2a_r1/1"], "value": 1.0, "chance": 1.0}
    assert "content/1" not in results  # one category is no choice


def test_only_what_the_data_hold_is_scored():
    scenes = CodedScenes(
        groups=8,
        splits=("test_k1", "test_k2"),
        change=lambda group: dataclasses.replace(
            group,
            audio=group.audio[:1],
            captions=group.captions[:1],
            permutations=group.permutations[:1],
            categories=("",) * len(group.categories),
        ),
    )
    model = Coded()
    results = evaluate(model, scenes, progress=False)
    assert {key.split("/")[0].split("_")[0] for key in results} == {"t2a", "a2t", "direction"}
    assert not any(key.endswith("/3") for key in results)
    assert results["direction/1"]["value"] == 1.0
    assert "a sound on the left side." in model.texts


def test_audio_is_forgotten_as_it_is_embedded():
    class Counted(Sequence):
        splits = ("test_k1",)
        alive: ClassVar = []
        most = 0

        def source(self, split):
            return self

        def __len__(self):
            return 40

        def __getitem__(self, index):
            group = coded_group("test", 1, index)
            self.alive.append(weakref.ref(group.audio))
            self.most = max(self.most, sum(ref() is not None for ref in self.alive))
            return group

    scenes = Counted()
    evaluate(Coded(), scenes, progress=False, batch_size=4)
    assert len(scenes.alive) >= 40
    assert scenes.most <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trial"}, r"split 'trial': .* trial_k1, .*\(test, train, validation\)"),
        ({"phrases": "clock"}, "phrases: 'clock' is none of the sets side, ahead"),
        ({"gallery": 0}, "gallery 0: must be at least 1"),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        evaluate_in_detail(Coded(), CodedScenes(groups=2), progress=False, **options)


def test_a_diverged_model_and_mixed_rates_are_refused():
    broken = Coded(lambda table: np.full((len(table), 4), np.nan))
    with pytest.raises(InputError, match=r"text of test_k1 captions: .* NaN .* not diverged"):
        evaluate(broken, CodedScenes(groups=2), progress=False)
    mixed = CodedScenes(
        groups=2,
        change=lambda g: dataclasses.replace(g, sample_rate_hz=16_000 if g.seed == 0 else 8_000),
    )
    with pytest.raises(InputError, match=r"test_k1/1: sample_rate_hz 8000; .* 16000"):
        evaluate(Coded(), mixed, progress=False)


LEFT, RIGHT = "a dog barks on the left side.", "a dog barks on the right side."


class Louder:
    """Left or right, by the louder channel and by the word."""

    def embed_audio(self, audio, sample_rate_hz):
        assert sample_rate_hz in (8_000, 44_100)
        return unit(np.square(audio).mean(axis=-1))

    def embed_text(self, texts):
        return unit(np.array([[1.0, 0.1] if "left" in text else [0.1, 1.0] for text in texts]))


def write_stereo(path, left, right, rate=8_000, samples=400):
    audio = np.stack([np.full(samples, left), np.full(samples, right)], axis=1)
    soundfile.write(path, audio, rate)


@pytest.fixture
def folder(tmp_path):
    write_stereo(tmp_path / "l.wav", 0.5, 0.1)
    write_stereo(tmp_path / "r.wav", 0.1, 0.5, rate=44_100, samples=900)
    write_stereo(tmp_path / "l2.wav", 0.6, 0.1)
    return tmp_path


def write_table(folder, *rows, header="filename,caption,wrong_captions"):
    path = folder / "my.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_recordings_by_hand(folder):
    table = write_table(
        folder,
        f"l.wav,{LEFT},{RIGHT} | in front a dog barks.",
        f"r.wav,{RIGHT},{LEFT}",
        f"l2.wav,{LEFT},",
    )
    results = evaluate_recordings(Louder(), table, progress=False)
    assert {key.rpartition("/")[2] for key in results} == {"recordings"}
    assert results["t2a_r1/recordings"]["value"] == 1.0
    assert results["t2a_r1/recordings"]["n"] == 2  # distinct captions
    assert results["t2a_r1/recordings"]["chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert results["a2t_r1/recordings"]["n"] == 3
    assert results["a2t_r1/recordings"]["chance"] == 0.5
    assert results["assignment/recordings"]["value"] == 1.0
    assert results["assignment/recordings"]["n"] == 2
    assert results["assignment/recordings"]["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert all(math.isfinite(score["low"]) for score in results.values())


def test_recordings_with_swapped_captions_score_nothing(folder):
    table = write_table(folder, f"r.wav,{LEFT},{RIGHT}", f"l.wav,{RIGHT},{LEFT}")
    results = evaluate_recordings(Louder(), table, progress=False)
    for key in ("t2a_r1", "a2t_r1", "assignment"):
        assert results[f"{key}/recordings"]["value"] == 0.0


def test_recordings_without_wrong_captions_have_no_assignment(folder):
    results = evaluate_recordings(Louder(), write_table(folder, f"l.wav,{LEFT},"), progress=False)
    assert "assignment/recordings" not in results


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"../l.wav,{LEFT},", r"row 2: filename '\.\./l\.wav' leaves the csv's folder"),
        (f"/etc/hosts,{LEFT},", "row 2: filename '/etc/hosts' leaves the csv's folder"),
        (f"absent.wav,{LEFT},", "row 2: filename 'absent.wav' is no file"),
        (f"{'a' * 400}.wav,{LEFT},", "row 2: filename 'a+.wav' is no file"),
        (f"a\0.wav,{LEFT},", "row 2: filename .* is no name"),
        (f",{LEFT},", "row 2: filename '' is no name"),
        ("r.wav,  ,", "row 2: caption is empty"),
        (f"r.wav,{RIGHT},{LEFT}| |b", r"row 2: wrong_captions .* holds an empty caption"),
        (f"r.wav,{RIGHT},{RIGHT}", "row 2: wrong_captions holds the caption .* itself"),
        (f"./l.wav,{LEFT},", r"row 2: filename '\./l\.wav' stands in row 1 too"),
        (f"r.wav,{RIGHT}", "row 2: has not as many cells"),
        (f"r.wav,{RIGHT},a,b", "row 2: has not as many cells"),
        (f"mono.wav,{LEFT},", r"row 2: 'mono.wav' has 1 channel\(s\); .* stereo"),
        (f"four.wav,{LEFT},", r"row 2: 'four.wav' has 4 channel\(s\); .* stereo"),
        (f"empty.wav,{LEFT},", "row 2: .*empty.wav"),
        (f"nan.wav,{LEFT},", "row 2: .*nan.wav"),
    ],
)
def test_each_bad_row_is_named(folder, row, message):
    soundfile.write(folder / "mono.wav", np.zeros(100), 8_000)
    soundfile.write(folder / "four.wav", np.zeros((100, 4)), 8_000)
    soundfile.write(folder / "nan.wav", np.full((100, 2), np.nan), 8_000, subtype="FLOAT")
    (folder / "empty.wav").touch()
    with pytest.raises(InputError, match=r"my\.csv: " + message) as error:
        evaluate_recordings(Louder(), write_table(folder, f"l.wav,{LEFT},", row), progress=False)
    assert "\n" not in str(error.value)


def test_unusable_tables_are_named(folder):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        evaluate_recordings(Louder(), folder / "absent.csv", progress=False)
    with pytest.raises(InputError, match=r"my\.csv: column\(s\) wrong_captions missing"):
        evaluate_recordings(Louder(), write_table(folder, header="filename,caption"))
    with pytest.raises(InputError, match=r"my\.csv: holds no row"):
        evaluate_recordings(Louder(), write_table(folder))
    (folder / "my.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"my\.csv: not a UTF-8 csv table"):
        evaluate_recordings(Louder(), folder / "my.csv")
