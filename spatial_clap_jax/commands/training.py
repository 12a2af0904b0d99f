"""Commands that train, and the one that tells what a training would cost."""

import contextlib
import os
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from spatial_clap_jax import shown
from spatial_clap_jax.arguments import call, peek, with_content
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.mistakes import told_of
from spatial_clap_jax.streams import tell, unbroken_stdout
from spatial_clap_jax.train.environment import names_others
from spatial_clap_jax.train.interruption import Interruption

if TYPE_CHECKING:
    from spatial_clap_jax.train.experiment import Experiment


def quickstart_command(arguments: list[str]) -> None:
    """Render, train, evaluate and export a small model on built-in sounds."""
    from spatial_clap_jax.quickstart import SYSTEMS, quickstart

    def run(system: str = "spatial_clap", out: Path = Path("quickstart"), seed: int = 0) -> None:
        """Renders scenes of the built-in sound bank, trains on them, evaluates on unseen rooms
        and clips, and exports; minutes on two cores, no files needed.

        Args:
          system: which system.
          out: folder for scenes, run and export; a second call goes on where one stopped.
          seed: of scenes and training.
        """
        if system not in SYSTEMS:
            raise InputError(f"--system {system}: unknown; choose one of {', '.join(SYSTEMS)}")
        with unbroken_stdout():
            quickstart(system, out, seed)

    call(run, arguments, "quickstart")


def train_command(arguments: list[str]) -> None:
    """Train a system on rendered scenes; resumes by itself."""
    # Before the imports, which take seconds: a signal must find its listener. Others that may be
    # waiting already would wait in vain for a process that exits.
    with Interruption.current(exits=not names_others()) as interruption:
        _train(arguments, interruption)


def _train(arguments: list[str], interruption: Interruption) -> None:
    config, size = peek(arguments, default="spatial_clap.py")
    from spatial_clap_jax.train.failures import shared
    from spatial_clap_jax.train.processes import join_processes

    several = False
    if not {"-h", "--help"} & set(arguments):
        several = join_processes()
        # JAX listens for SIGTERM, too, where there are several processes.
        interruption.listen()
    with shared(told_of) if several else contextlib.nullcontext():
        _train_here(arguments, config, size)


def _train_here(arguments: list[str], config: str, size: str) -> None:
    from spatial_clap_jax.train.experiment import Experiment
    from spatial_clap_jax.train.processes import is_first_process
    from spatial_clap_jax.train.trainer import train
    from spatial_clap_jax.validation import Validation

    arguments, experiment_default = _configured(arguments, config, size)

    def run(
        config: tyro.conf.Positional[Path],
        data: Path,
        workdir: Path,
        size: str = "small",
        accept: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = experiment_default,
    ) -> None:
        """Trains a config's experiment; goes on from the newest whole checkpoint in --workdir.

        At SIGTERM or Ctrl-C it saves and exits with status 75: the same command goes on. A second
        signal exits at once. Status 3: the numbers of the run went wrong, and what happened is in
        --workdir.

        Of a system with a choice of content encoders, --model.content htsat, cnn or m2d takes
        another one, untrained, with its front end; --init.audio a trained one.

        Args:
          config: a Python file with get_config(size), for example configs/spatial_clap.py.
          data: folder that `render` wrote.
          workdir: folder for checkpoints and logs.
          size: quickstart, small or base.
          accept: what may differ from the run that --workdir holds: 'dataset', or a key such as
            optimizer.learning_rate; may be given several times.
          experiment: everything that decides the run.
        """
        result = train(experiment, data, workdir, accept=accept, validation=Validation)
        if is_first_process():
            tell(f"{shown.plain(result.workdir)}: trained to step {result.step}")

    call(run, arguments, "train")


def _configured(arguments: list[str], config: str, size: str) -> tuple[list[str], "Experiment"]:
    """The arguments that are left, and the experiment that they are options of."""
    from spatial_clap_jax.train.experiment import Experiment, load_config

    experiment = load_config(config, size)
    if not isinstance(experiment, Experiment):
        raise InputError(f"{config}: gives no experiment; give a file like configs/spatial_clap.py")
    return with_content(arguments, experiment, size)


def study_command(arguments: list[str]) -> None:
    """Train and test several models alike, and compare them; goes on where it stopped."""
    config, size = peek(arguments, default="studies/spatial_clap_findings.py")
    from spatial_clap_jax.study import Study, run_study
    from spatial_clap_jax.train.experiment import load_config

    study = load_config(config, size)
    if not isinstance(study, Study):
        raise InputError(
            f"{config}: gives no study; give a file like configs/studies/spatial_clap_findings.py"
        )

    def run(
        config: tyro.conf.Positional[Path],
        data: Path,
        # A path would turn a bucket's address into a folder named 'gs:'.
        workdir: str,
        sources: str | None = None,
        seeds: int = 3,
        size: str = "small",
        rows: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    ) -> None:
        """Trains every row of a study with every seed, tests all under all conditions, and writes
        results.json, table.md and figures into --workdir, anew after each test.

        Args:
          config: a Python file with get_config(size), for example
            configs/studies/spatial_clap_findings.py.
          data: folder that `render` wrote; rendered first where it is missing and --sources given.
          workdir: folder for trainings, tests and results.
          sources: the csv of clips (or 'synthetic') that the data are rendered from; without it,
            conditions that need scenes of their own are left out.
          seeds: trainings a row.
          size: quickstart, small or base, or another one that the config tells.
          rows: name of a row to train and test; may be given several times. Default: all.
        """
        with unbroken_stdout():
            run_study(study, data, workdir, seeds=seeds, sources=sources, rows=rows)
        tell(f"{shown.plain(workdir)}: results.json, table.md and figures")

    call(run, arguments, "study")


def plan_command(arguments: list[str]) -> None:
    """Compile a training step for a TPU slice that is elsewhere, and say what it needs."""
    if not {"gpu", "--topology=gpu"} & set(arguments):
        # A TPU or GPU of this machine is left to whoever runs on it.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    config, size = peek(arguments, default="spatial_clap.py")
    from spatial_clap_jax.train.experiment import Experiment
    from spatial_clap_jax.train.plan import plan, print_plan

    arguments, experiment_default = _configured(arguments, config, size)

    def run(
        config: tyro.conf.Positional[Path],
        topology: str,
        global_batch: int | None = None,
        size: str = "small",
        json: bool = False,
        largest: bool = True,
        fast: bool = False,
        experiment: tyro.conf.FlagConversionOff[
            Annotated[Experiment, tyro.conf.arg(name="")]
        ] = experiment_default,
    ) -> None:
        """Compiles the training step ahead of time; nothing runs, and no TPU is needed.

        Args:
          config: a Python file with get_config(size), for example configs/spatial_clap.py.
          topology: a TPU slice (v5e:16x16, v5p:4x4x4), several (v5e:16x16*2), or cpu or gpu for
            the devices of this machine.
          global_batch: captions in a batch, over all chips; default: the config's.
          size: quickstart, small or base.
          json: print one JSON object in place of a table.
          largest: compile a second time, for the largest batch that fits.
          fast: compile with little effort: sooner, but memory and its traffic come out higher.
          experiment: everything that decides the run.
        """
        found = plan(experiment, topology, global_batch, largest=largest, fast=fast)
        if json:
            print(dumps(asdict(found)))
        else:
            print_plan(found)

    call(run, arguments, "plan", style=(tyro.conf.AvoidSubcommands,))
