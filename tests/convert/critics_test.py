"""State dicts of the networks that judge images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flowtok_jax.convert import critics, rules
from flowtok_jax.convert.critics import convert_critic, prepare_critic, read_clip_sizes
from flowtok_jax.convert.layout import source_shapes, to_source
from flowtok_jax.models.critics import Discriminator
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import make_module, net_shapes
from tests import tiny

MANIFESTS = {name: name for name in rules.CRITICS} | {"clip": "clip_tiny"}
CLIP = {
    "text": dict(width=32, depth=2, heads=4, vocab_size=120, context=16),
    "vision": dict(width=48, depth=3, heads=4, image_size=32, patch=8),
    "features": 24,
}


def targets(name: str) -> dict:
    if name != "discriminator":
        return net_shapes(name, make_module(name, CLIP if name == "clip" else {}))
    images = jnp.zeros((1, 128, 128, 3))
    params = jax.eval_shape(Discriminator().init, jax.random.key(0), images)["params"]
    return {path: x.shape for path, x in flatten_dict(params, sep="/").items()}


@pytest.mark.parametrize("name", rules.CRITICS)
def test_every_name_is_used_or_dropped_and_every_leaf_set(name):
    manifest = tiny.manifest(MANIFESTS[name])
    kept = prepare_critic(
        name,
        {
            k: np.broadcast_to(0.0, s)
            for k, s in manifest.items()
            if k not in critics.TABLES.get(name, {})
        },
    )
    shapes = source_shapes(rules.CRITICS[name], targets(name))
    assert shapes == {key: array.shape for key, array in kept.items()}
    dropped = {"clip": 1, "inception": 95, "lpips": 2, "discriminator": 3}
    dropped["convnext"] = 0
    assert len(manifest) - len(kept) == dropped[name]


@pytest.mark.parametrize("name", rules.CRITICS)
def test_no_name_and_no_leaf_has_two_rules(name):
    sources = [source for rule in rules.CRITICS[name] for source in rule.sources]
    leaves = [rule.target for rule in rules.CRITICS[name]]
    assert len(sources) == len(set(sources))
    assert len(leaves) == len(set(leaves))


@pytest.mark.parametrize("name", ["discriminator", "clip"])
def test_round_trip_is_exact(name):
    state = prepare_critic(name, tiny.state_dict(MANIFESTS[name]))
    params = convert_critic(name, state, targets(name))
    back = to_source(rules.CRITICS[name], flatten_dict(params, sep="/"))
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_fixed_arrays_are_compared_and_dropped():
    state = tiny.state_dict("discriminator")
    name = "blocks.1.1.kernel"
    assert name not in prepare_critic("discriminator", state)
    state[name] = state[name][..., ::-1] * 1.01
    with pytest.raises(UserError, match=f"{name} of this state dict is .* another"):
        prepare_critic("discriminator", state)
    state[name] = np.ones((1, 1, 3, 3), np.float32) / 9
    with pytest.raises(UserError, match=f"{name} of this state dict is .* another"):
        prepare_critic("discriminator", state)


def test_sizes_of_clip_are_read_off_its_shapes():
    shapes = tiny.manifest("clip_tiny")
    assert read_clip_sizes(shapes, {"text": 4, "vision": 4}) == CLIP
    with pytest.raises(UserError, match="the text tower is 32 wide and has 5 heads"):
        read_clip_sizes(shapes, {"text": 5, "vision": 4})
    # 64 channels a head where nothing says.
    wide = {
        name: tuple(64 * n if n in (32, 48) else n for n in shape)
        for name, shape in shapes.items()
    }
    sizes = read_clip_sizes(wide, {})
    assert sizes["text"]["heads"] == 32
    assert sizes["vision"]["heads"] == 48


def test_rules_that_miss_a_leaf_are_a_bug():
    state = prepare_critic("discriminator", tiny.state_dict("discriminator"))
    more = targets("discriminator") | {"norm9/scale": (4,)}
    with pytest.raises(ValueError, match="no rule sets .'norm9/scale'"):
        convert_critic("discriminator", state, more)
