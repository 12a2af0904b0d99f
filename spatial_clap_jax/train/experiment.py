"""What a run is made of: one frozen description from which everything is built."""

import importlib.util
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.data.seld_pipeline import SeldPipelineConfig
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.accdoa import AccdoaConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.systems.attributes import AttributesConfig
from spatial_clap_jax.systems.base import System, Trainable
from spatial_clap_jax.systems.clap import ClapConfig
from spatial_clap_jax.systems.elsa import ElsaConfig
from spatial_clap_jax.systems.m2d_clap import M2dClapConfig
from spatial_clap_jax.systems.seld import SeldConfig
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.health import HealthConfig
from spatial_clap_jax.train.optim import OptimizerConfig
from spatial_clap_jax.train.sharding import MeshShape
from spatial_clap_jax.train.step import Execution

SIZES = ("quickstart", "small", "base")


@dataclass(frozen=True)
class InitConfig:
    """Encoders that a run starts from; whatever is None is drawn.

    A source is a folder or file of published weights, a name on the Hugging Face hub, a folder
    that `convert` or `export --format safetensors` wrote. Its shape, front end and tokenizer
    replace the experiment's.

    Attributes:
      model: run of a stage before this one, or an export of that. Of M2D-CLAP: its encoder (as it
        stands, but for `content.frames`), its text encoder where both have one. Of Spatial-CLAP:
        its encoders of sound with their front ends. And of all else what fits by name and shape.
      anew: rules on paths of parameters that are not taken from `model`.
      audio: source of the content encoder.
      text: source of the text encoder.
      branch: source of ELSA's spatial-attributes branch: the folder of its pre-training, a run
        (its moving average is taken where it kept one) or an export of that.
      verbose: say of every tensor what became of it, in place of one line a source.
    """

    model: str | None = None
    anew: tuple[str, ...] = ()
    audio: str | None = None
    text: str | None = None
    branch: str | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Experiment:
    """One training run.

    Attributes:
      name: of the run, for people.
      model: the system's shape.
      loss: what is minimised.
      data: how batches are made.
      optimizer: how parameters move.
      init: pretrained encoders to start from.
      steps: length of the run and of the learning-rate schedule.
      seed: of initial variables, sample order, augmentation and dropout.
      precision: of the computation; 'auto' is bfloat16 on accelerators and float32 on a
        CPU. Parameters and losses are float32 always.
      ema_decay: of the moving average of the variables that is evaluated and exported;
        None evaluates the last variables.
      tokenizer: a tokenizer.json; None trains a small one on the captions of the data.
      log_every: steps between lines of the metrics log.
      checkpoint_every: steps between checkpoints.
      evaluate_every: steps between evaluations of the validation split; None evaluates nothing
        during the training.
      failed_save: what follows a checkpoint that could not be written: 'stop', or 'go_on' and try
        again at the next one; the last one of a run must be written.
      health: what is done about numbers that go wrong.
      keep: newest checkpoints to keep.
      keep_every: also keep those whose step is a multiple of this; None for no more.
      mesh: how the devices are laid out, and what is split over them.
      execution: how a step trades memory, time and compile time.
      wandb: also log to Weights & Biases (extra `wandb`).
    """

    name: str
    model: (
        SpatialClapConfig | ClapConfig | ElsaConfig | AttributesConfig | M2dClapConfig | SeldConfig
    ) = field(default_factory=SpatialClapConfig)
    loss: ContrastiveConfig | AccdoaConfig = field(default_factory=ContrastiveConfig)
    data: PipelineConfig | SeldPipelineConfig = field(default_factory=PipelineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init: InitConfig = field(default_factory=InitConfig)
    steps: int = 100_000
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ema_decay: float | None = None
    tokenizer: Path | None = None
    log_every: int = 50
    checkpoint_every: int = 1000
    evaluate_every: int | None = None
    failed_save: Literal["stop", "go_on"] = "stop"
    health: HealthConfig = field(default_factory=HealthConfig)
    keep: int = 3
    keep_every: int | None = None
    mesh: MeshShape = field(default_factory=MeshShape)
    execution: Execution = field(default_factory=Execution)
    wandb: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("steps", self.steps),
            ("log_every", self.log_every),
            ("checkpoint_every", self.checkpoint_every),
            ("keep", self.keep),
            ("keep_every", 1 if self.keep_every is None else self.keep_every),
            ("evaluate_every", 1 if self.evaluate_every is None else self.evaluate_every),
        ):
            if value < 1:
                raise InputError(f"{name}: {value} is too small; give at least 1.")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"ema_decay: {self.ema_decay} must be in [0, 1); give 0.999 or None.")
        if self.seed < 0:
            raise InputError(f"seed: {self.seed} is negative; give 0 or more.")
        if isinstance(self.model, SeldConfig):
            kinds: tuple[type, type] = (AccdoaConfig, SeldPipelineConfig)
        else:
            kinds = (ContrastiveConfig, PipelineConfig)
        for name, value, kind in zip(("loss", "data"), (self.loss, self.data), kinds, strict=True):
            if not isinstance(value, kind):
                raise InputError(
                    f"{name}: {type(value).__name__}, but a {type(self.model).__name__} takes a "
                    f"{kind.__name__}; give that."
                )
        if isinstance(self.loss, AccdoaConfig) or isinstance(self.data, SeldPipelineConfig):
            return
        weight, scl, rivals = self.loss.rival_weight, self.loss.scl, self.data.rivals
        if rivals != (bool(weight) and not scl):
            raise InputError(
                f"loss.rival_weight: {weight} with loss.scl {scl} and data.rivals {rivals}; a "
                "weight needs SCL or data.rivals, and data.rivals need a weight and no SCL."
            )

    def build_trainable(self, platform: str | None = None) -> Trainable:
        """What is trained, in the precision that suits a platform, this machine's if None."""
        dtype = compute_dtype(self.precision, platform)
        if isinstance(self.model, SeldConfig):
            assert isinstance(self.loss, AccdoaConfig)
            return self.model.build(self.loss, dtype)
        assert isinstance(self.loss, ContrastiveConfig)
        return self.model.build(self.loss, dtype)

    def build_system(self, platform: str | None = None) -> System:
        """The same of an audio-text model.

        Raises:
          InputError: the model embeds nothing.
        """
        system = self.build_trainable(platform)
        if not isinstance(system, System):
            raise InputError(
                f"model: a {type(self.model).__name__} locates events and embeds nothing; give an "
                "audio-text model, or use `spatial-clap detect`."
            )
        return system


def compute_dtype(
    precision: Literal["auto", "float32", "bfloat16"], platform: str | None = None
) -> DTypeLike:
    """The type to compute in, decided by the platform where `precision` is 'auto'."""
    if precision == "auto":
        is_cpu = (platform or jax.default_backend()) == "cpu"
        return jnp.float32 if is_cpu else jnp.bfloat16
    return jnp.dtype(precision)


def load_config(path: str | Path, size: str) -> Any:
    """What a config file's `get_config(size)` gives.

    Args:
      path: a Python file that defines `get_config(size)`, or the name of a shipped one.
      size: one of the file's own `SIZES`, where it has them, else of those of all.

    Returns:
      An `Experiment`, a `SceneRecipe` or a `Study`.

    Raises:
      InputError: no such file or size, or a file that defines no `get_config`.
    """
    file = _find_config(Path(path))
    module = _import_file(file)
    with _mistakes_in(file):
        sizes = tuple(map(str, getattr(module, "SIZES", SIZES)))
    if size not in sizes:
        raise InputError(f"--size {size}: unknown; choose one of {', '.join(sizes)}")
    if not hasattr(module, "get_config"):
        raise InputError(f"{path}: defines no get_config(size); see configs/spatial_clap.py")
    with _mistakes_in(file):
        return module.get_config(size)


def _find_config(path: Path) -> Path:
    if path.is_file():
        return path
    package = Path(str(resources.files("spatial_clap_jax")))
    # In an installed package the configs lie inside, in a checkout beside it.
    for folder in (package / "configs", package.parent / "configs"):
        name = f"{path.name.removesuffix('.py')}.py"
        # A path that was meant to be somewhere else is not replaced by a shipped file.
        if (folder / name).is_file() and path.parent in (Path(), Path("configs")):
            return folder / name
        studies = (Path(), Path("studies"), Path("configs/studies"))
        if (folder / "studies" / name).is_file() and path.parent in studies:
            return folder / "studies" / name
    raise InputError(f"{path}: no such config; give a file like configs/spatial_clap.py")


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is no Python file; give a file like configs/spatial_clap.py")
    module = importlib.util.module_from_spec(spec)
    with _mistakes_in(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _mistakes_in(path: str | Path) -> Iterator[None]:
    """A config is the user's code: whatever it raises is named with its file and line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except SyntaxError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}; mend the file") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"line {lines[-1]}: " if lines else ""
        raise InputError(
            f"{path}: {place}{type(error).__name__}: {error}; mend the file"
        ) from error
