"""Sizes of networks that weights and a config share, or that are taken from there."""

import pytest

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.place import open_weights
from flowtok_jax.weights.sizes import adopt_sizes, find_differing
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
