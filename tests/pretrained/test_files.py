"""Checkpoints in every form that they are published in, and those that must not be opened."""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained import files
from spatial_clap_jax.pretrained.files import open_source, read_json, read_tensors


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


STATE = {"a.weight": numbers(3, 4), "a.bias": numbers(4, seed=1), "scale": numbers(seed=2)}


def assert_same(got, expected=STATE):
    assert got.keys() == expected.keys()
    for name, array in got.items():
        assert isinstance(array, np.ndarray)
        assert array.shape == expected[name].shape, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_safetensors_by_file_and_by_folder(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert_same(read_tensors(tmp_path / "model.safetensors"))
    by_file = open_source(tmp_path / "model.safetensors")
    assert (by_file.folder, by_file.file) == (None, tmp_path / "model.safetensors")
    assert_same(by_file.tensors())
    assert by_file.json("config.json") is None
    by_folder = open_source(str(tmp_path))
    assert (by_folder.name, by_folder.folder, by_folder.file) == (str(tmp_path), tmp_path, None)
    assert_same(by_folder.tensors())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(tmp_path, dtype):
    halves = {name: array.astype(dtype) for name, array in STATE.items()}
    save_file(halves, tmp_path / "model.safetensors")
    read = read_tensors(tmp_path / "model.safetensors")
    assert_same(
        {name: np.asarray(array, np.float32) for name, array in read.items()},
        {name: array.astype(np.float32) for name, array in halves.items()},
    )


def sharded(folder: Path, index: object) -> Path:
    save_file({"a.weight": STATE["a.weight"]}, folder / "model-00001-of-00002.safetensors")
    rest = {name: STATE[name] for name in ("a.bias", "scale")}
    save_file(rest, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


PLACES = {
    "a.weight": "model-00001-of-00002.safetensors",
    "a.bias": "model-00002-of-00002.safetensors",
    "scale": "model-00002-of-00002.safetensors",
}


def test_sharded_safetensors(tmp_path):
    index = {"metadata": {"total_size": 68}, "weight_map": PLACES}
    assert_same(open_source(sharded(tmp_path, index)).tensors())


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {**PLACES, "scale": "../x.safetensors"}},
        {"weight_map": {**PLACES, "scale": "/etc/passwd"}},
        {"weight_map": {**PLACES, "scale": ".."}},
        {"weight_map": {**PLACES, "scale": "below/x.safetensors"}},
        {"weight_map": {**PLACES, "scale": 3}},
        {"weight_map": {**PLACES, "scale": ["x"]}},
        {"weight_map": {}},
        {"weight_map": ["x"]},
        {},
        ["x"],
    ],
)
def test_an_index_must_name_files_of_its_folder(tmp_path, index):
    (tmp_path / "inside").mkdir()
    save_file(STATE, tmp_path / "x.safetensors")
    source = open_source(sharded(tmp_path / "inside", index))
    with pytest.raises(InputError, match=r"index\.json: names no files of its folder; restore"):
        source.tensors()


def test_a_missing_shard_is_named(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    sharded(weights, {"weight_map": PLACES})
    (weights / PLACES["scale"]).unlink()
    with pytest.raises(InputError, match=r"00002-of-00002\.safetensors: cannot be read \("):
        open_source(weights).tensors()


def test_a_damaged_index_or_config_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json: cannot be read as JSON \(.*\); restore"):
        open_source(tmp_path).tensors()
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"config\.json: cannot be read as JSON"):
        open_source(tmp_path).json("config.json")
    with pytest.raises(InputError, match=r"none\.json: cannot be read as JSON \(\[Errno 2\]"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("kept", [0, 5, 40, 120])
def test_truncated_safetensors_are_refused(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read \(.*\); copy the"):
        read_tensors(path)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    source = open_source(tmp_path)
    assert source.json("config.json") == {"a": 1}
    assert source.json("modules.json") is None
    with pytest.raises(InputError, match=r"holds neither model\.safetensors nor pytorch_model\.b"):
        source.tensors()


def test_folders_below_a_source(tmp_path):
    source = open_source(tmp_path)
    assert source.below("0_Transformer").folder == tmp_path / "0_Transformer"
    assert source.below("").folder == tmp_path
    for outside in ("../x", "a/../../x", "/etc", ".."):
        with pytest.raises(InputError, match=r"is no folder in it; restore its files"):
            source.below(outside)
    with pytest.raises(InputError, match="is no folder in it"):
        files.Source("x.pt", None, tmp_path / "x.pt").below("a")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.onnx: is no checkpoint by its name; .* \.pth"):
        open_source(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["no/such/folder", "nowhere", "a b/c", "/tmp/nowhere", "owner/"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(monkeypatch, name):
    monkeypatch.setattr(files, "_download", None)
    with pytest.raises(InputError, match=r"there is no such file or folder; give one, or a name"):
        open_source(name)


def test_without_pytorch_a_pickle_gives_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"only PyTorch reads; pip install 'spatial-clap-jax\[par"):
        read_tensors(path)


class FakeHub:
    """Stands in for `snapshot_download`; counts who asked for what."""

    def __init__(self, folder: Path, cached: bool = False, online: tuple[str, ...] = ()):
        self.folder, self.cached, self.online = folder, cached, online
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        kinds = [kind for kind in ("safetensors", "bin") if f"*.{kind}" in allow_patterns]
        assert "*.json" in allow_patterns
        self.calls.append((kinds[0], local_files_only))
        if local_files_only:
            if not self.cached:
                raise FileNotFoundError("not in the cache")
        elif not self.online:
            raise ConnectionError("no route to the hub\nat all")
        elif kinds[0] in self.online:
            (self.folder / f"fetched.{kinds[0]}").write_bytes(b"")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch):
    def install(*args, **kwargs):
        fake = FakeHub(*args, **kwargs)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
        return fake

    return install


def test_the_cache_comes_before_the_network(tmp_path, hub):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("")
    fake = hub(tmp_path, cached=True)
    source = open_source("owner/name")
    assert (source.name, source.folder) == ("owner/name", tmp_path)
    assert fake.calls == [("safetensors", True)]
    assert_same(source.tensors())


def test_a_cache_without_weights_is_not_enough(tmp_path, hub):
    (tmp_path / "config.json").write_text("{}")
    fake = hub(tmp_path, cached=True, online=("safetensors",))
    assert open_source("owner/name").folder == tmp_path
    assert fake.calls == [("safetensors", True), ("safetensors", False)]


def test_a_cache_without_tokenizer_is_filled_and_taken_as_it_is_offline(tmp_path, hub):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    fake = hub(tmp_path, cached=True, online=("safetensors",))
    assert open_source("owner/name").folder == tmp_path
    assert fake.calls == [("safetensors", True), ("safetensors", False)]
    fake = hub(tmp_path, cached=True)
    assert open_source("owner/name").folder == tmp_path
    assert fake.calls == [("safetensors", True), ("safetensors", False)]


def test_pickles_are_fetched_only_where_there_is_nothing_else(tmp_path, hub):
    fake = hub(tmp_path, online=("bin",))
    assert open_source("owner/name").folder == tmp_path
    assert fake.calls == [("safetensors", True), ("safetensors", False), ("bin", False)]


def test_without_cache_and_network_there_is_one_line(tmp_path, hub):
    fake = hub(tmp_path)
    message = r"^owner/name: there is no such folder here, .* \(no route to the hub at all\); give"
    with pytest.raises(InputError, match=message) as caught:
        open_source("owner/name")
    assert "\n" not in str(caught.value)
    assert fake.calls == [("safetensors", True), ("safetensors", False)]


def cache_of(folder: Path, name: str) -> Path:
    """A repository in the layout of the hub's cache."""
    place = folder / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The real client, with its cache in a fresh folder and the network forbidden."""
    import huggingface_hub
    from huggingface_hub import constants

    real = huggingface_hub.snapshot_download

    def download(name, **options):
        return real(name, cache_dir=tmp_path, **options)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path


def test_the_hubs_own_cache_is_found_offline(offline):
    snapshot = cache_of(offline, "owner/name")
    save_file(STATE, snapshot / "model.safetensors")
    source = open_source("owner/name")
    assert source.folder is not None
    assert source.folder.samefile(snapshot)
    assert_same(source.tensors())


def test_offline_a_name_that_is_not_in_the_cache_is_one_line(offline):
    with pytest.raises(InputError, match=r"^owner/other: there is no such folder here") as caught:
        open_source("owner/other")
    assert "\n" not in str(caught.value)
