"""Clips of overlapping sound events with video, in the form of DCASE 2025 Task 3.

Form, stereo from ambisonics and the on-screen rule are the task's (arXiv 2507.12042); the sounds,
rooms and pictures are rendered, since its recordings may not be needed to try the system. Numbers
of clips and rooms, levels and pictures are our choice. docs/seld_data.md has sizes and times.

Commands:

    spatial-clap render configs/seld_scenes.py --size quickstart --sources synthetic --out data/seld
    spatial-clap render configs/seld_scenes.py --size small --sources esc10.csv --out data/seld
"""

from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.scenes import RoomCounts
from spatial_clap_jax.data.seld_recipe import ClipCounts, PictureOptions, SeldRecipe
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.errors import InputError

RECIPES = {
    "quickstart": SeldRecipe(
        name="quickstart",
        clip_counts=ClipCounts(train=160, validation=16, test=40),
        room_counts=RoomCounts(train=8, validation=2, test=4),
        places_per_room=12,
        events=(1, 4),
        sources=SourceOptions(synthetic_clips=(12, 3, 6)),
    ),
    "small": SeldRecipe(name="small"),
    "base": SeldRecipe(
        name="base",
        clip_counts=ClipCounts(train=30_000, validation=500, test=2000),
        room_counts=RoomCounts(train=800, validation=30, test=80),
        rooms=FloorRanges(t30_s=(0.15, 1.5)),
        elevation_range_deg=(-40.0, 40.0),
        response_s=1.5,
        video=PictureOptions(width=640, height=360),
    ),
}


def get_config(size: str = "small") -> SeldRecipe:
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
