"""The meaning of a config's keys, read from the comments of its file."""

import pytest
from ml_collections import ConfigDict

from configs import default, demo
from flowtok_jax.runtime.config_help import DEFAULT, describe_keys, read_meanings
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import flatten

SOURCE = """
def get_config():
    config.a = ""  # beside
    # above, over
    # two lines
    config.b = ConfigDict({"x": 1, "y": 2})
    options = {
        "n": 1,  # of all
    }
    config.c = ConfigDict(
        {
            **options,
            "d": {
                # above
                "e": 2,  # and beside
            },
            "f": "#",
        }
    )
"""


def test_meanings_are_the_comments_beside_and_above():
    assert read_meanings(SOURCE) == {
        "a": "beside",
        "b": "above, over\ntwo lines",
        "b.x": "",
        "b.y": "",
        "c": "",
        "c.n": "of all",
        "c.d": "",
        "c.d.e": "above\nand beside",
        "c.f": "",
    }


def test_every_key_of_the_default_config_has_a_meaning():
    meanings = read_meanings(DEFAULT.read_text())
    for key in flatten(default.get_config().to_dict()):
        names = key.split(".")
        places = [".".join(names[: n + 1]) for n in range(len(names))]
        assert any(meanings.get(place) for place in places), key


def test_keys_come_in_the_order_of_the_file_at_most_80_columns_wide():
    text = describe_keys(demo.get_config())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    starts = ["stages = ", "latent: ", "clip.width = ", "tokenizer.patch = "]
    starts += ["train.num_steps = ", "    1600 in stage tokenizer", "train.seed = "]
    starts += ["loss.t2i.kl = ", "data.train = ", "sample.scale = ", "bench.profile = "]
    places = [next(i for i, x in enumerate(lines) if x.startswith(s)) for s in starts]
    assert places == sorted(places)
    known = flatten(demo.get_config().to_dict())
    shown = {line.split(" = ")[0] for line in lines if " = " in line[:40]}
    assert {key for key in known if not key.startswith("per_stage")} <= shown


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        (["optimizer.eps"], ["optimizer.eps"]),
        (["--config.optimizer.eps"], ["optimizer.eps"]),
        (["eval.fid"], ["eval.fid.reference", "eval.fid.resize"]),
        (["warmup"], ["schedule.warmup_steps", "bench.warmup"]),
        (["checkpoint", "latent"], ["latent.tokens", "latent.channels"]),
    ],
)
def test_keys_are_found_by_name_section_and_part(asked, keys):
    said = describe_keys(default.get_config(), asked)
    lines = [line.split(" = ")[0] for line in said.splitlines() if " = " in line]
    assert lines[: len(keys)] == keys


def test_a_key_of_ones_own_is_shown_without_a_meaning():
    config = ConfigDict({"stages": (), "per_stage": {}, "mine": {"x": 1}})
    assert describe_keys(config, ["mine"]) == "mine.x = 1"


def test_a_key_that_does_not_exist_is_refused_with_those_near_it():
    with pytest.raises(UserError, match=r"'sede'; expected one such as text.seed, tr"):
        describe_keys(default.get_config(), ["sede"])
