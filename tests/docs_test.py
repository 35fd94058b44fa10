"""README and docs/: links lead somewhere, commands and code do what they say."""

import argparse
import ast
import contextlib
import functools
import importlib.util
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from absl.testing import flagsaver

from configs import default
from flowtok_jax import main
from flowtok_jax.data import prepare
from flowtok_jax.data.records import BadRecord
from flowtok_jax.flow.samplers import END
from flowtok_jax.models.build import init_networks
from tests import tiny
from tests.data import made
from tests.run import ROOT, own_logging

DOCS = sorted((ROOT / "docs").glob("*.md"))
OTHERS = ("README.md", "CONTRIBUTING.md", "launch/README.md", "benchmarks/README.md")
PAGES = [*(ROOT / name for name in OTHERS), *DOCS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Programs and variables of the shell blocks that are not ours.
FOREIGN = (
    "cd docker done eval flags for gcloud git image kubectl sed source ssh-add sudo"
)
# What stands for a value in a message of docs/troubleshooting.md.
VALUES = r"\.\.\.|\b[A-Z]+=?\b|\bimage to text\b|\b256\b|\b60\b"
# What stands for flags that a page gives elsewhere.
PLACEHOLDERS = {"FLAGS", "${flags[@]}"}


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [x[2] for x in BLOCK.finditer(page.read_text()) if x[1] == language]


def prose(page: pathlib.Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text())


def spans(page: pathlib.Path) -> list[str]:
    """Code inside a line of prose, each on one line."""
    return [" ".join(x.split()) for x in SPAN.findall(prose(page))]


def shell_lines(page: pathlib.Path) -> list[str]:
    """Commands of the shell blocks, each on one line."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    text = re.sub(r"=\(.*?\)$", "=()", text, flags=re.MULTILINE | re.DOTALL)
    lines = (part.strip() for line in text.splitlines() for part in line.split(" && "))
    return [line for line in lines if line and not line.startswith("#")]


def is_ours(words: list[str]) -> bool:
    """Whether a span of prose is a command of this repository with its arguments."""
    first = words[0].removeprefix(".venv/bin/") if words else ""
    if len(words) < 2 or "..." in " ".join(words):
        return False
    return first in ("flowtok", "make", "pip", "pytest", "python") or (
        first.startswith("launch/")
    )


def commands() -> list:
    """All commands, as parameters of a test."""
    found = {}
    for page in PAGES:
        for line in shell_lines(page):
            found[name_of(page), line] = shlex.split(line, comments=True)
        for span in spans(page):
            with contextlib.suppress(ValueError):  # no shell code
                words = shlex.split(span)
                if is_ours(words):
                    found[name_of(page), span] = words
    return [
        pytest.param(words, id=f"{page}: {line[:60]}")
        for (page, line), words in found.items()
        if words
    ]


class Parsed(BaseException):
    """The arguments were understood; what the command does with them is not run."""


@pytest.fixture
def only_parse(monkeypatch):
    """Ends every command of argparse's once its arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


def check_main(monkeypatch, arguments: list[str]) -> None:
    """Parses flags of main."""
    argv = ["main", *arguments]
    if any(argument.startswith("--help") for argument in argv):
        return
    monkeypatch.setattr(sys, "argv", argv)  # where overrides are read off
    with flagsaver.flagsaver(), warnings.catch_warnings():
        # Of ml_collections, where it loads a config file.
        warnings.filterwarnings("ignore", ".*load_module", DeprecationWarning)
        main.parse_flags(argv)


def check_python(monkeypatch, arguments: list[str]) -> None:
    """Parses the arguments of `python -m MODULE` or `python FILE`."""
    if arguments[:2] == ["-m", "flowtok_jax.main"]:
        check_main(monkeypatch, arguments[2:])
    elif arguments[0] == "-m" and arguments[1].startswith("flowtok_jax"):
        module = importlib.import_module(arguments[1])
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{arguments[1]}.__main__")
        with pytest.raises(Parsed):
            module.main(arguments[2:])
    elif arguments[0] == "-m":
        assert arguments[1] in ("venv", "pycocoevalcap.spice.get_stanford_models")
    elif "argparse" in (ROOT / arguments[0]).read_text():
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def check_pip(arguments: list[str]) -> None:
    """Checks that requirements files and extras exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments[0] == "install"
    for word in arguments[1:]:
        if extra := re.fullmatch(r"\.\[(\w+)\]", word):
            assert extra[1] in project["optional-dependencies"]
        elif word.endswith(".txt"):
            assert (ROOT / word).is_file()
        else:
            assert word in (".", "-e", "-r", "gcsfs", "tensorboard")


def check_make(arguments: list[str]) -> None:
    """Checks that targets exist."""
    targets = re.findall(r"^([\w/$()]+):", (ROOT / "Makefile").read_text(), re.M)
    known = [target.replace("$(VENV)", ".venv") for target in targets]
    for word in arguments:
        assert "=" in word or word in known


def check_launch(monkeypatch, script: str, arguments: list[str]) -> None:
    """Checks that a launcher exists, and the flags of main that it gets."""
    assert (ROOT / script).stat().st_mode & 0o100
    if "--" in arguments:
        flags = arguments[arguments.index("--") + 1 :]
        if not PLACEHOLDERS & set(flags):
            check_main(monkeypatch, flags)


@pytest.mark.parametrize("words", commands())
def test_commands_are_understood(words, monkeypatch, only_parse):
    monkeypatch.chdir(ROOT)
    # Without what ends or cuts the command, as in `make demo; ls`.
    stops = [i for i, word in enumerate(words) if word.endswith(";")]
    words = words[: stops[0]] + [words[stops[0]][:-1]] if stops else words
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "flowtok":
        check_main(monkeypatch, arguments)
    elif program in ("python", "python3"):
        check_python(monkeypatch, arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program == "make":
        check_make(arguments)
    elif program.startswith("launch/"):
        check_launch(monkeypatch, program, arguments)
    elif program in ("pytest", "ruff"):
        for word in arguments:
            assert not word.startswith("tests") or (ROOT / word).exists()
    else:
        assert program.split("=")[0] in FOREIGN.split()


def test_a_wrong_command_is_noticed(monkeypatch, only_parse):
    for flags in (["--config=configs/hh.py"], ["--config=configs/h.py", "--wrong=1"]):
        with pytest.raises(ValueError, match=r"hh|wrong"):
            check_main(monkeypatch, flags)
    with pytest.raises(SystemExit):
        check_python(monkeypatch, ["-m", "flowtok_jax.data.prepare", "--sauce=shapes"])
    with pytest.raises(AssertionError):
        check_make(["demos"])


def known_keys(section, prefix: str = "") -> set[str]:
    """Dotted names of all keys and sections of a config."""
    found = set()
    for key, value in section.items():
        name = f"{prefix}{key}"
        found.add(name)
        if hasattr(value, "items"):
            found |= known_keys(value, f"{name}.")
    return found


KEYS = known_keys(default.get_config())


def is_module(name: str) -> bool:
    path = ROOT / "flowtok_jax" / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_of_configs_are_known(page):
    text = page.read_text()
    found = re.findall(r"--config\.([a-z]\w*(?:\.\w+)*)", text)
    # In prose a key stands alone, as in `sample.num_steps=5 sample.times=left`.
    words = [word for span in spans(page) for word in span.split()]
    for word in words:
        key = re.fullmatch(r"([a-z]\w*(?:\.[a-z]\w*)+)(?:=.*)?", word)
        if key and key[1].split(".")[0] in KEYS and not is_module(key[1]):
            found.append(key[1])
    found = [re.sub(r"^per_stage\.\w+\.", "", key) for key in found]
    # The last one is of a task that a page makes up.
    endings = (".json", ".jsonl", ".csv", ".py", ".safetensors", "loss.plain")
    assert not {key for key in found if key not in KEYS and not key.endswith(endings)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    # What a user's own runs made is not the repository's.
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "runs"}
    inside = {path.name for path in (ROOT / "flowtok_jax").iterdir() if path.is_dir()}
    for word in (word for span in spans(page) for word in span.split()):
        name = re.sub(r"\.py:\w+$", ".py", word.rstrip(".,;"))
        first = name.split("/")[0]
        if not re.fullmatch(r"\.?[\w/-]+/[\w.-]+\.(py|sh|md|yml|json)", name):
            continue
        if "NAME" in name or first not in folders | inside:
            continue
        places = (ROOT / name, ROOT / "flowtok_jax" / name)
        assert any(place.exists() for place in places), name


def anchors(page: pathlib.Path) -> set[str]:
    """Names of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", text.lower()) for text in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_navigation_names_every_page():
    def paths(entry):
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        return [path for part in inner for path in paths(part)]

    nav = paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(set(nav)) == len(nav)
    assert {path.name for path in DOCS} <= set(nav)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_place_of_one_machine(page):
    assert not re.findall(r"(?<![\w.])/(?:work|root|home|tmp)/\S*", page.read_text())


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 80


def messages() -> str:
    """All texts of the package, with a mark for each value that is filled in."""
    found = []
    for path in (ROOT / "flowtok_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.append("".join(x if isinstance(x, str) else "\0" for x in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join([*found, (ROOT / "Makefile").read_text()])


def test_messages_of_the_troubleshooting_page_exist():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    assert len(rows) > 30
    said, unsaid = messages(), []
    foreign = "command not found"
    for span in (span for row in rows for span in SPAN.findall(row)):
        if span.endswith(foreign):
            continue
        pieces = re.split(VALUES, span)
        pieces = (piece.strip(" ;:,=-") for piece in pieces)
        unsaid += [(span, piece) for piece in pieces if piece not in said]
    assert not unsaid


@pytest.fixture
def desk(demo, tmp_path, monkeypatch):
    """A folder to work in, with the tiny demo as runs/demo and as weights/xl."""
    for name in ("runs/demo", "weights/xl"):
        shutil.copytree(demo.workdir, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippets(*pages: str) -> list:
    found = []
    for page in pages:
        for number, code in enumerate(blocks(ROOT / page, "python")):
            found.append(pytest.param(code, id=f"{page}:{number}"))
    return found


def execute(code: str) -> dict:
    names = {"__name__": "snippet"}
    exec(compile(code, "snippet", "exec"), names)
    return names


@pytest.mark.parametrize(
    "code", snippets("README.md", "docs/getting_started.md", "docs/released_weights.md")
)
def test_the_code_for_both_directions_runs(code, desk):
    found = execute(code)
    side = found["flowtok"].nets.tokenizer.image_size
    assert found["images"].shape == (1, side, side, 3)
    assert np.isfinite(found["images"]).all()
    if "image_to_text" in code:
        (caption,) = found["captions"]
        assert isinstance(caption, str)


def test_the_config_of_your_own_works():
    (code,) = blocks(ROOT / "docs" / "configs.md", "python")
    get_config = execute(code)["get_config"]
    assert get_config().train.batch_size == 64
    assert get_config("large").train.batch_size == 1024


def extension(name: str) -> dict:
    """What the block of docs/extending.md that defines a name defines."""
    found = blocks(ROOT / "docs" / "extending.md", "python")
    (code,) = (x for x in found if re.search(rf"^(def|class) {name}\b", x, re.M))
    return execute(code)


def test_the_task_to_add_trains_its_networks():
    task = extension("plain_loss")["TASK"]
    nets = tiny.nets()
    trained = init_networks(nets, task.networks, jax.random.key(0))
    frozen = {
        role: tiny.random_params(nets, group) for role, group in task.frozen.items()
    }
    options = default.get_config().loss.i2t  # a flow's; this task has the same two
    loss = functools.partial(
        task.loss,
        nets=nets,
        null_rate=options.null_rate,
        time_location=options.time_location,
    )
    grad = jax.jit(jax.grad(loss, has_aux=True))
    grads, scalars = grad(trained, frozen, tiny.batch(), jax.random.key(0))
    assert set(grads) == set(task.networks)
    assert np.isfinite(scalars["loss/flow"])
    assert max(float(abs(x).max()) for x in jax.tree.leaves(grads["dit"])) > 0


def test_the_sampler_to_add_has_order_two():
    midpoint = extension("midpoint")["midpoint"]

    def error(steps):
        z = midpoint(lambda z, t: z * t[0], jnp.ones((1, 1, 1)), steps)
        return abs(float(z.squeeze()) - np.exp(END**2 / 2))

    assert 3 < error(4) / error(8) < 5


def test_the_source_to_add_reads_records():
    rows = extension("Rows")["Rows"]([(made.jpeg(), "a fox"), (made.jpeg(), "")])
    assert rows[0].captions == ("a fox",)
    with pytest.raises(BadRecord, match="missing_caption"):
        rows[1]


def test_the_metric_to_add_measures(flowtok):
    make = extension("Brightness")["Brightness"]
    part = make(flowtok, ["a red circle"] * 3, seed=0, protocol={})
    arrays = part.compute(range(3))
    assert 0 < part.measure(arrays).metrics["brightness"] < 1
    side = flowtok.nets.tokenizer.image_size
    assert part.picture(arrays).shape == (side, 3 * side, 3)


def test_the_commands_of_the_readme_draw_and_describe(desk, cli):
    lines = [x for x in shell_lines(ROOT / "README.md") if "--checkpoint=" in x]
    assert len(lines) == 2
    for line in lines:
        arguments = shlex.split(line.replace("runs/demo", str(desk / "runs/demo")))
        outcome = cli(*arguments[1:])
        assert outcome.status == 0, outcome.stderr
    names = {path.name for path in (desk / "runs/demo/samples/0001").glob("*.png")}
    assert {"0000_a_red_circle_at_the_top_left_seed0.png", "grid.png"} <= names
    assert "0000_a_red_circle_at_the_top_left_seed0.png" in outcome.stdout


def test_the_command_for_own_images_prepares_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        made.picture(seed=i).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"picture {i}")
    (tmp_path / "photos" / "2.txt").write_text("")
    page = ROOT / "docs" / "own_images.md"
    (line,) = (x for x in shell_lines(page) if "data.prepare" in x)
    with own_logging():
        assert prepare.main(shlex.split(line)[3:]) == 0
    stdout, stderr = capsys.readouterr()
    rejected = '"rejected": {"empty_caption": 1}'
    assert stdout.splitlines()[-1] == f'{{"records": 2, {rejected}}}'
    assert (tmp_path / "data/photos/manifest.json").is_file()
    # What the page shows of the table.
    shown, surveyed = blocks(page, "")
    for name in re.findall(r"^(\w[^\d\n]+?)(?:\s{2,}|$)", shown, re.MULTILINE):
        assert name in stderr
    # And of the lines that configs/own.py begins with.
    says = (ROOT / "flowtok_jax" / "modes" / "survey.py").read_text()
    names = filter(None, (line[:16].strip() for line in surveyed.splitlines()))
    assert all(f'"{name}"' in says for name in names)


@pytest.mark.skipif(
    not importlib.util.find_spec("mkdocstrings"), reason="needs the extra docs"
)
def test_the_site_builds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "flowtok_jax.pipeline.html").is_file()
