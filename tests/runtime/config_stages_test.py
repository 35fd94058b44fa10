"""Configs: the deltas of stages, what the command line wins over, and JSON."""

import json

import pytest
from ml_collections import ConfigDict

from configs import default, demo, i2t, tokenizer
from flowtok_jax.runtime import config as config_files
from flowtok_jax.runtime.errors import UserError

CONFIGS = {
    "default": default.get_config,
    "demo": demo.get_config,
    "tokenizer": tokenizer.get_config,
    "i2t": i2t.get_config,
}


@pytest.fixture
def config():
    return demo.get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json_with_its_tuples_and_nones(name):
    config = CONFIGS[name]()
    again = config_files.config_from_json(config_files.config_to_json(config))
    assert again.to_dict() == config.to_dict()
    assert again.stages == config.stages
    assert isinstance(again.stages, tuple)
    assert again.optimizer.betas == config.optimizer.betas
    assert default.get_config().optimizer.clip_norm is None


def test_a_config_from_json_takes_the_same_deltas(config):
    again = config_files.config_from_json(config_files.config_to_json(config))
    for stage in config.stages:
        wanted = config_files.for_stage(config, stage).to_dict()
        assert config_files.for_stage(again, stage).to_dict() == wanted


def test_a_stage_has_its_own_values_over_the_shared_ones(config):
    config.train.num_steps = 7
    config.per_stage = {"t2i": {"train": {"num_steps": 5}, "schedule": {"lr": 0.5}}}
    t2i, other = (config_files.for_stage(config, stage) for stage in ("t2i", "i2t"))
    assert (t2i.train.num_steps, t2i.schedule.lr) == (5, 0.5)
    assert other.to_dict() == config.to_dict()
    assert t2i.train.batch_size == config.train.batch_size
    assert config.train.num_steps == 7


@pytest.mark.parametrize("delta", [{"train": {"num_step": 5}}, {"training": {"a": 1}}])
def test_a_delta_of_a_key_that_there_is_not_is_refused(config, delta):
    config.per_stage = {"t2i": delta}
    with pytest.raises(UserError, match=r"per_stage.t2i.train.* is no key"):
        config_files.for_stage(config, "t2i")


def test_a_key_of_the_command_line_wins_over_those_of_stages(config):
    config.per_stage = {
        "t2i": {"train": {"num_steps": 5, "batch_size": 2}},
        "i2t": {"schedule": {"lr": 0.5}},
    }
    config.train.num_steps = 9
    config_files.drop_overridden(config, {"train.num_steps": 9})
    assert config_files.for_stage(config, "t2i").train.num_steps == 9
    assert config_files.for_stage(config, "t2i").train.batch_size == 2
    assert config_files.for_stage(config, "i2t").schedule.lr == 0.5


def test_a_stage_key_of_the_command_line_wins_for_that_stage(config):
    config.per_stage = {stage: {"train": {"num_steps": 5}} for stage in ("t2i", "i2t")}
    config.train.num_steps = 9
    overrides = {"train.num_steps": 9, "per_stage.t2i.train.num_steps": 5}
    config_files.drop_overridden(config, overrides)
    assert config_files.for_stage(config, "t2i").train.num_steps == 5
    assert config_files.for_stage(config, "i2t").train.num_steps == 9


def test_json_has_sorted_keys():
    text = config_files.config_to_json(ConfigDict({"b": 1, "a": (1, None)}))
    assert json.loads(text) == {"a": [1, None], "b": 1}
    assert text.index('"a"') < text.index('"b"')
