"""The weights that ship: they draw, copy and say what they did when they were made.

    python -m tests.weights.emoji_test

draws the images anew that are compared, for weights that were trained again.
"""

import io
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from configs import emoji as emoji_config
from examples.emoji import prepare
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.eval.retrieval import averaged, count_nearer
from flowtok_jax.models.build import make_nets
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import paths

DRAWN = pathlib.Path(__file__).parent / "emoji_drawn.png"  # side by side
# What is drawn -> what is said of the picture.
SAID = {
    "duck": "duck",
    "pizza": "pizza",
    "octopus": "octopus",
    "ghost": "ghost",
    "crescent moon": "crescent moon",
    "woman farmer dark skin tone": "woman farmer dark skin tone",
    "thumbs up medium skin tone": "thumbs up medium skin tone",
}
HELD_OUT = 48  # real emoji that training never saw
LARGEST = 33 * 10**6  # bytes of all files


@pytest.fixture(scope="module")
def emoji():
    return FlowTok.from_pretrained("emoji")


def draw(emoji) -> np.ndarray:
    return to_uint8(emoji.text_to_image(list(SAID)))


def test_the_weights_are_small_enough_to_ship():
    folder = paths.find_shipped("emoji")
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text()


def test_the_config_that_made_them_makes_their_networks(emoji):
    assert make_nets(emoji_config.get_config()) == emoji.nets


def test_they_draw_what_they_drew(emoji):
    kept = np.split(np.asarray(Image.open(DRAWN)), len(SAID), axis=1)
    errors = np.abs(draw(emoji).astype(int) - np.stack(kept)).mean((1, 2, 3))
    assert errors.max() < 1, errors  # of 255; another machine rounds otherwise


def test_they_say_what_they_said(emoji):
    kept = np.split(np.asarray(Image.open(DRAWN)), len(SAID), axis=1)
    assert emoji.image_to_text(kept) == list(SAID.values())


@pytest.fixture(scope="module")
def held_out():
    """Some emoji that training never saw: pictures and first captions."""
    found = [e for e in prepare.find_emoji() if prepare.is_held_out(e.base, e.tones)]
    some = found[:: len(found) // HELD_OUT][:HELD_OUT]
    images = [prepare.draw(prepare.DRAWINGS / f"{e.code}.svg", 64) for e in some]
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for data in images]
    return np.stack(decoded), [each.captions[0] for each in some]


def test_the_tokenizer_copies_what_training_never_saw(emoji, held_out):
    images, captions = held_out
    copies = emoji.decode_image(emoji.encode_image(images).mean, captions)
    errors = np.square(copies - images / 255).mean((1, 2, 3))
    assert (-10 * np.log10(errors)).mean() > 29


def test_names_that_training_never_saw_are_drawn_and_found(emoji, held_out):
    images, captions = held_out
    drawn = averaged(to_uint8(emoji.text_to_image(captions)), 16)
    nearer = count_nearer(drawn, averaged(images, 16), np.arange(len(images)))
    assert (nearer == 0).mean() > 0.8


def test_pictures_that_training_never_saw_are_named(emoji, held_out):
    images, captions = held_out
    said = emoji.image_to_text(images)
    words = [
        len({*a.split()} & {*b.split()}) for a, b in zip(said, captions, strict=True)
    ]
    assert np.sum(words) > 0.6 * sum(len({*c.split()}) for c in captions)


if __name__ == "__main__":
    weights = FlowTok.from_pretrained("emoji")
    row = np.concatenate(list(draw(weights)), axis=1)
    Image.fromarray(row).save(DRAWN)
    images = np.split(row, len(SAID), axis=1)
    sys.stdout.write(f"{DRAWN}: {weights.image_to_text(images)}\n")
