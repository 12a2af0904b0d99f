"""Folders of scenes and clips with a damaged description: refused in one line that names it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from inputs import make_clips, make_scenes, make_tower_cache

from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.data.records import open_scenes
from spatial_clap_jax.data.tower_cache import TowerCache
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.train.scene_feed import long_captions

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    make_scenes(folder)
    make_clips(folder)
    make_tower_cache(folder)
    return folder


def spoiled(rendered: Path, tmp_path: Path, name: str, file: str, content: bytes | None) -> Path:
    """A copy of a folder, in which a file has another content, or, for None, is a pipe."""
    folder = Path(shutil.copytree(rendered / name, tmp_path / name))
    (folder / file).unlink()
    if content is None:
        os.mkfifo(folder / file)
    else:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', DEEP, b"[]", b"{}", b"0", None])
@pytest.mark.parametrize(
    ("name", "file", "told"),
    [
        ("scenes", "manifest.json", r"manifest\.json: is not readable as a manifest of scenes \("),
        ("scenes", "shards.json", r"shards\.json: is not readable as marks of shards \("),
        ("clips", "clips.json", r"clips\.json: tells no classes \("),
        ("cache", "tower.json", r"tower\.json"),
        ("cache", "names.json", r"(names\.json: (cannot|is not)|lacks names\.json|count 3 )"),
    ],
)
def test_a_damaged_description_is_named(rendered, tmp_path, name, file, told, content):
    folder = spoiled(rendered, tmp_path, name, file, content)
    read = {"scenes": open_scenes, "clips": open_clips, "cache": lambda path: TowerCache(path)["a"]}
    with pytest.raises(InputError, match=told) as caught:
        read[name](folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b'{"a": "\xff"}', DEEP, b"[]", None])
def test_a_damaged_description_of_records_is_told(rendered, tmp_path, file, content):
    folder = spoiled(rendered, tmp_path, "scenes", file, content)
    with pytest.raises(InputError, match=r"scenes: .*; copy the whole folder or render again"):
        open_scenes(folder).source("train_k1")[0]


BAIT = "bait.Feature"


def named_for_a_text(features, info):
    features["featuresDict"]["features"]["room"]["pythonClassName"] = BAIT


def named_for_all(features, info):
    features["pythonClassName"] = BAIT


def named_as_protobuf_spells_it(features, info):
    room = features["featuresDict"]["features"]["room"]
    room["python_class_name"] = BAIT
    del room["pythonClassName"]


def named_as_it_once_was(features, info):
    features.update(type=BAIT, content={})


def named_in_text_within(features, info):
    room = features["featuresDict"]["features"]["room"]
    del room["text"]
    room["pythonClassName"] = features["pythonClassName"]
    room["jsonFeature"] = {"json": json.dumps({"x": {"type": BAIT, "content": {}}})}


def named_in_the_other_file(features, info):
    info["features"] = {"pythonClassName": BAIT, "text": {}}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            named_for_a_text,
            r"features\.json: 'featuresDict\.features\.room\.pythonClassName' is 'b",
        ),
        (named_for_all, r"features\.json: 'pythonClassName' is 'bait\.Feature', which `spatial-cl"),
        (named_as_protobuf_spells_it, r"room\.python_class_name' is 'bait\.Feature', which"),
        (named_as_it_once_was, r"features\.json: 'type' is 'bait\.Feature', which"),
        (
            named_in_text_within,
            r"features\.json: '.*' is .*, which `spatial-clap render` never wri",
        ),
        (named_in_the_other_file, r"dataset_info\.json: holds 'features', which stand in features"),
    ],
)
def test_no_class_that_a_folder_names_is_imported(rendered, tmp_path, spoil, told):
    folder = Path(shutil.copytree(rendered / "scenes", tmp_path / "scenes"))
    paths = (folder / "features.json", folder / "dataset_info.json")
    contents = [json.loads(path.read_text()) for path in paths]
    spoil(*contents)
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=told) as caught:
        open_scenes(folder)
    assert str(caught.value).endswith("copy the whole folder or render again.")


def test_features_of_the_first_format_are_read(rendered, tmp_path):
    features = json.loads((rendered / "scenes" / "features.json").read_text())
    for name in ("t30_s", "drr_bands_db", "t30_bands_s", "words", "phrasing"):
        del features["featuresDict"]["features"][name]
    content = json.dumps(features).encode()
    folder = spoiled(rendered, tmp_path, "scenes", "features.json", content)
    assert open_scenes(folder).source("train_k1")[0].words == "stereo"


def test_a_module_that_a_folder_is_said_to_come_from_is_not_imported(rendered, tmp_path):
    info = json.loads((rendered / "scenes" / "dataset_info.json").read_text())
    content = json.dumps({**info, "moduleName": "bait"}).encode()
    folder = spoiled(rendered, tmp_path, "scenes", "dataset_info.json", content)
    assert open_scenes(folder).source("train_k1")[0].scene_id


@pytest.mark.parametrize("template", ["../outside/{}", "sub/{}", "/{}", "./../scenes/{}"])
def test_shards_are_looked_for_in_their_folder_alone(rendered, tmp_path, template):
    folder = Path(shutil.copytree(rendered / "scenes", tmp_path / "scenes"))
    for name in ("outside", "scenes/sub"):
        shutil.copytree(rendered / "scenes", tmp_path / name)
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = template.format(split["filepathTemplate"])
    path.write_text(json.dumps(info))
    with pytest.raises(
        InputError,
        match=r"dataset_info\.json: names the shard '.*', and shards must lie in the folder itself",
    ):
        open_scenes(folder)


def test_a_shard_may_be_a_link_to_another_disk(rendered, tmp_path):
    folder = Path(shutil.copytree(rendered / "scenes", tmp_path / "scenes"))
    shard = next(folder.glob("*train_k1*"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert open_scenes(folder).source("train_k1")[0].scene_id


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', DEEP, b"[]", b'{"a": 1e999}', None])
def test_damaged_checksums_of_clips_are_named(rendered, tmp_path, content):
    folder = spoiled(rendered, tmp_path, "clips", "checksums.json", content)
    with pytest.raises(InputError, match=r"checksums\.json: is not readable as checksums of clips"):
        open_clips(folder)


@pytest.mark.parametrize("kind", ["stereo_dev", "metadata_dev", "video_dev"])
def test_a_pipe_among_clips_is_refused(rendered, tmp_path, kind):
    folder = Path(shutil.copytree(rendered / "clips", tmp_path / "clips"))
    file = next((folder / kind / "dev-train-tiny").iterdir())
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match=rf"{file.stem}\."):
        open_clips(folder)


def test_a_pipe_in_place_of_a_shard_is_refused(rendered, tmp_path):
    file = next((rendered / "scenes").glob("*test_k1*")).name
    folder = spoiled(rendered, tmp_path, "scenes", file, None)
    with pytest.raises(InputError, match=rf"{file}.*pipe or a device.*; copy the whole folder"):
        open_scenes(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("fingerprint", None, r"\(fingerprint is of type NoneType\); copy the whole folder or ren"),
        ("fingerprInt", "x", r"\(lacks 'fingerprint'\)"),
        ("groups", {"train_k1": True}, r"groups\.train_k1 is of type bool"),
        ("groups", {"train": 4}, r"groups\.train is no split"),
        ("categories", ["dog", 3], r"categories is of type int"),
        ("caption_corpus", ["\ud800"], r"surrogates not allowed"),
        ("source", "synthetic", r"\("),
        ("recipe", [], r"\("),
        ("recipe.seed", -1, r"recipe\.seed -1 is below 0"),
        ("recipe.duration_s", float("inf"), r"are no length and rate"),
        ("recipe.sample_rate_hz", "16000", r"recipe\.sample_rate_hz is of type str"),
        ("recipe.receiver", {"kind": []}, r"recipe\.receiver\.kind is of type list"),
    ],
)
def test_a_manifest_that_lacks_what_a_training_looks_up_is_refused(
    rendered, tmp_path, key, value, told
):
    manifest = json.loads((rendered / "scenes" / "manifest.json").read_text())
    *parents, last = key.split(".")
    tree = manifest
    for parent in parents:
        tree = tree[parent]
    if last == "fingerprInt":
        # One changed bit of a key.
        del tree["fingerprint"]
    tree[last] = value
    folder = spoiled(rendered, tmp_path, "scenes", "manifest.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match=rf"manifest\.json: is not readable as .*{told}"):
        open_scenes(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("count", 10**12), ("count", 0), ("in_shard", 0), ("shape", ["2", 3]), ("shape", [0])),
        ("step_s", float("nan")),
    ],
)
def test_numbers_that_a_cache_cannot_have_are_refused(rendered, tmp_path, key, value):
    header = json.loads((rendered / "cache" / "tower.json").read_text())
    content = json.dumps({**header, key: value}).encode()
    folder = spoiled(rendered, tmp_path, "cache", "tower.json", content)
    with pytest.raises(InputError, match=rf"tower\.json: {key} .*; embed again"):
        TowerCache(folder)


def test_a_corpus_of_one_caption_or_none_has_no_long_ones():
    class Takes:
        def encode(self, texts):
            assert texts == ["a in the front-left, and a in the front-right."]

    for corpus in ([], ["a"]):
        assert long_captions(Takes(), corpus) == []  # type: ignore[arg-type]
