"""Networks from a config, and their parameters by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models import build
from flowtok_jax.models.dit import SIZES
from flowtok_jax.tasks import TASKS, abstract_group, init_group, networks_of
from tests import tiny

# DiT, projector and align head; millions, as of the release (fixed positions counted).
PARAMETERS = {"s": 56.8, "b": 153.9, "l": 481.2, "xl": 698.1, "h": 1092.1}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_of_text_to_image(size):
    nets = tiny.nets(
        latent=dict(tokens=77, channels=16),
        clip=dict(width=768),
        projector=dict(depth=6, heads=8, mlp_width=1024),
        align_head=dict(width=512),
        dit=SIZES[size],
    )
    count = build.count_parameters(abstract_group(nets, "t2i"))
    assert round((count + 77 * nets.dit.width) / 1e6, 1) == PARAMETERS[size]


@pytest.mark.parametrize("group", ["clip", *TASKS])
def test_a_group_holds_its_networks_in_float32(group):
    nets = tiny.nets(compute=dict(dtype="bfloat16"))
    params = abstract_group(nets, group)
    assert sorted(params) == sorted(networks_of(group))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_networks_of_a_group_start_from_keys_of_their_own():
    nets = tiny.nets()
    init = jax.jit(lambda key: init_group(nets, "text_tokenizer", key))
    params = init(jax.random.key(0))
    kernels = [params[n]["blocks"]["fc1"]["kernel"] for n in params]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-2
    again = init(jax.random.key(0))["projector"]["blocks"]["fc1"]["kernel"]
    np.testing.assert_array_equal(again, params["projector"]["blocks"]["fc1"]["kernel"])


def test_a_key_that_no_network_has_is_an_error():
    config = tiny.config()
    config.dit.unlock()
    config.dit.widht = 32
    with pytest.raises(TypeError, match="widht"):
        build.make_nets(config)
