"""--mode=edit, and --from-image of --mode=sample, by the command line."""

import json

import numpy as np
import pytest
from PIL import Image

PROMPT = "a red circle at the top left"
OTHER = "a blue square at the top right"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("flags", "columns", "measure"),
    [
        (["--edit=edit", f"--after={OTHER}", "--strength=0.7"], 3, "closed loop"),
        (["--edit=vary", f"--before={PROMPT}", "--num_images=2"], 3, "change"),
        (["--edit=invert", f"--before={PROMPT}", "--solver=heun"], 2, "closed loop"),
        (["--edit=round_trip"], 2, "change"),
    ],
)
def test_each_kind_writes_a_strip_pictures_and_numbers(
    demo, cli, tmp_path, picture, flags, columns, measure
):
    place = [f"--checkpoint={demo.workdir}", f"--workdir={tmp_path}"]
    run = ["--mode=edit", *place, f"--images={picture}", "--num-steps=2", *flags]
    outcome = cli(*run)
    assert outcome.status == 0, outcome.stderr
    check(tmp_path / "edits" / "0001", outcome, columns, measure)


@pytest.mark.parametrize(
    ("flags", "columns", "measure"),
    [
        (["--edit=interpolate", f"--prompts={PROMPT};{OTHER}"], 7, "evenness"),
        (["--edit=combine", f"--prompt={PROMPT} - {OTHER} + {PROMPT}"], 5, "from the"),
    ],
)
def test_kinds_of_prompts_need_no_images(demo, cli, tmp_path, flags, columns, measure):
    place = [f"--checkpoint={demo.workdir}", f"--workdir={tmp_path}"]
    outcome = cli("--mode=edit", *place, *flags)
    assert outcome.status == 0, outcome.stderr
    check(tmp_path / "edits" / "0001", outcome, columns, measure)


def check(folder, outcome, columns, measure):
    names = sorted(path.name for path in folder.iterdir())
    pictures = [f"0000_{k:02d}.png" for k in range(columns)]
    assert names == [*pictures, "edit.json", "strip.png"]
    assert outcome.stdout.splitlines()[0] == str(folder / "strip.png")
    numbers = json.loads((folder / "edit.json").read_text())
    assert numbers["measure"].startswith(measure)
    assert len(numbers["values"]) == 1
    assert len(numbers["captions"][0]) == columns
    with Image.open(folder / "strip.png") as strip:
        assert strip.width > columns * 128


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edit=edit"], "no caption to edit to; expected --after="),
        (["--edit=edit", "--after=b"], "--edit=edit has no images; expected --images="),
        (["--edit=combine"], "no prompts; expected"),
        (["--edit=combine", "--prompts=a;b"], "takes one sum; got 2 prompts"),
        (["--edit=combine", "--prompt=a"], "is no sum of captions"),
        (["--edit=interpolate", "--prompt=a"], "one prompt or image; expected two"),
        (["--edit=interpolate", "--columns=1"], "--columns=1; expected at least 2"),
        (["--edit=melt"], "melt"),
    ],
)
def test_what_lacks_is_said_in_one_line(demo, cli, tmp_path, flags, message):
    place = [f"--checkpoint={demo.workdir}", f"--workdir={tmp_path}"]
    outcome = cli("--mode=edit", *place, *flags)
    assert outcome.status == 2
    assert message in outcome.complaint


def test_pictures_are_drawn_again_from_their_files(demo, cli, tmp_path):
    place = [f"--checkpoint={demo.workdir}", f"--workdir={tmp_path}"]
    run = ["--mode=sample", *place]
    assert cli(*run, f"--prompts={PROMPT};{OTHER};c", "--num-images=2").status == 0
    first = sorted((tmp_path / "samples" / "0001").glob("0*.png"))
    outcome = cli(*run, *(f"--from-image={path}" for path in first[2:4]))
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count("bit for bit") == 0
    second = sorted((tmp_path / "samples" / "0002").glob("*.png"))
    assert len(second) == 2
    for one, other in zip(first[2:4], second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    grid = tmp_path / "samples" / "0001" / "grid.png"
    outcome = cli(*run, f"--from_image={grid}")
    assert outcome.status == 2
    assert "grid.png does not say how it was drawn" in outcome.complaint
    outcome = cli(*run, f"--from-image={first[0]}", "--prompt=a")
    assert outcome.status == 2
    assert "--from-image and prompts are both given" in outcome.complaint
