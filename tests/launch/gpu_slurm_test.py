"""gpu_slurm.sh among a fake Slurm: submission, one process a GPU, queued again."""

import pytest

FLAGS = ("--config=configs/h.py:1", "--workdir=/shared/h")
JOB = {"SLURM_JOB_ID": "7"}


def job(fakes, status, state="RUNNING\n", **variables):
    """The script inside a job whose srun ends with a status."""
    fakes.answer({"srun": [status], "squeue": [state]})
    outcome = fakes.run(
        "gpu_slurm.sh", "--cpus=6", "--restarts=3", "--", *FLAGS, **JOB, **variables
    )
    return outcome, [call[0] for call in fakes.calls]


def test_submits_itself_with_one_process_a_gpu(fakes):
    options = ("--nodes=2", "--partition=a100", "--sbatch=--mem=0", "--cpus=6")
    outcome = fakes.run("gpu_slurm.sh", *options, "--", *FLAGS)
    assert outcome.returncode == 0, outcome.stderr
    (call,) = fakes.calls
    script = call.index("launch/gpu_slurm.sh")
    assert set(call[1:script]) >= {
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=6",
        "--signal=TERM@120",
        "--requeue",
        "--partition=a100",
        "--mem=0",
    }
    assert call[script + 1 :] == ["--cpus=6", "--restarts=100", "--", *FLAGS]


def test_a_job_runs_main_on_all_gpus_and_ends(fakes):
    outcome, programs = job(fakes, 0)
    assert outcome.returncode == 0
    assert programs == ["srun"]
    (call,) = fakes.calls
    assert call[1:] == [
        "--gpu-bind=none",
        "--cpus-per-task=6",
        "--kill-on-bad-exit=0",
        "--wait=120",
        "bash",
        "launch/process.sh",
        "gpu",
        *FLAGS,
    ]


def test_a_job_that_was_stopped_is_queued_again(fakes):
    outcome, programs = job(fakes, 143, SLURM_RESTART_COUNT="2")
    assert outcome.returncode == 143
    assert programs == ["srun", "squeue", "scontrol"]
    assert fakes.calls[-1] == ["scontrol", "requeue", "7"]


@pytest.mark.parametrize(
    ("status", "state", "restarts"),
    [
        (143, "COMPLETING\n", "0"),  # scancel
        (143, "RUNNING\n", "3"),  # often enough
        (1, "RUNNING\n", "0"),
        (2, "RUNNING\n", "0"),
    ],
)
def test_other_ends_are_final(fakes, status, state, restarts):
    outcome, programs = job(fakes, status, state, SLURM_RESTART_COUNT=restarts)
    assert outcome.returncode == status
    assert "scontrol" not in programs
