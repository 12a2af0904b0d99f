"""Features of frozen towers on disk: each clip's own, resumed, never overwritten."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from spatial_clap_jax.data import tower_cache as module
from spatial_clap_jax.data.tower_cache import TowerCache, write_tower_cache
from spatial_clap_jax.errors import InputError

NAMES = [f"fold{n % 4}_mix{n:03d}" for n in range(11)]
SHAPE = (2, 3, 4)


def features(name: str) -> np.ndarray:
    rng = np.random.default_rng(list(name.encode()))
    return rng.normal(size=SHAPE).astype(np.float32)


def write(out: Path, names=NAMES, embed=features, **changes) -> TowerCache:
    told = {
        "source": "clap",
        "tower": "1",
        "fingerprint": "of the clips",
        "shape": SHAPE,
        "step_s": 0.5,
        **changes,
    }
    return write_tower_cache(out, names, embed, **told)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 4)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_clip_has_its_own_features(tmp_path):
    dealt = []
    cache = write(tmp_path / "c", NAMES[::-1], done=dealt.append)
    assert (len(cache), cache.shape, cache.step_s) == (11, SHAPE, 0.5)
    assert (cache.source, cache.fingerprint) == ("clap", "of the clips")
    assert dealt[-1] == 11
    assert dealt == sorted(dealt)
    for held in (cache, pickle.loads(pickle.dumps(cache))):
        for name in NAMES:
            found = held[name]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, features(name).astype(np.float16))
    assert len(list((tmp_path / "c").glob("*.array_record"))) == 3


def test_the_order_of_clips_changes_no_byte(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", NAMES[::-1])
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


@pytest.mark.parametrize("survives", [0, 5, 9])
def test_a_start_after_a_kill_goes_on(tmp_path, survives):
    write(tmp_path / "whole")
    asked: list[str] = []

    def killed(name):
        if len(asked) == survives:
            raise KeyboardInterrupt
        asked.append(name)
        return features(name)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "c", embed=killed)
    with pytest.raises(InputError, match=r"lacks tower-0000.*; run embed again, which goes on"):
        TowerCache(tmp_path / "c")
    again = []
    write(tmp_path / "c", embed=lambda name: again.append(name) or features(name))
    assert len(again) == 11 - survives // 4 * 4
    assert contents_of(tmp_path / "c") == contents_of(tmp_path / "whole")


def test_what_is_finished_or_other_is_left_as_it_is(tmp_path):
    write(tmp_path / "c")
    before = contents_of(tmp_path / "c")

    def never(name):
        raise AssertionError

    write(tmp_path / "c", embed=never, source="the same tower elsewhere")
    for change, named in (
        ({"names": NAMES[1:]}, "count is 11 there and 10 here"),
        ({"names": [*NAMES[1:], "another"]}, "names is"),
        ({"tower": "2"}, "tower is '1' there and '2' here"),
        ({"fingerprint": "other"}, "fingerprint is 'of the clips' there"),
        ({"shape": (2, 3)}, r"shape is \[2, 3, 4\] there and \[2, 3\] here"),
        ({"step_s": 0.25}, r"step_s is 0\.5 there and 0\.25 here"),
    ):
        with pytest.raises(InputError, match=f"holds other features: {named}.*another --out"):
            write(tmp_path / "c", embed=never, **change)
    assert contents_of(tmp_path / "c") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("ten years of work")
    with pytest.raises(InputError, match=r"holds no tower\.json; .* an empty place"):
        write(tmp_path / "mine")


def test_mistakes_are_told(tmp_path):
    cache = write(tmp_path / "c")
    with pytest.raises(InputError, match=r"no features of the clip 'fold9'; run embed again"):
        cache["fold9"]
    with pytest.raises(InputError, match="clips: there are none"):
        write(tmp_path / "none", [])
    for wrong in (np.nan, 1e6):
        with pytest.raises(InputError, match=r"clip fold0_mix000: its features hold NaN or .*655"):
            write(tmp_path / "wrong", NAMES[:1], embed=lambda _, w=wrong: features("a") * w)
    names = json.loads((tmp_path / "c" / "names.json").read_text())
    (tmp_path / "c" / "names.json").write_text(json.dumps(names[::-1]))
    with pytest.raises(InputError, match=r"names\.json: is not what tower\.json tells of"):
        TowerCache(tmp_path / "c")[NAMES[0]]


def test_names_of_other_shards_are_found_out(tmp_path):
    write(tmp_path / "c")
    write(tmp_path / "d", [f"another{n:02d}" for n in range(11)])
    for shard in (tmp_path / "c").glob("*.array_record"):
        shard.write_bytes((tmp_path / "d" / shard.name).read_bytes())
    with pytest.raises(InputError, match="and its shards disagree"):
        TowerCache(tmp_path / "c")[NAMES[0]]
