"""Exports answer like the live model, load without it, and never overwrite what is not theirs."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export as jax_export
from tiny import (
    CAPTIONS,
    MAX_TOKENS,
    RATE_HZ,
    WINDOW,
    random_variables,
    save_tiny_run,
    shared_model,
    shared_run,
    tiny_experiment,
)

import spatial_clap_jax
from spatial_clap_jax import export as export_module
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export
from spatial_clap_jax.inference import load
from spatial_clap_jax.models.crnn import CrnnConfig
from spatial_clap_jax.models.htsat import HtsatConfig
from spatial_clap_jax.models.text import roberta_base
from spatial_clap_jax.stored import flatten, sha256

COMMON = {"README.md", "model.json", "tokenizer.json"}
AUDIO = np.random.default_rng(0).uniform(-0.3, 0.3, (16, 2, WINDOW)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    return shared_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """Both formats, one command after the other; not to be changed."""
    out = tmp_path_factory.mktemp("export") / "exported"
    for format in ("stablehlo", "safetensors"):
        export(run, out, format)
    return out


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copied"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_both_formats_lie_side_by_side(exported):
    assert contents(exported).keys() == {
        *(f"stablehlo/{name}" for name in {*COMMON, "audio.stablehlo", "text.stablehlo"}),
        *(f"safetensors/{name}" for name in {*COMMON, "model.safetensors"}),
    }


@pytest.mark.parametrize("format", ["stablehlo", "safetensors"])
def test_an_export_answers_like_the_live_model(exported, live, format):
    model = load(exported / format)
    attributes = ("sample_rate_hz", "channels", "window_samples", "max_tokens", "step")
    for name in attributes:
        assert getattr(model, name) == getattr(live, name)
    for audio, rate_hz in ((AUDIO[:9], RATE_HZ), (AUDIO[0, :, :5000], 22_050)):
        ours, theirs = (m.embed_audio(audio, rate_hz) for m in (model, live))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    texts = list(CAPTIONS)
    np.testing.assert_allclose(model.embed_text(texts), live.embed_text(texts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_programs_take_any_batch_size(exported, live, batch):
    audio, text = (
        jax_export.deserialize(bytearray((exported / "stablehlo" / name).read_bytes()))
        for name in ("audio.stablehlo", "text.stablehlo")
    )
    assert audio.platforms == text.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(
        audio.call(AUDIO[:batch]), live.embed_audio(AUDIO[:batch], RATE_HZ), rtol=0, atol=1e-5
    )
    texts = [f"a bell rings {'and rings ' * (i % 3)}{i}" for i in range(batch)]
    np.testing.assert_allclose(
        text.call(*live.tokenizer.encode(texts)), live.embed_text(texts), rtol=0, atol=1e-5
    )


def test_a_copy_loads_in_a_fresh_process_as_the_card_says(exported, live, tmp_path):
    shutil.copytree(exported / "stablehlo", tmp_path / "elsewhere")
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    snippet = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    program = f"""{snippet}
import sys
assert "spatial_clap_jax" not in sys.modules
import spatial_clap_jax
model = spatial_clap_jax.load(".")
again = model.embed_text(["a dog barks on the left side"]) @ model.embed_audio(audio, {RATE_HZ}).T
np.save("cosines.npy", [cosines, again])
"""
    (tmp_path / "elsewhere" / "use.py").write_text(program)
    subprocess.run(
        [sys.executable, "use.py"],
        check=True,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(Path(spatial_clap_jax.__file__).parents[1])},
    )
    silence = live.embed_audio(np.zeros((2, WINDOW), np.float32), RATE_HZ)
    cosine = live.embed_text(["a dog barks on the left side"])[0] @ silence
    np.testing.assert_allclose(
        np.load(tmp_path / "elsewhere" / "cosines.npy"), np.full((2, 1, 1), cosine), atol=1e-5
    )


@pytest.mark.slow
def test_the_released_architecture_has_programs_too(tmp_path):
    tiny = tiny_experiment()
    model = dataclasses.replace(
        tiny.model,
        content=HtsatConfig(64, 16, embed_dim=8, depths=(2, 2), heads=(2, 2), window=4),
        content_mel=dataclasses.replace(
            tiny.model.content_mel, sample_rate_hz=48_000, n_fft=1024, hop=480
        ),
        spatial=CrnnConfig(channels=(4, 4, 4), frame_width=8, gru_width=4),
        spatial_planes="magnitude_phase",
        text=dataclasses.replace(
            roberta_base(320), width=16, layers=1, heads=2, mlp_width=32, max_tokens=MAX_TOKENS
        ),
    )
    run = save_tiny_run(
        tmp_path / "run", steps=(1,), experiment=dataclasses.replace(tiny, model=model)
    )
    files = export(run, tmp_path, "stablehlo")
    assert {file.name for file in files} == {*COMMON, "audio.stablehlo", "text.stablehlo"}
    assert all(file.is_file() for file in files)


def test_the_manifest_says_how_to_call_the_programs(exported, live):
    folder = exported / "stablehlo"
    manifest = json.loads((folder / "model.json").read_text())
    for name in ("audio", "text"):
        convention = manifest["calling_convention"][name]
        program = jax_export.deserialize(bytearray((folder / convention["file"]).read_bytes()))
        for kind, avals in (("inputs", program.in_avals), ("outputs", program.out_avals)):
            described = [(v["dtype"], v["shape"]) for v in convention[kind].values()]
            assert described == [(str(a.dtype), [str(a.shape[0]), *a.shape[1:]]) for a in avals]
    held = manifest["preprocessing"]
    assert (held["sample_rate_hz"], held["window_samples"]) == (RATE_HZ, WINDOW)
    assert held["channel_order"] == ["left", "right"]
    assert held["pad_id"] == live.tokenizer.pad_id
    assert manifest["embedding_width"] == 12
    assert manifest["files"] == {
        path.name: sha256(path) for path in folder.iterdir() if path.name != "model.json"
    }
    assert manifest["provenance"]["data_fingerprint"] == "0123456789abcdef"
    assert manifest["experiment"]["name"] == "tiny"
    # A path of the machine that trained is of no use to others.
    assert manifest["experiment"]["tokenizer"] is None


def test_the_card_names_model_data_license_and_limits(exported):
    parameters = sum(
        a.size for a in flatten(random_variables(tiny_experiment())["params"]).values()
    )
    for format in ("stablehlo", "safetensors"):
        card = (exported / format / "README.md").read_text()
        for words in (
            "# tiny",
            "trained for 2 steps",
            f"{parameters:,} parameters",
            "`0123456789abcdef`",
            "## License",
            "## Limits",
            "At most 24 tokens",
        ):
            assert words in card
        assert not re.search(r"\{\w*\}", card)


def test_tensors_are_the_checkpoints_by_flat_names(exported):
    from safetensors.numpy import load_file

    tensors = load_file(exported / "safetensors" / "model.safetensors")
    saved = flatten(random_variables(tiny_experiment(), 102))
    assert tensors.keys() == saved.keys()
    assert {"params/fusion/out/kernel", "batch_stats/content/block0/norm/mean"} <= saved.keys()
    for name, array in saved.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


def test_an_export_is_replaced_and_nothing_else_is_touched(run, exported, copied):
    (copied / "notes.txt").write_text("mine")
    export(run, copied, "safetensors", step=1)
    assert json.loads((copied / "safetensors" / "model.json").read_text())["step"] == 1
    before, after = contents(exported), contents(copied)
    assert after.keys() == {*before, "notes.txt"}
    assert after["notes.txt"] == b"mine"
    for name, data in before.items():
        assert (after[name] == data) == (
            not name.startswith("safetensors/") or name.endswith("tokenizer.json")
        ), name


def test_weights_can_be_exported_again_from_their_tensors(exported, tmp_path):
    export(exported / "safetensors", tmp_path, "safetensors")
    ours, theirs = (contents(folder / "safetensors") for folder in (tmp_path, exported))
    assert ours == theirs
    with pytest.raises(InputError, match=r"stablehlo: holds compiled programs, out of which wei"):
        export(exported / "stablehlo", tmp_path, "safetensors")


def test_a_folder_of_someone_else_is_refused(run, copied):
    target = copied / "safetensors"

    def refused(message: str, format: str = "safetensors") -> None:
        before = contents(copied)
        with pytest.raises(InputError, match=message + ".*nothing there is overwritten: give"):
            export(run, copied, format)
        assert contents(copied) == before

    (target / "thesis.txt").write_text("mine")
    refused(r"safetensors: holds thesis.txt beside an earlier export")
    (target / "thesis.txt").unlink()
    card = (target / "README.md").read_text()
    (target / "README.md").write_text(card + "my remarks")
    refused(r"safetensors: holds an edited README.md")
    (target / "README.md").write_text(card)
    (target / "model.json").unlink()
    refused(r"safetensors: holds what is no export of this library")
    shutil.rmtree(target)
    target.write_text("mine")
    refused(r"safetensors: is no folder")
    target.unlink()
    shutil.copytree(copied / "stablehlo", target)
    refused(r"safetensors: holds an export of format stablehlo")


def test_an_unknown_format_or_folder_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"--format onnx: unknown; choose one of stablehlo, saf"):
        export(run, tmp_path, "onnx")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/safetensors: cannot be written \(.*--out"):
        export(run, tmp_path / "file", "safetensors")
    with pytest.raises(InputError, match=r"nowhere: no such folder; give the folder of a run"):
        export(tmp_path / "nowhere", tmp_path / "out", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_export_leaves_the_earlier_one(run, copied, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    before = contents(copied)
    monkeypatch.setattr(export_module, "save_file", full_disk)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        export(run, copied, "safetensors", step=1)
    assert contents(copied) == before
    assert len(list(copied.iterdir())) == 2


def test_the_outer_folder_loads_unless_its_exports_differ(run, exported, copied):
    assert load(exported).step == 2
    export(run, copied, "safetensors", step=1)
    with pytest.raises(
        InputError, match=r"holds exports of different weights; give one of .*stablehlo and .*saf"
    ):
        load(copied)
    shutil.rmtree(copied / "stablehlo")
    assert load(copied).step == 1
    with pytest.raises(InputError, match=r"safetensors: holds step 1, not 2; leave --step out"):
        load(copied, step=2)


@pytest.mark.parametrize(
    "name",
    [
        "stablehlo/audio.stablehlo",
        "stablehlo/text.stablehlo",
        "stablehlo/tokenizer.json",
        "safetensors/model.safetensors",
        "safetensors/tokenizer.json",
    ],
)
def test_a_damaged_file_is_named(copied, name):
    path = copied / name
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(InputError, match=rf"{name}: its SHA-256 checksum is not the one in model"):
        load(path.parent)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: is missing from this export; copy the exp"):
        load(path.parent)


def test_an_edited_card_does_not_matter_for_loading(copied):
    (copied / "safetensors" / "README.md").write_text("my remarks")
    assert load(copied / "safetensors").step == 2


def test_a_manifest_that_cannot_be_used_is_named(copied):
    path = copied / "safetensors" / "model.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "step": 7}))
    with pytest.raises(InputError, match=r"model.json: its sha256 is of another content, .* copy"):
        load(path.parent)
    del whole["sha256"]
    text = json.dumps(whole)

    def refused(message: str, **changes) -> None:
        path.write_text(json.dumps({**json.loads(text), **changes}))
        with pytest.raises(InputError, match=message):
            load(path.parent)

    refused(r"model.json: lacks step; copy the export again", step="two")
    refused(r"model.json: lacks preprocessing.sample_rate_hz, prep", preprocessing={})
    refused(r"model.json: is of format 'onnx', version 1; this library reads", format="onnx")
    refused(r"version 2; this library reads .* up to version 1: update it", format_version=2)
    refused(
        r"model.json: Experiment: unknown key model.a",
        experiment={"name": "x", "model": {"kind": "SpatialClapConfig", "a": 1}},
    )
    path.write_text(text[:200])
    with pytest.raises(InputError, match=r"model.json: cannot be read as JSON .*copy the export"):
        load(path.parent)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"model.json: lacks format, format_version"):
        load(path.parent)


@pytest.mark.parametrize("name", ["stablehlo/audio.stablehlo", "safetensors/model.safetensors"])
def test_a_file_of_another_kind_is_named(copied, name):
    path = copied / name
    path.write_bytes(b"PK\x03\x04 something else")
    manifest = json.loads((path.parent / "model.json").read_text())
    manifest["files"][path.name] = sha256(path)
    del manifest["sha256"]
    (path.parent / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"{name}: cannot be read.*again"):
        load(path.parent)
