"""Adapters: merged kernels against products layer by layer, shapes, and refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flowtok_jax.models.lora import (
    LoraOptions,
    abstract_adapters,
    find_kernels,
    init_adapters,
    merge,
    merge_on_host,
)
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS
from tests import tiny

OPTIONS = LoraOptions(rank=3, alpha=6.0, pattern="blocks/")
ROWS = tiny.nets(compute=dict(dtype="float32", remat="none", layout="rows"))
NETS = tiny.nets()


def adapted(group, options=OPTIONS):
    """A group's parameters, and adapters none of whose values is 0."""
    params = tiny.random_params(NETS, group)
    shapes = abstract_adapters(params, options)
    return params, tiny.random_like(shapes, seed=1)


@pytest.mark.parametrize("group", TASKS)
def test_fresh_adapters_change_no_bit_of_any_group(group):
    params = tiny.random_params(NETS, group)
    adapters = init_adapters(params, OPTIONS, jax.random.key(0))
    merged = merge(params, adapters, OPTIONS.scale)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    flat = flatten_dict(adapters, sep="/")
    assert all(flat[name].any() for name in flat if name.endswith("lora_a"))
    assert not any(flat[name].any() for name in flat if name.endswith("lora_b"))
    drawn = init_adapters(params, OPTIONS, jax.random.key(1))
    other = flatten_dict(drawn, sep="/")
    assert all((flat[k] != other[k]).any() for k in flat if k.endswith("lora_a"))


def test_stacked_kernels_have_a_pair_a_block_and_plain_ones_one_pair():
    params = tiny.random_params(NETS, "t2i")
    options = OPTIONS._replace(pattern="dit/(blocks/attention/qkv|final/out)")
    shapes = abstract_adapters(params, options)
    found = {k: x.shape for k, x in flatten_dict(shapes, sep="/").items()}
    assert found == {
        "dit/blocks/attention/qkv/kernel/lora_a": (2, 32, 3),
        "dit/blocks/attention/qkv/kernel/lora_b": (2, 3, 96),
        "dit/final/out/kernel/lora_a": (32, 3),
        "dit/final/out/kernel/lora_b": (3, 4),
    }


@pytest.mark.parametrize("merging", [merge, merge_on_host])
def test_a_merged_kernel_is_that_of_each_block_and_the_rest_is_as_it_was(merging):
    params, adapters = adapted("t2i")
    before, after = (
        flatten_dict(tree, sep="/")
        for tree in (params, merging(params, adapters, OPTIONS.scale))
    )
    assert after.keys() == before.keys()
    pairs = flatten_dict(adapters, sep="/")
    kernels = find_kernels(params, OPTIONS.pattern)
    assert len(kernels) == 9  # 5 of the DiT's block, 4 of the projector's
    for path, leaf in after.items():
        if path not in kernels:
            np.testing.assert_array_equal(leaf, before[path])
            continue
        for k, block in enumerate(leaf):
            a, b = (pairs[f"{path}/{x}"][k] for x in ("lora_a", "lora_b"))
            wanted = before[path][k] + 2.0 * np.asarray(a) @ np.asarray(b)
            np.testing.assert_allclose(block, wanted, atol=1e-6)


def unmerged(net, params, adapters, scale, *inputs):
    """Applies a network layer by layer, adapters beside each kernel, as in the paper.

    Kernels of blocks are unrolled: the layer's own kernel says which block it is in.
    """
    kernels = flatten_dict(params, sep="/")
    pairs = flatten_dict(adapters, sep="/")

    def layer(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        path = "/".join(context.module.path) + "/kernel"
        if not isinstance(context.module, nn.Dense) or f"{path}/lora_a" not in pairs:
            return out
        a, b = pairs[f"{path}/lora_a"], pairs[f"{path}/lora_b"]
        if kernels[path].ndim == 3:
            own = context.module.get_variable("params", "kernel")
            same = jnp.array([(own == k).all() for k in kernels[path]])
            a, b = (jnp.einsum("k,kmn->mn", same.astype(x.dtype), x) for x in (a, b))
        return out + scale * (args[0] @ a) @ b

    with nn.intercept_methods(layer):
        return net.apply({"params": params}, *inputs)


@pytest.mark.parametrize("nets", [NETS, ROWS], ids=["batch", "rows"])
def test_a_network_with_merged_kernels_is_that_with_adapters_beside_them(nets):
    options = OPTIONS._replace(pattern=".")
    params, adapters = adapted("t2i", options)
    params, adapters = params["dit"], adapters["dit"]
    rng = np.random.default_rng(0)
    inputs = tiny.normal(rng, 4, 6, 4), jnp.linspace(0, 0.9, 4), jnp.zeros(4, bool)
    scale = 0.1
    wanted = unmerged(nets.dit, params, adapters, scale, *inputs)
    got = nets.dit.apply({"params": merge(params, adapters, scale)}, *inputs)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    plain = nets.dit.apply({"params": params}, *inputs)
    assert np.abs(plain - wanted).max() > 1e-2


def test_several_adapters_add_up_each_with_its_weight():
    params, one = adapted("i2t")
    two = tiny.random_like(one, seed=2)
    path = ("dit", "blocks", "attention", "qkv", "kernel")
    both = merge(merge(params, one, 0.7), two, -0.3)
    wanted = flatten_dict(params)[path]
    for tree, weight in ((one, 0.7), (two, -0.3)):
        pair = flatten_dict(tree)
        wanted = wanted + weight * pair[(*path, "lora_a")] @ pair[(*path, "lora_b")]
    np.testing.assert_allclose(flatten_dict(both)[path], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("dit/blocks/attn/qkv", "dit/blocks/attention/qkv/kernel"),
        ("projector/fc1", "projector/blocks/fc1/kernel"),
        ("indicator/embedding", "expected part of a path such as"),  # no kernel
        ("nothing", "expected part of a path such as"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_near_paths(pattern, near):
    params = tiny.random_params(NETS, "t2i")
    with pytest.raises(UserError, match=f"matches none of .*{near}"):
        find_kernels(params, pattern)


def test_kernels_of_convolutions_have_no_adapters():
    params = tiny.random_params(NETS, "tokenizer")
    assert all("smooth" not in path for path in find_kernels(params, "decoder"))
    with pytest.raises(UserError, match="matches none"):
        find_kernels(params, "smooth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"rank": -2}, "expected a rank from 1"),
        ({"alpha": 0.0}, "an alpha above 0"),
        ({"pattern": "blocks/("}, "no regular expression"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        OPTIONS._replace(**changes).check()
