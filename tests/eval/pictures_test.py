import numpy as np
import pytest
from PIL import Image

from flowtok_jax.eval import pictures

BLUE = np.full((4, 4, 3), [0, 0, 255], np.uint8)
RED = np.full((4, 4, 3), [255, 0, 0], np.uint8)


def has(picture, colour):
    """Whether a pixel has exactly a colour, by its name or hex value."""
    rgb = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return bool((picture == rgb).all(-1).any())


def test_a_grid_has_its_images_where_they_belong():
    m, side = pictures.MARGIN, 20
    grid = pictures.grid([[BLUE, RED], [RED]], side=side)
    assert grid.shape == (m + 2 * (side + m), m + 2 * (side + m), 3)
    assert grid.dtype == np.uint8
    wanted = np.full_like(grid, 255)
    first, second = slice(m, m + side), slice(m + side + m, m + 2 * side + m)
    wanted[first, first], wanted[first, second], wanted[second, first] = (
        BLUE[0, 0],
        RED[0, 0],
        RED[0, 0],
    )
    np.testing.assert_array_equal(grid, wanted)


def test_captions_are_drawn_below_their_images_and_make_room():
    plain = pictures.grid([[BLUE]], side=64)
    short = pictures.grid([[BLUE]], [["hello"]], side=64)
    long = pictures.grid([[BLUE]], [["hello " * 6]], side=64)
    lines = [(x.shape[0] - plain.shape[0]) / pictures.LINE for x in (short, long)]
    assert lines[0] == 1 < lines[1]
    below = short[pictures.MARGIN + 64 :]
    assert below.min() < 100
    np.testing.assert_array_equal(
        short[: pictures.MARGIN + 64], plain[: -pictures.MARGIN]
    )
    empty = pictures.grid([[BLUE]], [[""]], side=64)
    np.testing.assert_array_equal(empty, plain)


@pytest.mark.parametrize("right", [True, False])
def test_captions_are_green_where_right_and_red_where_wrong(right):
    grid = pictures.grid([[BLUE]], [["MMMM"]], side=64, right=[[right]])
    assert has(grid, pictures.RIGHT) == right
    assert has(grid, pictures.WRONG) != right
    assert not has(grid, pictures.INK)


def test_labels_stand_to_the_left_and_the_footer_below():
    plain = pictures.grid([[BLUE], [RED]], side=32)
    labelled = pictures.grid([[BLUE], [RED]], side=32, labels=["one", "MMMMMM"])
    left = labelled.shape[1] - plain.shape[1]
    assert left > 30
    assert labelled.shape[0] == plain.shape[0]
    m = pictures.MARGIN
    assert has(labelled[m : m + 32, :left], pictures.INK)
    np.testing.assert_array_equal(labelled[:, left + m :], plain[:, m:])
    footed = pictures.grid([[BLUE], [RED]], side=32, footer="MMM")
    assert footed.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(footed[: plain.shape[0]], plain)
    assert has(footed[plain.shape[0] :], pictures.FAINT)


def test_small_images_grow_by_whole_pixels_and_big_ones_shrink_smoothly():
    checks = np.indices((8, 8)).sum(0)[..., None] % 2 * np.full(3, 255)
    checks = checks.astype(np.uint8)
    m = pictures.MARGIN
    grown = pictures.grid([[checks]], side=32)[m : m + 32, m : m + 32]
    np.testing.assert_array_equal(grown, checks.repeat(4, 0).repeat(4, 1))
    shrunk = pictures.grid([[checks]], side=2)[m : m + 2, m : m + 2]
    assert 100 < shrunk.min() <= shrunk.max() < 155


@pytest.mark.parametrize(
    ("size", "side", "columns"),
    [(4, 128, 9), (96, 96, 9), (256, 256, 8), (512, 512, 4)],
)
def test_copies_stand_below_their_images_in_whole_pixels(size, side, columns):
    rng = np.random.default_rng(0)
    images, copies = rng.integers(0, 256, (2, 9, size, size, 3), np.uint8)
    found = pictures.pairs(images, copies)
    m = pictures.MARGIN
    assert found.shape[0] == 2 * (side + m) + m
    left = found.shape[1] - columns * (side + m)
    assert left > 2 * m  # the labels
    for row, tiles in enumerate((images, copies)):
        for column in range(columns):
            top = m + row * (side + m)
            x = left + column * (side + m)
            tile = found[top : top + side, x : x + side]
            grown = tiles[column].repeat(side // size, 0).repeat(side // size, 1)
            np.testing.assert_array_equal(tile, grown)


def test_a_png_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "image.png"
    pictures.save_png(path, BLUE)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), BLUE)
    with pytest.raises(TypeError):
        pictures.save_png(path, BLUE.astype(np.complex64))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), BLUE)


def test_a_png_is_never_half_there_under_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "image.png", []
    save = Image.Image.save

    def watched(image, file, **options):
        save(image, file, **options)
        seen.append(path.exists())

    monkeypatch.setattr(Image.Image, "save", watched)
    pictures.save_png(path, BLUE)
    assert seen == [False]
    assert [p.name for p in tmp_path.iterdir()] == ["image.png"]


def test_real_images_stand_above_those_drawn_from_their_captions():
    real, drawn = (np.full((3, 8, 8, 3), value, np.uint8) for value in (40, 200))
    picture = pictures.compared(real, drawn, ["a", "b", "c"], columns=2)
    middle = picture.shape[1] - pictures.MARGIN - pictures.SIDE // 2
    column = picture[:, middle - pictures.SIDE - pictures.MARGIN, 0]
    changes = column[np.flatnonzero(np.diff(column.astype(int))) + 1]
    images = [int(value) for value in changes if value in (40, 200)]
    assert images == [40, 200, 40, 200]
    # The last pair of rows is shorter.
    assert (picture[-pictures.SIDE :, middle] == 255).all()
