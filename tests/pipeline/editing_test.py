"""Edits by the tiny demo, with noise for velocities."""

import logging

import numpy as np
import pytest

from flowtok_jax.flow import editing
from flowtok_jax.pipeline.edit_programs import EditOptions
from flowtok_jax.pipeline.editing import parse_sum
from flowtok_jax.runtime.errors import UserError
from tests.pipeline.flowtok_test import PROMPTS, copy, with_noise

FEW = {"num_steps": 4}


@pytest.fixture(scope="module")
def flowtok(flowtok):
    return with_noise(flowtok)


@pytest.fixture(scope="module")
def images(flowtok):
    return flowtok.text_to_image(PROMPTS[:2])


def test_the_ends_between_prompts_are_what_is_drawn_of_them(flowtok):
    strips = flowtok.interpolate(PROMPTS[:3], steps=4, seed=5)
    assert strips.images.shape == (2, 4, 32, 32, 3)
    drawn = flowtok.text_to_image(PROMPTS[:3], 5)
    np.testing.assert_allclose(strips.images[:, 0], drawn[:2], atol=1e-4)
    np.testing.assert_allclose(strips.images[:, -1], drawn[1:], atol=1e-4)
    assert strips.captions[1] == [PROMPTS[1]] * 2 + [PROMPTS[2]] * 2
    assert ((strips.values > 0.2) & (strips.values <= 1.0)).all()
    between = strips.images[0, 1]
    assert min(np.abs(between - drawn[i]).max() for i in (0, 1)) > 1e-5


def test_between_means_the_line_is_even_at_its_start(flowtok):
    options = {"source": "mean", "num_steps": 1, "scale": 1.0}
    first = flowtok.interpolate(PROMPTS[:2], steps=3, **options)
    other = flowtok.interpolate(PROMPTS[:2], steps=3, seed=1, **options)
    np.testing.assert_array_equal(first.images, other.images)


def test_between_images_their_tokens_are_interpolated(flowtok, images):
    strips = flowtok.interpolate(images=images, steps=3, source="mean")
    tokens = np.asarray(flowtok.encode_image(images).mean)
    captions = flowtok.image_to_text(images)
    middle = flowtok.decode_image(tokens.mean(0, keepdims=True), captions[1:])
    np.testing.assert_allclose(strips.images[0, 1], middle[0], atol=1e-5)
    assert strips.values == pytest.approx([1.0], abs=1e-3)
    given = flowtok.interpolate(PROMPTS[:2], images, steps=2, source="mean")
    assert given.captions == [PROMPTS[:2]]


@pytest.mark.parametrize("solver", editing.ROUTES)
def test_a_closed_loop_is_measured_as_by_hand(flowtok, images, solver):
    strips = flowtok.invert(images, PROMPTS[:2], solver=solver, **FEW)
    assert strips.images.shape == (2, 2, 32, 32, 3)
    assert strips.sources.shape == (2, 16, 4)
    assert np.isfinite(strips.values).all()
    np.testing.assert_array_equal(strips.images[:, 0], images)
    if solver in ("reversible", "midpoint"):
        assert strips.values.max() < 1e-3


def test_what_the_way_back_finds_draws_the_image_again(flowtok, images):
    """A slow version of the way forth: the sampler itself, in many small steps."""
    strips = flowtok.invert(images, PROMPTS[:2], solver="heun", num_steps=32)
    options = flowtok.sample._replace(
        num_steps=32, scale=1.0, solver="heun", times="left"
    )
    _, tokens = flowtok._draw_from(PROMPTS[:2], strips.sources, options)
    own = np.asarray(flowtok.encode_image(images).mean)
    error = editing.relative_l2(tokens, own)
    np.testing.assert_allclose(error, strips.values, rtol=0.1, atol=1e-5)
    assert error.max() < 0.05


def test_a_loop_that_does_not_close_is_warned_of_in_one_line(flowtok, images, caplog):
    with caplog.at_level(logging.WARNING):
        closed = flowtok.invert(images, PROMPTS[:2], solver="reversible", **FEW)
        assert closed.values.max() < 1e-3
        assert not caplog.messages
        strips = flowtok.invert(images, PROMPTS[:2], solver="euler", num_steps=2)
    assert strips.values.max() > 1e-3
    (line,) = caplog.messages
    assert "does not close for" in line
    assert "expected at most 0.001" in line


def test_an_edit_draws_from_the_new_captions_posterior(flowtok, images):
    """All of the noise left out: what text to image draws from the mean."""
    before, after = PROMPTS[:2], PROMPTS[2:4]
    strips = flowtok.edit(images, before, after, strength=1.0, solver="heun", **FEW)
    assert strips.images.shape == (2, 3, 32, 32, 3)
    assert [row[2] for row in strips.captions] == after
    wanted = flowtok.text_to_image(after, source="mean", scale=1.0)
    np.testing.assert_allclose(strips.images[:, 2], wanted, atol=1e-4)
    half = flowtok.edit(images, before, after, solver="heun", **FEW)
    assert np.abs(half.images[:, 2] - wanted).max() > 1e-5


def test_the_noise_of_a_picture_is_kept_no_longer_than_that_of_a_draw(flowtok, images):
    strips = flowtok.edit(images, *PROMPTS[:2], strength=0.0, solver="heun", **FEW)
    old, new = (flowtok.encode_text([p] * 2) for p in PROMPTS[:2])
    noise = (strips.sources - np.asarray(old.mean)) / np.asarray(old.std)
    length = np.sqrt(np.square(noise).mean((1, 2)))
    kept = noise / np.maximum(length, 1)[:, None, None]
    z = np.asarray(new.mean) + np.asarray(new.std) * kept
    wanted, _ = flowtok._draw_from(
        [PROMPTS[1]] * 2, z, flowtok.sample._replace(scale=1.0)
    )
    np.testing.assert_allclose(strips.images[:, 2], wanted, atol=1e-4)


def test_variations_differ_by_their_seeds_and_more_with_strength(flowtok, images):
    run = {"num_images": 2, "num_steps": 8, "solver": "reversible"}
    weak, strong = (
        flowtok.vary(images, PROMPTS[:2], strength=s, **run) for s in (0.2, 1.0)
    )
    assert weak.images.shape == (2, 3, 32, 32, 3)
    assert (weak.values < strong.values).all()
    assert np.abs(weak.images[:, 1] - weak.images[:, 2]).max() > 1e-6
    again = flowtok.vary(images, PROMPTS[:2], strength=1.0, seed=1, **run)
    np.testing.assert_array_equal(again.images[:, 1], strong.images[:, 2])
    none = flowtok.vary(images, PROMPTS[:2], strength=0.0, **run)
    assert none.values.max() < 1e-4


def test_a_sum_of_captions_is_the_sum_of_their_means(flowtok):
    a, b, c = PROMPTS[:3]
    strips = flowtok.combine(f"{a} - {b} + {c}", expected=c)
    means = np.asarray(flowtok.encode_text([a, b, c]).mean)
    np.testing.assert_allclose(
        strips.sources[0], means[0] - means[1] + means[2], atol=1e-5
    )
    away = np.linalg.norm(means[0] - means[1]) / np.linalg.norm(means[2])
    assert strips.values[0] == pytest.approx(away, rel=1e-3)
    assert strips.images.shape == (1, 5, 32, 32, 3)
    same = flowtok.combine(f"{a} - {b} + {b}", expected=a)
    assert same.values[0] < 1e-5
    read = flowtok.combine(f"{a} + {b}")
    assert read.captions[0][-1].startswith("drawn of: ")


@pytest.mark.parametrize(
    ("text", "signs", "terms"),
    [
        ("king - man + woman", [1, -1, 1], ["king", "man", "woman"]),
        ("- a + well-known b", [-1, 1], ["a", "well-known b"]),
        ("a+b + c", [1, 1], ["a+b", "c"]),
    ],
)
def test_a_sum_is_split_at_its_signs(text, signs, terms):
    found, names = parse_sum(text)
    assert found.tolist() == signs
    assert names == terms


@pytest.mark.parametrize("text", ["", "king", "a - ", "a - - b", "+"])
def test_what_is_no_sum_is_refused(text):
    with pytest.raises(UserError, match="is no sum of captions; expected"):
        parse_sum(text)


def test_a_round_trip_draws_what_is_said(flowtok, images):
    strips = flowtok.round_trip(images, seed=3)
    said = flowtok.image_to_text(images, 3)
    assert [row[1] for row in strips.captions] == said
    drawn = flowtok.text_to_image(said, 3)
    np.testing.assert_array_equal(strips.images[:, 1], drawn)
    assert (strips.values > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk4"}, "^solver is 'rk4'; expected one of euler, heun"),
        ({"num_steps": 0}, "^num_steps is 0; expected at least 1"),
        ({"scale": float("nan")}, "^scale is nan"),
        ({"strength": 1.5}, "^strength is 1.5; expected a number from 0 to 1"),
        ({"strength": -0.1}, "^strength is -0.1"),
        ({"way": 0.5}, "^no option way here; expected strength"),
        ({"sclae": 2}, "^no option sclae; expected some of num_steps"),
    ],
    ids=str,
)
def test_an_option_of_an_edit_that_cannot_be_is_refused(
    flowtok, images, options, message
):
    with pytest.raises(UserError, match=message):
        flowtok.edit(images, *PROMPTS[:2], **options)


def test_inputs_that_do_not_fit_are_refused(flowtok, images):
    with pytest.raises(UserError, match="3 captions of 2 images; expected one each"):
        flowtok.invert(images, PROMPTS[:3])
    with pytest.raises(UserError, match="no option num_images; expected some of"):
        flowtok.round_trip(images, num_images=2)
    with pytest.raises(UserError, match="one prompt or image; expected two"):
        flowtok.interpolate(PROMPTS[:1])
    with pytest.raises(UserError, match="no prompts"):
        flowtok.interpolate()
    with pytest.raises(UserError, match="steps is 1; expected an integer from 2"):
        flowtok.interpolate(PROMPTS[:2], steps=1)
    other = copy(flowtok, {k: v for k, v in flowtok.params.items() if k != "t2i"})
    with pytest.raises(UserError, match="cannot do editing"):
        other.edit(images, *PROMPTS[:2])


def test_a_part_of_the_way_has_its_share_of_the_steps():
    assert EditOptions(num_steps=20, way=0.25).steps == 5
    assert EditOptions(num_steps=20, way=0.01).steps == 1
    start, end = EditOptions(way=0.25).span
    assert start == pytest.approx(0.75, abs=1e-4)
    assert end == pytest.approx(1.0, abs=1e-4)
