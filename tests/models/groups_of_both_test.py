"""Parts of a group of both directions, in place of groups of their own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models.build import (
    BOTH,
    STANDS_FOR,
    find_provider,
    find_providers,
    has_group,
    take_group,
)
from flowtok_jax.models.dit import both_directions, one_direction
from flowtok_jax.tasks import TASKS, networks_of, pick_group
from tests import tiny

NETS = tiny.nets()
WITHOUT_ROWS = tiny.nets(shared_dit={"tells_direction": False})


@pytest.mark.parametrize("nets", [NETS, WITHOUT_ROWS])
def test_a_direction_of_the_shared_dit_is_a_dit(nets):
    shared = tiny.random_params(nets, BOTH)["shared_dit"]
    rng = np.random.default_rng(0)
    z = tiny.normal(rng, 3, 6, 4)
    t = jnp.asarray(rng.random(3, np.float32))
    found = []
    for way, is_null in itertools.product((0, 1), (False, True)):
        null = jnp.full(3, is_null)
        wanted = nets.shared_dit.apply({"params": shared}, z, t, null, jnp.full(3, way))
        dit = {"params": one_direction(shared, way)}
        got = nets.dit.apply(dit, z, t, null)
        np.testing.assert_allclose(got, wanted, atol=1e-6)
        found.append(np.asarray(got))
    apart = [np.abs(found[0] - other).max() > 1e-4 for other in found[1:]]
    assert apart == [True, nets is NETS, True]


@pytest.mark.parametrize("tells_direction", [True, False])
def test_both_directions_of_a_dit_are_that_dit(tells_direction):
    dit = tiny.random_params(NETS, "t2i")["dit"]
    shared = both_directions(dit, tells_direction)
    for way in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, one_direction(shared, way), dit)


def test_a_group_of_its_own_goes_before_its_part_of_both():
    for group in STANDS_FOR:
        assert find_provider(group, (BOTH, "clip")) == BOTH
        assert find_provider(group, (BOTH, group)) == group
        assert find_provider(group, ("clip",)) == group
        assert has_group(group, (BOTH,))
        assert not has_group(group, ("clip",))
    assert not has_group("tokenizer", (BOTH,))
    assert find_provider("t2i_distilled", (BOTH,)) == "t2i_distilled"


def test_of_several_places_the_first_that_has_a_group_decides_what_is_read():
    needed = ("clip", "t2i", "i2t", "text_tokenizer")
    first = (BOTH, "i2t")
    second = ("clip", "t2i", "text_tokenizer")
    assert find_providers(needed, first, second) == [BOTH, "clip", "i2t"]
    assert find_providers(needed, second, first) == [
        "clip",
        "i2t",
        "t2i",
        "text_tokenizer",
    ]
    # Of what nobody has, the name is said.
    assert find_providers(["t2i"], ("clip",)) == ["t2i"]


@pytest.mark.parametrize("nets", [NETS, tiny.nets(clip={"trained_along": True})])
@pytest.mark.parametrize("group", STANDS_FOR)
def test_a_part_has_the_networks_and_shapes_of_the_group(group, nets):
    params = {BOTH: tiny.random_params(nets, BOTH)}
    found = pick_group(params, group, nets)
    assert set(found) == set(networks_of(group, nets))
    wanted = tiny.random_params(nets, group)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)
    assert "shared_dit" not in take_group(params, group)
    assert take_group({**params, group: wanted}, group) is wanted


def test_the_groups_that_it_stands_for_are_tasks():
    assert set(STANDS_FOR) < set(TASKS)
