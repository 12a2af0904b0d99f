"""Clips by themselves: one channel, no room, no place; for M2D-CLAP and for linear probes.

Paper: M2D-CLAP, arXiv 2503.22104: 16 kHz, at most 10 s, as recorded. The rest is our choice. Every
usable clip of a split is in it, in training as often as -train_k0 says. In `quickstart` and `small`
clips are brought to one active level, -30 dB, then each time to another speed and up to 3 dB up or
down; `base` leaves speed and level as they are. That is what is rendered: trainings of those sizes
add a gain of up to 6 dB and a circular shift in time (--data.gain-db, --data.shift). A model hears
recordings in use at the level that its clips had (--model.active-level-db).

Silence at both ends is cut off. Of clips that are longer than a record, records hold places drawn
at random where there is sound; shorter ones are repeated: crops of a training out of clips that
silence follows would often be of silence alone.

What the clips of a csv may be told with is their captions. Where there are labels alone, a clip of
several is told as the paper does, "the sound of A, B, and C"; one of a single label in four ways,
which is our choice: in words of its own where we know the class ("a dog barks"), else "the sound of
A", "A is heard", "A can be heard" and "A".

    size         seconds  clips
    quickstart         2  the built-in bank: 288 to train on, 48 and 96 to choose and test on
    small              5  made for ESC-10 and ESC-50
    base              10  any csv

Commands:

    spatial-clap render configs/clips.py --size quickstart --sources synthetic --out data/clips
    spatial-clap render configs/clips.py --size small --sources esc10.csv --out data/clips
    spatial-clap render configs/clips.py --size base --sources audiocaps/train.csv \
        --out data/audiocaps_clips
"""

import dataclasses

from spatial_clap_jax.acoustics.receivers import Mono
from spatial_clap_jax.data.scenes import GroupCounts, SceneRecipe
from spatial_clap_jax.errors import InputError

# Each clip twice in training, once elsewhere.
SMALL = SceneRecipe(
    name="clips_small",
    duration_s=5.0,
    receiver=Mono(),
    group_counts=GroupCounts(
        *(0,) * 9,
        train_k0=-2,
        validation_k0=-1,
        test_k0=-1,
    ),
)
RECIPES = {
    "quickstart": dataclasses.replace(SMALL, name="clips_quickstart", duration_s=2.0),
    "small": SMALL,
    "base": dataclasses.replace(
        SMALL,
        name="clips_base",
        duration_s=10.0,
        group_counts=dataclasses.replace(SMALL.group_counts, train_k0=-1),
        speed_range=(1.0, 1.0),
        level="recorded",
        level_range_db=0.0,
    ),
}


def get_config(size: str = "small") -> SceneRecipe:
    """The recipe of a size.

    Args:
      size: 'quickstart', 'small' or 'base'.

    Returns:
      The recipe; every field can be replaced (`dataclasses.replace`).

    Raises:
      InputError: there is no such size.
    """
    if size not in RECIPES:
        raise InputError(f"--size {size!r} is none of the sizes {', '.join(RECIPES)}; give one.")
    return RECIPES[size]
