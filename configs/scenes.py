"""Scenes of one, two and three sources in simulated rooms, heard by two microphones.

Paper: Spatial-CLAP, arXiv 2509.14785: direction classes and phrases, microphones, rooms, template
of the captions, high-pass. Numbers of scenes, distances, levels and speeds are our choice. Training
scenes have one or two sources; three come in test alone, as in the paper's unseen mixtures.

    size         groups                rooms   length   on disk   time on 2 cores
    quickstart    1,580                   33      4 s    0.7 GB   under a minute
    small        17,800                  360      4 s    7.1 GB   2 min 36 s
    base        203,400                1,060     10 s   ~210 GB   not rendered yet; use Beam

Commands:

    spatial-clap render configs/scenes.py --size small --sources esc10.csv --out data/esc10
    spatial-clap render configs/scenes.py --size base --sources audiocaps/train.csv \
        --out data/audiocaps --beam-runner DirectRunner \
        --beam-options=--direct_num_workers=64 --beam-options=--direct_running_mode=multi_processing
"""

from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.errors import InputError

RECIPES = {
    "quickstart": SceneRecipe(
        name="quickstart",
        room_counts=RoomCounts(train=24, validation=3, test=6),
        group_counts=GroupCounts(
            train_k1=250,
            train_k2=750,
            validation_k1=40,
            validation_k2=40,
            test_k1=200,
            test_k2=200,
            test_k3=100,
        ),
    ),
    "small": SceneRecipe(name="small"),
    "base": SceneRecipe(
        name="base",
        duration_s=10.0,
        room_counts=RoomCounts(train=1000, validation=10, test=50),
        group_counts=GroupCounts(
            train_k1=50_000,
            train_k2=150_000,
            validation_k1=500,
            validation_k2=500,
            test_k1=1000,
            test_k2=1000,
            test_k3=400,
        ),
        clip_fit="pad",
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
