"""JSON, tokenizers, weights and pickles: refused in one line, and nothing in them is run."""

import ast
import contextlib
import json
import os
import pickle
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from inputs import make_vocabularies, trained_tokenizer
from tokenizers import Regex, models, normalizers

import spatial_clap_jax
from spatial_clap_jax.configs_io import describing, refuse_outsized
from spatial_clap_jax.data.sentences import Sentences, write_sentences
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.embed_sentences import store_vectors
from spatial_clap_jax.embedding_files import save_embedding
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.files import count_numbered, open_source, read_json, read_tensors
from spatial_clap_jax.small_files import bytes_of, json_of, parsed_json, sealed, unsealed
from spatial_clap_jax.study.outcomes import read_findings

PACKAGE = Path(spatial_clap_jax.__file__).parent
# What runs or builds whatever a file says, by module and name.
RUNS_FILES = re.compile(
    r"\b(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|yaml)\.(loads?|open|Unpickler)\b"
    r"|(?<![\w.])(eval|exec)\("
)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_unpickles(path):
    text = path.read_text()
    if path.name == "batch_workers.py":
        # What its own processes send it through pipes; no file.
        assert text.count("pickle.loads(") == 2
        text = text.replace("pickle.loads(", "passed_on(")
    assert not RUNS_FILES.search(text.replace("jax.eval_shape(", ""))
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
        pickles = given.get("allow_pickle")
        assert pickles is None or ast.unparse(pickles) == "False", name
        if name == "torch.load":
            assert ast.unparse(given["weights_only"]) == "True"


class Program:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_arrays_of_objects_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    write_sentences(tmp_path / "s", ["x"], "fake", "1", 3, lambda texts: np.ones((1, 3), "f4"))
    objects = np.array([Program(trace)], dtype=object)
    for path in (tmp_path / "s" / "index.npy", tmp_path / "a.npy"):
        np.save(path, objects, allow_pickle=True)
    with pytest.raises(InputError, match=r"index\.npy: cannot be read .* embed again"):
        Sentences(tmp_path / "s").vectors(["x"])
    with pytest.raises(InputError, match=r"a\.npy: holds something else than an embedding"):
        save_embedding(np.float32([1.0]), tmp_path / "a.npy")
    np.savez(tmp_path / "tests.npz", index=objects, allow_pickle=True)
    with pytest.raises(InputError, match=r"tests\.npz: is damaged"):
        read_findings(tmp_path, None)
    assert not trace.exists()
    # The bait works.
    pickle.loads(pickle.dumps(Program(trace)))
    assert trace.exists()


@pytest.mark.parametrize("version", ["1.13.1", "2.4.0", "2.5.1+cu121", "2.6", "2.10.0a0+git1", "x"])
def test_a_pytorch_that_a_pickle_can_get_around_opens_none(tmp_path, monkeypatch, version):
    opened = []

    def load(path, **words):
        opened.append(path)
        raise EOFError

    serialization = SimpleNamespace(safe_globals=lambda known: contextlib.nullcontext())
    torch = SimpleNamespace(__version__=version, load=load, serialization=serialization)
    monkeypatch.setitem(sys.modules, "torch", torch)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80")
    told = r"and could run code in PyTorch .* when it is opened; pip install 'torch>=2\.6', or give"
    safe = version.startswith(("2.6", "2.10"))
    with pytest.raises(InputError, match="cannot be read" if safe else told):
        read_tensors(path)
    assert bool(opened) == safe


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_as_deep_as_a_file_is_long_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is nested too deeply"):
        parsed_json(text)
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON .*too deeply"):
        read_json(path)
    with pytest.raises(InputError, match=r"a\.json: is not a tokenizer"):
        Tokenizer.from_file(path, 16)


def test_what_never_ends_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="is a pipe or a device"):
            bytes_of(tmp_path / name)
        with pytest.raises(InputError, match=r"cannot be read as a tokenizer .*pipe or a device"):
            Tokenizer.from_file(tmp_path / name, 16)
    with pytest.raises(OSError, match="is a folder"):
        json_of(tmp_path)


@pytest.mark.parametrize("name", ["part-1.safetensors", "model.bin"])
def test_weights_that_are_a_pipe_are_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    index = "model.safetensors" if name.endswith(".safetensors") else "pytorch_model.bin"
    (tmp_path / f"{index}.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(
        InputError, match=r"cannot be read \(.*is a pipe or a device.*copy the file"
    ):
        open_source(tmp_path).tensors()


def test_vectors_that_are_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "vectors.npy")
    (tmp_path / "captions.csv").write_text("caption\nrain\n")
    with pytest.raises(InputError, match=r"--vectors .*: cannot be read \(.*is a pipe or a device"):
        store_vectors(tmp_path / "captions.csv", tmp_path / "vectors.npy", tmp_path / "out")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN), st.integers(0, 10**9))
def test_a_seal_tells_every_flipped_bit(tree, seed):
    whole = sealed({key: value for key, value in tree.items() if key != "sha256"})
    text = json.dumps(whole).encode()
    assert unsealed(parsed_json(text)) == {k: v for k, v in tree.items() if k != "sha256"}
    rng, flipped = random.Random(seed), bytearray(text)
    flipped[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    try:
        read = parsed_json(bytes(flipped))
        if "sha256" in read:
            # Spelled otherwise, it may still say the same.
            assert unsealed(read) == {k: v for k, v in whole.items() if k != "sha256"}
    except (ValueError, TypeError):
        pass


def test_one_text_has_one_meaning_whatever_a_file_says():
    held = json.loads(trained_tokenizer())
    held["model"]["dropout"] = 0.9
    tokenizer = Tokenizer.from_json(json.dumps(held), 24)
    ids = {tuple(tokenizer.encode(["a dog barks left"])[0][0]) for _ in range(20)}
    wanted, _ = Tokenizer.from_json(trained_tokenizer(), 24).encode(["a dog barks left"])
    assert ids == {tuple(wanted[0])}


def test_half_a_character_is_refused():
    tokenizer = Tokenizer.from_json(trained_tokenizer(), 24)
    with pytest.raises(InputError, match=r"text 1: 'a\\ud800' is no Unicode .*; write it in UTF-8"):
        tokenizer.encode(["rain", "a\ud800"])


def test_a_tokenizer_that_panics_is_an_error_like_others():
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace(Regex(r"(a|aa)+$"), "x")  # type: ignore[assignment]
    tokenizer = Tokenizer.from_json(backend.to_str(), 24)
    with pytest.raises(InputError, match=r"tokenizer: cannot read texts .*; give an undamaged"):
        tokenizer.encode(["a" * 40 + "b"])


def test_a_panic_at_reading_prints_nothing(capfd):
    held = json.loads(trained_tokenizer())
    # The library cuts what continues a word by this length, unasked whether it is there.
    held["model"]["continuing_subword_prefix"] = "x" * 600
    with pytest.raises(InputError, match=r"tokenizer JSON: is not a tokenizer \(.*out of range"):
        Tokenizer.from_json(json.dumps(held), 24)
    assert capfd.readouterr().err == ""
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_an_id_beyond_every_table_is_refused():
    held = json.loads(trained_tokenizer())
    held["model"]["vocab"]["dog"] = 2**31
    with pytest.raises(InputError, match=r"has the token id 2147483648, above 16777216; give"):
        Tokenizer.from_json(json.dumps(held), 24)


def test_a_huge_id_is_refused_before_the_library_makes_a_table_of_it(tmp_path):
    held = json.loads(trained_tokenizer())
    held["added_tokens"][0]["id"] = 2**32 - 1
    with pytest.raises(InputError, match="has the token id 4294967295, above 16777216; give"):
        Tokenizer.from_json(json.dumps(held), 24)
    make_vocabularies(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "dog": 2**31}))
    with pytest.raises(InputError, match=r"vocab\.json: has the token id 2147483648, above"):
        Tokenizer.from_folder(tmp_path, 24)


@pytest.mark.parametrize(
    ("description", "key"),
    [
        ({"layers": 10**9}, "layers 1000000000"),
        ({"model": {"text": {"num_hidden_layers": 513}}}, "num_hidden_layers 513"),
        ({"depths": [2, 10**12]}, "depths 1000000000000"),
        ({"width": -(10**12)}, "width -1000000000000"),
        ({"rate": float("nan")}, "rate nan"),
        ({"fft_window_size": 2**17}, "fft_window_size 131072"),
    ],
)
def test_sizes_that_no_model_has_are_refused(description, key):
    with pytest.raises(InputError, match=f"here: {key} is no size of a model; it must lie within"):
        refuse_outsized(description, "here")


def test_sizes_of_models_pass():
    refuse_outsized({"vocab_size": 250_002, "layers": 48, "fft_window_size": 1024, "a": [1]}, "x")
    refuse_outsized({"max_length": 10**30, "layers": 2}, "x", ["layers"])


def test_whatever_a_description_leads_to_is_one_line():
    with (
        pytest.raises(InputError, match=r"m\.json: describes no model .*ZeroDivisionError: "),
        describing("m.json"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(InputError, match=r"^as it was$"), describing("m.json"):
        raise InputError("as it was")


def test_a_layer_beyond_the_number_of_tensors_is_no_count():
    tensors = {f"layers.{index}.w": np.zeros(1) for index in range(3)}
    assert count_numbered(tensors, r"layers\.(\d+)\.") == 3
    for names in ({"layers.999999999999.w": np.zeros(1)}, {}):
        with pytest.raises(ValueError, match="counts"):
            count_numbered(names, r"layers\.(\d+)\.")
