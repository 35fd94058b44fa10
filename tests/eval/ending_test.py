"""The end of a run: its numbers in sentences, and what looks weak in them."""

import pytest

from configs import both, default, demo
from flowtok_jax.eval import ending
from flowtok_jax.eval.ending import RunScores, Score

GOOD = {
    "tokenizer": {"psnr_db_n331": 27.5, "ssim_n331": 0.9},
    "t2i": {
        "retrieval_top1_pixels_n331_of3953": 0.7,
        "retrieval_top5_pixels_n331_of3953": 0.95,
        "retrieval_top1_latents_n331_of3953": 0.1,
        "retrieval_top1_pixels_reconstructed_n331_of3953": 0.96,
        "retrieval_top5_pixels_reconstructed_n331_of3953": 1.0,
        "retrieval_top1_chance_of3953": 1 / 3953,
        "retrieval_top5_chance_of3953": 5 / 3953,
    },
    "i2t": {
        "word_f1_n331": 0.8,
        "word_f1_chance_n331": 0.1,
        "word_f1_text_tokenizer_n331": 0.97,
        "exact_match_n331": 0.4,
        "exact_match_text_tokenizer_n331": 0.9,
    },
}


def scores(**parts):
    """Numbers of a run that are good but where others are given."""
    metrics = {part: GOOD[part] | parts.get(part, {}) for part in GOOD}
    return RunScores.of({"evaluation": {"metrics": metrics}})


def test_numbers_are_found_by_their_whole_names():
    found = scores()
    assert found.psnr_db == 27.5
    assert found.drawn == Score(0.7, 1 / 3953, 0.96)
    assert found.drawn_five == Score(0.95, 5 / 3953, 1.0)
    assert found.described == Score(0.8, 0.1, 0.97)
    assert found.exact == Score(0.4, 0.0, 0.9)
    assert not found.are_scenes


def test_a_part_that_was_not_measured_has_no_number():
    found = RunScores.of({"evaluation": {"metrics": {"t2i": GOOD["t2i"]}}})
    assert found.psnr_db is found.described is found.exact is None
    assert ending.find_weak(demo.get_config(), found) == []


def test_scenes_are_told_by_their_oracle():
    summary = {"tokenizer_psnr_db": 24.0, "tokenizer_accuracy": 1.0}
    summary |= {"t2i_attribute_accuracy": 0.3, "i2t_exact_match": 0.9}
    summary |= {"text_tokenizer_exact_match": 1.0}
    found = RunScores.of(summary)
    assert found.drawn == Score(0.3, 0.0, 1.0)
    weak = ending.find_weak(demo.get_config(), found)
    assert [text.split(":")[0] for text in weak] == [
        "the tokenizer",
        "pictures drawn are far below the tokenizer's copies, which have 100 %",
    ]


def test_nothing_looks_weak_in_a_good_run():
    assert ending.find_weak(demo.get_config(), scores()) == []


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"tokenizer": {"psnr_db_n331": 23.0}},
            [
                "below 25 dB",
                "new --workdir",
                "per_stage.tokenizer.train.num_steps=3200",
            ],
        ),
        (
            {"t2i": {"retrieval_top1_pixels_n331_of3953": 0.25}},
            ["far below", "96 %", "--config.per_stage.t2i.train.num_steps=6400"],
        ),
        (
            {"t2i": {"retrieval_top1_pixels_reconstructed_n331_of3953": 0.5}},
            ["50 % of its own copies are wrong"],
        ),
        (
            {"i2t": {"word_f1_n331": 0.35}},
            ["captions are far below", "--config.per_stage.i2t.train.num_steps=4800"],
        ),
        (
            {"i2t": {"exact_match_text_tokenizer_n331": 0.6}},
            ["gives back 60 %", "per_stage.text_tokenizer.train.num_steps=600"],
        ),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_is_weak_is_said_with_what_would_help(parts, said):
    (text,) = ending.find_weak(demo.get_config(), scores(**parts))
    for part in said:
        assert part in text


def test_a_new_run_in_a_time_is_told_a_longer_time():
    config = demo.get_config()
    config.own.minutes = 20.0
    parts = {
        "tokenizer": {"psnr_db_n331": 14.0},
        "i2t": {"exact_match_text_tokenizer_n331": 0.6},
    }
    for text in ending.find_weak(config, scores(**parts)):
        assert "--minutes=40" in text
        assert "num_steps" not in text


@pytest.mark.parametrize(
    "parts",
    [
        {"t2i": {"retrieval_top1_pixels_n331_of3953": 0.25}},
        {"i2t": {"word_f1_n331": 0.35}},
        {"i2t": {"exact_match_text_tokenizer_n331": 0.6}},
    ],
)
def test_a_run_of_both_directions_is_told_the_steps_of_its_stage(parts):
    (text,) = ending.find_weak(both.get_config("demo"), scores(**parts))
    assert text.endswith("--config.per_stage.both.train.num_steps=6400")


def test_a_config_without_steps_of_stages_is_told_the_common_key():
    config = default.get_config()
    (text,) = ending.find_weak(
        config, scores(t2i={"retrieval_top1_pixels_n331_of3953": 0.0})
    )
    assert text.endswith("--config.train.num_steps=2000000")


def test_of_paper_configs_none_is_measured_at_the_end():
    assert not default.get_config().eval.after_training
    assert demo.get_config().eval.after_training
