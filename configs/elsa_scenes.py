"""Scenes in first-order ambisonics: one source all round, up and down, near and far, in many rooms.

Paper: ELSA, arXiv 2409.11369: ranges of floor area, elevation, distance and reverberation time,
and the words for them. The receiver stands anywhere in its room, so that small rooms hold far
sources too; all splits have the training ranges, because the paper's test rooms hold no source
below -40 degrees. Numbers of scenes and rooms are our choice. Some training scenes have two
sources, in both permutations, and some are plain clips without a place.
docs/foa_scenes.md has sizes and times.

Commands:

    spatial-clap render configs/elsa_scenes.py --size quickstart --sources synthetic --out data/elsa
    spatial-clap render configs/elsa_scenes.py --size small --sources esc10.csv --out data/elsa
    spatial-clap render configs/elsa_scenes.py --size base --sources audiocaps/train.csv \
        --out data/elsa_audiocaps --beam-runner DirectRunner \
        --beam-options=--direct_num_workers=64 --beam-options=--direct_running_mode=multi_processing
"""

import dataclasses

from spatial_clap_jax.acoustics.receivers import Foa
from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.errors import InputError

SMALL = SceneRecipe(
    name="elsa_small",
    rooms=FloorRanges(),
    receiver=Foa(),
    room_counts=RoomCounts(train=500, validation=30, test=80),
    places_per_room=12,
    distance_range_m=(0.5, 4.0),
    elevation_range_deg=(-47.5, 48.7),
    response_s=2.5,
    group_counts=GroupCounts(
        train_k1=8000,
        train_k2=1000,
        validation_k1=200,
        validation_k2=0,
        test_k1=400,
        test_k2=200,
        test_k3=0,
        train_k0=400,
        validation_k0=40,
        test_k0=80,
    ),
)
RECIPES = {
    "quickstart": dataclasses.replace(
        SMALL,
        name="elsa_quickstart",
        room_counts=RoomCounts(train=40, validation=4, test=12),
        group_counts=GroupCounts(
            train_k1=900,
            train_k2=150,
            validation_k1=60,
            validation_k2=0,
            test_k1=200,
            test_k2=60,
            test_k3=0,
            train_k0=80,
            validation_k0=10,
            test_k0=40,
        ),
    ),
    "small": SMALL,
    "base": dataclasses.replace(
        SMALL,
        name="elsa_base",
        sample_rate_hz=48_000,
        duration_s=10.0,
        room_counts=RoomCounts(train=800, validation=30, test=60),
        places_per_room=10,
        group_counts=GroupCounts(
            train_k1=200_000,
            train_k2=20_000,
            validation_k1=1000,
            validation_k2=0,
            test_k1=2000,
            test_k2=1000,
            test_k3=0,
            train_k0=50_000,
            validation_k0=500,
            test_k0=1000,
        ),
        speed_range=(1.0, 1.0),
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
