"""The page of examples/space: its two functions, and that it can be made."""

import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.run import ROOT

gradio = pytest.importorskip("gradio", reason="pip install -r requirements-space.txt")

from examples.space import app  # noqa: E402

FOLDER = ROOT / "examples" / "space"


@pytest.fixture(autouse=True)
def weights(demo, monkeypatch):
    """The tiny demo's weights in place of the emoji's, and nothing sent anywhere."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setattr(app, "WEIGHTS", str(demo.workdir))
    app.flowtok.cache_clear()
    yield
    app.flowtok.cache_clear()


def test_variations_come_with_seeds_that_draw_them_again():
    drawn = app.draw("a red circle", 3, True, 2, 5)
    assert [said for _, said in drawn] == ["seed 5", "seed 6", "seed 7"]
    assert {picture.size for picture, _ in drawn} == {(app.SIDE, app.SIDE)}
    ((again, _),) = app.draw("a red circle", 1, True, 2, 7)
    assert np.array_equal(np.asarray(again), np.asarray(drawn[2][0]))


def test_from_the_mean_there_is_one_picture():
    assert len(app.draw("a red circle", 4, False, 2, 0)) == 1


@pytest.mark.parametrize(
    ("prompt", "seed", "said"),
    [(" ", 0, "the prompt is empty"), ("a", -1, "seed is -1"), ("a", 2**32, "seed")],
)
def test_what_cannot_be_drawn_is_one_line_on_the_page(prompt, seed, said):
    with pytest.raises(gradio.Error, match=said):
        app.draw(prompt, 2, True, 2, seed)


def test_a_picture_is_named():
    assert isinstance(app.describe(Image.new("RGBA", (50, 40))), str)
    with pytest.raises(gradio.Error, match="no picture"):
        app.describe(None)


def test_the_page_offers_both_directions():
    # In a process of its own: gradio leaves event loops open, which fail a test here.
    code = """
from examples.space import app
made = app.make_page().get_config_file()["dependencies"]
print(sorted({each["api_name"] for each in made} & {"draw", "describe"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "['describe', 'draw']\n", done.stderr


def test_the_space_is_described_as_the_hub_reads_it():
    head = yaml.safe_load((FOLDER / "README.md").read_text().split("---\n")[1])
    assert head["sdk"] == "gradio"
    assert (FOLDER / head["app_file"]).is_file()
    wanted = (FOLDER / "requirements.txt").read_text()
    assert head["sdk_version"] in wanted
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"git+{project['urls']['Repository']}" in wanted
    (bounds,) = re.findall(r"^gradio(.*)$", wanted, re.MULTILINE)
    assert project["optional-dependencies"]["space"] == [f"gradio{bounds}"]
