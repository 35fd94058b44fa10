"""Networks from a config, and fresh parameters of some of them."""

import jax
import numpy as np
import pytest

from flowtok_jax.models import build
from tests import tiny


def test_networks_start_from_keys_of_their_own():
    nets = tiny.nets()
    names = ("projector", "text_decoder")
    init = jax.jit(lambda key: build.init_networks(nets, names, key))
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
