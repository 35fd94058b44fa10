import random

import numpy as np
import pytest

from flowtok_jax.data.records import BadRecord, Record
from flowtok_jax.data.transforms import (
    Filters,
    ImageTransform,
    MomentsTransform,
    choose_caption,
    clean_recaption,
    possible_captions,
)
from flowtok_jax.runtime.errors import UserError
from tests.data import made


def record(width=40, height=30, **fields):
    fields = {"captions": ("a",), "image": made.jpeg(0, width, height)} | fields
    return Record("it", **fields)


def reason(transform, what):
    with pytest.raises(BadRecord) as found:
        transform(what, random.Random(0))
    return found.value.reason


def test_an_example_is_a_square_and_a_caption():
    example = ImageTransform(16)(record(), random.Random(0))
    assert example["image"].shape == (16, 16, 3)
    assert example["image"].dtype == np.uint8
    assert example["caption"] == "a"


def test_the_same_draws_give_the_same_example():
    transform = ImageTransform(16, crop="random", flip=True)
    wide = record(200, 30)
    a, b, other = (transform(wide, random.Random(i))["image"] for i in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != other).any()


def test_random_crops_reach_both_ends():
    ramp = np.tile(np.arange(120, dtype=np.uint8), (30, 1))[..., None].repeat(3, -1)
    data = made.encode(made.Image.fromarray(ramp))
    transform = ImageTransform(30, crop="random")
    lefts = [
        transform(record(image=data), random.Random(i))["image"][0, 0, 0]
        for i in range(200)
    ]
    assert min(lefts) < 5
    assert max(lefts) > 85


def test_the_crop_is_the_centre_unless_it_is_random():
    ramp = np.tile(np.arange(120, dtype=np.uint8), (30, 1))[..., None].repeat(3, -1)
    wide = record(image=made.encode(made.Image.fromarray(ramp)))
    for i in range(3):
        image = ImageTransform(30)(wide, random.Random(i))["image"]
        np.testing.assert_array_equal(image, ramp[:, 45:75])


def test_half_of_the_images_are_mirrored_if_wanted():
    plain = ImageTransform(16)(record(), random.Random(0))["image"]
    assert (plain != plain[:, ::-1]).any()
    never = ImageTransform(16)
    for i in range(30):
        image = never(record(), random.Random(i))["image"]
        np.testing.assert_array_equal(image, plain)
    flip = ImageTransform(16, flip=True)
    images = [flip(record(), random.Random(i))["image"] for i in range(200)]
    mirrored = sum((image == plain[:, ::-1]).all() for image in images)
    straight = sum((image == plain).all() for image in images)
    assert mirrored + straight == 200
    assert 70 < mirrored < 130


def test_an_unknown_crop_is_refused():
    with pytest.raises(UserError, match=r"data\.transform\.crop is 'middle'"):
        ImageTransform(16, crop="middle")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The image depicts a red fox.", "A red fox."),
        ("The image displays  two cats", "Two cats"),
        ("The image showcases it", "It"),
        ("The image features an owl", "An owl"),
        ("The image shows snow", "Snow"),
        ("the image shows snow", "The image shows snow"),
        ("The image contains snow", "The image contains snow"),
        ("A fox. The image shows snow", "A fox. The image shows snow"),
        ("a fox", "A fox"),
        ("The imageshows snow", "The imageshows snow"),
    ],
)
def test_how_recaptions_begin(text, wanted):
    assert clean_recaption(text) == wanted


def test_recaptions_replace_captions_at_their_rate():
    both = record(captions=("short",), recaptions=("The image shows more",))
    texts = [choose_caption(both, random.Random(i), 0.95) for i in range(2000)]
    assert set(texts) == {"short", "More"}
    assert 0.93 < texts.count("More") / 2000 < 0.97
    assert choose_caption(both, random.Random(0), 0.0) == "short"
    assert choose_caption(both, random.Random(0), 1.0) == "More"


def test_a_caption_keeps_words_that_a_recaption_loses():
    only = record(captions=("The image shows snow",))
    assert choose_caption(only, random.Random(0), 0.95) == "The image shows snow"


def test_recaptions_serve_where_there_is_no_caption():
    only = record(captions=(), recaptions=("The image shows more",))
    assert choose_caption(only, random.Random(0), 0.0) == "More"


def test_all_captions_are_used():
    five = record(captions=tuple("abcde"))
    texts = [choose_caption(five, random.Random(i), 0.95) for i in range(500)]
    assert all(60 < texts.count(c) < 140 for c in "abcde")


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("captions", [(), ("a", "b")])
@pytest.mark.parametrize("recaptions", [(), ("The image shows c.", "d")])
def test_the_possible_captions_are_those_that_are_drawn(rate, captions, recaptions):
    what = record(captions=captions, recaptions=recaptions)
    found = possible_captions(what, rate)
    if not (captions or recaptions):
        assert not found
        return
    drawn = {choose_caption(what, random.Random(i), rate) for i in range(100)}
    assert set(found) == drawn
    assert len(found) == len(drawn)


def test_a_caption_alone_is_the_one_beside_the_image():
    what = record(captions=tuple("abcdef"))
    alone = ImageTransform(16, with_images=False)
    for i in range(20):
        beside = ImageTransform(16)(what, random.Random(i))["caption"]
        assert alone(what, random.Random(i)) == {"caption": beside}


def test_a_caption_alone_is_refused_by_all_but_pixels():
    filters = Filters(aspect=(0.5, 2.0), min_aesthetic=5.0)
    alone = ImageTransform(16, filters=filters, with_images=False)
    good = {"aesthetic_score": 6.0}
    assert alone(record(400, 30, metadata=good), random.Random(0)) == {"caption": "a"}
    assert alone(record(image=b"?", metadata=good), random.Random(0))
    assert reason(alone, record(metadata={"aesthetic_score": 1.0})) == (
        "filtered_aesthetic"
    )
    sizes = {"original_width": 400, "original_height": 30}
    assert reason(alone, record(metadata=good | sizes)) == "filtered_aspect"
    assert reason(alone, record(image=None, metadata=good)) == "missing_image"
    assert reason(alone, record(captions=())) == "missing_caption"


def test_no_caption_is_a_bad_record():
    assert reason(ImageTransform(16), record(captions=())) == "missing_caption"
    assert reason(ImageTransform(16), record(captions=("",))) == "empty_caption"


@pytest.mark.parametrize(
    ("filters", "size", "metadata", "wanted"),
    [
        ({"aspect": (0.5, 2)}, (40, 81), {}, "filtered_aspect"),
        ({"aspect": (0.5, 2)}, (81, 40), {}, "filtered_aspect"),
        ({"aspect": (0.5, 2)}, (40, 80), {}, None),
        ({"aspect": (0.5, 2)}, (80, 40), {}, None),
        ({"min_side": 80}, (79, 40), {}, "filtered_size"),
        ({"min_side": 80}, (40, 80), {}, None),
        (
            {"min_side": 80},
            (20, 20),
            {"original_width": 80, "original_height": "60"},
            None,
        ),
        (
            {"aspect": (0.5, 2)},
            (40, 40),
            {"original_width": 90, "original_height": 40},
            "filtered_aspect",
        ),
        ({"min_aesthetic": 5.0}, (40, 40), {"aesthetic_score": 5}, None),
        (
            {"min_aesthetic": 5.0},
            (40, 40),
            {"aesthetic_score": "4.9"},
            "filtered_aesthetic",
        ),
        ({"min_aesthetic": 5.0}, (40, 40), {}, "missing_metadata"),
        (
            {"min_aesthetic": 5.0},
            (40, 40),
            {"aesthetic_score": float("nan")},
            "missing_metadata",
        ),
        (
            {},
            (40, 40),
            {"original_width": 10**400, "original_height": 5},
            "missing_metadata",
        ),
        ({"max_watermark": 0.5}, (40, 40), {"pwatermark": 0.5}, None),
        ({"max_watermark": 0.5}, (40, 40), {"pwatermark": 0.51}, "filtered_watermark"),
        ({"max_watermark": 0.5}, (40, 40), {"pwatermark": None}, "missing_metadata"),
        (
            {"max_watermark": 0.5, "watermark_column": "w"},
            (40, 40),
            {"w": 0.9},
            "filtered_watermark",
        ),
    ],
)
def test_filters(filters, size, metadata, wanted):
    transform = ImageTransform(16, filters=Filters(**filters))
    what = record(*size, metadata=metadata)
    if wanted:
        assert reason(transform, what) == wanted
    else:
        assert transform(what, random.Random(0))["caption"] == "a"


def test_the_aspect_is_that_of_the_upright_image():
    exif = made.Image.Exif()
    exif[0x0112] = 6
    image = made.encode(made.picture(90, 40), "JPEG", exif=exif)
    tall = ImageTransform(16, filters=Filters(aspect=(2.0, 3.0)))
    assert tall(record(image=image), random.Random(0))["image"].shape == (16, 16, 3)


def test_a_kept_image_is_that_of_its_bytes_and_passes_the_same_filters():
    columns = {"original_width": 40, "original_height": 30, "aesthetic_score": 6.0}
    filters = Filters(min_aesthetic=5.0, min_side=35)
    transform = ImageTransform(16, filters=filters, most_kept=2)
    plain = ImageTransform(16)
    first, other, third = (
        record(image=made.jpeg(i, 40, 30), metadata=columns) for i in range(3)
    )
    # The second is of the same name, the third finds no room.
    for what in (first, other, third, first, other, third):
        image = transform(what, random.Random(0))["image"]
        np.testing.assert_array_equal(image, plain(what, random.Random(0))["image"])
    assert len(transform._centres) == 2
    ugly = first._replace(metadata=columns | {"aesthetic_score": 1.0})
    assert reason(transform, ugly) == "filtered_aesthetic"
    assert reason(transform, first._replace(image=None)) == "missing_image"
    # What its columns said large enough is not, by its pixels.
    small = record(image=made.jpeg(3, 20, 20), metadata=columns)
    transform = ImageTransform(16, filters=filters, most_kept=9)
    transform(small, random.Random(0))
    columns = {"aesthetic_score": 6.0}
    assert reason(transform, small._replace(metadata=columns)) == "filtered_size"


def test_moments_pass_as_they_are():
    moments = np.arange(24, dtype=np.float16).reshape(6, 4)
    transform = MomentsTransform((6, 4))
    found = transform(record(image=None, moments=moments), random.Random(0))
    np.testing.assert_array_equal(found["moments"], moments)
    assert found["moments"].dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_moments_that_are_not_finite_are_refused(value):
    moments = np.full((6, 4), -65504, np.float16)
    transform = MomentsTransform((6, 4))
    transform(record(image=None, moments=moments), random.Random(0))
    moments[5, 3] = value
    assert reason(transform, record(image=None, moments=moments)) == "not_finite"


def test_moments_of_another_shape_are_refused():
    moments = np.zeros((4, 6), np.float16)
    transform = MomentsTransform((6, 4))
    assert reason(transform, record(image=None, moments=moments)) == "wrong_shape"
    assert reason(transform, record()) == "wrong_shape"
