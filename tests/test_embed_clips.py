"""Frozen towers over a folder of clips: what they hear and see, once, and on the command line."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.numpy import save_file
from tiny import save_tiny_run, shared_run, tiny_experiment, tiny_m2d
from tiny_seld import tiny_seld
from towers_on_disk import random_arrays

from spatial_clap_jax import features
from spatial_clap_jax.cli import main
from spatial_clap_jax.convert import convert
from spatial_clap_jax.data.dcase import open_clips
from spatial_clap_jax.data.images import clip_normalised
from spatial_clap_jax.data.seld_pipeline import SeldPipelineConfig
from spatial_clap_jax.data.tower_cache import TowerCache
from spatial_clap_jax.data.video import write_video
from spatial_clap_jax.embed_clips import embed_clips
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.event_locator import EventLocator, trained_member
from spatial_clap_jax.inference import load
from spatial_clap_jax.losses.accdoa import AccdoaConfig
from spatial_clap_jax.models.owlvit import (
    OwlVitConfig,
    OwlVitImageConfig,
    OwlVitImageTower,
    OwlVitTextConfig,
)
from spatial_clap_jax.pretrained.mapping import Report, nested
from spatial_clap_jax.pretrained.owl_vit import (
    OwlVitWeights,
    owl_vit_configs,
    owl_vit_shapes,
    owl_vit_tensors,
)
from spatial_clap_jax.pretrained.towers import inside
from spatial_clap_jax.stored import flatten, read_trained
from spatial_clap_jax.systems.content import Augmentation, content_encoder, encode_content

DURATION_S = 0.5
OWL_VIT = OwlVitConfig(
    OwlVitImageConfig((32, 32), patch=16, width=16, layers=1, heads=2, mlp_width=24),
    OwlVitTextConfig(vocabulary=40, width=8, layers=1, heads=2, mlp_width=12, max_tokens=6),
    joint_width=8,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of three clips in DCASE form; from left to right their pictures grow brighter."""
    folder = tmp_path_factory.mktemp("embed") / "clips"
    rng = np.random.default_rng(0)
    for number, group in enumerate(("dev-train-a", "dev-train-a", "dev-test-b")):
        places = [folder / kind / group for kind in ("stereo_dev", "metadata_dev", "video_dev")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        samples = rng.normal(0, 0.1, (round(DURATION_S * 24_000), 2))
        soundfile.write(places[0] / f"mix{number}.wav", samples, 24_000)
        header = "frame,class,source,azimuth,distance,onscreen"
        (places[1] / f"mix{number}.csv").write_text(f"{header}\n0,1,0,30,150,0\n")
        frames = np.zeros((5, 32, 64, 3), np.uint8)
        frames += np.linspace(0, 60 + 60 * number, 64).astype(np.uint8)[:, None]
        write_video(places[2] / f"mix{number}.mp4", frames, 10)
    return folder


@pytest.fixture(scope="module")
def owl_vit(tmp_path_factory):
    """A converted OWL-ViT of random weights, and its arrays."""
    folder = tmp_path_factory.mktemp("owl")
    arrays = random_arrays(owl_vit_shapes(OWL_VIT))
    weights = OwlVitWeights(OWL_VIT, arrays, None, Report("drawn"))
    (folder / "hf").mkdir()
    save_file(owl_vit_tensors(weights), folder / "hf" / "model.safetensors")
    for name, content in owl_vit_configs(weights).items():
        (folder / "hf" / name).write_text(json.dumps(content))
    convert(folder / "hf", folder / "ours")
    return folder / "ours", arrays


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return shared_run(tmp_path_factory.getbasetemp())


def test_what_a_clap_hears_is_what_it_pools(clips, run_folder, tmp_path):
    cache = embed_clips(run_folder, clips, tmp_path / "c", progress=False)
    opened = open_clips(clips)
    assert cache.fingerprint == opened.fingerprint
    assert cache.source == run_folder.name
    # 10 ms a frame, 4 frames a step: 0.5 s and the frame at the end.
    assert (cache.shape, cache.step_s) == ((13, 16), pytest.approx(0.04))
    trained = read_trained(run_folder)
    model = tiny_experiment().model
    variables = nested(inside(flatten(trained.variables), "content"))
    encoder = content_encoder(model.content, np.float32)

    @jax.jit
    def pooled_by_it(audio):
        log_mel = features.log_mel(features.resample(audio, 24_000, 16_000), model.content_mel)
        still = Augmentation(None, 0.0, None)
        return encode_content(encoder.bind(variables), log_mel, still, False)[0]

    for name in ("mix0", "mix2"):
        pooled = pooled_by_it(opened.audio(name).mean(axis=0)[None])
        moments = cache[name]
        pool = variables["params"]["pool"]
        scores = moments @ pool["score"]["kernel"] + pool["score"]["bias"]
        weights = np.exp(scores - scores.max(axis=0)) / np.exp(scores - scores.max(axis=0)).sum(0)
        values = np.einsum("nh,nd,hde->he", weights, moments, pool["value"]["kernel"])
        # In float16 on disk.
        np.testing.assert_allclose(
            (values + pool["value"]["bias"]).ravel(), pooled, atol=2e-3, rtol=2e-3
        )


@pytest.mark.slow
def test_an_m2d_clap_hears_too(clips, tmp_path):
    run = save_tiny_run(tmp_path / "run", experiment=tiny_m2d())
    cache = embed_clips(run, clips, tmp_path / "c", progress=False)
    # Inputs of 40 frames, 5 patches of 80 ms, and of the last 11 frames 2.
    assert (cache.shape, cache.step_s) == ((7, 16), pytest.approx(0.08))
    model, opened = load(run), open_clips(clips)
    for name in ("mix0", "mix1"):
        mono = opened.audio(name).mean(axis=0, keepdims=True)
        rows, _ = model.embed_frames(mono, 24_000)
        # Here tokens of all frequencies lie side by side; resampled on the host, and in float16.
        expected = rows.reshape(7, 2, 16).mean(axis=1)
        np.testing.assert_allclose(cache[name], expected, atol=0.05 * np.std(expected) + 2e-3)
    assert np.abs(cache["mix0"] - cache["mix1"]).max() > 1e-2


@pytest.mark.slow
def test_what_an_owl_vit_sees_is_its_map_over_columns(clips, owl_vit, tmp_path):
    folder, arrays = owl_vit
    cache = embed_clips(folder, clips, tmp_path / "c", pictures=3, progress=False)
    assert (cache.shape, cache.step_s) == ((3, 2, 16), pytest.approx(DURATION_S / 3))
    # Whole pictures, resized as CLIP's preprocessing does.
    pictures = open_clips(clips).frames("mix1", 3)
    assert pictures.shape == (3, 32, 64, 3)
    frames = np.stack([Image.fromarray(x).resize((32, 32), Image.BICUBIC) for x in pictures])
    tower = nested({"params/" + path.removeprefix("params/image/"): array
                    for path, array in arrays.items() if "/image/" in path})  # fmt: skip
    maps = jax.jit(OwlVitImageTower(OWL_VIT.image).apply)(tower, clip_normalised(frames))
    np.testing.assert_allclose(cache["mix1"], maps.mean(axis=1), atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_network_of_cached_towers_takes_a_recording_with_their_towers(
    clips, owl_vit, run_folder, tmp_path
):
    opened = open_clips(clips)
    heard = embed_clips(run_folder, clips, tmp_path / "heard", progress=False)
    seen = embed_clips(owl_vit[0], clips, tmp_path / "seen", pictures=3, progress=False)
    model = dataclasses.replace(
        tiny_seld().model,
        classes=opened.classes,
        duration_s=DURATION_S,
        heard=heard.shape,
        heard_step_s=heard.step_s,
        seen=seen.shape,
    )
    system = model.build(AccdoaConfig())
    variables = jax.jit(system.init)(jax.random.key(0))
    data = SeldPipelineConfig(heard=heard.folder, seen=seen.folder)
    locator = EventLocator((trained_member("runs/a", system, variables, data, 0),))
    name = "mix2"
    wanted = locator.locate_clips(opened, [name], progress=False)[name]
    recording = (opened.path("stereo_dev", name), opened.path("video_dev", name))
    found = locator.locate_recording(*recording, heard=run_folder, seen=owl_vit[0])
    # In float16 on disk.
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    with pytest.raises(InputError, match=r"features of a CLAP; give its folder \(--heard\)"):
        locator.locate_recording(*recording)
    with pytest.raises(InputError, match=r"features of an OWL-ViT; give its folder \(--seen\)"):
        locator.locate_recording(*recording, heard=run_folder)
    with pytest.raises(InputError, match="give the video of the recording"):
        locator.locate_recording(recording[0], heard=run_folder, seen=owl_vit[0])
    other = save_tiny_run(tmp_path / "other", experiment=tiny_m2d())
    with pytest.raises(InputError, match=r"--heard: is another tower than that of .*heard, which"):
        locator.locate_recording(*recording, heard=other, seen=owl_vit[0])
    unknown = dataclasses.replace(locator.members[0], data=SeldPipelineConfig())
    with pytest.raises(InputError, match=r"--heard: gives \(\d+, 16\) a window, but runs/a takes"):
        EventLocator((unknown,)).locate_recording(*recording, heard=other, seen=owl_vit[0])


@pytest.mark.slow
def test_another_question_is_another_cache(clips, owl_vit, tmp_path):
    folder, _ = owl_vit
    embed_clips(folder, clips, tmp_path / "c", pictures=2, progress=False)
    before = {path: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    with pytest.raises(InputError, match=r"holds other features: tower .* give another --out"):
        embed_clips(folder, clips, tmp_path / "c", pictures=3, progress=False)
    embed_clips(folder, clips, tmp_path / "c", pictures=2, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


def test_the_command_writes_a_cache(clips, owl_vit, run_folder, tmp_path, capsys):
    out = tmp_path / "heard"
    main(["embed", str(run_folder), str(clips), "--kind", "frames", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: 3 clips, 13 x 16 numbers each\n"
    assert len(TowerCache(out)) == 3
    seen = ["embed", str(owl_vit[0]), str(clips), "--kind", "frames", "--out", str(tmp_path / "s")]
    main([*seen, "--frames", "1"])
    assert TowerCache(tmp_path / "s").shape == (1, 2, 16)


def test_mistakes_are_one_line(clips, owl_vit, run_folder, tmp_path, capsys):
    def said(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["embed", *map(str, arguments)])
        assert stopped.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    out = tmp_path / "c"
    assert "give --kind frames and --out alone" in said(run_folder, clips, "--out", out)
    asked = ("--kind", "frames", "--out", out)
    assert "give --kind frames and --out alone" in said(run_folder, clips, *asked[:2])
    line = said(run_folder, clips, *asked, "--frames", 4)
    assert "--frames 4: " in line
    assert "is no OWL-ViT" in line
    assert "--frames 0; give 1 or more" in said(owl_vit[0], clips, *asked, "--frames", 0)
    wav = clips / "stereo_dev" / "dev-test-b" / "mix2.wav"
    assert "is of a folder of clips; leave it out" in said(run_folder, wav, "--frames", 2, *asked)
    assert "no such folder" in said(tmp_path / "nowhere", clips, *asked)
    assert not out.exists()
