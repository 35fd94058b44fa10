"""Prompts and images as people hand them over: read as meant, or named in one line."""

import enum
import pathlib

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.data.inputs import check_prompts, load_images, to_uint8
from flowtok_jax.runtime.errors import UserError

SIDE = 8


class Column:
    """A column as of pandas: it has a dimension, and knows no negative index."""

    ndim = 1

    def __iter__(self):
        return iter(["a", "b"])


class Table(Column):
    """A table as of pandas, which iterates over the names of its columns."""

    ndim = 2


class Pet(str, enum.Enum):  # noqa: UP042 - str() of a StrEnum is its value
    CAT = "a"
    DOG = "b"


class Unreadable:
    """A tensor on another device: no array can be made of it."""

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 to numpy.\nUse Tensor.cpu() first")


@pytest.mark.parametrize(
    "prompts",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        np.array(["a", "b"], object),
        (letter for letter in "ab"),
        {"a": 1, "b": 2}.keys(),
        Column(),
        list(Pet),
    ],
    ids=lambda value: type(value).__name__,
)
def test_strings_of_any_container_are_a_list_of_plain_strings(prompts):
    found = check_prompts(prompts)
    assert found == ["a", "b"]
    assert {type(prompt) for prompt in found} == {str}


def test_odd_but_whole_prompts_are_taken_as_they_are():
    odd = ["", " ", "猫", "a\0b", "caf\u00e9", "😀", "a\nb", "&amp;", "x" * 100_000]
    assert check_prompts(odd) == odd


def test_the_halves_of_a_pair_become_one_character():
    assert check_prompts(["\ud83d\udc4d up", "\ufeffa"]) == ["👍 up", "\ufeffa"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a red circle", r"^prompts are 'a red circle' \(str\); expected a list"),
        (b"a", r"^prompts are b'a' \(bytes\)"),
        (None, r"^prompts are None \(NoneType\)"),
        (7, r"^prompts are 7 \(int\)"),
        (pathlib.Path("a.txt"), r"^prompts are PosixPath\('a.txt'\)"),
        ({"prompt": "a"}, r"^prompts are {'prompt': 'a'} \(dict\)"),
        ({"a"}, r"^prompts are .* \(set\)"),
        (np.array("a"), r"^prompts are array\('a'.*\(ndarray\)"),
        (np.array([["a"]]), r"^prompts are array\(\[\['a'\]\].*\(ndarray\)"),
        (Table(), r"^prompts are .*\(Table\)"),
        ([], "^no prompts; expected at least one"),
        (iter(()), "^no prompts; expected at least one"),
        (["a", None], r"^prompts\[1\] is None \(NoneType\); expected a string"),
        ([float("nan")], r"^prompts\[0\] is nan \(float\)"),
        ([b"a"], r"^prompts\[0\] is b'a' \(bytes\)"),
        ([["a"]], r"^prompts\[0\] is \['a'\] \(list\)"),
        ([{"text": "a"}], r"^prompts\[0\] is {'text': 'a'} \(dict\)"),
        (np.array([b"a"]), r"^prompts\[0\] is np.bytes_\(b'a'\)"),
        (["a", "caf\ud83d"], r"^prompts\[1\] is 'caf\\ud83d', which has half"),
        (["\udce9" * 999], r"^prompts\[0\] is '\\udce9"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_list_of_strings_is_refused_in_one_line(prompts, message):
    with pytest.raises(UserError, match=message) as error:
        check_prompts(prompts)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_floats_of_any_width_and_library_become_float32():
    import jax.numpy as jnp

    square = np.linspace(0, 1, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3)
    for images in (
        square[None],
        [square],
        [square.tolist()],
        square[None].astype(np.float16),
        jnp.asarray(square[None], jnp.bfloat16),
    ):
        found = load_images(images, SIDE)
        assert (found.shape, found.dtype) == ((1, SIDE, SIDE, 3), np.float32)
        np.testing.assert_allclose(found[0], square, atol=0.004)


def test_paths_and_images_of_pillow_are_read_as_captioning_reads_files(tmp_path):
    rng = np.random.default_rng(0)
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4)):
        values = rng.integers(0, 256, (12, 20, channels), np.uint8)
        made = Image.fromarray(values.squeeze(), mode)
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: the image lies on its side
        made.save(tmp_path / f"{mode}.png", exif=exif)
    paths = sorted(tmp_path.iterdir())
    wanted = np.stack([CentreReader(SIDE)(file_record(path)) for path in paths])
    opened = [Image.open(path) for path in paths]
    for images in (paths, [str(path) for path in paths], opened, tuple(opened)):
        found = load_images(images, SIDE)
        np.testing.assert_array_equal(found, wanted.astype(np.float32) / 255)


def test_one_image_of_any_kind_needs_no_list_and_kinds_mix(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), picture, pixels, pixels / 255]
    wanted = CentreReader(SIDE)(file_record(kinds[0])).astype(np.float32) / 255
    for kind in kinds:
        np.testing.assert_array_equal(load_images(kind, SIDE), wanted[None])
    for several in (kinds, tuple(kinds), (kind for kind in kinds)):
        np.testing.assert_array_equal(load_images(several, SIDE), [wanted] * 5)
    batch = np.stack([pixels] * 3)
    np.testing.assert_array_equal(load_images(batch, SIDE), [wanted] * 3)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_may_be_grey_or_transparent(kind):
    grey = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    whole = 1 if kind is np.float32 else 255
    values = (grey / 255).astype(kind) if whole == 1 else grey
    wanted = np.repeat(grey[..., None], 3, -1).astype(np.float32) / 255
    clear = np.stack([values] * 3 + [np.full_like(values, whole)], -1)
    for image in (values, values[..., None], clear):
        np.testing.assert_array_equal(load_images(image, SIDE), wanted[None])
    clear[..., 3] = 0
    assert (load_images(clear, SIDE) == 1).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, r"^images are None \(NoneType\); expected paths, images of Pillow"),
        ("a.png", r"^images\[0\] is 'a.png' \(str\), .*unreadable_file"),
        (b"GIF89a", r"^images are b'GIF89a' \(bytes\)"),
        (pathlib.Path("/"), r"is a directory; .*list\(pathlib.Path\('/'\).glob"),
        (["nowhere.png"], r"^images\[0\] is 'nowhere.png' \(str\), .*unreadable_file"),
        (["a\0.png"], r"^images\[0\] is .*, which cannot be read: "),
        ([Image.new("F", (9, 9))], r"^images\[0\] is .* unsupported_image"),
        (["a.png", None], r"^images are \['a.png', None\] \(list\)"),
        ([], "^no images; expected"),
        (np.zeros((0, SIDE, SIDE, 3)), "^no images; expected"),
        ([[1.0], [1.0, 2.0]], r"^images are \[\[1.0\], \[1.0, 2.0\]\] \(list\)"),
        ([[[1.0], [1.0, 2.0]]], r"^images are of type list and make no array"),
        (Unreadable(), r"of type Unreadable .*\(can't convert cuda:0 to numpy.\);"),
        (np.array(["a.png"]), r"^images are array\(\['a.png'\]"),
        (np.zeros((3, SIDE, SIDE)), r"give np.moveaxis\(image, 0, -1\)$"),
        (np.zeros((2, 3, SIDE, SIDE)), r"^images\[0\].*np.moveaxis\(image, 0, -1\)$"),
        (np.zeros((2, SIDE, SIDE)), r"its shape is \(2, 8, 8\); expected \(h, w, 3\)$"),
        (np.zeros((1, SIDE, SIDE, 2)), r"its shape is \(8, 8, 2\); expected"),
        (np.zeros((1, 0, SIDE, 3)), r"its shape is \(0, 8, 3\); expected"),
        (np.zeros((1, SIDE, SIDE, 3), int), "it is int64; expected uint8, or floats"),
        (np.zeros((1, SIDE, SIDE, 3), bool), "it is bool; expected uint8"),
        (np.zeros((1, SIDE, SIDE, 3), complex), "it is complex128"),
        (np.full((1, SIDE, SIDE, 3), np.nan), "its values go from nan to nan"),
        (np.full((1, SIDE, SIDE, 3), np.inf), "its values go from inf to inf"),
        (np.full((9, 9, 3), 255.0), r"from 255 to 255; .* in \[0, 1\], or uint8$"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_are_no_images_are_refused_in_one_line(images, message):
    with pytest.raises(UserError, match=message) as error:
        load_images(images, SIDE)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_floats_are_clamped_and_rounded_to_bytes():
    values = np.array([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 7.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]
    assert to_uint8(values).dtype == np.uint8
