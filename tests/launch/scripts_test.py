"""All launchers: help, one line for a mistake, the README's commands run dry."""

import re
import shlex
import shutil

import pytest

from tests.launch.conftest import LAUNCH

SCRIPTS = sorted(p.name for p in LAUNCH.glob("*.sh") if p.stat().st_mode & 0o100)
FLAGS = ("--", "--config=configs/h.py:1", "--workdir=gs://b/h")
TPU = ("tpu_pod.sh", "run", "--name=h", "--zone=z")
GKE = ("gke_jobset.sh", "--image=r/i")
V5E = "--type=v5litepod-256"
MISTAKES = [
    (("local_cluster.sh",), "got '' processes"),
    (("local_cluster.sh", "two", "--", "--a"), "got 'two' processes"),
    (("local_cluster.sh", "2"), "no flags of main"),
    (("local_cluster.sh", "2", "3", "--", "--a"), "got 2 and 3"),
    (("local_cluster.sh", "--devices=x", "2", "--", "--a"), "--devices=x"),
    (("local_cluster.sh", "--gpus=2", "2", "--", "--a"), "unknown option --gpus=2"),
    (("process.sh", "cpu"), "got 'cpu'"),
    (("tpu_worker.sh", "reboot"), "got 'reboot'"),
    (("tpu_pod.sh",), "wanted run, logs, stop or down"),
    (("tpu_pod.sh", "stop", "--name=h"), "no zone"),
    (("tpu_pod.sh", "down", "--zone=z"), "--name=''"),
    ((*TPU, *FLAGS), "--type=''"),
    ((*TPU, V5E), "no flags of main"),
    ((*TPU, V5E, "--", "--config=c"), "no workdir named"),
    ((*TPU, V5E, "--", "--workdir=runs/h"), "--workdir=runs/h is a disk of one"),
    ((*TPU, V5E, "--", "--workdir", "runs/h"), "--workdir=runs/h is a disk of one"),
    ((*TPU, "--type=v6e-8", "--spot", "--", "--workdir=runs/h"), "is a disk of one"),
    ((*TPU, "--type=v9-8", *FLAGS), "no runtime known for v9-8"),
    ((*TPU, V5E, "--config=c"), "unknown option --config=c"),
    (("gpu_slurm.sh", "--", "--config=c"), "no workdir named"),
    (("gpu_slurm.sh", "--gpus=all", *FLAGS), "--gpus=all"),
    (("gpu_slurm.sh", "--mem=0", *FLAGS), "unknown option --mem=0"),
    (("gke_jobset.sh", *FLAGS), "--name=''"),
    ((*GKE, "--name=H", *FLAGS), "--name='H'"),
    ((*GKE, "--name=h", "--topology=16", *FLAGS), "--topology='16'"),
    ((*GKE, "--name=h", "--", "--workdir=runs/h"), "--workdir='runs/h'"),
]


def readme_commands():
    """Commands of the README's code blocks that call a launcher, the flags that are
    kept in a variable put in.
    """
    text = (LAUNCH / "README.md").read_text().replace("\\\n", " ")
    commands, flags = [], ""
    for found in re.finditer(r"^flags=\(([^)]*)\)|^(launch/.*)", text, re.M):
        if found[1] is not None:
            flags = " ".join(found[1].split())
        else:
            commands.append(found[2].replace('"${flags[@]}"', flags))
    return commands


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(fakes, script):
    outcome = fakes.run(script, "--help")
    assert outcome.returncode == 0
    assert f"    launch/{script} " in outcome.stdout
    assert "#" not in outcome.stdout


@pytest.mark.parametrize(("arguments", "complaint"), MISTAKES)
def test_a_mistake_is_one_line(fakes, arguments, complaint):
    outcome = fakes.run(*arguments)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not fakes.calls


@pytest.mark.parametrize("missing", ["gcloud", "kubectl", "sbatch"])
def test_a_program_that_is_not_there_is_named(fakes, missing):
    script, *rest = {
        "gcloud": (*TPU, V5E, *FLAGS),
        "kubectl": (*GKE, "--name=h", *FLAGS),
        "sbatch": ("gpu_slurm.sh", *FLAGS),
    }[missing]
    # Only what the shell needs: the machine's own programs must not be found.
    for name in ("bash", "dirname", "sed"):
        (fakes.place / "few").mkdir(exist_ok=True)
        (fakes.place / "few" / name).symlink_to(shutil.which(name))
    outcome = fakes.run(script, *rest, PATH=str(fakes.place / "few"))
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(f"error: {missing} is not installed; ")


@pytest.mark.parametrize("command", readme_commands())
def test_the_commands_of_the_readme_are_right(fakes, command):
    script, *arguments = shlex.split(command, comments=True)
    name = script.removeprefix("launch/")
    verb = 1 if name == "tpu_pod.sh" else 0
    outcome = fakes.run(name, *arguments[:verb], "--dry-run", *arguments[verb:])
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout
    assert not fakes.calls


def test_the_readme_names_all_launchers():
    text = (LAUNCH / "README.md").read_text()
    assert {x.split()[0].removeprefix("launch/") for x in readme_commands()} == {
        "gke_jobset.sh",
        "gpu_slurm.sh",
        "local_cluster.sh",
        "tpu_pod.sh",
    }
    assert text.index("<!-- fit table -->") < text.index("<!-- /fit table -->")
