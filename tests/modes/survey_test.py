"""Sizes and steps chosen by a folder of captioned pictures."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from configs import own
from flowtok_jax.data.vocabulary import SPECIAL_TOKENS
from flowtok_jax.modes import survey
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.config import config_to_json, for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import flatten
from tests import run

PICTURES = 30
COST = survey.StageCost(seconds=0.5, compiling=2.0, gib=0.25)


@pytest.fixture
def folder(tmp_path):
    """A stranger's folder: many sizes, a long caption, words of another language."""
    place = tmp_path / "my photos"
    place.mkdir()
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        width, height = 40 + i, 90 - i
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"пес {i}.png")
        text = f"пес number{i} sleeps" + " well" * (40 if i == 7 else 0)
        (place / f"пес {i}.txt").write_text(text, "utf-8")
    return place


@pytest.fixture
def measured(monkeypatch):
    """Costs of steps without measuring them; which stages were asked for."""
    asked = []
    monkeypatch.setattr(
        survey, "_measure", lambda config, stage: asked.append(stage) or COST
    )
    return asked


def make_config(folder, size="auto"):
    config = own.get_config(size)
    config.data.train = f"folder:{folder}"
    return config


def test_what_is_in_a_folder_is_counted(folder):
    found = survey.look_at_data(make_config(folder))
    assert found.pictures == PICTURES
    assert sorted(found.sides) == [(40 + i, 90 - i) for i in range(PICTURES)]
    assert found.words == PICTURES + 3
    # Words and the end token.
    assert sorted(found.lengths) == [4] * (PICTURES - 1) + [44]
    assert len(found.captions) == PICTURES


def test_sizes_steps_and_words_follow_from_the_data(folder, measured, tmp_path):
    config = make_config(folder)
    lines = survey.fit_config(config, tmp_path / "run", given=())
    assert config.own.size == "small"
    assert config.tokenizer.encoder.width == 192
    assert config.clip.vocab_size >= PICTURES + 3 + len(SPECIAL_TOKENS)
    # The one long caption is a thirtieth, more than one in 200.
    assert (config.latent.tokens, config.latent.channels) == (64, 16)
    assert config.data.held_out == survey.HELD_OUT_MOST
    assert measured == list(config.stages)
    for stage, plan in survey.PLANS_OF_STAGES.items():
        train = for_stage(config, stage).train
        assert (train.num_steps, train.batch_size) == (plan.least, plan.rows)
    assert len(lines) == 13
    assert max(map(len, lines[:-1])) <= 80  # the last has a path
    text = "\n".join(lines)
    for said in ("30, about 6 held out", "40 x 61 to 69 x 90", "33; 4 to 44 tokens"):
        assert said in text


def test_many_pictures_get_more_steps(folder, measured, tmp_path, monkeypatch):
    config = make_config(folder)
    found = survey.look_at_data(config)._replace(pictures=100_000)
    monkeypatch.setattr(survey, "look_at_data", lambda config: found)
    survey.fit_config(config, tmp_path / "run", given=())
    assert config.data.held_out == 0.02
    epochs = survey.PLANS_OF_STAGES["t2i"].epochs
    assert for_stage(config, "t2i").train.num_steps == epochs * 100_000 // 64


def test_short_captions_need_few_tokens_of_more_channels(folder, measured, tmp_path):
    (folder / "пес 7.txt").write_text("пес number7 sleeps", "utf-8")
    config = make_config(folder)
    survey.fit_config(config, tmp_path / "run", given=())
    assert (config.latent.tokens, config.latent.channels) == (16, 32)
    # Given tokens are not chosen, and channels go by these.
    config.latent.tokens = 64
    survey.fit_config(config, tmp_path / "other", given={"latent.tokens"})
    assert (config.latent.tokens, config.latent.channels) == (64, 16)


def test_keys_of_the_command_line_are_never_chosen(folder, measured, tmp_path):
    config = make_config(folder)
    config.dit.width = 64
    config.train.num_steps = 7
    config.data.held_out = 0.5
    del config.per_stage
    config.per_stage = {}
    given = {"dit.width", "train.num_steps", "data.held_out"}
    survey.fit_config(config, tmp_path / "run", given)
    assert config.dit.width == 64
    assert config.data.held_out == 0.5
    assert for_stage(config, "i2t").train.num_steps == 7
    assert for_stage(config, "i2t").train.batch_size == 64


def test_the_text_tower_of_weights_keeps_its_sizes(folder, measured, tmp_path):
    config = make_config(folder)
    config.init_from = "weights/clip"
    config.clip.width = 640
    config.clip.vocab_size = 49408
    config.latent.tokens = 77
    lines = survey.fit_config(config, tmp_path / "run", given=())
    assert (config.clip.width, config.clip.vocab_size) == (640, 49408)
    assert config.latent.tokens == 77
    assert config.text.weights == ""
    assert not config.clip.trained_along
    assert "text tower      that of weights/clip, 640 x 12" in lines


def test_without_a_tower_text_to_image_trains_one_along(folder, measured, tmp_path):
    config = make_config(folder)
    lines = survey.fit_config(config, tmp_path / "run", given=())
    assert config.clip.trained_along
    said = "CLIP's architecture at random; t2i trains its own along, 128 x 3"
    assert f"text tower      {said}" in lines
    config.clip.trained_along = False  # as on the command line
    given = {"clip.trained_along"}
    lines = survey.fit_config(config, tmp_path / "run", given)
    assert "text tower      CLIP's architecture at random, 128 x 3" in lines


def test_minutes_are_divided_over_the_stages(folder, measured, tmp_path):
    config = make_config(folder)
    config.own.minutes = 60.0
    survey.fit_config(config, tmp_path / "run", given=())
    seconds = [
        for_stage(config, stage).train.num_steps * COST.seconds
        for stage in config.stages
    ]
    room = 0.9 * (3600 - len(seconds) * COST.compiling)
    assert room * 0.98 < sum(seconds) <= room
    weights = [p.weigh(COST.seconds, room) for p in survey.PLANS_OF_STAGES.values()]
    share = weights[0] / sum(weights)
    assert seconds[0] / sum(seconds) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("minutes", "weight"),
    [(10, 0.6), (600, 0.21), (40, 3000 * 0.2 / 2400)],
    ids=["scarce", "plenty", "its least steps"],
)
def test_a_tokenizer_gets_more_of_a_short_time(minutes, weight):
    plan = survey.PLANS_OF_STAGES["tokenizer"]
    assert plan.weigh(0.2, 60.0 * minutes) == pytest.approx(weight)


def test_too_few_minutes_are_refused(folder, measured, tmp_path):
    config = make_config(folder)
    config.own.minutes = 0.3
    with pytest.raises(UserError, match="which leaves .* steps of .* expected more"):
        survey.fit_config(config, tmp_path / "run", given=())


def test_a_run_goes_on_with_what_it_began_with(folder, measured, tmp_path):
    config = make_config(folder)
    config.own.minutes = 60.0
    survey.fit_config(config, tmp_path, given=())
    (tmp_path / "config.json").write_text(config_to_json(config))
    (folder / "пес 3.txt").unlink()  # other data would give other sizes
    measured.clear()
    again = make_config(folder)
    lines = survey.fit_config(again, tmp_path, given=())
    assert not measured
    assert len(lines) == 1
    again.own.minutes = 60.0  # given again on the command line
    assert flatten(json.loads(config_to_json(again))) == flatten(
        json.loads(config_to_json(config))
    )


def test_without_data_one_line_says_what_to_give():
    with pytest.raises(UserError, match="data.train is empty; expected .*folder:DIR"):
        survey.look_at_data(own.get_config())


def test_a_folder_of_broken_pictures_is_refused_at_once(folder):
    for i in range(10):
        (folder / f"пес {i}.png").write_bytes(b"no picture")
    said = r"10 of 30 records read are broken \(not_an_image 10, .*max_rejected"
    with pytest.raises(UserError, match=said):
        survey.look_at_data(make_config(folder))
    config = make_config(folder)
    config.data.max_rejected = 0.5
    found = survey.look_at_data(config)
    assert (len(found.sides), found.broken) == (PICTURES - 10, 10)
    assert found.usable == PICTURES - 10
    # A picture that the loader would refuse is one of them, and Pillow says nothing.
    config.data.transform.max_pixels = 55 * 75
    config.data.max_rejected = 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = survey.look_at_data(config)
    assert max(width * height for width, height in found.sides) <= 55 * 75
    assert found.broken > 10


def test_copies_of_a_picture_are_said(folder, measured, tmp_path):
    assert survey.look_at_data(make_config(folder)).copies == 0
    pictures = sorted(folder.glob("*.png"))
    for copy in pictures[1:3]:
        copy.write_bytes(pictures[0].read_bytes())
    lines = survey.fit_config(make_config(folder), tmp_path / "run", given=())
    assert "copies          3 pictures are the same file as another" in lines


def test_scenes_have_no_sizes():
    config = own.get_config()
    config.data.train = "shapes"
    found = survey.look_at_data(config)
    assert found.sides == []
    assert found.words > 10


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match="expected one of auto, small, medium, large"):
        own.get_config("huge")


def test_a_folder_becomes_a_model_by_one_command(folder, tmp_path):
    """Tiny networks, two steps a stage: from pictures to pictures and captions."""
    workdir = tmp_path / "run"
    tiny = {
        "clip.width": 32,
        "clip.depth": 1,
        "tokenizer.image_size": 32,
        "tokenizer.encoder.width": 32,
        "tokenizer.encoder.depth": 1,
        "tokenizer.decoder.width": 32,
        "tokenizer.decoder.depth": 1,
        "projector.depth": 1,
        "text_decoder.depth": 1,
        "dit.width": 32,
        "dit.depth": 1,
        "train.num_steps": 2,
        "train.batch_size": 8,
        "sample.num_steps": 2,
        "caption.num_steps": 2,
        "latent.tokens": 32,
    }
    flags = [f"--config.{key}={value}" for key, value in tiny.items()]
    source = f"--config.data.train=folder:{folder}"
    process = run.start(
        ["--config=configs/own.py", source, f"--workdir={workdir}", *flags],
        JAX_PLATFORMS="cpu",
    )
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr[-3000:]
    assert "about 6 held out" in stderr
    assert "--mode=sample" in stdout
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["own"]["size"] == "small"
    assert stored["clip"]["vocab_size"] == 64
    assert (workdir / "summary.json").is_file()
    assert len(list((workdir / "latents").iterdir())) == 1
    # The trained tower is part of what draws, and is written with it.
    flowtok = FlowTok.from_pretrained(workdir)
    flowtok.save_pretrained(tmp_path / "saved")
    saved = FlowTok.from_pretrained(tmp_path / "saved")
    assert set(saved.params["t2i"]) == {"projector", "align_head", "dit", "clip"}
    images = [model.text_to_image(["пес sleeps"]) for model in (flowtok, saved)]
    np.testing.assert_array_equal(*images)
