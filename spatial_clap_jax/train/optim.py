"""AdamW or LARS with warm-up, cosine or plateau, decay mask, clipping, and rules on paths."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import optax
import optax.contrib

from spatial_clap_jax.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move. Rules are (regular expression, value) on '/'-joined paths.

    Attributes:
      kind: 'adamw', or 'lars', by which a matrix moves in proportion to its own length, and all
        else by momentum alone.
      learning_rate: peak of the schedule.
      warmup_steps: steps of linear rise from zero.
      schedule: after the rise, 'cosine', half of one down to the last step; or 'plateau', where
        the rate is halved each time that the loss of training does not fall.
      final_share: share of the peak that is left at the last step of a cosine, and the least that
        plateaus leave.
      plateau_steps: steps that a loss is averaged over, of 'plateau' alone.
      plateau_patience: such averages without a new low, by a thousandth at least, that are one too
        many.
      weight_decay: on matrices and token tables only (not on biases, norms, scales, positions and
        single tokens); with 'adamw' decoupled.
      b1: decay of the first moment; with 'lars' the momentum.
      b2: decay of the second moment, of 'adamw' alone.
      clip_norm: greatest global norm of a gradient; 0 for none.
      rate_rules: the first rule that matches a path multiplies its learning rate.
      frozen: paths that match any of these never move, nor do running statistics there.
    """

    kind: Literal["adamw", "lars"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    schedule: Literal["cosine", "plateau"] = "cosine"
    final_share: float = 0.0
    plateau_steps: int = 100
    plateau_patience: int = 5
    weight_decay: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    rate_rules: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("learning_rate", "final_share", "weight_decay", "clip_norm", "warmup_steps"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"optimizer.{name}: {value} must be finite and not negative.")
        for name in ("plateau_steps", "plateau_patience"):
            if getattr(self, name) < 1:
                raise InputError(f"optimizer.{name}: {getattr(self, name)}; give at least 1.")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"optimizer.{name}: {value} must be in [0, 1).")


def map_by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Applies `function(path, leaf)` to every leaf, the path joined by '/'."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_text(path), leaf), tree
    )


def path_text(path: tuple[Any, ...]) -> str:
    """A path of `jax.tree_util`, joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_rules(argument: str, rules: Sequence[str], tree: Any) -> None:
    """Refuses rules on paths that would do nothing.

    Args:
      argument: what gave them, for the message.
      rules: regular expressions.
      tree: of the parameters or their shapes.

    Raises:
      InputError: one is no regular expression, or is found in no path.
    """
    paths: list[str] = []
    map_by_path(lambda path, _: paths.append(path), tree)
    for rule in rules:
        try:
            matched = any(re.search(rule, path) for path in paths)
        except re.error as error:
            raise InputError(
                f"{argument}: rule {rule!r} is no regular expression ({error}); mend it."
            ) from None
        if not matched:
            tops = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise InputError(
                f"{argument}: rule {rule!r} matches no parameter; paths start with {tops}; mend "
                "the rule, or leave it out."
            )


def matches(rules: tuple[str, ...], path: str) -> bool:
    """Whether one of the regular expressions is found in a path."""
    return any(re.search(rule, path) for rule in rules)


def _is_decayed(path: str, leaf: jax.Array) -> bool:
    # Position tables are biases in all but shape.
    is_table = re.search(r"(positions|token_types|relative_position)", path) is not None
    return leaf.ndim >= 2 and not is_table


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then a half cosine to the last step, or level."""
    warmup = min(config.warmup_steps, max(steps // 2, 1))
    if config.schedule == "plateau":
        # optax stays at the first rate where there are no steps to rise in.
        start = 0.0 if warmup else config.learning_rate
        return optax.warmup_constant_schedule(start, config.learning_rate, warmup)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.final_share,
    )


def _moved_by(
    config: OptimizerConfig, schedule: optax.Schedule
) -> list[optax.GradientTransformation]:
    are_decayed = partial(map_by_path, _is_decayed)
    if config.kind == "lars":
        lars = optax.lars(
            schedule,
            weight_decay=config.weight_decay,
            weight_decay_mask=are_decayed,
            trust_ratio_mask=are_decayed,
            momentum=config.b1,
        )
        return [lars]
    return [
        optax.scale_by_adam(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay, are_decayed),
        optax.scale_by_learning_rate(schedule),
    ]


def _plateaus(config: OptimizerConfig) -> optax.GradientTransformation:
    """Halves updates where the loss that comes with them stays."""
    return optax.contrib.reduce_on_plateau(
        factor=0.5,
        patience=config.plateau_patience,
        rtol=1e-3,
        accumulation_size=config.plateau_steps,
        min_scale=config.final_share,
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of the config over `steps` steps.

    Args:
      config: rates and rules.
      steps: length of the schedule.
      params: the parameters or their shapes; rules are checked against their paths.

    Returns:
      A transformation of gradients to updates, which takes the loss as `value` besides; frozen
      parameters keep no moments.

    Reference: Loshchilov and Hutter, arXiv 1711.05101; LARS, You et al., arXiv 1708.03888, with a
      trust coefficient of 0.001.

    Raises:
      InputError: a rule is no regular expression, or matches no parameter.
    """
    check_rules("optimizer", [*config.frozen, *(rule for rule, _ in config.rate_rules)], params)

    def scaled(path: str, update: jax.Array) -> jax.Array:
        return update * next((f for rule, f in config.rate_rules if re.search(rule, path)), 1.0)

    moved = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *_moved_by(config, make_schedule(config, steps)),
        optax.stateless(lambda updates, _: map_by_path(scaled, updates)),
        *([_plateaus(config)] if config.schedule == "plateau" else []),
    )
    if not config.frozen:
        return optax.with_extra_args_support(moved)
    labels = map_by_path(
        lambda path, _: "frozen" if matches(config.frozen, path) else "moved", params
    )
    return optax.partition({"moved": moved, "frozen": optax.set_to_zero()}, labels)
