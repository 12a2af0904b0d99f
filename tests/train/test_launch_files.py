"""The scripts for clusters: what starts a training again, and what does not."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.mark.parametrize(
    ("status", "again"), [(75, True), (0, False), (2, False), (3, False), (137, False)]
)
def test_slurm_queues_a_job_again_that_was_interrupted(tmp_path, status, again):
    for name, code in (("srun", status), ("scontrol", 0)):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\necho "{name} $@" >> "$NOTES"\nexit {code}\n', "utf-8")
        fake.chmod(0o755)
    notes = tmp_path / "notes"
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "train", "a config.py"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
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
