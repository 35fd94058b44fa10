"""The notebooks: what is stored of them, their first cell, and that they run."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import pytest

from tests.packaging_test import PROJECT
from tests.run import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")
pytest.importorskip("nbclient", reason="needs the extra notebooks")
inputs = pytest.importorskip("IPython.core.inputtransformer2")

from notebooks import execute  # noqa: E402

FOLDER = ROOT / "notebooks"
MACHINE_PATHS = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt|var)/")
BYTES = 500_000


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def as_python(source: str) -> str:
    """A cell without the magic of notebooks."""
    return inputs.TransformerManager().transform_cell(source)


def texts(output) -> list[str]:
    """What an output says in words; pictures are left out."""
    if output.output_type == "stream":
        return [output.text]
    data = output.get("data", {})
    return [str(text) for kind, text in data.items() if kind.startswith("text/")]


def test_all_notebooks_are_executed():
    found = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert found == set(execute.NAMES)


@pytest.mark.parametrize("name", execute.NAMES)
def test_a_notebook_is_stored_with_recent_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(name)
    for cell in cells:
        ast.parse(as_python(cell.source))
    # One after the other, from an empty kernel.
    numbers = [cell.execution_count for cell in cells]
    assert numbers == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    said = "\n".join(text for output in outputs for text in texts(output))
    assert not MACHINE_PATHS.search(said)
    stored = notebook.metadata[execute.KEY]
    assert stored["cells_sha256"] == execute.digest(notebook), (
        f"the outputs are of other cells: python notebooks/execute.py {name}"
    )
    assert (FOLDER / f"{name}.ipynb").stat().st_size < BYTES


@pytest.mark.parametrize("name", execute.NAMES)
def test_a_notebook_is_opened_and_installed_from_the_repository(name):
    address = PROJECT["urls"]["Repository"]
    owner = address.removeprefix("https://github.com/")
    first, *_ = read(name).cells
    opened = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/"
    assert f"({opened}{name}.ipynb)" in first.source
    setup = code_cells(name)[0].source
    assert f"git+{address}" in setup
    # One cell, the same in all of them, and at the end what a notebook adds.
    assert setup.startswith(code_cells("quickstart")[0].source)


def test_outputs_of_other_cells_are_noticed_and_another_owner_is_not():
    notebook = read("quickstart")
    before = execute.digest(notebook)
    notebook.cells[1].outputs = []
    for cell in notebook.cells:
        cell.source = cell.source.replace("THE_OWNER", "some-body")
    assert execute.digest(notebook) == before
    notebook.cells[1].source += " "
    assert execute.digest(notebook) != before


def test_outputs_are_stored_as_a_terminal_shows_them():
    output = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell("draw()")
    cell.metadata.execution = {"iopub.status.busy": "2026-01-01"}
    cell.outputs = [
        output("stream", name="stderr", text="\r  0%"),
        output("stream", name="stderr", text="\r100%\ndone\r\n"),
        output("stream", name="stdout", text="one\n"),
        output("display_data", data={"image/png": "a", "image/jpeg": "b"}),
    ]
    execute.tidy(nbformat.v4.new_notebook(cells=[cell]))
    bar, one, picture = cell.outputs
    assert bar.text == "100%\ndone\n"
    assert one.text == "one\n"
    assert list(picture.data) == ["image/png"]
    assert not cell.metadata


class Machine:
    """A machine that the first cell finds, and what the cell installs and says."""

    def __init__(self, monkeypatch, capsys, *, backend, modules=(), env=(), gpu=False):
        self.installed = []
        self._capsys = capsys
        device = types.SimpleNamespace(device_kind="a chip")
        jax = types.SimpleNamespace(
            __version__="0.7.2",
            default_backend=lambda: backend,
            device_count=lambda: 1,
            devices=lambda: [device],
        )
        monkeypatch.setitem(sys.modules, "jax", jax)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: name in modules or None
        )
        monkeypatch.setattr("shutil.which", lambda name: "there" if gpu else None)
        found = ["/dev/accel0"] if backend == "tpu" else []
        monkeypatch.setattr("glob.glob", lambda pattern: found)
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
        for name in env:
            monkeypatch.setenv(name, "1")

    def run_line_magic(self, name, line):
        # As IPython does, which looks for values in the cell's names.
        self.installed.append((name, line.format(**self.names)))

    def run_first_cell(self) -> str:
        source = as_python(code_cells("quickstart")[0].source)
        self.names = {"get_ipython": lambda: self}
        exec(compile(source, "cell", "exec"), self.names)
        assert self.names["small"] is ("FLOWTOK_NOTEBOOK_SMALL" in os.environ)
        return self._capsys.readouterr().out


@pytest.fixture
def machine(monkeypatch, capsys):
    return lambda **facts: Machine(monkeypatch, capsys, **facts)


def test_colab_keeps_its_own_jax(machine):
    colab = machine(backend="gpu", modules=["jax"], env=["COLAB_RELEASE_TAG"], gpu=True)
    assert colab.run_first_cell().startswith("Colab: 1 x a chip, jax 0.7.2")
    ((magic, line),) = colab.installed
    assert magic == "pip"
    assert '"flowtok_jax[emoji] @ git+https' in line


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_at_home_jax_comes_for_what_the_machine_has(machine, backend):
    home = machine(backend=backend, gpu=backend == "gpu")
    assert home.run_first_cell().startswith("home: ")
    ((_, line),) = home.installed
    extras = {"cpu": "[emoji]", "gpu": "[emoji,gpu]", "tpu": "[emoji,tpu]"}
    assert f"flowtok_jax{extras[backend]}" in line


def test_what_is_installed_is_left_and_an_idle_gpu_is_said(machine):
    idle = machine(backend="cpu", modules=["jax", "flowtok_jax"], gpu=True)
    said = idle.run_first_cell()
    assert idle.installed == []
    assert "pip install 'jax[cuda12]==0.7.2'" in said
    assert "restart" in said
    busy = machine(backend="gpu", modules=["jax", "flowtok_jax"], gpu=True)
    assert "restart" not in busy.run_first_cell()


@pytest.mark.slow
@pytest.mark.parametrize("name", execute.NAMES)
def test_a_notebook_runs_small(name, tmp_path):
    command = [sys.executable, "notebooks/execute.py", name, f"--out={tmp_path}"]
    environ = os.environ | {"FLOWTOK_NOTEBOOK_SMALL": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = json.loads((tmp_path / f"{name}.ipynb").read_text())
    assert made["metadata"][execute.KEY]["cells_sha256"] == execute.digest(read(name))
