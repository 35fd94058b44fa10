"""The loss of image to text."""

import functools

import jax
import pytest

from flowtok_jax.tasks import TASKS
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
