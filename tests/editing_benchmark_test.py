"""benchmarks/editing.py on the tiny demo, and its judge of tones."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import editing
from flowtok_jax.runtime.errors import UserError


def test_ways_and_strengths_are_measured_and_shown(demo, tmp_path):
    place = [f"--checkpoint={demo.workdir}", f"--out={tmp_path / 'out'}"]
    few = ["--edits=4", "--solvers=euler,reversible", "--steps=2", "--strengths=1"]
    report = editing.run([*place, *few])
    assert report == json.loads((tmp_path / "out" / "editing.json").read_text())
    euler, reversible = report["ways"]
    assert (euler["solver"], euler["num_steps"], euler["strength"]) == ("euler", 2, 0.5)
    assert reversible["closed"] == 1.0
    assert reversible["loop_max"] < 1e-3
    assert report["untouched"]["asked"] == 0.0
    assert report["untouched"]["background"] == pytest.approx(1.0)
    with Image.open(tmp_path / "out" / "strength_1.png") as strip:
        assert strip.width > 3 * 128
    table = (tmp_path / "out" / "editing.md").read_text()
    assert len(table.splitlines()) == 4 + 2 + 2 + 1
    assert "| reversible | 2 | 0.5 |" in table


@pytest.fixture
def people(tmp_path):
    """Two people in five tones each, one tone of each held out, and a thing."""
    rng = np.random.default_rng(0)
    rows = {"train": [], "held_out": []}
    names = [f"{p} {t}" for p in ("cook", "nurse") for t in editing.TONES] + ["duck"]
    for i, name in enumerate(names):
        split = "held_out" if i in (0, 9) else "train"
        (tmp_path / split).mkdir(exist_ok=True)
        pixels = np.full((32, 32, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / split / f"{i}.png")
        rows[split].append({"file_name": f"{i}.png", "text": name})
    for split, listed in rows.items():
        lines = "\n".join(map(json.dumps, listed))
        (tmp_path / split / "metadata.jsonl").write_text(lines)
    return tmp_path


def test_a_changed_tone_is_read_by_the_nearest_picture(flowtok, people):
    images, before, after, judge = editing.tone_task(flowtok, people, 9)
    assert before == ["cook light skin tone", "nurse dark skin tone"]
    assert after == ["cook medium-light skin tone", "nurse medium-light skin tone"]
    assert judge(images) == {
        "nearest": 0.0,
        "among_five": judge(images)["among_five"],
        "tone": 0.0,
        "person": 1.0,
    }
    wanted = [Image.open(people / "train" / name) for name in ("1.png", "6.png")]
    drawn = np.stack([np.asarray(x, np.float32) / 255 for x in wanted])
    for image in wanted:
        image.close()
    assert set(judge(drawn).values()) == {1.0}


def test_what_is_no_folder_of_emoji_is_refused(flowtok, tmp_path):
    with pytest.raises(UserError, match=r"metadata.jsonl does not exist; expected a"):
        editing.tone_task(flowtok, tmp_path, 9)
