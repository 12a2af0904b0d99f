"""Ready-made sentence embeddings: stored as an encoder's are, or refused by name and rule."""

from pathlib import Path

import numpy as np
import pytest
from towers_on_disk import save_bert

from spatial_clap_jax import embed_sentences as module
from spatial_clap_jax.cli import main
from spatial_clap_jax.data.sentences import Sentences, captions_of
from spatial_clap_jax.embed_sentences import embed_sentences, store_vectors
from spatial_clap_jax.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


@pytest.fixture
def table(tmp_path) -> Path:
    """A csv of four captions, of which three are different."""
    path = tmp_path / "captions.csv"
    path.write_text("caption\na dog barks\nrain falls.\na dog barks.\na bell rings\n")
    return path


def saved(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "vectors.npy", rows)
    return folder / "vectors.npy"


def test_each_caption_gets_the_unit_vector_of_its_row(table, tmp_path):
    # A row of tiny numbers has a direction too.
    rows = ROWS * np.float64([[1.0], [30.0], [1e-200]])
    found = store_vectors(table, saved(tmp_path, rows), tmp_path / "s", progress=False)
    assert captions_of(table) == ["a dog barks.", "rain falls.", "a bell rings."]
    units = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors(captions_of(table)), units, atol=1e-7)
    assert (found.header["encoder"], found.width, len(found)) == ("vectors.npy", 5, 3)


def test_the_folder_is_the_one_that_an_encoder_writes(table, tmp_path):
    save_bert(tmp_path / "bert")
    made = embed_sentences(table, tmp_path / "bert", tmp_path / "made", progress=False)
    rows = saved(tmp_path, made.vectors(captions_of(table)))
    stored = store_vectors(table, rows, tmp_path / "stored", progress=False)
    names = [sorted(path.name for path in s.folder.iterdir()) for s in (made, stored)]
    assert names[0] == names[1]
    for key in made.header.keys() - {"encoder", "fingerprint"}:
        assert stored.header[key] == made.header[key], key
    told = captions_of(table)
    np.testing.assert_allclose(stored.vectors(told), made.vectors(told), atol=1e-7)


@pytest.mark.parametrize(
    ("captions", "rest"),
    [
        (["rain", "a dog " * 20, "b" * 90, "c" * 90], " and 2 more"),
        (["rain", "a dog " * 20], ""),
    ],
)
def test_captions_that_are_too_long_are_counted_before_anything_is_written(
    tmp_path, monkeypatch, captions, rest
):
    # The bad ones lie in several parts.
    monkeypatch.setattr(module, "SHARD", 2)
    save_bert(tmp_path / "bert")
    table = tmp_path / "captions.csv"
    table.write_text("caption\n" + "\n".join(captions) + "\n")
    told = r"'a dog a dog .*\.\.\.' has \d+ tokens with begin and end, the encoder reads at most"
    with pytest.raises(InputError, match=rf"captions\.csv: {told} \d+; shorten it{rest}\.$"):
        embed_sentences(table, tmp_path / "bert", tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


def test_the_same_again_changes_nothing_and_others_are_refused(table, tmp_path):
    path, out = saved(tmp_path, ROWS), tmp_path / "s"
    store_vectors(table, path, out, progress=False)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    store_vectors(table, path, out, progress=False)
    table.write_text("caption\nrain falls\na dog barks\na bell rings\n")
    with pytest.raises(InputError, match=r"holds other sentences: fingerprint is .* another --out"):
        # The same rows and captions, in another order.
        store_vectors(table, path, out, progress=False)
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def changed(row: int, value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:2], r"has 2 rows of 5, and must have 3, one for each distinct caption, .*captions_"),
        (ROWS[:, :0], r"has 3 rows of 0, and must have 3, .* of 1 to 1048576; embed what"),
        (ROWS[0], r"holds float32\[5\], and must hold floats \[captions, width\]; save a row for"),
        (ROWS.astype(int), r"holds int64\[3, 5\], and must hold floats \[captions, width\]"),
        (changed(1, np.nan), r"row 1 \(counted from 0\), of 'rain falls\.', holds NaN or infini"),
        (changed(2, -np.inf), r"row 2 .*, of 'a bell rings\.', holds NaN or infinite numbers; emb"),
        (changed(0, 0.0), r"row 0 .*, of 'a dog barks\.', is zero, which has no direction; embed"),
    ],
)
def test_what_is_no_array_of_vectors_is_refused(table, tmp_path, rows, message):
    path = saved(tmp_path, rows)
    with pytest.raises(InputError, match=rf"--vectors \S+vectors\.npy: {message}"):
        store_vectors(table, path, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


def test_what_cannot_be_read_is_refused(table, tmp_path):
    path = tmp_path / "vectors.npy"
    for content in (None, b"thesis", saved(tmp_path, ROWS).read_bytes()[:-1]):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"vectors\.npy: cannot be read \(.*give an array that"
        ):
            store_vectors(table, path, tmp_path / "s", progress=False)
    np.savez(tmp_path / "vectors.npz", rows=ROWS)
    with pytest.raises(InputError, match=r"vectors\.npz: holds an archive, and must hold floats"):
        store_vectors(table, tmp_path / "vectors.npz", tmp_path / "s", progress=False)


def test_on_the_command_line_one_of_the_two_is_given(table, tmp_path, capsys):
    rows, out = str(saved(tmp_path, ROWS)), str(tmp_path / "s")
    command = ["embed-text", str(table), "--out", out]
    for arguments, given in (((), "neither"), (("--vectors", rows, "--text-encoder", "x"), "both")):
        with pytest.raises(SystemExit) as stop:
            main([*command, *arguments])
        assert stop.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"--text-encoder and --vectors: {given} given; give one of them" in said
    main([*command, "--vectors", rows])
    assert "3 sentence embeddings of width 5" in capsys.readouterr().out
    assert len(Sentences(out)) == 3
