"""Levels of clips: as recorded or brought to one, in records and in use, and the two alike."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import RATE_HZ, WINDOW, save_tiny_run, tiny_m2d, tiny_recipe

from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.cli import main
from spatial_clap_jax.data.audio import read_audio
from spatial_clap_jax.data.builders import open_scenes, render_scenes
from spatial_clap_jax.data.drawing import dry_signal
from spatial_clap_jax.data.manifests import digest, recipe_as_json
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.data.sources import active_level_db, at_active_level
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.evaluate import evaluate_in_detail
from spatial_clap_jax.inference import AudioTextModel, load
from spatial_clap_jax.train.experiment import load_config
from spatial_clap_jax.train.fitting import check_heard

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")

RECIPE = SceneRecipe(
    name="clips",
    duration_s=WINDOW / RATE_HZ,
    receiver=Mono(),
    group_counts=GroupCounts(*(0,) * 9, train_k0=-1, validation_k0=-1, test_k0=-1),
    speed_range=(1.0, 1.0),
    level_range_db=0.0,
)
LEVELS_DB = (-48.0, -12.0, -25.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Clips of one window, of noise that never pauses, at three levels."""
    folder = tmp_path_factory.mktemp("levels")
    lines = ["filename,category,split"]
    for number, level_db in enumerate(LEVELS_DB):
        noise = np.random.default_rng(number).uniform(-1, 1, WINDOW).astype(np.float32)
        swell = np.linspace(0.5, 1, WINDOW, dtype=np.float32)
        for split in ("train", "validation", "test"):
            name = f"{split}{number}.wav"
            clip = at_active_level(noise * swell, level_db)
            soundfile.write(folder / name, clip, RATE_HZ, subtype="FLOAT")
            lines.append(f"{name},{'abc'[number]},{split}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder / "clips.csv"


def rendered(sources: Path, level: str) -> Path:
    out = sources.parent / level
    if not out.exists():
        recipe = dataclasses.replace(RECIPE, level=level)
        render_scenes(recipe, str(sources), out, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    experiment = tiny_m2d(active_level_db=-30.0, normalisation=(-12.0, 3.0))
    return save_tiny_run(tmp_path_factory.mktemp("run") / "run", experiment=experiment)


@pytest.fixture(scope="module")
def model(run) -> AudioTextModel:
    return load(run)


@pytest.mark.parametrize(("level", "expected"), [("reference", (-30.0,) * 3), ("recorded", None)])
def test_records_are_as_loud_as_their_recipe_says(sources, level, expected):
    scenes = open_scenes(rendered(sources, level))
    for group in scenes.source("test_k0"):
        number = int(group.clips[0][-5])
        wanted = expected[number] if expected else LEVELS_DB[number]
        assert active_level_db(group.waveforms()[0, 0]) == pytest.approx(wanted, abs=0.01)


def test_a_drawn_gain_is_of_the_level_that_a_clip_has():
    clip = np.random.default_rng(0).normal(0, 0.01, 4000).astype(np.float32)
    gains_db = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn = dry_signal(clip, RATE_HZ, 4000, rng, "tile", (1.0, 1.0), 2.0, "recorded")
        gains_db.append(20 * np.log10(np.abs(drawn).max() / np.abs(clip).max()))
    assert max(map(abs, gains_db)) <= 2.01
    assert np.ptp(gains_db) > 2


def test_recipes_that_leave_the_level_alone_are_what_they_were():
    """Records of recipes that could not say it are the same, by the same fingerprint."""
    assert digest(recipe_as_json(SceneRecipe())) == (
        "16accfed3182804b8c268b543bd2d1ef2e29aadce7a2f26efcd20eda37b4cfe1"
    )
    assert digest(recipe_as_json(load_config("clips.py", "small"))) == (
        "8796a7c6d4d5c1927214bff007d4b02a0c511a2f9bc767c1d778f325ab1d70e4"
    )
    assert recipe_as_json(load_config("clips.py", "base"))["level"] == "recorded"
    with pytest.raises(InputError, match=r"level recorded must be 'reference' but for Mono"):
        dataclasses.replace(tiny_recipe(), level="recorded")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["reference", "recorded"])
def test_a_record_is_embedded_as_the_file_that_it_is_made_of(sources, model, level):
    """Whether rendering brings clips to the level of the model, or use does."""
    found = evaluate_in_detail(model, open_scenes(rendered(sources, level)), progress=False)
    part = found.embedded[0]
    files = [model.embed_audio(*read_audio(sources.parent / name)) for name in part.clips]
    # Records are of 16 bits.
    np.testing.assert_allclose(part.identities, np.stack(files), atol=2e-3)
    plain = [model.of_records().embed_audio(*read_audio(sources.parent / n)) for n in part.clips]
    assert np.abs(np.stack(files) - np.stack(plain)).max() > 0.02


@pytest.mark.slow
def test_records_keep_the_gain_that_was_drawn_for_them(sources, model):
    recipe = dataclasses.replace(RECIPE, level_range_db=12.0)
    out = sources.parent / "drawn"
    scenes = render_scenes(recipe, str(sources), out, workers=1, progress=False)
    part = evaluate_in_detail(model, scenes, progress=False).embedded[0]
    as_they_are = [
        model.of_records().embed_audio(group.waveforms()[0], RATE_HZ)
        for group in scenes.source("test_k0")
    ]
    np.testing.assert_allclose(part.identities, np.stack(as_they_are), atol=1e-5)


@pytest.mark.slow
def test_how_loud_a_recording_is_makes_no_difference(model):
    clip = np.random.default_rng(5).normal(0, 0.02, (1, WINDOW)).astype(np.float32)
    for call in (model.embed_audio, model.embed_scene, lambda *x: model.embed_frames(*x)[0]):
        np.testing.assert_allclose(call(clip, RATE_HZ), call(8 * clip, RATE_HZ), atol=1e-4)
        assert np.isfinite(call(0 * clip, RATE_HZ)).all()
    as_it_comes = model.of_records()
    louder = as_it_comes.embed_audio(8 * clip, RATE_HZ)
    assert np.abs(louder - as_it_comes.embed_audio(clip, RATE_HZ)).max() > 0.02
    # Several of different levels are each brought to it, and at the rate of the model.
    several = np.stack([clip, 8 * clip])
    np.testing.assert_allclose(*model.embed_audio(several, RATE_HZ), atol=1e-4)
    assert model.embed_audio(np.repeat(clip, 3, axis=1), 3 * RATE_HZ).shape == (12,)


@pytest.mark.slow
def test_a_run_that_does_not_tell_can_be_told(tmp_path, sources, model, capsys):
    silent = tiny_m2d(normalisation=(-12.0, 3.0))
    run = save_tiny_run(tmp_path / "run", experiment=silent)
    assert load(run).active_level_db is None
    told, clip = load(run, active_level_db=-30.0), read_audio(sources.parent / "test0.wav")
    np.testing.assert_allclose(told.embed_audio(*clip), model.embed_audio(*clip), atol=1e-6)
    embed = ["embed", str(run), str(sources.parent / "test0.wav"), "--out", str(tmp_path / "e.npy")]
    main([*embed, "--active-level-db", "-30"])
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), told.embed_audio(*clip), atol=1e-6)
    with pytest.raises(InputError, match=r"active_level_db 3: is dB of full scale within -120 and"):
        load(run, active_level_db=3.0)
    with pytest.raises(InputError, match=r"model.active_level_db: 3.0; give dB of full scale wit"):
        tiny_m2d(active_level_db=3.0)


def test_clips_of_another_level_than_the_models_are_refused():
    recipes = {level: recipe_as_json(dataclasses.replace(RECIPE, level=level))
               for level in ("reference", "recorded")}  # fmt: skip
    for size, level in (("quickstart", "reference"), ("small", "reference"), ("base", "recorded")):
        for config in ("m2d_clap", "m2d_clap_labels", "m2d_clap_text", "m2d_clap_text_fine"):
            check_heard(load_config(config, size), recipes[level])
    with pytest.raises(
        InputError,
        match=r"level_db: -30.0, .* at level 'recorded'; give --model.active-level-db None, or",
    ):
        check_heard(load_config("m2d_clap", "small"), recipes["recorded"])
    with pytest.raises(
        InputError,
        match=r"level_db: None, .* at level 'reference'; give --model.active-level-db -30.0, or r",
    ):
        check_heard(load_config("m2d_clap", "base"), recipes["reference"])
