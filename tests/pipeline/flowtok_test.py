import logging
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import demo as demo_config
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.flow import samplers
from flowtok_jax.pipeline import FlowTok, SampleOptions
from flowtok_jax.runtime.errors import UserError
from tests import tiny

COMPILED = re.compile(
    "XLA compilation of jit\\((text_to_image|image_to_text|drawing_error)"
)
PROMPTS = [
    "a red circle at the top left",
    "a blue square at the top right",
    "a white triangle at the bottom left",
    "there is a green circle in the bottom right",
    "in the top left we see a yellow square",
    "a purple circle at the bottom left",
    "a red square at the bottom right",
    "a blue triangle at the top left",
]


def copy(flowtok, params=None, **overrides):
    """Another object of the same or other weights, with no program compiled yet."""
    names = ("sample", "caption", "text_scale")
    options = {name: getattr(flowtok, name) for name in names} | overrides
    params = flowtok.params if params is None else params
    return FlowTok(flowtok.nets, params, flowtok.vocabulary, **options)


def with_noise(flowtok):
    """The same with noise for the velocities of both directions."""
    params = dict(flowtok.params)
    for group in ("t2i", "i2t"):
        dit = tiny.random_like(params[group]["dit"])
        params[group] = params[group] | {"dit": dit}
    return copy(flowtok, params)


@pytest.fixture(scope="module")
def flowtok(flowtok):
    """With noise for velocities: those of so short a training are nearly zero."""
    return with_noise(flowtok)


@pytest.fixture(scope="module")
def images(flowtok):
    return flowtok.text_to_image(PROMPTS)


def test_three_lines_of_python_draw_and_caption(demo):
    flowtok = FlowTok.from_pretrained(str(demo.workdir))
    images = flowtok.text_to_image(["a red circle at the top left"])
    captions = flowtok.image_to_text(images)
    assert images.shape == (1, 32, 32, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1
    assert len(captions) == 1
    assert isinstance(captions[0], str)


def test_prompts_get_the_ids_of_the_release_s_tokenizer(tmp_path, monkeypatch):
    tiny.write_clip_vocabulary(tmp_path)
    nets = tiny.nets(latent=dict(tokens=77, channels=4), clip=dict(vocab_size=49408))
    flowtok = FlowTok(nets, {"t2i": {}}, Vocabulary.load(str(tmp_path), 77))
    drawn = []

    def draw(self, program, inputs, *rest):
        (ids,) = inputs
        drawn.append(ids)
        return np.zeros((len(ids), 16, 16, 3), np.float32)

    monkeypatch.setattr(FlowTok, "_in_batches", draw)
    texts, ids = tiny.golden_captions()
    kept = [i for i, text in enumerate(texts) if text.strip()]
    flowtok.text_to_image([texts[i] for i in kept])
    np.testing.assert_array_equal(drawn[0], ids[kept])


def test_a_folder_moved_away_among_the_checkpoints_is_no_group(demo, tmp_path):
    shutil.copytree(demo.workdir, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "t2i", checkpoints / "t2i_before")
    assert "t2i_before" not in FlowTok.from_pretrained(tmp_path / "run").params


def test_the_options_are_those_of_the_config(flowtok):
    config = demo_config.get_config()
    for options, section in (
        (flowtok.sample, config.sample),
        (flowtok.caption, config.caption),
    ):
        section.update({"num_steps": 2, "batch_size": 16})  # as in tests/run.py
        assert options._asdict() == section.to_dict()
    assert flowtok.text_scale == config.loss.i2t.text_scale


def test_a_seed_gives_the_same_images_and_another_seed_others(flowtok, images):
    np.testing.assert_array_equal(flowtok.text_to_image(PROMPTS), images)
    other = flowtok.text_to_image(PROMPTS, seed=1)
    assert (np.abs(other - images).max((1, 2, 3)) > 1e-5).all()


def test_the_mean_source_does_not_depend_on_the_seed(flowtok, images):
    first, second = (
        flowtok.text_to_image(PROMPTS, seed=seed, source="mean") for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (np.abs(first - images).max((1, 2, 3)) > 1e-5).all()


def test_results_do_not_depend_on_the_batch_size(flowtok, images):
    by_three = flowtok.text_to_image(PROMPTS, batch_size=3)
    np.testing.assert_allclose(by_three, images, atol=1e-5)
    assert (np.abs(images[0] - images[1:]).max((1, 2, 3)) > 1e-4).all()


def test_equal_prompts_in_one_call_get_noise_of_their_own(flowtok):
    first, second = flowtok.text_to_image(PROMPTS[:1] * 2)
    assert np.abs(first - second).max() > 1e-5


@pytest.mark.parametrize(
    "options",
    [{"scale": 1.0}, {"num_steps": 5}, {"solver": "heun"}, {"times": "left"}],
    ids=str,
)
def test_every_option_matters(flowtok, images, options):
    other = flowtok.text_to_image(PROMPTS, **options)
    assert np.abs(other - images).max() > 1e-5


def test_a_program_is_compiled_once_for_all_batches_and_seeds(flowtok, caplog):
    fresh = copy(flowtok)

    def compiled():
        named = "XLA compilation of jit(text_to_image)"
        return sum(named in message for message in caplog.messages)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for seed in (0, 1):
            fresh.text_to_image(PROMPTS, seed, batch_size=3)
            fresh.text_to_image(PROMPTS[:5], seed, batch_size=3)
        assert compiled() == 1
        fresh.text_to_image(PROMPTS, batch_size=3, num_steps=3)
        assert compiled() == 2


def test_after_compiling_neither_direction_compiles_for_numbers_like_these(
    flowtok, images, caplog
):
    fresh = copy(flowtok)
    two = {"source": "sample", "candidates": 2}
    fresh.compile(batch_sizes=(1, 6), num_steps=3, **two)

    def run(count):
        drawn = fresh.text_to_image(PROMPTS[:count], num_steps=3, source="sample")
        fresh.image_to_text(images[:count], num_steps=3, **two)
        return drawn

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run(1)
        five = run(5)  # in the program of six
    assert not [m for m in caplog.messages if COMPILED.search(m)]
    whole = flowtok.text_to_image(PROMPTS[:6], num_steps=3, source="sample")
    np.testing.assert_array_equal(five, whole[:5])


@pytest.mark.parametrize("wrong", [0, -1])
def test_no_program_is_compiled_for_a_number_that_is_none(flowtok, wrong):
    with pytest.raises(UserError, match="expected integers from 1"):
        flowtok.compile(batch_sizes=[wrong])


def test_captions_do_not_depend_on_the_batch_size(flowtok, images):
    whole = flowtok.image_to_text(images)
    assert len(whole) == len(images)
    assert flowtok.image_to_text(images, batch_size=3) == whole


def test_encoding_and_decoding_give_posteriors_images_and_text(flowtok, images):
    source = flowtok.encode_text(PROMPTS[:2])
    tokens = flowtok.encode_image(images[:2])
    assert source.mean.shape == tokens.mean.shape == (2, 16, 4)
    assert (np.asarray(source.std) > 0).all()
    decoded = flowtok.decode_image(tokens.mean, PROMPTS[:2])
    assert decoded.shape == (2, 32, 32, 3)
    assert 0 <= decoded.min() <= decoded.max() <= 1
    other = flowtok.decode_image(np.zeros((2, 16, 4), np.float32), PROMPTS[:2])
    assert np.abs(decoded - other).max() > 1e-4
    assert len(flowtok.reconstruct_text(PROMPTS[:2])) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "noise"}, "^source is 'noise'.*sample, mean"),
        ({"solver": "rk4"}, "^solver is 'rk4'.*euler, heun"),
        ({"times": "right"}, "^times is 'right'.*release, left"),
        ({"num_steps": 0}, "^num_steps is 0.*at least 1"),
        ({"batch_size": -1}, "^batch_size is -1.*at least 1"),
        ({"batch_size": True}, "^batch_size is True; expected an integer"),
        ({"num_steps": 2.5}, "^num_steps is 2.5; expected an integer"),
        ({"scale": float("nan")}, "^scale is nan; expected a number"),
        ({"scale": "3"}, "^scale is 3; expected a number"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_by_name(flowtok, images, options, message):
    with pytest.raises(UserError, match=message):
        flowtok.text_to_image(PROMPTS, **options)
    with pytest.raises(UserError, match=message):
        flowtok.image_to_text(images, **options)
    for section in ("sample", "caption"):
        named = message.replace("^", f"^{section}.")
        with pytest.raises(UserError, match=named):
            copy(flowtok, **{section: SampleOptions(**options)})


def test_no_prompts_and_no_images_are_refused(flowtok):
    with pytest.raises(UserError, match="no prompts"):
        flowtok.text_to_image([])
    with pytest.raises(UserError, match="no images"):
        flowtok.image_to_text(np.zeros((0, 32, 32, 3), np.float32))


def test_prompts_of_any_container_draw_the_same(flowtok, images):
    for prompts in (tuple(PROMPTS), np.array(PROMPTS), (p for p in PROMPTS)):
        np.testing.assert_array_equal(flowtok.text_to_image(prompts), images)


def test_what_is_no_prompt_is_refused_wherever_prompts_are_taken(flowtok):
    tokens = np.zeros((1, 16, 4), np.float32)
    for function in (
        flowtok.text_to_image,
        flowtok.encode_text,
        flowtok.reconstruct_text,
        lambda prompts: flowtok.decode_image(tokens, prompts),
    ):
        with pytest.raises(UserError, match=r"^prompts\[0\] is 'caf\\ud83d'"):
            function(["caf\ud83d"])
        with pytest.raises(UserError, match=r"^prompts are 'a red circle'"):
            function("a red circle")


def test_tokens_of_another_shape_or_number_are_refused(flowtok):
    for shape in [(2, 16, 4), (1, 4, 16), (16, 4), ()]:
        message = r"^tokens have shape \(.*\); expected \(1, 16, 4\)"
        with pytest.raises(UserError, match=message):
            flowtok.decode_image(np.zeros(shape, np.float32), PROMPTS[:1])


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, True])
def test_a_seed_has_one_meaning_or_is_refused(flowtok, images, seed):
    for function, inputs in (
        (flowtok.text_to_image, PROMPTS),
        (flowtok.image_to_text, images),
    ):
        with pytest.raises(UserError, match=f"^seed is {seed}; expected an integer"):
            function(inputs, seed)
        with pytest.raises(UserError, match=f"^first_row is {seed}; expected an int"):
            function(inputs, 0, seed)


def test_the_largest_seed_is_one_of_its_own(flowtok, images):
    largest = flowtok.text_to_image(PROMPTS, 2**32 - 1)
    assert np.abs(largest - images).max() > 1e-5


def test_files_are_captioned_as_their_pixels_are(flowtok, images, tmp_path):
    rounded = np.round(images * 255).astype(np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in rounded]
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    captions = flowtok.image_to_text(rounded.astype(np.float32) / 255)
    assert flowtok.image_to_text(paths) == captions
    assert flowtok.image_to_text(pictures) == captions


def test_pictures_are_drawn_that_can_be_saved_and_described(flowtok, images, tmp_path):
    drawn = flowtok.draw(PROMPTS)
    drawn[0].save(tmp_path / "a.png")
    rounded = np.round(images * 255).astype(np.uint8)
    for picture, pixels in zip(drawn, rounded, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    captions = flowtok.image_to_text(rounded)
    assert flowtok.image_to_text(drawn) == captions
    assert flowtok.image_to_text(tmp_path / "a.png") == captions[:1]
    (other,) = flowtok.draw(PROMPTS[:1], 1, scale=3.0)
    assert other.size == (32, 32)
    assert (np.asarray(other) != rounded[0]).any()


def test_each_of_several_images_of_a_prompt_is_drawn_again_by_its_seed(
    flowtok, images, caplog
):
    drawn = flowtok.text_to_image([*PROMPTS[:2], "an unknown"], 3, num_images=3)
    assert caplog.text.count("vocabulary lacks") == 1
    for j, seed in enumerate((3, 4, 5)):
        again = flowtok.text_to_image([*PROMPTS[:2], "an unknown"], seed)
        np.testing.assert_array_equal(drawn[j::3], again)
    pictures = flowtok.draw(PROMPTS[:1], num_images=2)
    assert [np.asarray(p).shape for p in pictures] == [(32, 32, 3)] * 2


def test_images_of_another_size_are_resized_and_of_channels_first_refused(flowtok):
    large = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), np.uint8)
    assert len(flowtok.image_to_text(large)) == 2
    assert flowtok.encode_image(large).mean.shape == (2, 16, 4)
    for function in (flowtok.image_to_text, flowtok.encode_image):
        with pytest.raises(UserError, match=r"expected \(h, w, 3\).*moveaxis"):
            function(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize("group", ["t2i", "i2t"])
def test_a_direction_without_weights_is_refused_and_the_other_works(
    flowtok, images, group
):
    params = {name: p for name, p in flowtok.params.items() if name != group}
    half = copy(flowtok, params)
    draw = (half.text_to_image, PROMPTS[:1])
    say = (half.image_to_text, images[:1])
    (refused, wanted), (works, given) = (draw, say) if group == "t2i" else (say, draw)
    with pytest.raises(UserError, match=f"{group}.* train stage {group} first"):
        refused(wanted)
    assert len(works(given)) == 1


def test_wrong_options_and_values_are_refused_by_name(flowtok):
    with pytest.raises(UserError, match="no option sclae.*scale"):
        flowtok.text_to_image(["a red circle"], sclae=3)
    side = flowtok.nets.tokenizer.image_size
    with pytest.raises(UserError, match=r"go from 200 to 200; .* \[0, 1\]"):
        flowtok.image_to_text(np.full((1, side, side, 3), 200.0))


def test_of_several_captions_the_one_that_draws_nearest_is_kept(flowtok, images):
    """A slow version: each caption drawn by itself, and compared in the open."""
    count = 3
    options = {"first_row": 2, "source": "sample"}
    several = [
        flowtok.image_to_text(images, seed=5 + k, **options) for k in range(count)
    ]
    own = np.asarray(flowtok.encode_image(images).mean)
    errors = []
    for captions in several:
        ids = jnp.asarray(flowtok.vocabulary.encode(captions, warns=False))
        tokens = drawn_tokens(flowtok, ids)
        errors.append(
            [np.square(a - b).mean() for a, b in zip(tokens, own, strict=True)]
        )
    best = np.argmin(errors, axis=0)
    expected = [several[k][i] for i, k in enumerate(best)]
    assert len(set(best)) > 1
    found = flowtok.image_to_text(images, seed=5, candidates=count, **options)
    assert found == expected
    assert found not in several


def drawn_tokens(flowtok, ids):
    """Draws raw tokens of captions as the pipeline's options say, from the mean."""
    nets = flowtok.nets
    params = flowtok.params
    feats = nets.clip.apply({"params": params["clip"]["clip"]}, ids)
    t2i = params["t2i"]
    z = nets.projector.apply({"params": t2i["projector"]}, feats).mean
    velocity = samplers.guided(
        lambda z, t, null: nets.dit.apply({"params": t2i["dit"]}, z, t, null),
        flowtok.sample.scale,
    )
    z = samplers.euler(velocity, z, flowtok.sample.num_steps, flowtok.sample.times)
    return np.asarray(z / nets.tokenizer.latent_scale)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f, x: f.image_to_text(x, candidates=0), "candidates is 0; expected at"),
        (
            lambda f, x: f.image_to_text(x, candidates=2, source="mean"),
            "expected source=sample",
        ),
        (
            lambda f, x: f.image_to_text(x, 2**32 - 1, candidates=2, source="sample"),
            "with candidates 2 needs seeds up to 4294967296",
        ),
        (
            lambda f, x: f.text_to_image(PROMPTS, candidates=2),
            "sample.candidates is 2; expected 1: captions alone",
        ),
    ],
)
def test_candidates_that_cannot_be_are_refused(flowtok, images, call, said):
    with pytest.raises(UserError, match=said):
        call(flowtok, images)
