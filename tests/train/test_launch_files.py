"""The scripts for clusters: what starts a training again, and what does not."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def fake_program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n", "utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("status", "starts", "again"),
    [
        *((75, starts, True) for starts in ("", "99", "100")),
        *((lost, at, at != "100") for lost in (4, 134, 137) for at in ("", "99", "100")),
        *((status, "", False) for status in (0, 1, 2, 3, 143)),
    ],
)
def test_slurm_queues_a_job_again_that_was_interrupted(tmp_path, status, starts, again):
    for name, code in (("srun", status), ("scontrol", 0)):
        fake_program(tmp_path / name, f'echo "{name} $@" >> "$NOTES"', f"exit {code}")
    notes = tmp_path / "notes"
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "train", "a config.py"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_RESTART_COUNT": starts,
            "NOTES": str(notes),
            "PYTHON": "python",
        },
    )
    assert done.returncode == status
    started, *rest = notes.read_text().splitlines()
    assert started.endswith("python -m spatial_clap_jax train a config.py")
    # Those that still save are not ended by the first that has.
    assert "--kill-on-bad-exit=0" in started
    assert rest == (["scontrol requeue 17"] if again else [])


def test_slurm_gives_each_task_the_one_gpu_that_it_sees_and_its_cores(tmp_path):
    notes = tmp_path / "notes"
    fake_program(tmp_path / "srun", 'echo "$JAX_LOCAL_DEVICE_IDS $@" >> "$NOTES"')
    subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "train"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "SLURM_CPUS_PER_TASK": "12",
            "NOTES": str(notes),
        },
        check=True,
    )
    assert notes.read_text().startswith("0 --cpus-per-task=12 ")


def test_a_tpu_host_gets_an_environment_and_the_command_as_it_was_given(tmp_path):
    """What gcloud would run on each host, run here with programs that only tell of themselves."""
    home, notes = tmp_path / "home", tmp_path / "notes"
    home.mkdir()
    made = "$HOME/spatial-clap-env/bin"
    fake_program(tmp_path / "gcloud", 'while [ "$1" != --command ]; do shift; done', 'sh -c "$2"')
    fake_program(
        tmp_path / "python3",
        'echo "python3 $*" >> "$NOTES"',
        'case "$*" in *venv*)',
        f'  mkdir -p {made}; cp "$PROGRAM" {made}/spatial-clap; cp "$PROGRAM" {made}/python ;;',
        "esac",
    )
    program = tmp_path / "program"
    fake_program(program, 'for word in "$@"; do echo "<$word>" >> "$NOTES"; done')
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "NOTES": str(notes),
        "PROGRAM": str(program),
        "TPU": "slice",
        "ZONE": "here",
        "SOURCE": "spatial-clap-jax[tpu]==9 ; python_version > '3'",
    }
    command = ["bash", LAUNCH / "tpu_pod.sh", "train", "a config.py", "--name", 'it\'s "$HOME"']
    for time in ("first", "second"):
        subprocess.run(command, env=environment, check=True)
        lines = notes.read_text().splitlines()
        assert lines[-4:] == ["<train>", "<a config.py>", "<--name>", '<it\'s "$HOME">']
        assert "python3 -m pip install --quiet --user uv" in lines
        (install,) = [line for line in lines if "uv pip install" in line]
        assert install.endswith("python spatial-clap-jax[tpu]==9 ; python_version > '3'")
        # An environment that is there is kept.
        assert sum("uv venv" in line for line in lines) == (time == "first")
        notes.unlink()


def test_gke_ends_a_job_that_would_fail_again():
    yaml = pytest.importorskip("yaml")
    spec = yaml.safe_load((LAUNCH / "gke.yaml").read_text())["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (job,) = spec["replicatedJobs"]
    pods = job["template"]["spec"]
    (on_exit,) = pods["podFailurePolicy"]["rules"]
    (container,) = pods["template"]["spec"]["containers"]
    assert on_exit["action"] == "FailJob"
    assert on_exit["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2, 3],
    }
    # Kubernetes takes such a policy of pods that are never restarted in place alone.
    assert pods["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(("of_pip", "of_ours", "status"), [(2, 0, 1), (0, 2, 2), (0, 0, 0)])
def test_gke_tells_a_failed_install_from_a_mistake(tmp_path, of_pip, of_ours, status):
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load((LAUNCH / "gke.yaml").read_text())["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    notes = tmp_path / "notes"
    fake_program(tmp_path / "pip", f"exit {of_pip}")
    fake_program(tmp_path / "spatial-clap", 'echo "$@" > "$NOTES"', f"exit {of_ours}")
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "NOTES": str(notes),
        },
    )
    assert done.returncode == status
    assert notes.exists() == (of_pip == 0)
    if of_pip == 0:
        assert notes.read_text().endswith("--data /data/mine --workdir /runs/mine\n")
