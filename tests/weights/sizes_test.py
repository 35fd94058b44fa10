"""Sizes of networks that weights and a config share, or that are taken from there."""

import pytest

from configs import distill, finetune
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.place import open_weights
from flowtok_jax.weights.sizes import adopt, adopt_sizes, find_differing
from tests.weights.pretrained_test import edit_config


@pytest.fixture(params=["run", "saved"])
def weights(request, demo, saved):
    return open_weights(demo.workdir if request.param == "run" else saved)


def test_sizes_of_some_networks_come_from_weights(weights, config):
    there = weights.config
    config.dit.width = config.clip.width = 48
    config.tokenizer.image_size = 64
    config.tokenizer.latent_scale = 3.0
    config.latent.tokens = 5
    config.projector.mlp_width = 7
    adopt_sizes(config, weights, ("tokenizer",), {"tokenizer.patch": 4})
    assert config.latent == there.latent
    assert config.clip.width == there.clip.width
    assert config.tokenizer.latent_scale == there.tokenizer.latent_scale
    assert config.tokenizer.image_size == there.tokenizer.image_size
    assert (config.tokenizer.patch, config.dit.width) == (4, 48)
    assert config.projector.mlp_width == 7


def test_what_differs_is_found_by_group(weights, config):
    assert find_differing(config, weights, "t2i", ("dit", "projector")) == {}
    config.dit.width = 48
    config.latent.channels = 9
    config.tokenizer.latent_scale = 3.0  # fits any weights
    there = {"latent.channels": (4, 9)}
    assert find_differing(config, weights, "tokenizer", ("tokenizer",)) == there
    there["dit.width"] = (16, 48)
    assert find_differing(config, weights, "i2t", ("dit",)) == there


def test_sizes_of_another_version_are_refused(mine, config):
    edit_config(mine, lambda c: c["tokenizer"].update(colour=1))
    with pytest.raises(UserError, match="is not that of this version's networks"):
        adopt_sizes(config, open_weights(mine), ("tokenizer",), {})


def test_the_guidance_that_is_given_is_the_one_that_a_student_learns(demo):
    start = open_weights(demo.workdir)
    config = distill.get_config("t2i,i2t")
    adopt(config, start, {"sample.scale": 3.0, "caption.scale": 4.0}, trains=True)
    assert config.loss.t2i_distilled.scale == config.sample.scale == 3.0
    assert config.loss.i2t_distilled.scale == config.caption.scale == 4.0
    config = distill.get_config()
    adopt(config, start, {"loss.t2i_distilled.scale": 3.0}, trains=True)
    assert config.loss.t2i_distilled.scale == 3.0
    assert config.sample.scale == start.config.sample.scale
    # What draws, and does not train, knows what the student learned.
    config = distill.get_config()
    adopt(config, start, {"sample.scale": 3.0})
    assert config.loss.t2i_distilled.scale == start.config.sample.scale


def test_both_follow_a_loss_of_text_to_image_that_is_given(demo):
    start = open_weights(demo.workdir)
    config = finetune.get_config("both")
    adopt(config, start, {"loss.t2i.null_rate": 0.3}, trains=True)
    assert config.loss.both.null_rate == 0.3


def test_a_loss_of_both_that_weights_have_goes_before_that_of_text_to_image(mine):
    edit_config(mine, lambda c: c["loss"]["both"].update(null_rate=0.25))
    config = finetune.get_config("both")
    adopt(config, open_weights(mine), {"loss.t2i.null_rate": 0.3}, trains=True)
    assert config.loss.both.null_rate == 0.25


def test_losses_are_the_same_whichever_stage_of_a_workdir_is_trained(demo):
    given = {"sample.scale": 3.0, "loss.t2i.null_rate": 0.3}
    configs = [distill.get_config(flow) for flow in ("t2i", "i2t")]
    configs += [finetune.get_config(stage) for stage in ("t2i", "both")]
    for config in configs:
        adopt(config, open_weights(demo.workdir), given, trains=True)
    drawing, describing, one_way, both_ways = (c.loss.to_dict() for c in configs)
    assert drawing == describing
    assert one_way == both_ways
