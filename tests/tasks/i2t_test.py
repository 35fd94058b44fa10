"""The loss of image to text."""

import functools

import jax
import numpy as np
import pytest

from flowtok_jax.sampling import Programs
from flowtok_jax.tasks import TASKS, pick_frozen
from flowtok_jax.tasks.i2t import draw_ends
from tests import tiny
from tests.tasks.setting import OPTIONS, batch, setting


@pytest.mark.parametrize("target", ["mean", "sample"])
def test_the_text_target_of_i2t_is_mean_or_sample(target):
    state, frozen, step = setting("i2t")
    options = OPTIONS.i2t.to_dict() | {"target": target, "null_rate": 0.0}
    loss = jax.jit(functools.partial(TASKS["i2t"].loss, nets=tiny.nets(), **options))
    stds = {
        seed: loss(state.params, frozen, batch(), jax.random.key(seed))[1]["target/std"]
        for seed in (0, 1)
    }
    assert (stds[0] == stds[1]) == (target == "mean")


def test_as_a_part_of_both_the_text_tokenizer_reads_by_the_tower_trained_with_it():
    nets = tiny.nets(clip={"trained_along": True})
    groups = {
        group: tiny.random_params(nets, group, seed)
        for seed, group in enumerate(("both", "clip", "tokenizer"))
    }
    frozen = {
        role: pick_frozen(groups, group, nets)
        for role, group in TASKS["i2t"].frozen.items()
    }
    keys = {"image": jax.random.key(1), "text": jax.random.key(2)}
    form = {"target": "mean", "text_scale": 1.0}
    drawn = draw_ends(frozen, batch(), keys, nets=nets, **form)[1]
    read = Programs(nets).project(groups, batch()["caption_ids"]).mean
    np.testing.assert_allclose(drawn, read, rtol=1e-5, atol=1e-6)
    del frozen["text_tokenizer"]["clip"]
    other = draw_ends(frozen, batch(), keys, nets=nets, **form)[1]
    assert not np.allclose(other, read, atol=1e-2)
