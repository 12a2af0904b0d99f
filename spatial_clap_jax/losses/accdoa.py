"""ADPIT: the loss of multi-ACCDOA tracks, in the order of sources that suits them best."""

import dataclasses
from itertools import product
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from spatial_clap_jax.errors import InputError

# Slots of one, two and three sources of a class.
_GROUPS = ((0,), (1, 2), (3, 4, 5))
_TRACKS = 3


@dataclasses.dataclass(frozen=True)
class AccdoaConfig:
    """Weights of `accdoa_loss`; the defaults are those of the task's baseline.

    Attributes:
      distance_error: 'squared' is that of activity x distance in metres, the baseline's. 'relative'
        is the error over the true distance, of active frames alone: what the metric takes the mean
        of, and not drawn towards 0 where an event is uncertain. Our choice.
      distance_weight: of the distance error beside the squares of x and y; it counts in the choice
        of the order too.
      on_screen_weight: of the cross entropy of the on-screen flag.
      visible_weight: of the cross entropy of whether a class is to be seen while it sounds, which
        a network that looks tells from its pictures alone. Our choice.
      active_weight: of frames and classes in which something sounds, beside the silent ones, which
        are many times as many: more than 1 makes a short training tell events at all, and whether
        they are seen. Our choice.
    """

    distance_error: Literal["squared", "relative"] = "squared"
    distance_weight: float = 1.0
    on_screen_weight: float = 1.0
    visible_weight: float = 1.0
    active_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if name.endswith("_weight") and not 0 <= weight < float("inf"):
                raise InputError(f"AccdoaConfig.{name}: {weight} must be 0 or a positive number.")


class AccdoaLoss(NamedTuple):
    """The loss and what it is the sum of; scalars, weights included.

    Attributes:
      total: what is minimised.
      direction: squared errors of activity-coupled x and y.
      distance: errors of the distance.
      on_screen: cross entropy of the on-screen flag; 0 where outputs have none.
    """

    total: Float[Array, ""]
    direction: Float[Array, ""]
    distance: Float[Array, ""]
    on_screen: Float[Array, ""]


def _arrangements() -> Float32[np.ndarray, "13 3 6"]:
    """Which slots sum up to the target of each track, in each of the 13 orders.

    In an order of one group's sources each track has one of them and each source a track or two.
    The first orders of the other groups are added: where another group is the active one, the
    order has its target and not zeros, which would win against weak outputs.
    """
    orders = [
        [order for order in product(group, repeat=_TRACKS) if set(order) == set(group)]
        for group in _GROUPS
    ]
    hot = np.eye(6, dtype=np.float32)
    firsts = [hot[list(group[0])] for group in orders]
    return np.stack(
        [
            hot[list(order)] + sum(first for j, first in enumerate(firsts) if j != i)
            for i, group in enumerate(orders)
            for order in group
        ]
    )


_ARRANGEMENTS = _arrangements()


def accdoa_loss(
    outputs: Float[Array, "b l 3 k c"],
    targets: Float[Array, "b l 6 5 c"],
    config: AccdoaConfig,
) -> AccdoaLoss:
    """Error against activity x (x, y, distance), least over 13 orders of the sources.

    The order is chosen for each frame and class by this error alone; the on-screen flag is
    told under it, in silent frames and classes too, where the flag to tell is 0.

    Args:
      outputs: three tracks of (x, y, distance in m, logit of on screen); k = 3 has no logit.
      targets: slots A0 B0 B1 C0 C1 C2 of (activity, x, y, distance in m, on screen); at most one
        of the groups A, B, C is active in a frame and class.
      config: weights.

    Returns:
      Means over clips, frames, classes, and the nine elements of three tracks.

    Raises:
      InputError: outputs have other elements.

    Reference: ADPIT, Shimada et al., arXiv 2110.07124; with distance and on-screen as the baseline
      of DCASE 2025 Task 3.

    Example:
      Outputs of zero where nothing sounds: direction and distance 0, on_screen ln 2.
    """
    elements = outputs.shape[3]
    if elements not in (3, 4):
        raise InputError(
            f"outputs: {elements} elements of a track; give x, y, distance and, if told, on-screen."
        )
    outputs, targets = outputs.astype(jnp.float32), targets.astype(jnp.float32)
    wanted = _arranged(targets[:, :, :, :1] * targets[:, :, :, 1:4])
    off = outputs[:, :, None, :, :3] - wanted
    squares, distance = off[..., :2, :] ** 2, _distance_errors(off, wanted, config)
    errors = jnp.concatenate([squares, config.distance_weight * distance], axis=-2)
    chosen = jnp.argmin(jax.lax.stop_gradient(errors.sum(axis=(3, 4))), axis=2)
    chosen = chosen[:, :, None, None, None]
    is_active = targets[:, :, :, 0].max(axis=2)[:, :, None]
    weight = 1 + (config.active_weight - 1) * is_active
    least = jnp.take_along_axis(errors, chosen, axis=2)[:, :, 0]
    least = (least * weight[:, :, None]).mean(axis=(0, 1, 2, 4)) / 3
    direction, distance = least[:2].sum(), least[2]
    on_screen = jnp.zeros(())
    if elements == 4:
        flags = jnp.take_along_axis(_arranged(targets[:, :, :, 4:]), chosen, axis=2)
        logits, flags = outputs[:, :, :, 3], flags[:, :, 0, :, 0]
        crossed = jax.nn.softplus(logits) - flags * logits
        on_screen = config.on_screen_weight * (crossed * weight).mean()
    return AccdoaLoss(direction + distance + on_screen, direction, distance, on_screen)


def visible_loss(
    logits: Float[Array, "b l c"], targets: Float[Array, "b l 6 5 c"], config: AccdoaConfig
) -> Float[Array, ""]:
    """Cross entropy of whether a class sounds on screen, the mean over frames and classes.

    Args:
      logits: of each label frame and class.
      targets: as for `accdoa_loss`.
      config: weights.

    Reference: our choice.

    Example:
      Logits of 0 where nothing sounds: ln 2 x `visible_weight`.
    """
    active, flags = targets[:, :, :, 0], targets[:, :, :, 4]
    is_visible = (active * flags).max(axis=2)
    logits = logits.astype(jnp.float32)
    weight = 1 + (config.active_weight - 1) * active.max(axis=2)
    crossed = jax.nn.softplus(logits) - is_visible * logits
    return config.visible_weight * (crossed * weight).mean()


def _distance_errors(
    off: Float[Array, "b l 13 3 k c"], wanted: Float[Array, "b l 13 3 k c"], config: AccdoaConfig
) -> Float[Array, "b l 13 3 1 c"]:
    off, wanted = off[..., 2:3, :], wanted[..., 2:3, :]
    if config.distance_error == "squared":
        return off**2
    # The nearest that a file can tell is a centimetre; 0 is a silent slot's.
    is_active = wanted > 0
    return jnp.where(is_active, jnp.abs(off) / jnp.where(is_active, wanted, 1.0), 0.0)


def _arranged(slots: Float[Array, "b l 6 e c"]) -> Float[Array, "b l 13 3 e c"]:
    return jnp.einsum("pts,blsec->blptec", _ARRANGEMENTS, slots, precision="highest")
