"""int8 weights: close to those they stand for, and nothing else changes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flowtok_jax.models.dit import (
    DiT,
    average_modulations,
    modulations,
    one_direction,
)
from flowtok_jax.models.layers import LAYOUTS
from flowtok_jax.models.quantized import METHODS, QUANTIZED, quantize_blocks
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.place import open_weights
from tests import tiny
from tests.weights.conftest import saved  # noqa: F401 - a fixture

pytest.importorskip("qwix")
# qwix 0.1.8 asks Flax 0.12.8 for a class of older versions.
pytestmark = pytest.mark.filterwarnings("ignore:'VariableState':DeprecationWarning")

GROUPS = {"dit": "t2i", "student": "t2i_distilled", "tokenizer": "tokenizer"}
PROMPTS = ["a red circle at the top left", "a blue square at the top right"]
TOLERANCE = 0.03  # relative L2 error of a network of two blocks


def outputs(nets, name: str, params) -> jax.Array:
    """What sampling computes with a network of random tokens or images."""
    batch = tiny.batch()
    net = getattr(nets, name)
    z_t = batch["moments"][..., :4]
    times = jnp.asarray([0.3, 0.6], jnp.float32)
    if name == "tokenizer":
        apply = net.bind({"params": params})
        tokens = apply.encode(batch["image"]).mean
        return apply.decode(tokens, batch["text_feats"])
    if name == "student":
        known = average_modulations(net, params, times, 2.0)
        at = jax.tree.map(lambda x: x[0], known)
        return net.apply({"params": params}, z_t, at)
    at = jax.tree.map(lambda x: x[1], modulations(net, params, times))
    return net.apply({"params": params}, z_t, at, jnp.zeros(1, bool))


def made(name: str, how: str, **compute):
    """Tiny networks and a network's parameters, as they are and quantized."""
    compute = dict(tiny.config().compute) | compute
    nets = tiny.nets(compute=compute)
    params = tiny.random_params(nets, GROUPS[name])
    quantized, groups = quantize_blocks(nets, {"any": params}, how)
    return nets, params[name], quantized, groups["any"][name]


@pytest.mark.parametrize("how", QUANTIZED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GROUPS)
def test_a_network_computes_nearly_the_same(name, layout, how):
    nets, params, quantized, rounded = made(name, how, layout=layout)
    exact = outputs(nets, name, params)
    close = outputs(quantized, name, rounded)
    assert close.dtype == exact.dtype
    assert 1e-4 < tiny.relative_error(close, exact) < TOLERANCE


@pytest.mark.parametrize("how", QUANTIZED)
@pytest.mark.parametrize("name", GROUPS)
def test_bfloat16_stays_bfloat16(name, how):
    nets, params, quantized, rounded = made(name, how, dtype="bfloat16")
    exact = outputs(nets, name, params)
    close = outputs(quantized, name, rounded)
    assert close.dtype == exact.dtype
    assert 1e-4 < tiny.relative_error(close, exact) < 2 * TOLERANCE


@pytest.mark.parametrize("how", QUANTIZED)
def test_a_direction_of_both_has_the_integers_of_that_dit(how):
    nets = tiny.nets()
    shared = tiny.random_params(nets, "both")["shared_dit"]
    groups = {"both": {"shared_dit": shared}, "t2i": {"dit": one_direction(shared, 0)}}
    _, found = quantize_blocks(nets, groups, how)
    part = one_direction(found["both"]["shared_dit"], 0)
    jax.tree.map(np.testing.assert_array_equal, part, found["t2i"]["dit"])
    assert any(x.dtype == np.int8 for x in jax.tree.leaves(part))
    assert set(METHODS) == {*GROUPS, "shared_dit"}


def test_each_block_and_channel_has_a_scale_that_its_largest_weight_decides():
    _, params, _, rounded = made("dit", "int8")
    exact, found = flatten_dict(params), flatten_dict(rounded)
    changed = set()
    for path, leaf in exact.items():
        kept = jax.tree.leaves(found[path])
        if len(kept) == 1:
            np.testing.assert_array_equal(kept[0], leaf)
            continue
        changed.add("/".join(path[1:-1]))
        q, scale = (np.asarray(x) for x in kept)
        assert q.dtype == np.int8
        largest = np.abs(leaf).max(1, keepdims=True)  # [depth 1 f]
        np.testing.assert_allclose(scale, largest / 127.5, rtol=1e-5)
        # Half a step, and half of one more for the largest, which 127 stands for.
        assert (np.abs(q * scale - leaf) <= 0.5001 * scale).all()
    assert changed == {"attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"}


@pytest.fixture(scope="module")
def moving(saved, tmp_path_factory):  # noqa: F811
    """A directory with noise for velocities, which are nearly zero so early."""
    flowtok = FlowTok.from_pretrained(saved)
    for group in ("t2i", "i2t"):
        flowtok.params[group]["dit"] = tiny.random_like(flowtok.params[group]["dit"])
    directory = tmp_path_factory.mktemp("moving") / "a"
    flowtok.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("how", QUANTIZED)
def test_pictures_are_nearly_those_of_the_weights_as_they_are(moving, how):
    exact = FlowTok.from_pretrained(moving)
    images = exact.text_to_image(PROMPTS)
    program = lowered(exact)
    quantized = FlowTok.from_pretrained(moving, quantize=how)
    close = quantized.text_to_image(PROMPTS)
    assert 1e-4 < np.abs(close - images).max() < 0.1
    assert len(quantized.image_to_text(images)) == len(PROMPTS)
    # What qwix intercepts while these run is as before for those.
    assert lowered(exact) == program
    again = FlowTok.from_pretrained(moving, quantize="")
    assert type(again.nets.dit) is DiT
    assert lowered(again) == program
    np.testing.assert_array_equal(again.text_to_image(PROMPTS), images)


def lowered(flowtok: FlowTok) -> str:
    """The program that draws, as text."""
    ids = flowtok.vocabulary.encode(PROMPTS)

    def draw(params, ids, key, rows):
        return flowtok._programs.text_to_image(
            params, ids, key, rows, options=flowtok.sample
        )

    arguments = flowtok.params, ids, jnp.zeros(2, jnp.uint32), jnp.arange(2)
    return jax.jit(draw).lower(*arguments).as_text()


def test_the_config_asks_for_it_too_and_the_argument_wins(moving):
    config = pretrained.read_stored_config(moving)
    config.compute.quantize = "int8"
    weights = open_weights(moving)
    kinds = {
        how: {x.dtype for x in jax.tree.leaves(flowtok.params)}
        for how in (None, "")
        for flowtok in [FlowTok.from_weights(weights, config, quantize=how)]
    }
    assert kinds == {
        None: {np.dtype("float32"), np.dtype("int8")},
        "": {np.dtype("float32")},
    }


def test_quantized_weights_are_neither_saved_nor_exported(moving, tmp_path):
    quantized = FlowTok.from_pretrained(moving, quantize="int8")
    for write in (quantized.save_pretrained, quantized.export):
        with pytest.raises(UserError, match="^quantized weights are not written; load"):
            write(tmp_path / "a")


def test_an_unknown_way_and_a_missing_package_are_refused(moving, monkeypatch):
    message = "^compute.quantize is 'int4'; expected one of int8, int8_dynamic"
    with pytest.raises(UserError, match=message):
        FlowTok.from_pretrained(moving, quantize="int4")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"pip install 'flowtok_jax\[quantize\]'"):
        FlowTok.from_pretrained(moving, quantize="int8")
