"""A model in use: windows, padding, rates and batches by law; what it and `load` refuse."""

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
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
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.embedding_files import save_embedding
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.inference import (
    AudioTextModel,
    embedding_functions,
    load,
    text_lengths,
)
from spatial_clap_jax.metrics.embed import Embedder
from spatial_clap_jax.stored import read_trained
from spatial_clap_jax.windows import window_starts

SHAPE = tiny_experiment()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return shared_model(tmp_path_factory.getbasetemp())


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, shape).astype(np.float32)


@pytest.fixture(scope="module")
def pointer() -> AudioTextModel:
    """Windows of 4 samples; a window's embedding is the unit vector of its first two values."""

    def audio_program(batch):
        first = batch[:, 0, :2].astype(np.float64)
        return (first / np.linalg.norm(first, axis=1, keepdims=True)).astype(np.float32)

    tokenizer = Tokenizer.train(CAPTIONS, 300, MAX_TOKENS)
    return AudioTextModel(16_000, 2, 4, tokenizer, 0, audio_program, lambda *_: None)


def test_says_what_it_is(model):
    assert isinstance(model, Embedder)
    assert (model.sample_rate_hz, model.window_s, model.max_tokens) == (RATE_HZ, 0.5, MAX_TOKENS)
    assert model.step == 2


def test_embeddings_are_unit_rows_one_an_input(model):
    one, two = noise(2, 2, WINDOW)
    many = model.embed_audio(np.stack([one, two]), RATE_HZ)
    assert many.shape == (2, 12)
    assert many.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1.0, atol=1e-6)
    assert np.abs(many[0] - many[1]).max() > 1e-3
    texts = model.embed_text(list(CAPTIONS))
    assert texts.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-6)


def optimised(program):
    """A program of a model, compiled as for users: these tests have LLVM optimise nothing."""
    options = {"xla_backend_optimization_level": 3}
    return partial(jax.jit(program.func.__wrapped__, compiler_options=options), *program.args)


def test_a_batch_of_one_equals_a_batch_of_many_exactly(model):
    # Without optimisation some processors round left-over rows otherwise than those in groups.
    model = dataclasses.replace(
        model,
        audio_program=optimised(model.audio_program),
        text_program=optimised(model.text_program),
    )
    # Eleven: more than one inner batch, and a last one that is not full.
    clips = noise(11, 2, WINDOW)
    many = model.embed_audio(clips, RATE_HZ)
    for index in (0, 7, 10):
        np.testing.assert_array_equal(model.embed_audio(clips[index], RATE_HZ), many[index])
    texts = [f"a bell rings {'and rings ' * (i % 3)}{i}" for i in range(11)]
    rows = model.embed_text(texts)
    for index in (0, 7, 10):
        np.testing.assert_array_equal(model.embed_text([texts[index]])[0], rows[index])


def test_one_compilation_for_every_batch_and_length(model):
    model.embed_audio(noise(3, 2, WINDOW), RATE_HZ)
    model.embed_audio(noise(2, 3 * WINDOW), RATE_HZ)
    model.embed_audio(noise(2, 100), 8000)
    model.embed_text([CAPTIONS[0]] * 9)
    assert model.audio_program.func._cache_size() == 1
    assert model.text_program.func._cache_size() == 1


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (1, [0]),
        (4, [0]),
        (5, [0, 1]),
        (6, [0, 2]),
        (8, [0, 2, 4]),
        (9, [0, 2, 4, 5]),
    ],
)
def test_windows_are_half_a_window_apart_and_the_last_ends_with_the_recording(samples, starts):
    assert window_starts(samples, 4) == starts


def test_the_smallest_window_still_advances():
    assert window_starts(3, 1) == [0, 1, 2]


def test_a_long_recording_is_the_mean_direction_of_its_windows(pointer):
    # Windows at 0, 2 and 4 of directions (1, 0), (1, 0), (0, 1): the loud last one counts once.
    left = [0.5, 0.0, 0.1, 0.0, 0.0, 0.9, 0.0, 0.0]
    audio = np.float32([left, np.zeros(8)])
    expected = np.float32([2.0, 1.0]) / np.sqrt(np.float32(5.0))
    np.testing.assert_allclose(pointer.embed_audio(audio, 16_000), expected, rtol=1e-7)
    both = pointer.embed_audio(np.stack([audio, audio[:, ::-1] + 1]), 16_000)
    np.testing.assert_array_equal(both[0], pointer.embed_audio(audio, 16_000))


def test_a_recording_that_repeats_every_half_window_is_its_first_window(model):
    period = noise(2, WINDOW // 2)
    window = model.embed_audio(np.tile(period, 2), RATE_HZ)
    long = model.embed_audio(np.tile(period, 7), RATE_HZ)
    np.testing.assert_allclose(long, window, atol=2e-7)


def test_a_short_recording_is_padded_by_zeros_at_its_end(model):
    short = noise(2, 3000)
    padded = np.pad(short, ((0, 0), (0, WINDOW - 3000)))
    shifted = np.pad(short, ((0, 0), (WINDOW - 3000, 0)))
    ours = model.embed_audio(short, RATE_HZ)
    np.testing.assert_array_equal(ours, model.embed_audio(padded, RATE_HZ))
    assert np.abs(ours - model.embed_audio(shifted, RATE_HZ)).max() > 1e-4


def test_swapped_channels_are_another_place(model):
    audio = noise(2, WINDOW) * np.float32([[1.0], [0.3]])
    swapped = model.embed_audio(audio[::-1], RATE_HZ)
    assert np.abs(model.embed_audio(audio, RATE_HZ) - swapped).max() > 1e-3


def test_another_rate_is_resampled(model):
    def tones(rate_hz: int) -> np.ndarray:
        time_s = np.arange(rate_hz // 2) / rate_hz
        left = sum(np.sin(2 * np.pi * f * time_s) for f in (300.0, 1100.0, 2900.0))
        return np.float32([0.2 * left, 0.1 * np.roll(left, rate_hz // 2000)])

    native = model.embed_audio(tones(16_000), 16_000)
    ignored = np.abs(model.embed_audio(tones(48_000), 16_000) - native).max()
    for rate_hz in (48_000, 44_100, 8_000):
        gap = np.abs(model.embed_audio(tones(rate_hz), rate_hz) - native).max()
        assert gap < 0.2 * ignored, rate_hz


def test_the_moving_average_is_taken_where_it_was_kept(run, tmp_path):
    bare = save_tiny_run(tmp_path / "bare", steps=(1,), averaged=False)
    for folder, step, seed in ((run, 1, 101), (run, None, 102), (bare, 1, 1)):
        ours = read_trained(folder, step).variables
        jax.tree.map(np.testing.assert_array_equal, ours, random_variables(SHAPE, seed))


NAN = np.float32([[0.0, np.nan], [np.inf, 0.0]])


@pytest.mark.parametrize(
    ("audio", "rate_hz", "message"),
    [
        (noise(1, 9), 16_000, r"audio: has 1 channel\(s\); this model takes 2 \(left, right\), and"
         r" none is duplicated, mixed or dropped silently: give a recording with 2 channels"),
        (noise(4, 9), 16_000, r"audio: has 4 channel\(s\); this model takes 2"),
        (noise(3, 4, 9), 16_000, r"audio: has 4 channel\(s\)"),
        (noise(9, 2), 16_000, r"has 9 channel\(s\).*: transpose it, samples come last"),
        (noise(9), 16_000, r"audio: has shape \[9\]; it must be \[channels, samples\], or"),
        (noise(1, 1, 2, 9), 16_000, r"audio: has shape \[1, 1, 2, 9\]; it must be"),
        (noise(2, 0), 16_000, r"audio: has shape \[2, 0\], no samples; give at least one"),
        (noise(0, 2, 9), 16_000, r"audio: has shape \[0, 2, 9\], no samples"),
        (NAN, 16_000, r"audio: 2 of 4 samples are NaN or infinite; every sample must be finite"),
        (np.full((2, 2), 1e300), 16_000, r"audio: 4 of 4 samples are NaN or infinite"),
        (np.zeros((2, 9), np.int16), 16_000, r"audio: holds int16; samples must be floats"),
        (noise(2, 9), 0, r"sample_rate_hz: 0; it must be a whole number of Hz within 4000 and"),
        (noise(2, 9), -16_000, r"sample_rate_hz: -16000; it must"),
        (noise(2, 9), 1_000_000, r"sample_rate_hz: 1000000; it must .* 384000: give the rate of"),
        (noise(2, 9), float("nan"), r"sample_rate_hz: nan; it must"),
        (noise(2, 9), 16_000.5, r"sample_rate_hz: 16000.5; it must"),
        (noise(2, 9), "16000", r"sample_rate_hz: '16000'; it must"),
        (noise(2, 9), None, r"sample_rate_hz: None; it must"),
    ],
)  # fmt: skip
def test_audio_that_is_refused(pointer, audio, rate_hz, message):
    with pytest.raises(InputError, match=message):
        pointer.embed_audio(audio, rate_hz)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], r"texts: the list is empty; give at least one text"),
        (["a dog", "  "], r"text 1: '  ' is blank; a caption needs at least one word"),
        (["word " * 99], r"has \d+ tokens with begin and end, the encoder reads at most 24"),
        ("a dog", r"texts: 'a dog' is one text; give a list of texts"),
        (["a dog", 3], r"text 1: 3 is no text; give a list of strings"),
    ],
)
def test_texts_that_are_refused(pointer, texts, message):
    with pytest.raises(InputError, match=message):
        pointer.embed_text(texts)


def test_a_diverged_model_is_named(pointer):
    broken = dataclasses.replace(pointer, audio_program=lambda batch: batch[:, 0] * np.nan)
    with pytest.raises(InputError, match=r"audio: the model's embeddings hold NaN or infinity"):
        broken.embed_audio(noise(2, 9), 16_000)


def test_a_saved_embedding_is_read_back_and_replaced(tmp_path):
    path = tmp_path / "scene.npy"
    for embedding in (np.float32([0.6, 0.8]), np.float32([[1.0, 0.0], [0.0, -1.0]])):
        save_embedding(embedding, path)
        np.testing.assert_array_equal(np.load(path), embedding)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.npy"]


def test_nothing_but_an_embedding_is_overwritten(tmp_path):
    unit = np.float32([0.6, 0.8])
    (tmp_path / "notes.npy").write_text("not an array")
    np.save(tmp_path / "audio.npy", noise(2, 50))
    np.save(tmp_path / "doubles.npy", unit.astype(np.float64))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    for path in sorted(tmp_path.iterdir()):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(InputError, match=rf"{path.name}: holds something else than an emb"):
            save_embedding(unit, path)
        assert before is None or path.read_bytes() == before
    with pytest.raises(InputError, match=r"scene.wav: embeddings are written as .npy; give"):
        save_embedding(unit, tmp_path / "scene.wav")
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; make it, or name"):
        save_embedding(unit, tmp_path / "nowhere" / "scene.npy")


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, message in (
        ("nowhere", r"nowhere: no such folder; give the folder of a run or of an export"),
        ("file", r"file: is a file; give the folder of a run"),
        ("", r"holds neither a run \(description.json\) nor an export \(model.json\)"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)


def test_a_run_that_cannot_be_loaded_says_why(run, tmp_path):
    with pytest.raises(InputError, match=r"has no step 7; take one of 1, 2"):
        load(run, step=7)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "description.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "max_tokens": MAX_TOKENS - 1}))
    with pytest.raises(InputError, match=r"json: its sha256 is of another content, .* restore"):
        load(copy)
    del whole["sha256"]

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            load(copy)

    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "tokenizer"}))
    refused(r"description.json: lacks tokenizer; restore the file")
    path.write_text(json.dumps({**whole, "tokenizer": "{"}))
    refused(r"description.json: tokenizer JSON: is not a tokenizer")
    path.write_text(json.dumps({**whole, "experiment": {**whole["experiment"], "stepz": 1}}))
    refused(r"description.json: Experiment: unknown key stepz; did you mean steps")
    wider = json.loads(json.dumps(whole))
    wider["experiment"]["model"]["joint_width"] = 13
    path.write_text(json.dumps(wider))
    refused(r"params/fusion/out/bias is float32\[12\] there and float32\[13\] in the model")
    path.write_text(json.dumps(whole))
    shutil.rmtree(copy / "checkpoints")
    refused(r"checkpoints: holds no checkpoint; give the workdir of a run that has saved one")


def test_computes_in_float32_whatever_the_training_did(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "description.json"
    held = json.loads(path.read_text())
    held["experiment"]["precision"] = "bfloat16"
    del held["sha256"]
    path.write_text(json.dumps(held))
    ours, theirs = (read_trained(folder).system for folder in (copy, run))
    variables = random_variables(SHAPE)
    tokens = np.ones((1, MAX_TOKENS), np.int32), np.ones((1, MAX_TOKENS), bool)
    results = [
        str(jax.make_jaxpr(embedding_functions(s)[1])(variables, *tokens)) for s in (ours, theirs)
    ]
    assert results[0] == results[1]
    assert "bf16" not in results[0]
    assert "HIGHEST" in results[0]


def test_the_package_brings_no_jax_until_a_model_is_loaded():
    code = (
        "import sys, spatial_clap_jax; assert 'jax' not in sys.modules; "
        "spatial_clap_jax.load; assert 'jax' in sys.modules"
    )
    root = Path(spatial_clap_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert spatial_clap_jax.load is load
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = spatial_clap_jax.lode


def test_a_short_recording_is_repeated_whole_where_the_model_wants_it(pointer):
    heard = []

    def remember(batch):
        heard.append(batch[0].copy())
        return pointer.audio_program(batch)

    repeating = dataclasses.replace(pointer, padding="repeat", audio_program=remember)
    tokens = dataclasses.replace(repeating, window_samples=8)
    clip = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    tokens.embed_audio(clip, 16_000)
    # Two whole repeats fit; what is left is silence.
    np.testing.assert_array_equal(heard[0], [[1, 2, 3, 1, 2, 3, 0, 0], [4, 5, 6, 4, 5, 6, 0, 0]])


def test_a_model_that_takes_the_whole_is_asked_only_for_what_is_longer(pointer):
    whole = dataclasses.replace(
        pointer, whole_program=lambda clip: np.array([0, clip.shape[-1]], np.float32)
    )
    long, short = noise(2, 9), noise(2, 4)
    np.testing.assert_array_equal(whole.embed_audio(long, 16_000), [0, 9])
    np.testing.assert_array_equal(
        whole.embed_audio(short, 16_000), pointer.embed_audio(short, 16_000)
    )
    assert whole.embed_audio(np.stack([long, long]), 16_000).shape == (2, 2)


def test_a_text_is_padded_by_its_own_length_only(pointer):
    shapes = []

    def count(tokens, mask):
        shapes.append(tokens.shape)
        return np.stack([mask.sum(axis=1), tokens[:, 1]], axis=1).astype(np.float32)

    model = dataclasses.replace(pointer, text_program=count, text_lengths=(8, 24))
    short, long = "a bell", "a bell rings and " * 3 + "rings"
    rows = model.embed_text([long, short, short, long])
    assert {shape[1] for shape in shapes} == {8, 24}
    np.testing.assert_array_equal(rows[0], rows[3])
    np.testing.assert_array_equal(rows[1], model.embed_text([short])[0])
    np.testing.assert_array_equal(rows[0], model.embed_text([long])[0])


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [(24, (24,)), (32, (32,)), (48, (32, 48)), (512, (32, 64, 128, 256, 512))],
)
def test_texts_have_few_lengths(longest, lengths):
    assert text_lengths(longest) == lengths


@pytest.fixture(scope="module")
def listener() -> AudioTextModel:
    """Takes ambisonics; its embedding is the direction of a window's first sample of Y, Z, X."""

    def audio_program(batch):
        first = batch[:, 1:, 0].astype(np.float64)
        return (first / np.linalg.norm(first, axis=1, keepdims=True)).astype(np.float32)

    tokenizer = Tokenizer.train(CAPTIONS, 300, MAX_TOKENS)
    return AudioTextModel(16_000, 4, 4, tokenizer, 0, audio_program, lambda *_: None)


def test_a_plain_recording_stands_in_all_four_channels(listener):
    found = listener.embed_audio(noise(1, 4), 16_000, plain=True)
    np.testing.assert_allclose(np.abs(found), 3**-0.5, atol=1e-6)
    several = listener.embed_audio(noise(2, 1, 4), 16_000, plain=True)
    assert several.shape == (2, 3)


def test_other_conventions_are_converted_when_declared(listener):
    # A wave from the left: Y alone.
    signal = noise(4)
    acn = np.stack([signal, signal, 0 * signal, 0 * signal])
    fuma = np.stack([signal * 2**-0.5, 0 * signal, signal, 0 * signal])
    n3d = acn * np.float32([1, 3**0.5, 3**0.5, 3**0.5])[:, None]
    for audio, foa_format in ((acn, "acn-sn3d"), (fuma, "fuma"), (n3d, "acn-n3d")):
        found = listener.embed_audio(audio, 16_000, foa_format=foa_format)
        np.testing.assert_allclose(np.abs(found), [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("audio", "how", "message"),
    [
        (
            noise(1, 9),
            {},
            r"has 1 channel\(s\); this model takes 4 \(ambisonics: W, Y, Z, X\), and "
            r"none .* silently: say plain=True if it is a mono recording without a place",
        ),
        (noise(2, 9), {}, r"has 2 channel\(s\); .*: give a recording with 4 channels"),
        (noise(4, 9), {"plain": True}, r"plain=True: audio has 4 channels, a recording without"),
        (noise(4, 9), {"foa_format": "ambix"}, r"foa_format 'ambix' is none of acn-sn3d, acn-n3d"),
    ],
)
def test_what_is_no_ambisonics_is_refused(listener, audio, how, message):
    with pytest.raises(InputError, match=message):
        listener.embed_audio(audio, 16_000, **how)


@pytest.mark.parametrize("how", [{"plain": True}, {"foa_format": "fuma"}])
def test_a_stereo_model_takes_no_word_of_ambisonics(pointer, how):
    with pytest.raises(InputError, match=r"is said to a model of first-order ambisonics, and this"):
        pointer.embed_audio(noise(2, 4), 16_000, **how)
