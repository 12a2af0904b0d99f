"""Towers moved below another module, and towers for shorter texts."""

import dataclasses

import jax
import numpy as np
import pytest

from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.text import TextConfig, TextEncoder
from spatial_clap_jax.pretrained.hf_text import text_shapes
from spatial_clap_jax.pretrained.mapping import Report, nested
from spatial_clap_jax.pretrained.towers import TextTower, below, inside, shortened

ROBERTA = TextConfig(
    vocabulary=300,
    width=32,
    layers=2,
    heads=4,
    mlp_width=64,
    max_tokens=20,
    positions="absolute",
    position_offset=2,
    token_types=1,
    pooling="pooler",
)


def tower(config: TextConfig) -> TextTower:
    rng = np.random.default_rng(0)
    arrays = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in text_shapes(config).items()
    }
    tokenizer = Tokenizer.train(["a dog barks", "rain falls"], 300, config.max_tokens)
    return TextTower(config, arrays, tokenizer, Report("fake"))


def pooled(tower: TextTower, texts: list[str]) -> np.ndarray:
    assert tower.tokenizer is not None
    ids, mask = tower.tokenizer.encode(texts)
    out = jax.jit(TextEncoder(tower.config).apply)(nested(tower.arrays), ids, mask)
    return np.asarray(out[1])


def test_below_and_inside_undo_each_other():
    arrays = {
        "params/norm/scale": np.ones(2),
        "params/logit_scale": np.ones(()),
        "batch_stats/text/mean": np.ones(3),
    }
    moved = below(arrays, "text")
    assert list(moved) == [
        "params/text/norm/scale",
        "params/text/logit_scale",
        "batch_stats/text/text/mean",
    ]
    back = inside(
        {**moved, "params/other/norm/scale": np.zeros(1), "params/text2/x": np.zeros(1)}, "text"
    )
    assert list(back) == list(arrays)
    assert all(back[path] is array for path, array in arrays.items())
    assert inside({"params/text": np.ones(1)}, "text") == {}


@pytest.mark.parametrize("kind", ["absolute", "bert", "alibi"])
def test_a_shortened_tower_gives_the_same_numbers(kind):
    changes = {
        "absolute": {},
        "bert": {"position_offset": 0, "token_types": 2, "pooling": "mean"},
        "alibi": {"positions": "alibi", "position_offset": 0},
    }
    whole = tower(dataclasses.replace(ROBERTA, **changes[kind]))
    short = shortened(whole, 7)
    assert short.config == dataclasses.replace(whole.config, max_tokens=7)
    assert short.tokenizer is not None
    assert short.tokenizer.max_tokens == 7
    texts = ["a dog barks", "rain", "a dog barks rain falls"]  # 5, 3 and 7 tokens
    ours = pooled(short, texts)
    np.testing.assert_allclose(ours, pooled(whole, texts), atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 0.1
    with pytest.raises(InputError, match=r"the encoder reads at most 7"):
        pooled(short, ["a dog barks rain falls a"])
    shapes = {path: array.shape for path, array in short.arrays.items()}
    assert shapes == text_shapes(short.config)


def test_the_report_says_which_positions_were_cut():
    whole = tower(ROBERTA)
    short = shortened(whole, 7)
    path = "params/positions/embedding"
    assert short.report.left == ((f"{path} rows 9 to 21", "positions of longer texts"),)
    np.testing.assert_array_equal(short.arrays[path], whole.arrays[path][:9])
    assert len(whole.arrays[path]) == 22
    assert whole.report.left == ()
    with pytest.raises(InputError, match="tokens: 8 a text, but the encoder takes at most 7"):
        TextEncoder(short.config).init(
            jax.random.key(0), np.zeros((1, 8), np.int32), np.ones((1, 8), bool)
        )


@pytest.mark.parametrize("positions", ["absolute", "alibi"])
def test_a_tower_is_never_lengthened(positions):
    whole = tower(dataclasses.replace(ROBERTA, positions=positions))
    for length in (20, 21, 512):
        same = shortened(whole, length)
        assert same.config == whole.config
        assert same.report == whole.report
        assert same.tokenizer is not None
        assert same.tokenizer.max_tokens == 20


def test_a_tower_without_a_tokenizer_stays_without():
    assert shortened(dataclasses.replace(tower(ROBERTA), tokenizer=None), 7).tokenizer is None
