"""PyTorch's own files: tensors are read, programs are not run."""

import argparse
import json
import os
import pickle
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.files import open_source, read_tensors

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]

STATE = {
    "a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "a.bias": torch.arange(4.0),
    "scale": torch.tensor(2.5),
    "counter": torch.tensor(2**40),
}


def assert_same(got):
    assert got.keys() == STATE.keys()
    for name, array in got.items():
        assert isinstance(array, np.ndarray)
        assert array.shape == tuple(STATE[name].shape)
        np.testing.assert_array_equal(array, STATE[name].numpy(), err_msg=name)


def written(folder: Path, content, **options) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "name": "run"},
        {"model_state_dict": STATE, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"model": STATE, "args": {"lr": 0.1, "paths": ["a", None, True]}},
        {"model": STATE, "args": argparse.Namespace(lr=0.1, input_size=[80, 608])},
        {"state_dict": {"model": STATE}},
    ],
)
def test_a_state_dict_is_found_in_its_wrapping(tmp_path, content, zipped):
    path = written(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(path))
    assert_same(open_source(path).tensors())


def test_parameters_and_views_are_tensors_too(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"w": torch.nn.Parameter(whole[:3]), "t": whole.T, "s": whole[:, ::2]}
    read = read_tensors(written(tmp_path, state))
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(tmp_path, dtype):
    halves = {name: STATE[name].to(dtype) for name in ("a.weight", "a.bias", "scale")}
    read = read_tensors(written(tmp_path, halves))
    for name, tensor in halves.items():
        np.testing.assert_array_equal(np.asarray(read[name], np.float32), tensor.float().numpy())


def test_folders_of_pickles_whole_and_sharded(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert_same(open_source(tmp_path).tensors())
    (tmp_path / "pytorch_model.bin").unlink()
    parts = {"pytorch_model-1.bin": ["a.weight"], "pytorch_model-2.bin": list(STATE)[1:]}
    for name, keys in parts.items():
        torch.save({key: STATE[key] for key in keys}, tmp_path / name)
    places = {key: name for name, keys in parts.items() for key in keys}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(open_source(tmp_path).tensors())
    index.write_text(json.dumps({"weight_map": {**places, "scale": "../model.bin"}}))
    with pytest.raises(InputError, match=r"index\.json: names no files of its folder"):
        open_source(tmp_path).tensors()


def test_safetensors_come_before_pickles(tmp_path):
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert open_source(tmp_path).tensors().keys() == STATE.keys()


NUMBERS = {
    "best": np.float64(0.75),
    "scores": [np.float32(1.5), np.int64(3), np.int32(4), np.bool_(True)],
}


def test_numbers_of_numpy_may_stand_beside(tmp_path):
    assert_same(read_tensors(written(tmp_path, {"state_dict": STATE, **NUMBERS})))


def test_numbers_of_the_first_numpy_may_stand_beside(tmp_path):
    """Its module had another name."""
    path = written(tmp_path, {"state_dict": STATE, **NUMBERS})
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray\n" in content
                content = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
            target.writestr(name, content)
    assert_same(read_tensors(old))


class Program:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


class Plain:
    """A class that the reader has never heard of."""


def named_function():
    """Stands for any function."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_is_a_program_is_not_run(tmp_path, zipped):
    trace = tmp_path / "trace"
    program = {"state_dict": STATE, "extra": Program(trace)}
    path = written(tmp_path, program, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "model.pt: holds more than tensors (posix.system), and a pickle can run" in message
    assert message.endswith("save its state dict as safetensors.")
    assert not trace.exists()
    # The trap does work.
    torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_bare_pickle_is_not_run(tmp_path, protocol):
    trace, path = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Program(trace), protocol))
    with pytest.raises(InputError, match=r"pytorch_model\.bin: holds more than tensors") as caught:
        open_source(tmp_path).tensors()
    assert "torch.load" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (Plain(), "Plain"),
        (named_function, "named_function"),
        (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        (types.SimpleNamespace(lr=0.1), r"types\.SimpleNamespace"),
        (Path("x"), r"pathlib\.\w+"),
        (eval, "eval"),
        (getattr, "getattr"),
        (np.ones(3), r"numpy\._core\.multiarray\._reconstruct"),
    ],
)
def test_whatever_is_no_tensor_and_no_number_is_refused_by_name(tmp_path, extra, name):
    path = written(tmp_path, {"state_dict": STATE, "extra": extra})
    with pytest.raises(InputError, match=rf"holds more than tensors \((\w+\.)*({name})\), and"):
        read_tensors(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], 3, {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"model\.pt: holds no state dict, by itself or under st"):
        read_tensors(written(tmp_path, content))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_damaged_and_no_program(tmp_path, zipped, share):
    # The word in its path is no part of the reason.
    folder = tmp_path / "weights_only"
    folder.mkdir()
    path = written(folder, STATE, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"model\.pt: cannot be read \(.*\); copy the file") as got:
        read_tensors(path)
    assert "\n" not in str(got.value)


def test_a_missing_shard_is_no_program(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"pytorch_model-1\.bin: cannot be read \(.*No such file"):
        open_source(folder).tensors()
