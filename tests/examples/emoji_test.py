"""The emoji that examples/emoji/prepare.py writes."""

import collections
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from examples.emoji import prepare, robot
from flowtok_jax.data.sources import make_source
from flowtok_jax.weights.place import open_weights

SCRIPT = "examples/emoji/prepare.py"


@pytest.fixture(scope="module")
def found():
    return list(prepare.find_emoji())


def caption_sets(found):
    return {each.code: each.captions for each in found}


def test_every_drawing_with_a_name_is_found_once(found):
    codes = [each.code for each in found]
    assert len(codes) == len(set(codes)) >= 3953


def test_names_become_captions(found):
    captions = caption_sets(found)
    assert captions["1F986"] == ("duck",)
    assert captions["1F44D"] == ("thumbs up", "thumbsup")  # "+1" names nothing
    assert captions["1F44B-1F3FC"] == (
        "waving hand medium-light skin tone",
        "medium-light skin tone waving hand",
    )
    assert not [c for texts in captions.values() for c in texts if c != c.strip()]


def test_one_tone_of_every_five_is_held_out(found):
    tones = collections.defaultdict(dict)
    for each in found:
        held_out = prepare.is_held_out(each.base, each.tones)
        tones[each.base][each.tones] = held_out
    single = [list(of.values()) for of in tones.values() if {len(t) for t in of} == {1}]
    assert len(single) >= 324
    assert all(len(each) == 5 and sum(each) == 1 for each in single)
    pairs = [out for of in tones.values() for tone, out in of.items() if len(tone) == 2]
    assert 0.1 < np.mean(pairs) < 0.2
    # Nothing without a tone is held out: its like would not be in training.
    assert not any(of.get("", False) for of in tones.values())


def test_words_of_what_is_held_out_are_in_training(found):
    words = {False: set(), True: set()}
    for each in found:
        kind = words[prepare.is_held_out(each.base, each.tones)]
        kind.update(word for text in each.captions for word in text.split())
    assert words[True] <= words[False]


def test_a_drawing_is_on_white_and_has_its_size():
    data = prepare.draw(prepare.DRAWINGS / "1F986.svg", 48)
    image = Image.open(io.BytesIO(data))
    pixels = np.asarray(image)
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 48))
    assert (pixels[0] == 255).all()
    assert pixels.std() > 20


def test_a_split_is_read_as_it_was_written(found, tmp_path):
    some = [each for each in found if each.code in ("1F986", "1F44D", "1F44B-1F3FC")]
    prepare.write_split(tmp_path / "train", some, 32)
    source = make_source(f"folder:{tmp_path}/train", image_size=32, seed=0)
    assert len(source) == 3
    texts = {caption for each in some for caption in each.captions}
    assert {source[i]["caption"] for i in range(3)} <= texts
    rows = (tmp_path / "train/metadata.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(row)["text"] for row in rows} == {e.captions[0] for e in some}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size=0"], "--size is 0; expected pixels, 8 to 1024"),
        ([], "is not empty"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, said):
    (tmp_path / "mine.txt").write_text("x")
    command = [sys.executable, SCRIPT, f"--out={tmp_path}", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_twenty_robots_are_written_in_words_that_the_weights_know(tmp_path):
    folder = tmp_path / "robot"
    assert robot.main(["--out", str(folder)]) == 0
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pictures = {(folder / row["file_name"]).read_bytes() for row in rows}
    assert len(pictures) == len(rows) == 20
    vocabulary = open_weights("emoji").vocabulary(16)
    (ids,) = vocabulary.encode([rows[0]["text"]])
    assert vocabulary.unknown_id not in ids
