"""gke_jobset.sh: the filled-in JobSet says what the flags said."""

import pytest
import yaml

from tests.launch.conftest import LAUNCH

FLAGS = ("--config=configs/h.py:1", "--workdir=gs://b/h", "--config.x=it's ${NAME} & *")
ARGUMENTS = ("--name=h", "--image=r/i:1", "--service_account=trainer")


def manifest(fakes, *options):
    """What kubectl would get."""
    outcome = fakes.run(
        "gke_jobset.sh", "--dry-run", *ARGUMENTS, *options, "--", *FLAGS
    )
    assert outcome.returncode == 0, outcome.stderr
    assert not fakes.calls
    first, *lines, last = outcome.stdout.splitlines()
    assert (first, last) == ("kubectl apply -f - <<'END'", "END")
    return yaml.safe_load("\n".join(lines))


def test_the_template_itself_is_yaml():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert jobset["kind"] == "JobSet"


def test_one_pod_a_machine_of_the_slice(fakes):
    jobset = manifest(fakes)
    assert jobset["metadata"]["name"] == "h"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 50
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        64,
        64,
        0,
    )
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["serviceAccountName"] == "trainer"
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    (container,) = pod["containers"]
    assert container["image"] == "r/i:1"
    assert container["resources"]["requests"] == {"google.com/tpu": 4}
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_flags_reach_main_as_they_are(fakes):
    jobset = manifest(fakes)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["bash", "launch/process.sh", "tpu"]
    assert container["args"] == ["--cluster_timeout=900", *FLAGS]


@pytest.mark.parametrize(
    ("accelerator", "topology", "machines", "chips"),
    [
        ("tpu-v6e-slice", "8x8", 16, 4),
        ("tpu-v5-lite-podslice", "2x4", 1, 8),
        ("tpu-v5p-slice", "2x2x2", 2, 4),
        ("tpu-v5p-slice", "4x4x8", 32, 4),
    ],
)
def test_machines_of_other_slices(fakes, accelerator, topology, machines, chips):
    options = (f"--accelerator={accelerator}", f"--topology={topology}")
    jobset = manifest(fakes, *options)
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["completions"] == machines
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_applies_it(fakes):
    outcome = fakes.run("gke_jobset.sh", *ARGUMENTS, "--", *FLAGS)
    assert outcome.returncode == 0, outcome.stderr
    assert fakes.calls == [["kubectl", "apply", "-f", "-"]]
