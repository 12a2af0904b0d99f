"""From published weights to a folder that opens, and what the command line says of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import shared_run
from towers_on_disk import TEXT, save_bert

import spatial_clap_jax
from spatial_clap_jax.cli import main
from spatial_clap_jax.convert import convert
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export
from spatial_clap_jax.pretrained.read import read_text_tower


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "bert"
    save_bert(folder)
    return folder


@pytest.fixture(scope="module")
def converted(bert):
    out = bert.parent / "ours"
    files, report = convert(bert, out)
    return out, files, report


def test_a_text_encoder_becomes_a_folder_of_its_own(bert, converted):
    out, files, report = converted
    names = {path.name for path in files}
    assert names == {"model.safetensors", "model.json", "tokenizer.json", "README.md"}
    assert {path.parent for path in files} == {out / "text-encoder"}
    assert len(report.taken) == 19
    there, here = read_text_tower(bert), read_text_tower(out)
    assert (here.config, here.tokenizer.to_json()) == (there.config, there.tokenizer.to_json())
    assert here.arrays.keys() == there.arrays.keys()
    for path, array in there.arrays.items():
        np.testing.assert_array_equal(here.arrays[path], array, err_msg=path)


def test_a_text_encoder_whose_tokenizer_is_gone_is_not_whole(converted, tmp_path):
    """Its words could be read by another one, and mean nothing."""
    copied = Path(shutil.copytree(converted[0], tmp_path / "copied"))
    (copied / "text-encoder" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: is missing from this export; copy the"):
        read_text_tower(copied)


def test_a_text_encoder_embeds_wherever_it_lies(bert, converted):
    texts = ["a dog barks", "rain falls in front, and a bell rings, and rain falls in front"]
    one, other = (spatial_clap_jax.load_text(path) for path in (bert, converted[0]))
    rows = one.embed_text(texts)
    assert rows.shape == (2, TEXT.width)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(other.embed_text(texts), rows)
    assert one.max_tokens == TEXT.max_tokens


def test_a_text_encoder_is_no_audio_text_model(converted):
    with pytest.raises(InputError, match=r"text encoder alone; spatial_clap_jax\.load_text opens"):
        spatial_clap_jax.load(converted[0])


def test_a_text_encoder_beside_an_export_hides_nothing(bert, tmp_path, tmp_path_factory):
    run = shared_run(tmp_path_factory.getbasetemp())
    export(run, tmp_path, "safetensors")
    convert(bert, tmp_path)
    assert spatial_clap_jax.load(tmp_path).step == 2
    assert (tmp_path / "text-encoder" / "model.json").is_file()


def test_the_card_and_the_manifest_say_where_it_comes_from(bert, converted):
    manifest = json.loads((converted[0] / "text-encoder" / "model.json").read_text())
    assert manifest["provenance"]["converted_from"] == str(bert)
    card = (converted[0] / "text-encoder" / "README.md").read_text()
    assert "load_text" in card
    assert str(TEXT.width) in card


def test_a_source_without_tokenizer_wants_one(bert, tmp_path):
    save_bert(tmp_path / "mute", tokenizer=False)
    with pytest.raises(InputError, match=r"brings no tokenizer; give that .* by --tokenizer"):
        convert(tmp_path / "mute", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files, _ = convert(tmp_path / "mute", tmp_path / "out", tokenizer=bert)
    assert len(files) == 4
    with pytest.raises(InputError, match=r"holds no tokenizer; give a tokenizer\.json"):
        convert(tmp_path / "mute", tmp_path / "other", tokenizer=tmp_path)


def test_a_tokenizer_of_another_vocabulary_is_refused(bert, tmp_path):
    texts = [" ".join(f"word{i}{j}" for i in range(9)) for j in range(50)]
    other = tmp_path / "tokenizer.json"
    other.write_text(Tokenizer.train(texts, 400, 24).to_json())
    with pytest.raises(
        InputError, match=r"tokenizer has 4\d\d tokens and the text encoder knows 320"
    ):
        convert(bert, tmp_path / "out", tokenizer=other)
    assert not (tmp_path / "out").exists()


def test_nothing_of_others_is_overwritten(bert, tmp_path):
    place = tmp_path / "out" / "text-encoder"
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"nothing there is overwritten"):
        convert(bert, tmp_path / "out")
    assert (place / "thesis.txt").read_text() == "years of work"


def test_the_command_tells_one_line_or_every_tensor(bert, tmp_path, capsys):
    main(["convert", str(bert), "--out", str(tmp_path / "one")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{bert}: 19 arrays of")
    assert len(lines) == 1 + 4
    main(["convert", str(bert), "--out", str(tmp_path / "one"), "--verbose", "True"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19 + 4
    assert "params/pooler/kernel [16, 16] <- pooler.dense.weight" in lines


def test_a_mistake_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "config.json" in said
