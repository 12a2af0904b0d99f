"""Published M2D-CLAPs converted, loaded and heard: any length, every moment, and the way back."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from m2d_files import NORMALISATION, WIDTH, published_2024, published_2025
from safetensors.numpy import load_file, save_file
from tiny import random_variables, save_tiny_run, shared_run, tiny_m2d
from towers_on_disk import save_bert

import spatial_clap_jax
from spatial_clap_jax.acoustics.captions import label_prompt
from spatial_clap_jax.cli import main
from spatial_clap_jax.configs_io import to_plain
from spatial_clap_jax.convert import convert
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.embedding_files import save_features
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.export import export, m2d_clap_weights
from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.inference import load
from spatial_clap_jax.metrics.zero_shot import zero_shot
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.pretrained.m2d_clap import (
    m2d_clap_tensors,
    published_name,
    read_m2d_clap,
)
from spatial_clap_jax.scene_embeddings import PatchTokens
from spatial_clap_jax.stored import TrainedModel, read_trained, sha256
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.train.experiment import load_config
from spatial_clap_jax.windows import log_mel_on_host

RATE_HZ = 16_000
NAME = "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025"
WORDS = ["a dog barks", "rain falls", "a dog can be heard"]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Both years, one layer deep, as their folders would lie."""
    folder = tmp_path_factory.mktemp("published")
    (folder / NAME).mkdir()
    save_file(published_2025(layers=1, words=300), folder / NAME / "checkpoint-30.safetensors")
    save_file(published_2024(layers=1), folder / "m2d.safetensors")
    tokenizer = Tokenizer.train(WORDS, 300, 24)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return folder


@pytest.fixture(scope="module")
def of_2025(published):
    out = published / "ours-2025"
    convert(published / NAME, out, tokenizer=published / "tokenizer.json")
    return out


@pytest.fixture(scope="module")
def of_2024(published):
    convert(published / "m2d.safetensors", published / "ours-2024")
    return published / "ours-2024"


@pytest.fixture(scope="module")
def model(of_2025):
    return load(of_2025)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    swell = np.linspace(0.01, 0.3, round(seconds * RATE_HZ))
    return (swell * rng.normal(size=(1, len(swell)))).astype(np.float32)


def test_the_way_back_gives_the_published_tensors(of_2025, of_2024, published, tmp_path):
    for ours, source, name in (
        (of_2025, published / NAME / "checkpoint-30.safetensors", NAME.removesuffix("-2025")),
        (of_2024, published / "m2d.safetensors", "m2d_clap_vit_base-80x608p16x16p16k"),
    ):
        out = tmp_path / name
        export(ours, out, "m2d-clap")
        written = load_file(out / "m2d-clap" / f"{name}.safetensors")
        expected = load_file(source)
        lost = [key for key in expected if "pooler" in key]
        # The file of 2025 has no logit scale, the model that it becomes has.
        assert written.keys() ^ expected.keys() <= {"backbone.logit_scale"}
        for key in expected.keys() - lost:
            np.testing.assert_array_equal(written[key], expected[key], err_msg=key)
        again = read_m2d_clap(out / "m2d-clap" / f"{name}.safetensors")
        assert again.audio.config.frames == (1001 if "1001" in name else 608)
        card = (out / "m2d-clap" / "README.md").read_text()
        assert "public code of M2D" in card


def test_what_was_converted_says_what_it_is(of_2025, of_2024):
    for folder, frames, projector in ((of_2025, 1001, "token"), (of_2024, 608, "mlp")):
        manifest = json.loads((folder / "safetensors" / "model.json").read_text())
        held = manifest["experiment"]["model"]
        assert (held["content"]["frames"], held["projector"]) == (frames, projector)
        assert held["normalisation"] == list(NORMALISATION)
        assert "M2D-CLAP" in (folder / "safetensors" / "README.md").read_text()
    assert manifest["preprocessing"]["window_samples"] == 607 * 160
    assert not (of_2024 / "safetensors" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("seconds", "tokens"), [(1.0, 35), (3.0, 95), (6.01, 190), (10.0, 310), (20.0, 620)]
)
def test_as_many_tokens_as_the_public_code_has(model, seconds, tokens):
    frames, times_ms = model.embed_frames(sound(seconds), RATE_HZ)
    assert frames.shape == (tokens // 5, 5 * WIDTH)
    assert times_ms.shape == (tokens // 5,)
    np.testing.assert_allclose(times_ms[:3], [75.0, 235.0, 395.0][: tokens // 5])
    if seconds == 20.0:
        # The second input begins 1001 frames of 10 ms after the first.
        np.testing.assert_allclose(times_ms[61:63], [75.0 + 61 * 160, 10_010 + 75.0])


def test_a_moment_holds_its_frequencies_and_the_last_input_is_filled_by_the_mean():
    # Tokens tell their own mean level, and mark their band.
    def encode(levels):
        steps = levels.shape[1] // 16
        patches = levels.reshape(steps, 16, 5, 16).mean(axis=(1, 3)).T.reshape(1, -1, 1)
        band = np.repeat(np.arange(5), steps)[None, :, None]
        seen.append(levels.shape[1])
        return np.concatenate([patches, band], axis=2)

    seen = []
    config = VitConfig(frames=40, width=4, layers=1, heads=1)
    tokens = PatchTokens(config, M2D_LOG_MEL, (-7.0, 2.0), encode, lambda rows: rows.mean(axis=1))
    clip = sound(0.93)
    levels = (log_mel_on_host(clip[0], M2D_LOG_MEL) + 7.0) / 2.0
    assert len(levels) == 94
    rows, times_ms = tokens.frames(clip[None], RATE_HZ)
    # Inputs of 40 frames have two whole patches; of the last 14 frames one is made.
    assert seen == [32, 32, 16]
    assert rows.shape == (1, 5, 10)
    np.testing.assert_array_equal(rows[0, :, 1::2], np.tile(np.arange(5), (5, 1)))
    starts = [0, 16, 40, 56, 80]
    np.testing.assert_allclose(times_ms, [10 * (start + 7.5) for start in starts])
    for moment, start in enumerate(starts):
        part = np.zeros((16, 80))
        part[: len(levels[start : start + 16])] = levels[start : start + 16]
        expected = part.reshape(16, 5, 16).mean(axis=(0, 2))
        np.testing.assert_allclose(rows[0, moment, ::2], expected, atol=1e-5)
    # All tokens of all inputs are projected together.
    together = tokens.embed(clip[None], RATE_HZ)[0]
    np.testing.assert_allclose(together, [rows[0, :, ::2].mean(), 2.0], atol=1e-5)


def test_a_scene_is_the_mean_of_its_moments_and_nothing_else_matters(model):
    one, two = sound(1.2, seed=1), sound(1.2, seed=2)
    both = np.stack([one, two])
    scenes = model.embed_scene(both, RATE_HZ)
    frames, _ = model.embed_frames(both, RATE_HZ)
    assert scenes.shape == (2, 5 * WIDTH)
    assert scenes.dtype == frames.dtype == np.float32
    np.testing.assert_allclose(scenes, frames.mean(axis=1), rtol=1e-6)
    for index, clip in enumerate((one, two)):
        np.testing.assert_array_equal(model.embed_scene(clip, RATE_HZ), scenes[index])
        joint = model.embed_audio(both, RATE_HZ)[index]
        np.testing.assert_array_equal(model.embed_audio(clip, RATE_HZ), joint)
    np.testing.assert_allclose(np.linalg.norm(joint), 1, atol=1e-6)


def test_other_rates_are_resampled_and_bad_audio_is_refused(model):
    time_s = np.arange(48_000) / 48_000
    tone = np.float32(0.2 * np.sin(2 * np.pi * 440 * time_s))[None]
    scenes = [model.embed_audio(tone, 48_000), model.embed_audio(tone[:, ::3], 16_000)]
    assert scenes[0] @ scenes[1] > 0.99
    with pytest.raises(InputError, match=r"audio: has 2 channel\(s\); this model takes 1"):
        model.embed_frames(np.concatenate([tone, tone]), 48_000)
    with pytest.raises(InputError, match=r"sample_rate_hz: 0; it must be a whole number"):
        model.embed_scene(tone, 0)


def test_the_shortest_recordings_are_heard(model):
    for samples in (1, 100, 2400):
        assert model.embed_scene(sound(samples / RATE_HZ), RATE_HZ).shape == (5 * WIDTH,)


def test_classes_by_prompt(model):
    classes = ["dog", "rain"]
    cosines = zero_shot(model, sound(1.0), RATE_HZ, classes)
    said = model.embed_text([label_prompt("dog"), label_prompt("rain")])
    np.testing.assert_array_equal(cosines, model.embed_audio(sound(1.0), RATE_HZ) @ said.T)
    # As an evaluation asks for them, however the data spell them.
    spelt = zero_shot(model, sound(1.0), RATE_HZ, ["Dog", "Rain_"])
    np.testing.assert_array_equal(spelt, cosines)
    several = spatial_clap_jax.zero_shot(model, np.stack([sound(1.0)] * 2), RATE_HZ, classes)
    assert several.shape == (2, 2)
    with pytest.raises(InputError, match=r"prompt: 'a dog' has no \{class\}; say where"):
        zero_shot(model, sound(1.0), RATE_HZ, classes, prompt="a dog")
    with pytest.raises(InputError, match=r"classes: 'dog'; give a list of at least one name"):
        zero_shot(model, sound(1.0), RATE_HZ, "dog")


def test_texts_of_2024_are_sentence_embeddings(of_2024, tmp_path, monkeypatch):
    silent = load(of_2024)
    assert silent.max_tokens == 0
    with pytest.raises(InputError, match=r"embed_text: this model has no text encoder, its texts"):
        silent.embed_text(["a dog barks"])
    rng = np.random.default_rng(0)
    sentences = rng.normal(size=(3, WIDTH)).astype(np.float32)
    # Of equal width they are compared as they are.
    units = sentences / np.linalg.norm(sentences, axis=1, keepdims=True)
    np.testing.assert_allclose(silent.embed_sentences(sentences), units, atol=1e-6)
    with pytest.raises(
        InputError, match=r"sentences: have shape \[3, 7\]; this model takes \[b, 8"
    ):
        silent.embed_sentences(sentences[:, :7])
    save_bert(tmp_path / "bert")
    with pytest.raises(InputError, match=r"sentences: have shape \[8, 16\]; this model takes"):
        load(of_2024, text_encoder=tmp_path / "bert").embed_text(["a dog barks"])
    text = dataclasses.replace(
        spatial_clap_jax.load_text(tmp_path / "bert"),
        text_program=lambda tokens, mask: sentences[tokens[:, 1] % 3],
    )
    monkeypatch.setattr("spatial_clap_jax.inference.text_model", lambda tower: text)
    reading = load(of_2024, text_encoder=tmp_path / "bert")
    assert reading.max_tokens == text.max_tokens
    expected = silent.embed_sentences(text.embed_text(WORDS))
    np.testing.assert_allclose(reading.embed_text(WORDS), expected, atol=1e-6)


def test_what_does_not_fit_together_is_refused(of_2025, of_2024, published, tmp_path, model):
    bare = {
        name.removeprefix("backbone."): tensor
        for name, tensor in published_2025(layers=1).items()
        if name.startswith("backbone.") and "audio_proj" not in name
    }
    save_file(bare, tmp_path / "encoder.safetensors")
    for call, message in (
        (
            lambda: convert(published / NAME, tmp_path / "o"),
            r"brings no tokenizer; .*bert-base-unc",
        ),
        (
            lambda: convert(published / "m2d.safetensors", tmp_path / "o", published),
            r"--tokenizer .*: .*m2d\.safetensors has no text encoder; leave it out",
        ),
        (
            lambda: convert(tmp_path / "encoder.safetensors", tmp_path / "o"),
            r"holds an encoder alone, which makes no model; .* --init\.audio",
        ),
        (lambda: load(of_2025, text_encoder="x"), r"text_encoder x: this model takes no sentence"),
        (lambda: export(of_2025, tmp_path, "stablehlo"), r"an M2D-CLAP embeds a recording of any"),
        (
            lambda: export(of_2025, tmp_path, "hf-clap"),
            r"hf-clap: ClapModel is monaural, and of M2",
        ),
        (lambda: model.embed_sentences(np.ones((1, 8))), r"takes no sentence embeddings; one with"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert not (tmp_path / "o").exists()


def test_another_system_has_no_moments_and_no_public_form(tmp_path, tmp_path_factory):
    run = shared_run(tmp_path_factory.getbasetemp())
    with pytest.raises(InputError, match=r"m2d-clap: the model is SpatialClap, no M2D-CLAP; take"):
        export(run, tmp_path, "m2d-clap")
    with pytest.raises(InputError, match=r"embed_frames: this model has no tokens of moments"):
        load(run).embed_frames(np.zeros((2, 100), np.float32), RATE_HZ)


def test_features_on_the_command_line(of_2025, tmp_path, capsys, model):
    clip = sound(0.5)
    soundfile.write(tmp_path / "clip.wav", clip.T, RATE_HZ, subtype="FLOAT")
    embed = ["embed", str(of_2025), str(tmp_path / "clip.wav")]
    for kind in ("frames", "scene", "frames"):
        main([*embed, "--kind", kind, "--out", str(tmp_path / f"{kind}.npz")])
    frames, times_ms = model.embed_frames(clip, RATE_HZ)
    with np.load(tmp_path / "frames.npz") as held:
        np.testing.assert_array_equal(held["features"], frames)
        np.testing.assert_array_equal(held["times_ms"], times_ms)
    with np.load(tmp_path / "scene.npz") as held:
        np.testing.assert_array_equal(held["features"], model.embed_scene(clip, RATE_HZ))
    main([*embed, "--text", "a dog barks", "--text", "rain falls"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    for arguments, message in (
        (("--kind", "scene"), "--kind scene goes to a file; give --out alone"),
        (("--kind", "frames", "--out", "x.npz", "--text", "a"), "goes to a file; give --out alone"),
        (("--kind", "scene", "--out", str(tmp_path / "frames.npz")), "holds something else than"),
        (("--kind", "scene", "--out", str(tmp_path / "a.npy")), "embeddings are written as .npz"),
    ):
        with pytest.raises(SystemExit):
            main([*embed, *arguments])
        assert message in capsys.readouterr().err


def test_features_replace_nothing_but_their_like(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"thesis")
    with pytest.raises(InputError, match=r"a\.npz: holds something else than an embedding and is"):
        save_features(path, features=np.ones(3))
    assert path.read_bytes() == b"thesis"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("m2d") / "run", experiment=tiny_m2d())


@pytest.mark.slow
@pytest.mark.parametrize("config", ["m2d_clap_labels", "m2d_clap_text", "m2d_clap_text_fine"])
def test_stages_of_whole_windows_hear_them_whole(config, tmp_path):
    """A recording of one window is embedded as training embeds it, in one input."""
    ours = load_config(config, "quickstart")
    assert isinstance(ours.model, M2dClapConfig)
    if ours.model.classes is None:
        ours = dataclasses.replace(
            ours, model=dataclasses.replace(ours.model, classes=("dog", "rain"))
        )
    run = save_tiny_run(tmp_path / "run", steps=(1,), averaged=False, experiment=ours)
    trained, audio = read_trained(run), sound(ours.model.window_s)
    system = jax.jit(trained.audio_text.embed_audio)(trained.variables, jnp.asarray(audio)[None])
    # Training hears the levels that its records have.
    model = load(run).of_records()
    assert model.embed_frames(audio, RATE_HZ)[0].shape[0] == 12
    np.testing.assert_allclose(model.embed_audio(audio, RATE_HZ), system[0], atol=1e-4)


def test_stage_2_of_base_is_exported_as_it_is_published():
    """But for its depth and words, which are fewer here."""
    ours = load_config("m2d_clap_text", "base")
    model = ours.model
    assert isinstance(model, M2dClapConfig)
    assert isinstance(model.text, TextConfig)
    model = dataclasses.replace(
        model,
        content=dataclasses.replace(model.content, layers=1),
        text=dataclasses.replace(model.text, layers=1, vocabulary=300),
    )
    ours = dataclasses.replace(ours, model=model)
    trained = TrainedModel(
        to_plain(ours), ours.build_system("cpu"), random_variables(ours), None, 1, {}
    )
    weights = m2d_clap_weights(trained)
    assert published_name(weights) == NAME.removesuffix("-2025")
    shapes = [
        {name: x.shape for name, x in tensors.items() if name.startswith("backbone.")}
        for tensors in (m2d_clap_tensors(weights), published_2025(width=768, layers=1))
    ]
    assert shapes[0].pop("backbone.logit_scale") == ()
    assert shapes[0] == shapes[1]
    assert shapes[0]["backbone.pos_embed"] == (1, 311, 768)


@pytest.mark.slow
def test_a_run_is_used_as_it_was_trained_and_as_its_export(run, tmp_path):
    export(run, tmp_path, "safetensors")
    live, exported = load(run), load(tmp_path)
    trained = read_trained(run)
    audio = sound(0.39)
    assert live.embed_frames(audio, RATE_HZ)[0].shape == (5, 2 * 16)
    for call in (
        lambda model: model.embed_audio(audio, RATE_HZ),
        lambda model: model.embed_scene(audio, RATE_HZ),
        lambda model: model.embed_text(WORDS),
    ):
        np.testing.assert_array_equal(call(live), call(exported))
    # These are 40 frames, the length of an input: what the training computes.
    system = trained.system.embed_audio(trained.variables, jnp.asarray(audio)[None])
    np.testing.assert_allclose(live.embed_audio(audio, RATE_HZ), system[0], atol=1e-4)


def test_a_target_in_part_is_refused(run, tmp_path):
    export(run, tmp_path, "safetensors")
    folder = tmp_path / "safetensors"
    tensors = load_file(folder / "model.safetensors")
    # This run was saved without one, as older runs are.
    assert not any(path.startswith("target/") for path in tensors)
    tensors["target/content/norm/scale"] = np.ones(16, np.float32)
    save_file(tensors, folder / "model.safetensors")
    manifest = json.loads((folder / "model.json").read_text())
    manifest["files"]["model.safetensors"] = sha256(folder / "model.safetensors")
    del manifest["sha256"]
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"target/content/block_0/\S+ is absent there and float32"):
        load(folder)


def test_a_joint_space_of_its_own_width_has_no_public_form(run, tmp_path):
    with pytest.raises(InputError, match=r"the joint space is 12 wide and the encoder 16, the pub"):
        export(run, tmp_path, "m2d-clap")
