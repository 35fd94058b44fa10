"""The images of launch/Dockerfile, as far as their text tells: no Docker is needed."""

import json
import re
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from flowtok_jax import main
from tests.packaging_test import PROJECT
from tests.run import ROOT
from tests.serve.fake import served


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage with their arguments, by the stage's name."""
    text = (ROOT / "launch" / "Dockerfile").read_text()
    lines = [x for x in text.splitlines() if not x.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = {}
    for line in filter(None, joined.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found[rest.split(" AS ")[1]] = own = []
        own.append((name, rest.strip()))
    return found


def one(stage, name: str) -> str:
    (found,) = [rest for instruction, rest in stage if instruction == name]
    return found


def test_what_is_built_by_default_trains(stages):
    assert list(stages) == ["base", "serve", "train"]
    assert (
        one(stages["train"], "FROM") == one(stages["serve"], "FROM")[:4] + " AS train"
    )
    script = json.loads(one(stages["train"], "ENTRYPOINT"))[1]
    assert (ROOT / script).is_file()


def test_files_that_are_copied_exist(stages):
    for instruction, rest in (line for stage in stages.values() for line in stage):
        if instruction == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest


def test_the_extras_that_are_installed_exist(stages):
    (default,) = re.findall("EXTRAS=(.*)", one(stages["serve"], "ARG"))
    text = (ROOT / "launch" / "Dockerfile").read_text()
    named = {
        name for x in re.findall(r"EXTRAS=([\w,]+)", text) for name in x.split(",")
    }
    assert named == {"serve", "gpu"}
    assert default in named
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_service_is_nobody_special(stages):
    order = [name for name, _ in stages["serve"]]
    user = one(stages["serve"], "USER")
    assert user not in ("", "root", "0")
    assert f"useradd --create-home {user}" in one(stages["serve"], "RUN")
    assert order.index("USER") < order.index("ENTRYPOINT")
    variable = one(stages["serve"], "ENV")
    folder = variable.split("=")[1]
    # Programs that others could write are not used.
    assert f"--owner={user} --mode=700 {folder}" in one(stages["serve"], "RUN")


def test_the_command_of_the_service_is_one(stages):
    entry = json.loads(one(stages["serve"], "ENTRYPOINT"))
    command = [*entry, *json.loads(one(stages["serve"], "CMD"))]
    assert command[:3] == ["python", "-m", "flowtok_jax.main"]
    with flagsaver.flagsaver():  # other tests call commands in this process
        arguments = main.parse_flags(["main", *command[3:]])
        assert arguments.flags.mode == "serve"
        assert arguments.flags.host == "0.0.0.0"
        assert str(arguments.flags.port) == one(stages["serve"], "EXPOSE")
        assert arguments.weights.is_shipped


def test_the_health_check_tells_a_service_from_none(stages):
    check = one(stages["serve"], "HEALTHCHECK").partition("CMD ")[2]
    program, *flags, code = json.loads(check)
    port = one(stages["serve"], "EXPOSE")
    assert (program, flags) == ("python", ["-c"])
    assert f"http://127.0.0.1:{port}/health" in code

    def status(address: str) -> int:
        own = code.replace(f"http://127.0.0.1:{port}", address)
        done = subprocess.run([sys.executable, "-c", own], capture_output=True)
        return done.returncode

    with served() as (address, _):
        assert status(address) == 0
    assert status(address) == 1
