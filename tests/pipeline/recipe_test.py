"""Pictures that say how they were drawn, and are drawn again bit for bit."""

import io
import json
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flowtok_jax import __version__
from flowtok_jax.pipeline import recipe as recipes
from flowtok_jax.pipeline.recipe import KEYWORD, parse_recipe, read_recipe
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.place import open_weights
from tests import tiny
from tests.data import made
from tests.pipeline.flowtok_test import PROMPTS, copy


@pytest.fixture(scope="module")
def flowtok(flowtok):
    params = dict(flowtok.params)
    dit = tiny.random_like(params["t2i"]["dit"])
    params["t2i"] = params["t2i"] | {"dit": dit}
    return copy(flowtok, params, place="runs/demo")


@pytest.fixture(scope="module")
def text(flowtok):
    (drawn,) = flowtok.draw(PROMPTS[:1])
    return drawn.info[KEYWORD]


def png_bytes(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 3, "first_row": 7}, {"num_images": 2, "scale": 3.0, "seed": 5}],
    ids=str,
)
def test_a_picture_drawn_within_a_batch_is_drawn_again_bit_for_bit(
    flowtok, tmp_path, caplog, options
):
    drawn = flowtok.draw(PROMPTS, **options)
    for i in (0, 4, len(drawn) - 1):
        drawn[i].save(tmp_path / "a.png")
        again = flowtok.redraw(tmp_path / "a.png")
        again.save(tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "bit for bit" not in caplog.text
    other = flowtok.redraw(drawn[1])
    assert png_bytes(other) == png_bytes(drawn[1]) != png_bytes(drawn[0])


def test_a_recipe_has_all_that_a_picture_depends_on(flowtok, tmp_path):
    options = {"solver": "heun", "source": "mean", "num_steps": 3, "times": "left"}
    drawn = flowtok.draw(PROMPTS[:5], 8, 10, batch_size=4, scale=1.5, **options)
    drawn[4].save(tmp_path / "a.png")
    found = read_recipe(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert found == read_recipe(opened)
    assert found.prompt == PROMPTS[4]
    assert (found.seed, found.row, found.slot, found.rows) == (8, 14, 0, 4)
    assert found.options == options | {"scale": 1.5}
    assert found.dtype == "float32"
    assert found.weights == {
        group: params_sha256(flowtok.params[group])
        for group in ("clip", "t2i", "tokenizer")
    }
    assert (found.place, found.package) == ("runs/demo", __version__)
    assert found.pixels == recipes.pixels_sha256(np.asarray(drawn[4]))


def test_weights_are_named_by_their_place(demo):
    from flowtok_jax.pipeline import FlowTok  # noqa: PLC0415 - as a user has it

    (drawn,) = FlowTok.from_pretrained(demo.workdir).draw(PROMPTS[:1])
    assert read_recipe(drawn).place == str(demo.workdir)
    assert open_weights("emoji").name == "emoji"


def test_a_changed_picture_or_another_format_says_nothing(flowtok, tmp_path):
    (drawn,) = flowtok.draw(PROMPTS[:1])
    drawn.save(tmp_path / "whole.png", pnginfo=PngImagePlugin.PngInfo())
    drawn.save(tmp_path / "a.jpg")
    drawn.resize((8, 8)).save(tmp_path / "small.png")
    drawn.putpixel((0, 0), (1, 2, 3))
    drawn.save(tmp_path / "changed.png")
    for name in ("whole.png", "small.png", "changed.png"):
        with pytest.raises(UserError, match="does not say how it was drawn"):
            flowtok.redraw(tmp_path / name)
    with pytest.raises(UserError, match=r"a.jpg cannot be read \(it is no PNG\)"):
        flowtok.redraw(tmp_path / "a.jpg")


def test_a_recipe_too_long_for_a_chunk_is_left_out(flowtok, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "MOST_BYTES", 100)
    (drawn,) = flowtok.draw(PROMPTS[:1])
    assert drawn.text == {}


def test_other_weights_or_another_dtype_are_refused(flowtok):
    (drawn,) = flowtok.draw(PROMPTS[:1])
    params = dict(flowtok.params)
    params["tokenizer"] = tiny.random_like(params["tokenizer"])
    message = "drawn by other weights, of tokenizer in here; expected .* in runs/demo$"
    with pytest.raises(UserError, match=message):
        copy(flowtok, params, place="here").redraw(drawn)
    nets = flowtok.nets._replace(dit=flowtok.nets.dit.clone(dtype="bfloat16"))
    other = copy(flowtok)
    other.nets = nets
    with pytest.raises(UserError, match="in float32, these networks compute in bfl"):
        other.redraw(drawn)


def test_what_rounds_otherwise_is_warned_of_in_one_line(flowtok, text, caplog):
    image = Image.new("RGB", (32, 32))
    stored = json.loads(text)
    image.info[KEYWORD] = json.dumps(stored | {"pixels": "0" * 64, "jax": "0.1"})
    with caplog.at_level(logging.WARNING):
        flowtok.redraw(image)
    (line,) = [m for m in caplog.messages if "bit for bit" in m]
    assert "jax 0.1 on cpu, this is" in line


CHANGES = {
    "version": 2,
    "prompt": 3,
    "seed": -1,
    "row": 1.0,
    "slot": 9,
    "rows": 10**9,
    "options": {"num_steps": 2},
    "weights": {"t2i": 1},
    "dtype": None,
    "place": ["a"],
    "pixels": True,
    "new": 1,
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_recipe_of_wrong_types_or_values_is_refused(text, key):
    parse_recipe(text)
    with pytest.raises(ValueError, match=r"^its |^it lacks"):
        parse_recipe(json.dumps(json.loads(text) | {key: CHANGES[key]}))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_steps", 0),
        ("num_steps", True),
        ("num_steps", "2"),
        ("scale", 1e999),
        ("scale", "2"),
        ("scale", True),
        ("source", "noise"),
        ("source", ["mean"]),
        ("solver", {}),
    ],
)
def test_options_of_a_recipe_that_cannot_be_are_refused(text, option, value):
    stored = json.loads(text)
    stored["options"][option] = value
    with pytest.raises(ValueError, match=option):
        parse_recipe(json.dumps(stored))


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "[1]",
        "null",
        "{}",
        "9" * 5000,
        '{"version": 1}',
        '{"version": 1e999}',
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_a_chunk_that_is_no_recipe_is_refused_in_one_line(flowtok, broken):
    image = Image.new("RGB", (8, 8))
    image.info[KEYWORD] = broken
    with pytest.raises(UserError, match="in a broken text.*expected") as error:
        flowtok.redraw(image)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_broken_files_are_refused_in_one_line(flowtok, tmp_path):
    (drawn,) = flowtok.draw(PROMPTS[:1])
    whole = png_bytes(drawn)
    place = whole.index(b"tEXt") - 4
    (length,) = struct.unpack_from(">I", whole, place)
    end = place + 12 + length
    text = f"{KEYWORD}\0".encode()
    files = {
        "ends early": whole[: place + 40],
        "checksum": whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:],
        "more than": whole[:place]
        + made.chunk(b"tEXt", text + b"x" * (recipes.MOST_BYTES + 1))
        + whole[end:],
        "it is no PNG": b"GIF89a",
        "ends early)": whole[:place] + struct.pack(">I", 2**31) + whole[place + 4 :],
        "broken text": whole[:place]
        + made.chunk(b"tEXt", text + b'{"version": 1')
        + whole[end:],
        "does not say": whole[:place]
        + made.chunk(b"zTXt", text + b"\0" + zlib.compress(b"{}"))
        + whole[end:],
    }
    for reason, content in files.items():
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=reason.replace(")", r"\)")) as error:
            flowtok.redraw(tmp_path / "a.png")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        flowtok.redraw(tmp_path / "absent.png")
