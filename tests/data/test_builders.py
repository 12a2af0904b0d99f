"""Rendering into a folder and reading it back, on scenes of a quarter of a second."""

import csv
import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordReader

from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rirs import RirRoom
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data import builders, material, records, transforms
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneGroup, SceneRecipe
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.data.staging import staging
from spatial_clap_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

RECIPE = SceneRecipe(
    name="tiny",
    sample_rate_hz=8000,
    duration_s=0.25,
    room_counts=RoomCounts(train=2, validation=1, test=1),
    places_per_room=5,
    group_counts=GroupCounts(5, 7, 0, 0, 2, 0, 0, 0, 3),
    sources=SourceOptions(synthetic_clips=(2, 1, 1)),
)
SPLITS = {"train_k1": 5, "train_k2": 7, "validation_k2": 2, "test_k3": 3}
FEW = dataclasses.replace(
    RECIPE, room_counts=RoomCounts(1, 1, 1), group_counts=GroupCounts(2, 0, 0, 1, 0, 0, 1, 0, 0)
)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Small shards, so that the shards of a split are several.
    out = tmp_path_factory.mktemp("scenes") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "SHARD_BYTES", 50_000)
        render_scenes(RECIPE, "synthetic", out, workers=1, progress=False)
    return out


def same(one: SceneGroup, other: SceneGroup) -> bool:
    for field in dataclasses.fields(SceneGroup):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        assert type(ours) is type(theirs)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert np.array_equal(ours, theirs)
        else:
            assert ours == theirs
    return True


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_groups_come_back_as_they_were_drawn(rendered, tmp_path):
    data = open_scenes(rendered)
    assert data.splits == tuple(SPLITS)
    for split in ("train", "validation", "test"):
        (tmp_path / "rooms" / split).mkdir(parents=True)
        for index in range(getattr(RECIPE.room_counts, split)):
            material.store_simulated_room(RECIPE, tmp_path / "rooms" / split, split, index)
    material.store_material(tmp_path, {}, dataclasses.asdict(RECIPE.room_counts))
    for split, count in SPLITS.items():
        source = data.source(split)
        assert len(source) == count
        for index in (count - 1, 0):
            draw = builders.Draw(RECIPE, "synthetic", tmp_path, split, index)
            drawn_from = material.open_material(tmp_path, "synthetic", RECIPE.sources)
            name, k = builders.split_and_k(split)
            assert same(source[index], builders.draw_group(RECIPE, drawn_from, name, k, index))
            assert draw()["scene_id"] == source[index].scene_id == f"{split}/{index:07d}"
    assert len(list(rendered.glob("*train_k2*"))) == 3


def test_records_are_stored_as_they_are(rendered):
    """A training waits for their reading, and waveforms hardly compress."""
    for shard in rendered.glob("*.array_record-*"):
        options = ArrayRecordReader(str(shard), "").writer_options_string()
        assert "uncompressed" in options.split(",")


@pytest.mark.slow
def test_number_of_workers_changes_no_byte(rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "SHARD_BYTES", 50_000)
    render_scenes(RECIPE, "synthetic", tmp_path / "two", workers=2, progress=False)
    assert contents_of(tmp_path / "two") == contents_of(rendered)


@pytest.mark.slow
def test_beam_renders_the_same_groups(tmp_path):
    pytest.importorskip("apache_beam")
    counts = GroupCounts(0, 13, 0, 0, 0, 0, 0, 0, 0)
    recipe = dataclasses.replace(FEW, group_counts=counts)
    here = render_scenes(recipe, "synthetic", tmp_path / "here", workers=1, progress=False)
    beam = render_scenes(
        recipe,
        "synthetic",
        tmp_path / "beam",
        workers=1,
        beam_runner="DirectRunner",
        beam_options=["--direct_num_workers=1"],
        progress=False,
    )
    assert beam.manifest == here.manifest
    ours, theirs = here.source("train_k2"), beam.source("train_k2")
    assert all(same(ours[i], theirs[i]) for i in range(13))


def test_manifest_tells_what_is_inside(rendered):
    manifest = open_scenes(rendered).manifest
    assert manifest["groups"] == SPLITS
    assert manifest["rooms"] == {"train": 2, "validation": 1, "test": 1}
    assert manifest["clips"] == {"train": 24, "validation": 12, "test": 12}
    assert len(manifest["categories"]) == 12
    assert manifest["skipped_clips"] == {}
    assert manifest["source"]["name"] == "synthetic"
    assert manifest["recipe"]["duration_s"] == 0.25
    corpus = " ".join(manifest["caption_corpus"])
    for group in open_scenes(rendered).source("train_k2"):
        assert set(group.captions[0].replace(",", "").rstrip(".").split()) <= {
            *corpus.split(),
            "and",
        }
        times = manifest["t60_s"]["train"]
        assert times["lowest"] - 1e-4 <= group.t60_s <= times["highest"] + 1e-4


def test_splits_share_neither_rooms_nor_clips(rendered):
    data = open_scenes(rendered)
    places: dict[str, set] = {}
    for split in SPLITS:
        for group in data.source(split):
            part = places.setdefault(split.split("_")[0], set())
            part |= {group.room_size_m.tobytes(), *group.clips}
    assert not places["train"] & (places["validation"] | places["test"])
    assert not places["validation"] & places["test"]


def test_a_source_travels_by_pickle(rendered):
    source = open_scenes(rendered).source("test_k3")
    first = source[0]
    assert same(pickle.loads(pickle.dumps(source))[0], first)
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.slow
def test_reading_needs_neither_tensorflow_nor_jax(rendered):
    code = (
        "import sys; from spatial_clap_jax.data.builders import open_scenes\n"
        f"group = open_scenes({str(rendered)!r}).source('train_k2')[1]\n"
        "print(group.audio.shape, {'tensorflow', 'jax', 'apache_beam'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(2, 2, 2000) set()"


def test_the_same_again_renders_nothing(rendered, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builders, "WorkerPool", None)
    folder = shutil.copytree(rendered, tmp_path / ":dog:  \x1b[31m")
    data = render_scenes(RECIPE, "synthetic", folder)
    assert data.manifest == open_scenes(rendered).manifest
    told = capsys.readouterr().err
    assert told == f"{tmp_path}/:dog:  \\x1b[31m: holds these scenes already; nothing to do.\n"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"duration_s": 0.5}, r"recipe\.duration_s is 0\.25 there and 0\.5 here"),
        ({"room_counts": RoomCounts(3, 1, 1)}, r"recipe\.room_counts\.train is 2 there and 3"),
    ],
)
def test_a_folder_with_another_recipe_is_left_alone(rendered, change, named):
    before = contents_of(rendered)
    with pytest.raises(InputError, match=named + ".*give another --out"):
        render_scenes(dataclasses.replace(RECIPE, **change), "synthetic", rendered, progress=False)
    assert contents_of(rendered) == before


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(InputError, match="no set of scenes; nothing is overwritten"):
        render_scenes(FEW, "synthetic", tmp_path, progress=False)
    assert contents_of(tmp_path) == {"thesis.tex": b"ten years of work"}


def test_rendering_leaves_nothing_among_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    render_scenes(FEW, "synthetic", tmp_path / "out", workers=1, progress=False)
    assert not list((tmp_path / "temporary").iterdir())


def test_an_interrupted_render_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(recipe, drawn_from, split, k, index):
        if (split, index) == ("train", 1):
            raise KeyboardInterrupt
        return draw(recipe, drawn_from, split, k, index)

    draw = builders.draw_group
    monkeypatch.setattr(builders, "draw_group", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(FEW, "synthetic", tmp_path / "out", workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_render_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with staging(tmp_path / "out") as folder:
        name = folder.name
    left = tmp_path / name.replace(name.split("-")[-1], f"{dead.pid}.partial")
    left.mkdir()
    with staging(tmp_path / "out") as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("changed", [False, True])
def test_another_render_of_the_same_may_be_there_first(rendered, tmp_path, monkeypatch, changed):
    def first(whole, *arguments):
        shutil.copytree(rendered, tmp_path / "out")
        write_marks(whole, *arguments)

    write_marks = builders.write_marks
    monkeypatch.setattr(builders, "write_marks", first)
    recipe = dataclasses.replace(RECIPE, seed=RECIPE.seed + changed)
    if changed:
        with pytest.raises(InputError, match=r"out: holds scenes of another kind: recipe\.seed is"):
            render_scenes(recipe, "synthetic", tmp_path / "out", workers=1, progress=False)
    else:
        held = render_scenes(recipe, "synthetic", tmp_path / "out", workers=1, progress=False)
        assert held.manifest == open_scenes(rendered).manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents_of(tmp_path / "out") == contents_of(rendered)


def write_clips(folder: Path, count: int, bad: dict[int, bytes]) -> Path:
    rng = np.random.default_rng(0)
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "category", "split"])
        for n in range(count):
            name = f"{n}.wav"
            rows.writerow([name, f"thing {n % 4}", ("train", "validation", "test")[n // 4 % 3]])
            soundfile.write(folder / name, 0.1 * rng.standard_normal(2000), 8000)
            if n in bad:
                (folder / name).write_bytes(bad[n])
    return folder / "clips.csv"


def test_bad_clips_are_skipped_and_listed(tmp_path):
    path = write_clips(tmp_path, 40, {12: b"not audio", 13: b""})
    recipe = dataclasses.replace(FEW, group_counts=GroupCounts(40, 0, 0, 0, 0, 0, 0, 0, 0))
    data = render_scenes(recipe, str(path), tmp_path / "out", workers=1, progress=False)
    assert sorted(data.manifest["skipped_clips"]) == ["12.wav", "13.wav"]
    assert "is empty (0 bytes)" in data.manifest["skipped_clips"]["13.wav"]
    assert data.manifest["clips"] == {"train": 14}
    clips = {group.clips[0] for group in data.source("train_k1")}
    assert len(clips) > 10
    assert not {"12.wav", "13.wav"} & clips


def test_too_many_bad_clips_stop_the_job(tmp_path):
    path = write_clips(tmp_path, 40, {9: b"", 13: b"", 20: b""})
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"clips: 3 of 40 clips cannot be used, and at most 5%.*9"):
        render_scenes(FEW, str(path), tmp_path / "out", workers=1, progress=False)
    assert set(tmp_path.iterdir()) == before


def test_a_split_without_clips_is_told_before_rendering(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "SceneGroups", None)
    path = write_clips(tmp_path, 8, {})
    with pytest.raises(InputError, match="split 'test' has clips of 0 categories"):
        render_scenes(FEW, str(path), tmp_path / "out", workers=1, progress=False)


def test_a_split_with_groups_needs_rooms(tmp_path):
    recipe = dataclasses.replace(FEW, room_counts=RoomCounts(train=1, validation=1, test=0))
    with pytest.raises(InputError, match=r"room_counts\.test 0 must be at least 1"):
        render_scenes(recipe, "synthetic", tmp_path / "out", workers=1, progress=False)


def write_rirs(folder: Path, rooms: int) -> Path:
    with (folder / "rirs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "azimuth_deg", "elevation_deg", "distance_m", "room"])
        for room in range(rooms):
            for place, azimuth in enumerate((70, 0, -30)):
                name = f"{room}_{place}.wav"
                rows.writerow([name, azimuth, 0, 1.5, f"hall {room}"])
                rir = np.zeros((400, 2))
                rir[10] = 1.0, 0.5
                soundfile.write(folder / name, rir, 8000)
    return folder / "rirs.csv"


def test_measured_rooms_are_divided_among_splits(tmp_path):
    path = write_rirs(tmp_path, 4)
    out = tmp_path / "out"
    data = render_scenes(FEW, "synthetic", out, rirs=path, workers=1, progress=False)
    rooms = {split: {group.room for group in data.source(split)} for split in data.splits}
    assert sum(data.manifest["rooms"].values()) == 4
    assert not rooms["train_k1"] & rooms["validation_k1"]
    assert not rooms["train_k1"] & rooms["test_k1"]
    assert {group.azimuth_deg[0] for group in data.source("train_k1")} <= {70, 0, -30}
    group = data.source("test_k1")[0]
    levels = np.abs(group.waveforms()[0]).max(axis=1)
    assert levels[0] / levels[1] == pytest.approx(2, rel=1e-2)
    with pytest.raises(InputError, match=r"rirs is '\w+' there and None here"):
        render_scenes(FEW, "synthetic", out, progress=False)


def test_too_few_measured_rooms(tmp_path):
    path = write_rirs(tmp_path, 2)
    with pytest.raises(InputError, match=r"2 rooms \(hall 0, hall 1\).*give at least 3"):
        render_scenes(FEW, "synthetic", tmp_path / "o", rirs=path, workers=1, progress=False)


def test_rooms_are_divided_in_proportion():
    none, silence = np.zeros(0, np.float32), np.zeros((0, 2, 1), np.float32)
    size_m = (0.0, 0.0, 0.0)
    bands = np.zeros((0, 0), np.float32)
    rooms = [
        RirRoom(f"r{n:02d}", size_m, 0.3, silence, none, none, none, 8000, none, bands, bands)
        for n in range(18)
    ]
    splits = ["train", "validation", "test"]
    divided = material.divide_rooms(rooms, RoomCounts(300, 20, 40), splits, seed=0)
    assert {split: len(part) for split, part in divided.items()} == {
        "train": 15,
        "validation": 1,
        "test": 2,
    }
    names = [room.name for part in divided.values() for room in part]
    assert sorted(names) == [room.name for room in rooms]
    assert divided == material.divide_rooms(rooms[::-1], RoomCounts(300, 20, 40), splits, seed=0)
    few = material.divide_rooms(rooms[:5], RoomCounts(300, 20, 40), splits, seed=0)
    assert [len(part) for part in few.values()] == [3, 1, 1]


def test_clips_last_heard_are_kept_up_to_a_limit(monkeypatch):
    source = builders.open_source("synthetic", RECIPE.sources)
    clips = source.clips[:3]
    size = source.load(clips[0], 8000).nbytes
    monkeypatch.setattr(material, "CACHE_BYTES", int(2.5 * size))
    drawn_from = material.SceneMaterial(source, (), {})
    first = drawn_from.load(clips[0], 8000)
    drawn_from.load(clips[1], 8000)
    assert drawn_from.load(clips[0], 8000) is first
    drawn_from.load(clips[2], 8000)  # Drops clip 1, the one longest unheard.
    assert drawn_from.load(clips[0], 8000) is first
    assert list(drawn_from._heard) == [(clips[2].clip_id, 8000), (clips[0].clip_id, 8000)]


def test_shards_hold_every_group_once():
    recipe = dataclasses.replace(
        RECIPE, duration_s=10.0, sample_rate_hz=16000, group_counts=GroupCounts(test_k3=1003)
    )
    sizes = builders.shard_sizes(recipe, "test_k3")
    assert sum(sizes) == 1003
    assert max(sizes) * 6 * 160_000 * 4 <= builders.SHARD_BYTES
    assert len(sizes) == 30


def test_opening_what_is_no_data_set(rendered, tmp_path):
    with pytest.raises(InputError, match="is no folder with a manifest"):
        open_scenes(tmp_path / "missing")
    with pytest.raises(InputError, match=r"holds no manifest\.json; give the folder that"):
        open_scenes(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is not readable as a manifest"):
        open_scenes(tmp_path)


def test_opening_a_folder_that_lost_files(rendered, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(rendered, torn)
    next(torn.glob("*test_k3*")).unlink()
    with pytest.raises(InputError, match=r"lacks scene_groups-test_k3.*copy the whole folder"):
        open_scenes(torn)
    (torn / "dataset_info.json").unlink()
    with pytest.raises(InputError, match=r"torn: .*; copy the whole folder or render again"):
        open_scenes(torn)


def test_a_missing_split_lists_those_there(rendered):
    with pytest.raises(InputError, match=r"no split 'test_k2'; it holds train_k1, train_k2, val"):
        open_scenes(rendered).source("test_k2")


def test_beam_arguments(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--beam-options '--x=1' need --beam-runner"):
        render_scenes(FEW, "synthetic", tmp_path / "o", beam_options=["--x=1"])
    with pytest.raises(InputError, match="--workers 0 must be at least 1"):
        render_scenes(FEW, "synthetic", tmp_path / "o", workers=0)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(InputError, match=r"needs Apache Beam; install the extra.*\[beam\]"):
        render_scenes(FEW, "synthetic", tmp_path / "o", beam_runner="DirectRunner")


def test_an_unknown_beam_runner(tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(InputError, match="--beam-runner 'TurtleRunner' is no runner"):
        render_scenes(FEW, "synthetic", tmp_path / "o", beam_runner="TurtleRunner")


def test_manifest_is_plain_json(rendered):
    text = (rendered / records.MANIFEST).read_text(encoding="utf-8")
    assert str(rendered.parent) not in text
    assert json.loads(text)["format"] == builders.FORMAT


FOA_RECIPE = dataclasses.replace(
    RECIPE,
    name="foa",
    rooms=FloorRanges(t30_s=(0.15, 0.3)),
    receiver=Foa(),
    distance_range_m=(0.5, 4.0),
    elevation_range_deg=(-45.0, 45.0),
    response_s=0.4,
    group_counts=GroupCounts(3, 2, 0, 0, 0, 0, 2, 0, 0, 2, 0, 2),
)


@pytest.fixture(scope="module")
def foa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("foa") / "foa"
    render_scenes(FOA_RECIPE, "synthetic", out, workers=1, progress=False)
    return out


def test_ambisonic_groups_come_back_whole(foa):
    data = open_scenes(foa)
    assert data.manifest["groups"] == {
        **{"train_k1": 3, "train_k2": 2, "test_k1": 2, "train_k0": 2, "test_k0": 2}
    }
    for split in data.splits:
        name, k = builders.split_and_k(split)
        for group in data.source(split):
            assert group.audio.shape == ((2 if k == 2 else 1), 4, 2000)
            assert group.words == "elsa"
            assert group.drr_bands_db.shape == group.t30_bands_s.shape == (k, 20)
            assert len(group.t30_s) == len(group.azimuth_deg) == k
            assert group.permutations.shape == (len(group.audio), k)
            assert len(group.clips) == max(k, 1)
            assert transforms.rephrase(group, group.phrasing).captions == group.captions
            if k:
                assert ((group.t30_s > 0.05) & (group.t30_s < 0.6)).all()
                assert group.room.startswith(name)
                assert np.isnan(group.t30_bands_s[:, -2:]).all()  # above half of 8 kHz


def test_the_corpus_of_ambisonic_scenes_has_their_words(foa):
    data = open_scenes(foa)
    known = set(re.sub("[,.;]", " ", " ".join(data.manifest["caption_corpus"])).split())
    for split in data.splits:
        for group in data.source(split):
            for caption in group.captions:
                assert set(re.sub("[,.;]", " ", caption).split()) - {"and"} <= known


def test_rendering_ambisonic_scenes_again_is_no_work_and_another_receiver_is_refused(foa, capfd):
    before = contents_of(foa)
    render_scenes(FOA_RECIPE, "synthetic", foa, workers=1)
    assert "holds these scenes already" in capfd.readouterr().err
    assert contents_of(foa) == before
    other = dataclasses.replace(FOA_RECIPE, receiver=Foa(encoding="tetrahedron"))
    with pytest.raises(InputError, match=r"recipe.receiver.encoding is 'ideal' there and 'tetra"):
        render_scenes(other, "synthetic", foa, workers=1, progress=False)


def test_measured_responses_are_for_stereo_alone(tmp_path):
    path = write_rirs(tmp_path, 3)
    with pytest.raises(
        InputError, match=r"--rirs .*: measured responses are read for a StereoPair"
    ):
        render_scenes(FOA_RECIPE, "synthetic", tmp_path / "o", rirs=path, progress=False)


def test_scenes_of_the_first_format_still_open(rendered, tmp_path, capfd):
    """Its records lack what only ambisonics need, its manifest the kind of receiver."""
    old = tmp_path / "old"
    shutil.copytree(rendered, old)
    manifest = json.loads((old / records.MANIFEST).read_text())
    manifest["format"] = 1
    for part in ("rooms", "receiver"):
        del manifest["recipe"][part]["kind"]
    for field in ("elevation_range_deg", "response_s"):
        del manifest["recipe"][field]
    for split in ("train_k0", "validation_k0", "test_k0"):
        del manifest["recipe"]["group_counts"][split]
    (old / records.MANIFEST).write_text(json.dumps(manifest))
    assert open_scenes(old).manifest["recipe"]["receiver"]["kind"] == "StereoPair"
    render_scenes(RECIPE, "synthetic", old, workers=1)
    assert "holds these scenes already" in capfd.readouterr().err
    example = records.encode_group(open_scenes(rendered).source("train_k2")[0])
    added = ("t30_s", "drr_bands_db", "t30_bands_s", "words", "phrasing")
    example = {
        name: [text.encode() for text in value]
        if isinstance(value, list)
        else value.encode()
        if isinstance(value, str)
        else value
        for name, value in example.items()
        if name not in added
    }
    group = records.decode_group(example)
    assert (group.words, group.phrasing) == ("stereo", 0)
    assert group.t30_s.tolist() == [np.float32(group.t60_s)] * 2
    assert group.drr_bands_db.shape == (2, 0)
