"""The engine on the tiny demo: no answer depends on its company."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.serve.edits import EDITS
from flowtok_jax.serve.engine import Engine

PROMPTS = ["a red circle", "a blue square", "a green triangle", "a white circle"]


@pytest.fixture(scope="module")
def engine(demo):
    flowtok = FlowTok.from_pretrained(demo.workdir)
    flowtok.sample = flowtok.sample._replace(source="sample")
    flowtok.caption = flowtok.caption._replace(source="sample")
    found = Engine(flowtok, (2, 4))
    found.warm()
    return found


@pytest.fixture(scope="module")
def work(engine):
    return engine.drawing()


def test_a_row_is_the_same_bits_alone_and_in_company(engine, work):
    rows = [(prompt, 10 * i) for i, prompt in enumerate(PROMPTS)]
    together = engine.compute(work, rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(engine.compute(work, [row])[0], together[i])
    turned = engine.compute(work, rows[::-1])
    np.testing.assert_array_equal(np.stack(turned[::-1]), np.stack(together))


def test_a_row_is_what_the_library_draws(engine, work):
    (drawn,) = engine.compute(work, [("a red circle", 5)])
    wanted = 255 * engine.flowtok.text_to_image(["a red circle"], 5)[0]
    assert np.abs(drawn - wanted).max() < 0.6  # rounded to bytes


def test_prompts_are_not_logged_and_their_unknown_words_are_told(engine, work, caplog):
    prompt = "a red zeppelin and a blue zeppelin, secret"
    engine.compute(work, [(prompt, 0)])
    assert "secret" not in caplog.text
    assert engine.unknown_words([prompt, "a red circle"])[:1] == ["zeppelin"]
    assert len(engine.unknown_words([prompt])) == len({*engine.unknown_words([prompt])})


def test_a_size_that_rounds_otherwise_is_left_out(demo, monkeypatch, caplog):
    flowtok = FlowTok.from_pretrained(demo.workdir)
    draw = flowtok.text_to_image
    caplog.set_level("INFO")

    def draw_badly(prompts, seeds, **options):
        return draw(prompts, seeds, **options) + 1e-7 * (len(prompts) == 2)

    monkeypatch.setattr(flowtok, "text_to_image", draw_badly)
    engine = Engine(flowtok, (2, 4))
    engine.warm()
    assert engine.sizes == (4,)
    assert "batches of 2 rows round otherwise" in caplog.text


def test_a_picture_says_how_to_draw_it_again(engine, work, tmp_path):
    (pixels,) = engine.compute(work, [("a blue square", 2**32 - 1)])
    chunks = PngImagePlugin.PngInfo()
    for key, text in engine.record(pixels, "a blue square", 2**32 - 1, work).items():
        chunks.add_text(key, text)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=chunks)
    again = engine.flowtok.redraw(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(np.asarray(again), pixels)


@pytest.mark.parametrize("candidates", [1, 3])
def test_captions_are_those_of_the_library(engine, candidates):
    drawn = engine.compute(engine.drawing(), [(p, 0) for p in PROMPTS[:3]])
    images = np.stack(drawn).astype(np.float32) / 255
    work = engine.describing(candidates=candidates)
    seeds = (0, 40, 80)
    together = engine.compute(work, list(zip(images, seeds, strict=True)))
    for image, seed, caption in zip(images, seeds, together, strict=True):
        assert engine.compute(work, [(image, seed)]) == [caption]
        wanted = engine.flowtok.image_to_text(image, seed, candidates=candidates)
        assert [caption] == wanted


def test_batches_have_room_for_all_candidates(engine):
    assert engine.most(engine.drawing()) == 4
    assert engine.most(engine.describing(candidates=1)) == 4
    assert engine.most(engine.describing(candidates=2)) == 2
    assert engine.most(engine.describing(candidates=99)) == 1


@pytest.mark.parametrize("kind", EDITS)
def test_edits_give_pictures(engine, kind):
    (pixels,) = engine.compute(engine.drawing(), [("a red circle", 0)])
    image = pixels.astype(np.float32) / 255
    arguments = {
        "interpolations": {"prompts": PROMPTS[:2], "columns": 4},
        "variations": {"image": image, "n": 2, "strength": 0.3},
        "edits": {
            "image": image,
            "before": None,
            "prompt": "a blue circle",
            "strength": 0.5,
        },
    }[kind]
    work = engine.editing(kind)
    assert engine.most(work) == 1
    (found,) = engine.compute(work, [(arguments, 3)])
    assert len(found) == {"interpolations": 4, "variations": 2, "edits": 1}[kind]
    for picture in found:
        assert picture.pixels.shape == pixels.shape
        assert picture.pixels.dtype == np.uint8
    captions = [picture.caption for picture in found]
    if kind == "interpolations":
        assert (captions[0], captions[-1]) == tuple(PROMPTS[:2])
    if kind == "edits":
        assert captions == ["a blue circle"]


def test_what_the_weights_cannot_do_is_one_line(demo):
    flowtok = FlowTok.from_pretrained(demo.workdir)
    only = {k: v for k, v in flowtok.params.items() if k != "i2t"}
    draws = Engine(FlowTok(flowtok.nets, only, flowtok.vocabulary))
    assert draws.solvers == draws.guided == ("euler", "heun")
    with pytest.raises(UserError, match="expected one that these weights have: euler"):
        draws.drawing(solver="average")
    with pytest.raises(UserError, match="expected weights with i2t"):
        draws.describing()
    with pytest.raises(UserError, match="cannot edit"):
        draws.editing("edits")
    only = {k: v for k, v in flowtok.params.items() if k != "t2i"}
    describes = Engine(FlowTok(flowtok.nets, only, flowtok.vocabulary))
    with pytest.raises(UserError, match="expected weights with t2i"):
        describes.drawing()
    describes.warm()  # with what there is


def test_a_request_chooses_the_guidance_of_the_solvers_that_have_one(demo):
    flowtok = FlowTok.from_pretrained(demo.workdir)
    student = {"student": flowtok.params["t2i"]["dit"]}
    params = {**flowtok.params, "t2i_distilled": student}
    engine = Engine(FlowTok(flowtok.nets, params, flowtok.vocabulary))
    assert engine.solvers == (*engine.guided, "average")
    assert engine.drawing(solver="heun", scale=3.5).options.scale == 3.5
    with pytest.raises(UserError, match="guidance inside; expected no scale, or"):
        engine.drawing(solver="average", scale=3.5)
