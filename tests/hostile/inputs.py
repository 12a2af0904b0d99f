"""What comes in from users: of each kind a good example, and the call that reads it.

The calls are those of the command line. A reader must take an input or refuse it by an InputError;
whatever else it raises is a crash.
"""

import functools
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from mutations import spoil
from safetensors.numpy import save_file

RATE_HZ = 16_000


@dataclass(frozen=True)
class Kind:
    """One way for files of a user to come in.

    Attributes:
      name: of it.
      make: writes a good input into a folder.
      read: what the command line does with it; what it gives is compared where `same` is True.
      files: patterns of those files that are spoiled.
      share: of all inputs, against the others.
      same: a spoiled input that is taken must give what the good one gives.
      signed: where its checksums stand, which are sometimes made anew after spoiling, as an
        attacker would; such an input may give anything.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ("*",)
    share: int = 10
    same: bool = False
    signed: str | None = None

    def spoil(self, folder: Path, rng: random.Random) -> bool:
        """Spoils one or two files of an input; whether its checksums were made anew."""
        found = sorted({path for pattern in self.files for path in folder.glob(pattern)})
        found = [path for path in found if path.is_file()]
        for path in rng.sample(found, min(len(found), rng.choice((1, 1, 1, 2)))):
            spoil(path, rng)
        if self.signed is None or rng.random() < 0.5:
            return False
        sign(folder / self.signed)
        return True


def sign(manifest: Path) -> None:
    """Makes the checksums of an export anew, as far as it still has a manifest."""
    from spatial_clap_jax.small_files import json_of

    try:
        held = json_of(manifest)
        held.pop("sha256", None)
        held["files"] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in manifest.parent.iterdir()
            if path.is_file() and path.name in held["files"]
        }
        manifest.write_text(json.dumps(held))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return


def tone(frames: int = 1600, channels: int = 1) -> np.ndarray:
    """A tone that is softer in each further channel."""
    wave = np.sin(np.arange(frames) * 0.1)[:, None] * np.linspace(0.5, 0.1, channels)
    return wave.astype(np.float32)


# Tables


def make_source(folder: Path) -> None:
    rows = [f"{name}.wav,a {name} sounds,{name};other,{fold}" for fold, name in enumerate("abcd")]
    table = "\n".join(["filename,caption,category,fold", *rows])
    (folder / "clips.csv").write_text(table + "\n")
    for name in "abcd":
        soundfile.write(folder / f"{name}.wav", tone(), RATE_HZ)


def read_source(folder: Path) -> None:
    from spatial_clap_jax.data.sources import open_source
    from spatial_clap_jax.errors import InputError

    source = open_source(str(folder / "clips.csv"))
    source.fingerprint()
    for clip in source.clips:
        # A bad clip is skipped by `render`, so that the others are looked at too.
        try:
            source.load(clip, 8000)
        except InputError as error:
            check_refusal(error)


def make_audiocaps(folder: Path) -> None:
    head = "audiocap_id,youtube_id,start_time,caption"
    for number, split in enumerate(("train", "val", "test")):
        (folder / f"{split}.csv").write_text(f"{head}\n{number},yt{number},30,A duck quacks\n")
        soundfile.write(folder / f"yt{number}_30.wav", tone(), RATE_HZ)
    (folder / "train.csv").rename(folder / "clips_train.csv")
    for split in ("val", "test"):
        (folder / f"{split}.csv").rename(folder / f"clips_{split}.csv")


def read_audiocaps(folder: Path) -> None:
    from spatial_clap_jax.data.sources import open_source

    source = open_source(str(folder / "clips_train.csv"))
    source.fingerprint()
    for clip in source.clips:
        source.load(clip, 8000)


def make_captions(folder: Path) -> None:
    (folder / "captions.csv").write_text("caption,category\nA dog barks.,dog\n,rain\n")


def read_captions(folder: Path) -> None:
    from spatial_clap_jax.data.sentences import captions_of

    captions_of(folder / "captions.csv")


def make_recordings(folder: Path) -> None:
    (folder / "recordings.csv").write_text(
        "filename,caption,wrong_captions\na.wav,a dog left,a dog right|rain\nb.wav,rain,\n"
    )
    for name in "ab":
        soundfile.write(folder / f"{name}.wav", tone(channels=2), RATE_HZ)


def read_recordings_table(folder: Path) -> None:
    from spatial_clap_jax.data.audio import read_audio
    from spatial_clap_jax.data.recordings import read_recordings

    for recording in read_recordings(folder / "recordings.csv"):
        read_audio(recording.path)


def make_events(folder: Path) -> None:
    rows = ["frame,class,source,azimuth,distance,onscreen", "0,1,0,30,200,1", "3,0,0,-45,150,0"]
    (folder / "events.csv").write_text("\n".join(rows) + "\n")


def read_event_table(folder: Path) -> None:
    from spatial_clap_jax.data.event_tables import read_events

    read_events(folder / "events.csv", classes=3, labels=10)


def make_rirs(folder: Path) -> None:
    rows = ["filename,azimuth_deg,elevation_deg,distance_m,room"]
    rows += [f"{name}.wav,{azimuth},0,1.5,hall" for name, azimuth in (("a", 30), ("b", -60))]
    (folder / "rirs.csv").write_text("\n".join(rows) + "\n")
    rng = np.random.default_rng(0)
    for name in "ab":
        decay = rng.standard_normal((400, 2)) * 10 ** (-3 * np.arange(400) / 400)[:, None]
        soundfile.write(folder / f"{name}.wav", 0.1 * decay, RATE_HZ)


def read_rirs(folder: Path) -> None:
    from spatial_clap_jax.acoustics.measured_rirs import load_measured_rirs

    load_measured_rirs(folder / "rirs.csv", RATE_HZ)


def make_sofa(folder: Path) -> None:
    import h5py

    header = "filename,azimuth_deg,elevation_deg,distance_m,room"
    (folder / "rirs.csv").write_text(f"{header}\na.sofa,,,,hall\n")
    rng = np.random.default_rng(0)
    with h5py.File(folder / "a.sofa", "w") as sofa:
        sofa["Data.IR"] = rng.standard_normal((3, 2, 200)) * 10 ** (-3 * np.arange(200) / 200)
        sofa["Data.SamplingRate"] = [float(RATE_HZ)]
        sofa["Data.Delay"] = np.zeros((1, 2))
        sofa["SourcePosition"] = [[0, 0, 1.5], [270, 10, 1.5], [45, 0, 1.5]]
        sofa["SourcePosition"].attrs["Type"] = np.bytes_("spherical")
        sofa["ReceiverPosition"] = np.array([[0, 0.08, 0], [0, -0.08, 0]])[..., None]


# Sound and pictures


def make_audio(name: str, subtype: str, folder: Path) -> None:
    kind = {"rf64": "RF64", "aiff": "AIFF", "caf": "CAF", "w64": "W64", "au": "AU"}
    soundfile.write(
        folder / name, tone(4000, 2), RATE_HZ, subtype=subtype, format=kind.get(name.split(".")[1])
    )


def read_any_audio(folder: Path) -> None:
    from spatial_clap_jax.data.audio import read_audio

    for path in folder.iterdir():
        audio, rate_hz = read_audio(path)
        assert audio.ndim == 2, audio.shape
        assert audio.size
        assert np.isfinite(audio).all()
        assert 4000 <= rate_hz <= 384_000


def make_video(folder: Path) -> None:
    from spatial_clap_jax.data.video import write_video

    pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 32, 3)).astype(np.uint8)
    write_video(folder / "a.mp4", pictures, 10)


def read_video(folder: Path) -> None:
    from spatial_clap_jax.data.video import frames_at

    frames_at(folder / "a.mp4", [0.05, 0.35, 0.65], (8, 8))


# Text


@functools.cache
def trained_tokenizer() -> str:
    from spatial_clap_jax.data.tokens import Tokenizer

    texts = ["a dog barks on the left side", "rain falls in front, and a bell rings"]
    return Tokenizer.train(texts, 320, 24).to_json()


TEXTS = ["a dog barks left", "ÄÖ 🐢 <s> </s>", "rain\nfalls\x00"]


def make_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(trained_tokenizer())


def make_bert_tokenizer(folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "bark", "left"]
    built = BertWordPieceTokenizer({word: number for number, word in enumerate(words)})
    built.save(str(folder / "tokenizer.json"))


def make_vocabularies(folder: Path) -> None:
    held = json.loads(trained_tokenizer())["model"]
    (folder / "vocab.json").write_text(json.dumps(held["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in held["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')


def make_words(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "barks", "left"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def read_tokenizer(folder: Path) -> None:
    from spatial_clap_jax.data.tokens import Tokenizer

    tokenizer = Tokenizer.from_folder(folder, 24)
    if tokenizer is None:
        return
    ids, mask = tokenizer.encode(TEXTS, truncate=True)
    assert ids.shape == mask.shape == (3, 24)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocabulary_size
    again, _ = tokenizer.encode(TEXTS, truncate=True)
    np.testing.assert_array_equal(ids, again)


# What this library writes and reads again


def make_sentences(folder: Path) -> None:
    from spatial_clap_jax.data.sentences import write_sentences

    texts = [f"a sound of number {number}" for number in range(7)]
    embed = lambda some: np.float32([[len(text), 1, 2] for text in some])  # noqa: E731
    write_sentences(folder / "cache", texts, "fake", "1", 3, embed)


def read_sentences(folder: Path) -> None:
    from spatial_clap_jax.data.sentences import Sentences

    found = Sentences(folder / "cache")
    vectors = found.vectors([f"a sound of number {number}." for number in range(7)])
    assert vectors.shape == (7, found.width)


def make_rewritten(folder: Path) -> None:
    from spatial_clap_jax.acoustics.spatial_words import SpatialWords

    (folder / "manifest.json").write_text('{"fingerprint": "1"}')
    words = asdict(SpatialWords("left", "up", "near", None, None))
    rows = [{"format": "rewritten captions 1", "fingerprint": "1"}]
    rows += [{"scene_id": f"s{n}", "member": 0, "words": words, "captions": ["x"]} for n in (1, 2)]
    (folder / "rewritten.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rewritten(folder: Path) -> None:
    from spatial_clap_jax.data.rewritten import read_rewrites

    read_rewrites(folder)


def make_metrics(folder: Path) -> None:
    rows = [{"step": step, "loss": 1.5, "direction": "nan"} for step in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics_log(folder: Path) -> None:
    from spatial_clap_jax.train.metrics_log import read_metrics

    for row in read_metrics(folder):
        assert isinstance(row["step"], int)
        assert all(isinstance(value, int | float) for value in row.values()), row


def make_results(folder: Path) -> None:
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1, "n": 10}
    (folder / "results.json").write_text(json.dumps({"content/1": score}))


def read_results(folder: Path) -> None:
    from spatial_clap_jax.metrics.scores import check_results_path

    check_results_path(folder / "results.json")


def make_findings(folder: Path) -> None:
    from spatial_clap_jax.evaluate import Outcome
    from spatial_clap_jax.study.outcomes import Findings, SceneMap, write_findings

    outcome = Outcome(np.array([True, False]), np.array([0, 1]), 0.5)
    shown = SceneMap(np.zeros((2, 3), np.float32), np.array([0, 1]), ["dog", "rain"])
    write_findings(folder, {"seed": 1}, {"test": Findings({"content/1": outcome}, None, shown)})


def read_findings_file(folder: Path) -> None:
    from spatial_clap_jax.study.outcomes import read_findings

    read_findings(folder, {"seed": 1})


def make_persons(folder: Path) -> None:
    entry = {"image_id": 3, "keypoints": [10.0, 20.0, 2] * 17}
    (folder / "persons.json").write_text(json.dumps({"width": 640, "annotations": [entry] * 2}))


def read_key_points(folder: Path) -> None:
    from spatial_clap_jax.key_points import read_persons

    read_persons(folder / "persons.json")


def make_embeddings(folder: Path) -> None:
    from spatial_clap_jax.embedding_files import save_embedding, save_features

    save_embedding(np.float32([0.6, 0.8]), folder / "a.npy")
    save_features(folder / "b.npz", features=np.ones((2, 3), np.float32))


def read_embeddings(folder: Path) -> None:
    from spatial_clap_jax.embedding_files import save_embedding, save_features
    from spatial_clap_jax.errors import InputError

    # Their readers only say whether they may be replaced: both are tried.
    try:
        save_features(folder / "b.npz", features=np.ones((2, 3), np.float32))
    except InputError as error:
        check_refusal(error)
    save_embedding(np.float32([0.6, 0.8]), folder / "a.npy")


# Weights


def make_bert(folder: Path) -> None:
    from towers_on_disk import save_bert

    save_bert(folder / "bert")


def make_sentence_bert(folder: Path) -> None:
    from towers_on_disk import save_bert

    save_bert(folder / "bert")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (folder / "bert" / "modules.json").write_text(json.dumps(modules))
    (folder / "bert" / "1_Pooling").mkdir()
    pooling = json.dumps({"pooling_mode_mean_tokens": True})
    (folder / "bert" / "1_Pooling" / "config.json").write_text(pooling)
    (folder / "bert" / "model.safetensors").rename(folder / "bert" / "part-1.safetensors")
    index = {"weight_map": {"embeddings.LayerNorm.weight": "part-1.safetensors"}}
    (folder / "bert" / "model.safetensors.index.json").write_text(json.dumps(index))


def read_weights_below(name: str, folder: Path) -> None:
    from spatial_clap_jax.pretrained.read import read_weights

    read_weights(folder / name)


def make_hf_clap(folder: Path) -> None:
    from towers_on_disk import TEXT, random_arrays

    from spatial_clap_jax.data.tokens import Tokenizer
    from spatial_clap_jax.features import LAION_CLAP_LOG_MEL
    from spatial_clap_jax.models.htsat import HtsatConfig
    from spatial_clap_jax.pretrained.hf_clap import head_shapes, hf_clap_configs, hf_clap_tensors
    from spatial_clap_jax.pretrained.hf_text import text_shapes
    from spatial_clap_jax.pretrained.htsat import htsat_shapes
    from spatial_clap_jax.pretrained.mapping import Report
    from spatial_clap_jax.pretrained.towers import AudioTower, ClapWeights, TextTower

    htsat = HtsatConfig(embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    text = replace(TEXT, position_offset=2)
    report = Report("tiny")
    weights = ClapWeights(
        AudioTower(htsat, LAION_CLAP_LOG_MEL, random_arrays(htsat_shapes(htsat)), report),
        TextTower(
            text,
            random_arrays(text_shapes(text)),
            Tokenizer.from_json(trained_tokenizer(), text.max_tokens),
            report,
        ),
        random_arrays(head_shapes(htsat.width, text.width, 12)),
        12,
        10.0,
        "repeat",
        report,
    )
    save_file(hf_clap_tensors(weights), folder / "model.safetensors")
    for name, content in hf_clap_configs(weights).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text(trained_tokenizer())


def make_m2d(folder: Path) -> None:
    from m2d_files import published_2025

    name = "m2d_clap_vit_base-80x1001p16x16p16kpBpTI.safetensors"
    save_file(published_2025(width=64, layers=2), folder / name)


def read_m2d(folder: Path) -> None:
    from spatial_clap_jax.pretrained.read import read_weights

    read_weights(folder)


# Trained models


def make_run(folder: Path) -> None:
    from tiny import save_tiny_run

    save_tiny_run(folder / "run", steps=(1,))


def make_export(format: str, folder: Path) -> None:
    from tiny import save_tiny_run

    from spatial_clap_jax.export import export

    save_tiny_run(folder / "of_run", steps=(1,))
    export(folder / "of_run", folder / "exported", format)  # type: ignore[arg-type]
    shutil.rmtree(folder / "of_run")


def make_seld_export(folder: Path) -> None:
    import jax
    from tiny_seld import tiny_seld

    from spatial_clap_jax.configs_io import to_plain
    from spatial_clap_jax.export import write_model
    from spatial_clap_jax.stored import TrainedModel

    experiment = tiny_seld()
    system = experiment.build_trainable()
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    model = TrainedModel(to_plain(experiment), system, variables, None, 1, {})
    write_model(model, folder / "exported", "safetensors")


AUDIO = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 8000)).astype(np.float32)


def read_run(folder: Path) -> list[np.ndarray]:
    return _embedded(folder / "run")


def read_export(folder: Path) -> list[np.ndarray]:
    return _embedded(folder / "exported")


def _embedded(folder: Path) -> list[np.ndarray]:
    from spatial_clap_jax.inference import load

    model = load(folder)
    return [model.embed_audio(AUDIO, RATE_HZ), model.embed_text(["a dog barks left"])]


def read_trained_model(folder: Path) -> list[np.ndarray]:
    """Arrays, settings and tokenizer, which say what the embeddings are, without compiling."""
    from spatial_clap_jax.stored import flatten, read_trained

    model = read_trained(folder / "run")
    settings = np.array([repr(model.system), model.tokenizer and model.tokenizer.to_json()])
    arrays = flatten(model.variables)
    return [settings, np.array(sorted(arrays)), *(arrays[name] for name in sorted(arrays))]


def read_text_part(folder: Path) -> list[np.ndarray]:
    """What a training takes out of an export by --init.text."""
    from spatial_clap_jax.pretrained.read import read_text_tower

    tower = read_text_tower(folder / "exported")
    assert tower.tokenizer is not None
    settings = np.array([repr(tower.config), str(len(tower.tokenizer.to_json()))])
    return [settings, *(tower.arrays[name] for name in sorted(tower.arrays))]


def read_locator(folder: Path) -> None:
    from spatial_clap_jax.event_locator import is_locator, load_locator

    is_locator(folder / "exported")
    load_locator([folder / "exported"])


def check_refusal(error: Exception) -> None:
    """A refusal has something to say, and would be one line at the command line."""
    from spatial_clap_jax.shown import plain

    text = plain(error)
    assert len(text) > 10, text
    assert text.isprintable() or "\u200c" in text or "\u200d" in text, text


# Folders of data


def make_scenes(folder: Path) -> None:
    from tiny import tiny_recipe

    from spatial_clap_jax.data.builders import render_scenes
    from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts

    counts = GroupCounts(4, 4, 0, 1, 1, 0, 1, 1, 1)
    recipe = replace(tiny_recipe(), group_counts=counts, room_counts=RoomCounts(1, 1, 1))
    render_scenes(recipe, "synthetic", folder / "scenes", workers=1, progress=False)


def read_scenes(folder: Path) -> None:
    """All that `train` does with a folder of scenes before it compiles, and its first batch."""
    from tiny import tiny_experiment

    from spatial_clap_jax.train.scene_feed import SceneFeed
    from spatial_clap_jax.validation import Validation

    feed = SceneFeed.opened(tiny_experiment(), folder / "scenes", None)
    assert feed.fingerprint
    feed.describe()
    feed.notes()
    Validation(feed)
    _take_first(feed.batches(range(8)))
    for split in feed.scenes.splits:
        source = feed.scenes.source(split)
        for index in range(len(source)):
            source[index]


def make_clips(folder: Path) -> None:
    from tiny_seld import write_tiny_clips

    from spatial_clap_jax.data.dcase import write_checksums

    write_checksums(write_tiny_clips(folder / "clips", train=2))


def read_clips(folder: Path) -> None:
    """All that `train` does with a folder of clips before it compiles, and its first batch."""
    from tiny_seld import tiny_seld

    from spatial_clap_jax.train.seld_feed import SeldFeed
    from spatial_clap_jax.validation import Validation

    feed = SeldFeed.opened(tiny_seld(), folder / "clips", None)
    assert feed.fingerprint
    feed.describe()
    Validation(feed)
    _take_first(feed.batches(range(feed.experiment.data.rows)))
    for name in feed.clips.groups:
        feed.clips.audio(name)
        feed.clips.events(name)
        feed.clips.frames(name, 2, (18, 32))


def _take_first(batches: Any) -> None:
    try:
        next(batches)
    finally:
        batches.close()


def make_tower_cache(folder: Path) -> None:
    from spatial_clap_jax.data.tower_cache import write_tower_cache

    embed = lambda name: np.full((2, 3), len(name), np.float32)  # noqa: E731
    written = {"source": "fake", "tower": "1", "fingerprint": "2", "shape": (2, 3), "step_s": 0.5}
    write_tower_cache(folder / "cache", ["a", "bc", "def"], embed, **written)


def read_tower_cache(folder: Path) -> None:
    from spatial_clap_jax.data.tower_cache import TowerCache

    cache = TowerCache(folder / "cache")
    for name in ("a", "bc", "def"):
        assert cache[name].shape == cache.shape
    assert cache.step_s > 0


AUDIO_FORMATS = (
    ("a.wav", "PCM_16"),
    ("a.wav", "FLOAT"),
    ("a.wav", "IMA_ADPCM"),
    ("a.flac", "PCM_16"),
    ("a.ogg", "VORBIS"),
    ("a.ogg", "OPUS"),
    ("a.mp3", "MPEG_LAYER_III"),
    ("a.rf64", "PCM_16"),
    ("a.aiff", "PCM_16"),
    ("a.caf", "PCM_16"),
    ("a.w64", "PCM_16"),
    ("a.au", "PCM_16"),
)
KINDS: tuple[Kind, ...] = (
    Kind("csv of clips", make_source, read_source, ("*.csv",), 40),
    Kind("csv of AudioCaps", make_audiocaps, read_audiocaps, ("*.csv",), 15),
    Kind("csv of captions", make_captions, read_captions, share=10),
    Kind("csv of recordings", make_recordings, read_recordings_table, ("*.csv",), 20),
    Kind("csv of events", make_events, read_event_table, share=20),
    Kind("csv of responses", make_rirs, read_rirs, share=20),
    Kind("SOFA", make_sofa, read_rirs, ("*.sofa",), 25),
    *(
        Kind(
            f"audio {name[2:]} {subtype}",
            functools.partial(make_audio, name, subtype),
            read_any_audio,
            share=9,
        )
        for name, subtype in AUDIO_FORMATS
    ),
    Kind("video", make_video, read_video, share=25),
    Kind("tokenizer.json, BPE", make_tokenizer, read_tokenizer, share=25),
    Kind("tokenizer.json, WordPiece", make_bert_tokenizer, read_tokenizer, share=25),
    Kind("vocab.json and merges.txt", make_vocabularies, read_tokenizer, share=10),
    Kind("vocab.txt", make_words, read_tokenizer, share=10),
    Kind("sentence embeddings", make_sentences, read_sentences, ("cache/*",), 15),
    Kind("tower features", make_tower_cache, read_tower_cache, ("cache/*",), 12),
    Kind("folder of scenes", make_scenes, read_scenes, ("scenes/*",), 15),
    Kind("folder of scenes, its JSON", make_scenes, read_scenes, ("scenes/*.json",), 25),
    Kind("folder of clips", make_clips, read_clips, ("clips/**/*",), 25),
    Kind("folder of clips, its JSON", make_clips, read_clips, ("clips/*.json",), 10),
    Kind("rewritten captions", make_rewritten, read_rewritten, share=15),
    Kind("metrics.jsonl", make_metrics, read_metrics_log, share=15),
    Kind("results.json", make_results, read_results, share=8),
    Kind("findings of a study", make_findings, read_findings_file, share=12),
    Kind("key points", make_persons, read_key_points, share=10),
    Kind("embeddings, npy and npz", make_embeddings, read_embeddings, share=10),
    Kind(
        "BERT",
        make_bert,
        functools.partial(read_weights_below, "bert"),
        ("bert/*.json", "bert/*.safetensors"),
        20,
    ),
    Kind(
        "sentence-transformers",
        make_sentence_bert,
        functools.partial(read_weights_below, "bert"),
        ("bert/*", "bert/*/*"),
        20,
    ),
    Kind("ClapModel", make_hf_clap, functools.partial(read_weights_below, ""), share=15),
    Kind("M2D-CLAP", make_m2d, read_m2d, share=10),
    Kind("run, its arrays", make_run, read_trained_model, ("run/**/*",), 25, same=True),
    Kind("run", make_run, read_run, ("run/**/*",), 5, same=True),
    Kind(
        "export, safetensors",
        functools.partial(make_export, "safetensors"),
        read_export,
        ("exported/*/*",),
        12,
        same=True,
        signed="exported/safetensors/model.json",
    ),
    Kind(
        "export, stablehlo",
        functools.partial(make_export, "stablehlo"),
        read_export,
        ("exported/*/*",),
        8,
        same=True,
        signed="exported/stablehlo/model.json",
    ),
    Kind(
        "export, its text encoder",
        functools.partial(make_export, "safetensors"),
        read_text_part,
        ("exported/*/*",),
        12,
        same=True,
        signed="exported/safetensors/model.json",
    ),
    Kind(
        "export of a SELD network",
        make_seld_export,
        read_locator,
        ("exported/*/*",),
        8,
        signed="exported/safetensors/model.json",
    ),
)
