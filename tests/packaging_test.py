"""What an installation brings: files, names, versions, commands and configs."""

import email
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

import flowtok_jax
from tests import run

ROOT = run.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
# What the project is built on, by name.
CARD = {
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
    "ml_collections",
    "clu",
}


def call(*command, cwd=ROOT) -> subprocess.CompletedProcess:
    """Runs a command that has to succeed, without the checkout on Python's path."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = [str(x) for x in command]
    done = subprocess.run(
        arguments, cwd=cwd, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def build(folder, *targets, cwd=ROOT) -> None:
    """Builds the wheel and the sdist, or one of them; a warning fails."""
    flags = [part for target in targets for part in ("-t", target)]
    done = call(
        sys.executable, "-m", "hatchling", "build", "-d", folder, *flags, cwd=cwd
    )
    assert "warn" not in (done.stdout + done.stderr).lower()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    """The wheel, open."""
    with zipfile.ZipFile(*built.glob("*.whl")) as archive:
        yield archive


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of an environment with the wheel, and what else this one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    with zipfile.ZipFile(*built.glob("*.whl")) as archive:
        archive.extractall(site)
    others = [p for p in sys.path if p.endswith("site-packages")]
    # Behind the wheel; as plain folders, an editable installation there stays unread.
    (site / "others.pth").write_text("\n".join(others))
    return folder / "bin" / "python"


def is_source(path: pathlib.Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def test_the_wheel_has_the_package_configs_and_weights_and_nothing_else(wheel):
    package = [p for p in (ROOT / "flowtok_jax").rglob("*") if is_source(p)]
    wanted = {path.relative_to(ROOT).as_posix() for path in package}
    assert any(name.endswith(".txtpb") for name in wanted)
    wanted |= {f"flowtok_jax/share/configs/{name}" for name in CONFIGS}
    weights = [p for p in (ROOT / "assets").glob("*/**/*") if is_source(p)]
    wanted |= {f"flowtok_jax/share/{p.relative_to(ROOT).as_posix()}" for p in weights}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == wanted


def test_the_sdist_builds_the_same_wheel(built, wheel, tmp_path):
    with tarfile.open(*built.glob("*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert {"tests", "configs", "launch", "Makefile"} <= set(os.listdir(source))
    build(source / "dist", "wheel", cwd=source)
    with zipfile.ZipFile(*(source / "dist").glob("*.whl")) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())


def test_metadata(wheel):
    (name,) = (x for x in wheel.namelist() if x.endswith("/METADATA"))
    meta = email.message_from_bytes(wheel.read(name))
    assert meta["Version"] == flowtok_jax.__version__
    assert meta["Requires-Python"] == ">=3.11"
    assert meta["License-Expression"] == "Apache-2.0"
    extras = {"gpu", "tpu", "eval", "convert", "compile", "emoji", "export"}
    extras |= {"quantize", "notebooks", "space", "serve", "docs", "dev"}
    assert set(meta.get_all("Provides-Extra")) == extras
    scripts = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert scripts.split() == [
        "[console_scripts]",
        "flowtok",
        "=",
        "flowtok_jax.main:main",
    ]


def test_the_version_is_stated_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", flowtok_jax.__version__)
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT


def test_a_requirements_file_is_one_line_which_names_an_extra():
    files = sorted(ROOT.glob("requirements*.txt"))
    found = {path.name: path.read_text() for path in files}
    extras = PROJECT["optional-dependencies"]
    wanted = {f"requirements-{extra}.txt": f"-e .[{extra}]\n" for extra in extras}
    assert found == wanted | {"requirements.txt": "-e .\n"}


def test_dependencies_are_those_that_the_package_imports():
    names = [Requirement(line).name for line in PROJECT["dependencies"]]
    assert len(set(names)) == len(names)
    assert set(names) >= CARD
    assert not {"torch", "tensorflow", "scipy", "matplotlib"} & set(names)
    text = "".join(
        path.read_text()
        for folder in ("flowtok_jax", "configs")
        for path in (ROOT / folder).rglob("*.py")
    )
    imports = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    unseen = {"importlib_resources", "clu"}  # tensorflow-datasets imports the first
    for name in set(names) - unseen:
        module = {"absl-py": "absl", "pillow": "PIL", "orbax-checkpoint": "orbax"}
        assert module.get(name, name.replace("-", "_")) in imports, name


def test_this_environment_is_within_the_bounds():
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        version = importlib.metadata.version(wanted.name)
        assert wanted.specifier.contains(version, prereleases=True), (line, version)


def test_the_package_alone_imports_no_jax():
    code = """
import sys, flowtok_jax
assert "FlowTok" in dir(flowtok_jax) and flowtok_jax.__version__
assert not hasattr(flowtok_jax, "Flowtok")
print({"jax", "flax", "numpy", "tensorflow"} & set(sys.modules))
"""
    assert call(sys.executable, "-c", code).stdout == "set()\n"


def test_flowtok_is_the_pipeline_of_that_name():
    from flowtok_jax.pipeline import FlowTok

    assert flowtok_jax.FlowTok is FlowTok
    assert flowtok_jax.__all__ == ["FlowTok", "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'Flow'"):
        flowtok_jax.Flow  # noqa: B018


OWN = """from configs import beside, default
def get_config():
    config = default.get_config()
    config.train.num_steps = beside.STEPS
    return config
"""
# Prints where the package is, what became of the arguments, and what a config imports.
LOOK = """
import pathlib, sys, flowtok_jax
from flowtok_jax.runtime import config
argv = config.find_configs(["main", *sys.argv[1:]])
config.check_config_flags(argv)
print(pathlib.Path(flowtok_jax.__file__).parent)
print(*argv[1:])
import configs.default
print(configs.default.__file__)
"""


def look(python, folder, *flags) -> list[str]:
    """What LOOK prints in a folder."""
    return call(python, "-c", LOOK, *flags, cwd=folder).stdout.splitlines()


def test_an_installation_finds_its_configs_from_any_folder(installed, tmp_path):
    flags = ("--config=configs/h.py:512", "--workdir=x")
    package, arguments, default = look(installed, tmp_path, *flags)
    assert pathlib.Path(package).is_relative_to(installed.parents[1])
    assert arguments == f"--config={package}/share/configs/h.py:512 --workdir=x"
    assert default == f"{package}/share/configs/default.py"


@pytest.mark.parametrize("has_init", [False, True])
def test_an_own_config_beside_others_starts_from_an_installed_one(
    installed, tmp_path, has_init
):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "mine.py").write_text(OWN)
    (folder / "beside.py").write_text("STEPS = 7\n")
    if has_init:
        (folder / "__init__.py").touch()
    flags = ("--config", "configs/mine.py", "--config.train.num_steps=3")
    package, arguments, default = look(installed, tmp_path, *flags)
    assert arguments == " ".join(flags)
    assert default == f"{package}/share/configs/default.py"


def test_make_takes_a_workdir_with_spaces(tmp_path):
    fake = tmp_path / "venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "venv" / "run").touch()
    arguments = [
        "make",
        "-s",
        "demo",
        f"VENV={tmp_path}/venv",
        'WORKDIR=runs/my "demo"',
    ]
    said = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == '--workdir=runs/my "demo"'
    assert said.stderr == ""
