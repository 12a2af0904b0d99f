"""The command line: the whole way on tiny scenes, and one line for every mistake."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny import RATE_HZ

from spatial_clap_jax.cli import COMMANDS, main
from spatial_clap_jax.features import M2D_LOG_MEL
from spatial_clap_jax.models.vit import VitConfig

SCENES = "from tiny import tiny_recipe\n\ndef get_config(size):\n    return tiny_recipe()\n"
# Captions of three sources need more tokens than those of training.
MODEL = """
from dataclasses import replace
from tiny import tiny_experiment

def get_config(size):
    tiny = tiny_experiment()
    text = replace(tiny.model.text, max_tokens=64)
    return replace(tiny, model=replace(tiny.model, text=text))
"""


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """What the command says when it refuses; it must be one line and exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("spatial-clap: ")
    return lines[0]


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config files, rendered scenes and a run of two steps."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "scenes.py").write_text(SCENES)
    (folder / "model.py").write_text(MODEL)
    scenes, model = folder / "scenes.py", folder / "model.py"
    run("render", scenes, "--sources", "synthetic", "--out", folder / "data", "--workers", 1)
    run("train", model, "--data", folder / "data", "--workdir", folder / "run", "--steps", 2)
    return folder


def wav(path: Path, audio: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    soundfile.write(path, audio.T, rate_hz, subtype="FLOAT")
    return path


def stereo(seconds: float = 0.5, rate_hz: int = RATE_HZ) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 0.1 * rng.normal(size=(2, round(seconds * rate_hz))).astype(np.float32)


def test_the_whole_way(place, tmp_path, capsys):
    data, ran = place / "data", place / "run"
    results, figure = tmp_path / "results.json", tmp_path / "results.png"
    run("evaluate", ran, "--data", data, "--out", results, "--plot", figure)
    found = json.loads(results.read_text())
    assert {"t2a_r1/1", "a2t_r10/3", "direction/1", "content/1", "assignment/2"} <= found.keys()
    assert set(found["assignment/3"]) == {"value", "low", "high", "chance", "n"}
    assert found["assignment/3"]["chance"] == pytest.approx(1 / 6)
    assert figure.stat().st_size > 1000
    for form in ("stablehlo", "safetensors"):
        run("export", ran, "--out", tmp_path / "exported", "--format", form)
    scene = wav(tmp_path / "scene.wav", stereo(1.3, 44_100), 44_100)
    texts = ("--text", "a siren wails on the left side", "--text", "a bell rings in front")
    answers = []
    for model in (ran, tmp_path / "exported" / "stablehlo", tmp_path / "exported" / "safetensors"):
        capsys.readouterr()
        run("embed", model, scene, *texts)
        answers.append([float(line.split()[0]) for line in capsys.readouterr().out.splitlines()])
    assert len(answers[0]) == 2
    assert answers[0] == sorted(answers[0], reverse=True)
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-4)


def test_recordings_of_ones_own(place, tmp_path, capsys):
    wav(tmp_path / "one.wav", stereo())
    with (tmp_path / "my.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "caption", "wrong_captions"])
        rows.writerow(["one.wav", "rain on the left side", "rain in front|wind in front"])
    run("evaluate", place / "run", "--scenes", tmp_path / "my.csv", "--out", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["assignment/recordings"]["n"] == 1
    assert found["assignment/recordings"]["chance"] == pytest.approx(1 / 3)
    for option, said in (
        (("--foa-format", "fuma"), "foa_format='fuma'"),
        (("--plain", True), "plain=True"),
    ):
        refusal = refused(
            capsys, "evaluate", place / "run", "--scenes", tmp_path / "my.csv", *option
        )
        assert said in refusal
        assert "is said to a model of first-order ambisonics" in refusal


def test_rendering_again_changes_nothing(place, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (place / "data").iterdir()}
    run("render", place / "scenes.py", "--sources", "synthetic", "--out", place / "data")
    assert before == {path.name: path.stat().st_mtime_ns for path in (place / "data").iterdir()}


def test_help_of_every_command(capsys):
    main([])
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert name in overview
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--optimizer.learning-rate" in shown
    assert "--loss.scl" in shown
    assert "--rirs" in shown


def test_mistakes_in_words(place, capsys):
    train = ("train", place / "model.py", "--data", place / "data", "--workdir", place / "other")
    for arguments, expected in (
        (("tarin",), "tarin: no such command; did you mean train"),
        ((*train, "--optimizer.learning-rte", 3), "did you mean --optimizer.learning-rate"),
        ((*train, "--optimizer.learning-rate", "fast"), "could not convert string to float"),
        ((*train, "--size", "huge"), "--size huge: unknown; choose one of quickstart, small, base"),
        (train[:4], "--workdir"),
        ((*train, "--log-every", 0), "log_every: 0 is too small; give at least 1"),
        ((*train, "--ema-decay", 7), "ema_decay: 7.0 must be in [0, 1)"),
        ((*train, "--loss.initial-scale", -1), "loss: scales"),
        ((*train, "--optimizer.learning-rate", "nan"), "optimizer.learning_rate: nan must be"),
        (("train", "--size", "small", *train[1:]), "--size: the config comes first"),
        (("train", "nowhere.py", *train[2:]), "nowhere.py: no such config"),
        (("train", place / "scenes.py", *train[2:]), "gives no experiment"),
        (
            ("render", place / "model.py", "--sources", "x", "--out", "y"),
            "gives no recipe; give a file like",
        ),
        (("evaluate", place / "run"), "give either --data DIR or --scenes FILE.csv"),
        (
            ("evaluate", place / "run", "--data", place / "data", "--umap", "map.docx"),
            "map.docx: the figure cannot be written",
        ),
        (
            ("evaluate", place / "run", "--data", place / "data", "--localise", -1),
            "localise -1: must be at least 0",
        ),
        (
            ("evaluate", place / "run", "--data", place / "data", "--foa-format", "fuma"),
            "--foa-format fuma: is said of recordings, --scenes; leave it out",
        ),
        (
            ("evaluate", place / "run", "--data", place / "data", "--plain", True),
            "--plain True: is said of recordings, --scenes; leave it out",
        ),
        (
            ("embed", place / "run", "x.wav", "--kind", "scene", "--plain", True, "--out", "x.npz"),
            "--plain True: is said to a model of first-order ambisonics, and --kind scene is of",
        ),
        (
            ("embed", place / "run", place, "--kind", "frames", "--foa-format", "fuma"),
            "--foa-format fuma: is said to a model of first-order ambisonics, and --kind frames",
        ),
        (("rewrite", place / "data", "--url", "here", "--model", "m"), "url 'here': must start"),
        (
            ("rewrite", place / "data", "--url", "http://127.0.0.1:9", "--model", "m"),
            "its captions are in the words of stereo scenes",
        ),
        (("export", place / "run", "--out", "x", "--format", "onnx"), "onnx"),
        (("embed", place / "run", "x.wav"), 'give --text "..."'),
        (("quickstart", "--system", "elsar"), "--system elsar: unknown"),
    ):
        assert expected in refused(capsys, *arguments)
    assert not (place / "other").exists()


def test_a_map_that_cannot_be_drawn_is_refused_before_anything_is_embedded(
    place, capsys, monkeypatch
):
    def embed(*_, **__):
        raise AssertionError("embedded")

    monkeypatch.setattr("spatial_clap_jax.evaluate.evaluate_in_detail", embed)
    monkeypatch.setattr("spatial_clap_jax.report.check_map_extra", lambda: None)
    evaluate = ("evaluate", place / "run", "--data", place / "data", "--umap", "map.png")
    refusal = refused(capsys, *evaluate, "--split", "train")
    assert "--umap map.png: is fitted on scenes of train_k1" in refusal
    assert "give --split validation or test" in refusal
    refusal = refused(capsys, *evaluate)
    assert "ambisonic scenes of one source, train_k1 and test_k1 (--split test)" in refusal


def test_recordings_that_cannot_be_embedded(place, tmp_path, capsys):
    def embed(path: Path, text: str = "rain in front") -> str:
        return refused(capsys, "embed", place / "run", path, "--text", text)

    good = wav(tmp_path / "good.wav", stereo())
    (tmp_path / "empty.wav").write_bytes(b"")
    whole = good.read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    broken = stereo()
    broken[1, 7] = np.nan
    for path, expected in (
        (tmp_path / "missing.wav", "missing.wav"),
        (tmp_path / "empty.wav", "empty.wav"),
        (tmp_path / "cut.wav", "cut.wav"),
        (wav(tmp_path / "none.wav", stereo(0.0)), "none.wav"),
        (wav(tmp_path / "nan.wav", broken), "nan.wav"),
        (wav(tmp_path / "mono.wav", stereo()[:1]), "mono.wav: audio: has 1 channel(s); this model"),
        (wav(tmp_path / "four.wav", np.tile(stereo(), (2, 1))), "four.wav: audio: has 4 channel"),
    ):
        assert expected in refused(capsys, "embed", place / "run", path, "--text", "rain")
    plain = ("embed", place / "run", good, "--plain", "True", "--text", "rain")
    assert "good.wav: plain=True: is said to a model of first-order" in refused(capsys, *plain)
    assert "blank" in embed(good, " ") or "empty" in embed(good, " ")
    assert "tokens" in embed(good, "rain falls in front, and " * 20)


def test_configs_with_mistakes(place, tmp_path, capsys):
    rest = ("--data", place / "data", "--workdir", tmp_path / "run")
    for text, expected in (
        ("import nonsense_module\n", "mine.py: line 1: ModuleNotFoundError"),
        ("def get_config(size):\n    return dict(1)\n", "mine.py: line 2: TypeError"),
    ):
        (tmp_path / "mine.py").write_text(text)
        assert expected in refused(capsys, "train", tmp_path / "mine.py", *rest)
    (tmp_path / "file").write_text("")
    blocked = ("--data", place / "data", "--workdir", tmp_path / "file")
    refused(capsys, "train", place / "model.py", *blocked)


def test_a_damaged_description(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    path = tmp_path / "run" / "description.json"
    whole = json.loads(path.read_text())
    train = ("train", place / "model.py", "--data", place / "data", "--workdir", tmp_path / "run")
    del whole["tokenizer"], whole["sha256"]
    path.write_text(json.dumps(whole))
    assert "description.json: has no 'tokenizer'" in refused(capsys, *train, "--steps", 2)
    path.unlink()
    assert "has checkpoints but no description.json" in refused(capsys, *train, "--steps", 2)


def test_runs_that_cannot_be_read(place, tmp_path, capsys):
    scene = wav(tmp_path / "scene.wav", stereo())
    assert "no such folder" in refused(capsys, "embed", tmp_path / "no", scene, "--text", "x")
    assert "holds neither a run" in refused(capsys, "export", tmp_path, "--out", tmp_path / "e")
    broken = tmp_path / "run"
    shutil.copytree(place / "run", broken)
    for path in sorted((broken / "checkpoints" / "2").rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    said = refused(capsys, "embed", broken, scene, "--text", "x")
    assert str(broken / "checkpoints" / "2") in said
    shutil.rmtree(broken / "checkpoints")
    assert "holds no checkpoint" in refused(capsys, "embed", broken, scene, "--text", "x")


def test_tables_that_cannot_be_rendered(place, tmp_path, capsys):
    def render(text: str) -> str:
        (tmp_path / "clips.csv").write_text(text)
        return refused(
            *(capsys, "render", place / "scenes.py", "--sources", tmp_path / "clips.csv"),
            *("--out", tmp_path / "out"),
        )

    assert "clips.csv" in render("")
    assert "filename" in render("name,sound\na,b\n")
    climbing = render("filename,category,split\n../outside.wav,rain,train\n")
    assert "../outside.wav" in climbing
    assert "row" in climbing
    assert "caption" in render("filename,caption,split\na.wav,,train\n")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_overwritten(place, tmp_path, capsys):
    def render(*options: object) -> str:
        scenes = place / "scenes.py"
        return refused(capsys, "render", scenes, "--sources", "synthetic", *options)

    before = (place / "data" / "manifest.json").read_bytes()
    said = render("--out", place / "data", "--seed", 9)
    assert "recipe.seed is 0 there and 9 here" in said
    assert (place / "data" / "manifest.json").read_bytes() == before
    (tmp_path / "letter.txt").write_text("dear all")
    assert "holds something that is no set of scenes" in render("--out", tmp_path)
    train = ("train", place / "model.py", "--data", place / "data", "--workdir", place / "run")
    assert "seed 0 there, 3 here" in refused(capsys, *train, "--steps", 2, "--seed", 3)
    results = tmp_path / "notes.json"
    results.write_text('{"mine": 1}')
    said = refused(capsys, "evaluate", place / "run", "--data", place / "data", "--out", results)
    assert "notes.json" in said
    assert results.read_text() == '{"mine": 1}'


@pytest.mark.parametrize("flags", [["--model.content", "m2d"], ["--model.content=m2d"]])
def test_another_content_encoder_by_name(place, monkeypatch, flags, capsys):
    trained = []

    def remember(experiment, data, workdir, **_):
        trained.append(experiment)
        return SimpleNamespace(workdir=workdir, step=0)

    monkeypatch.setattr("spatial_clap_jax.train.trainer.train", remember)
    train = ("train", place / "model.py", "--data", place / "data", "--workdir", place / "other")
    run(*train)
    run(*train, *flags, "--model.content.layers", 2)
    plain, exchanged = (experiment.model for experiment in trained)
    assert isinstance(exchanged.content, VitConfig)
    assert (exchanged.content.layers, exchanged.content.width) == (2, 192)
    assert exchanged.content_mel == M2D_LOG_MEL
    assert exchanged.content_normalisation == (-7.1, 4.2)
    assert exchanged.text == plain.text
    said = refused(capsys, *train, "--model.content", "vit")
    assert "--model.content vit: unknown; choose one of htsat, cnn, m2d" in said
    attributes = ("train", "elsa_attributes.py", *train[2:], "--model.content", "m2d")
    assert "AttributesConfig has no choice of content encoders" in refused(capsys, *attributes)
    assert "--model.content" in refused(capsys, *train, "--model.content")
