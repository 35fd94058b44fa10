"""Sampling does nothing at a step that is the same at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.flow import samplers
from flowtok_jax.sampling import Programs, SampleOptions
from tests import tiny

STEPS = 5


def lowered(dtype: str, *, clip: dict | None = None, **options):
    """text_to_image of the tiny networks: its jaxpr, and what it computes."""
    nets = tiny.nets(compute=dict(dtype=dtype), clip=clip or {})
    groups = ("clip", "t2i", "tokenizer")
    params = {g: tiny.random_params(nets, g) for g in groups}
    options = SampleOptions(num_steps=STEPS, source="mean", **options)
    function = functools.partial(Programs(nets).text_to_image, options=options)
    ids = tiny.batch(3)["caption_ids"]
    return nets, params, function, (params, ids, jax.random.key(0), jnp.arange(3))


def inner(jaxpr) -> list:
    """A jaxpr's equations, and those of all the jaxprs in it."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(value, "jaxpr"):
                found += inner(value.jaxpr)
    return found


def the_steps(jaxpr):
    """The body of the sampler's loop."""
    loops = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    (steps,) = (e for e in loops if e.params["length"] == STEPS)
    return steps.params["jaxpr"].jaxpr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_computes_no_modulation(dtype):
    nets, _, function, arguments = lowered(dtype)
    body = the_steps(jax.make_jaxpr(function)(*arguments).jaxpr)
    width, equations = nets.dit.width, inner(body)
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert len(products) == 2 + 6  # embed and out; qkv, attention's two, proj, the MLP
    assert all(e.invars[1].aval.dtype == dtype for e in products)
    widths = [e.invars[1].aval.shape[-1] for e in products]
    assert 3 * width in widths
    assert 6 * width not in widths


@pytest.mark.parametrize(("solver", "scale"), [("euler", 2.0), ("heun", 1.0)])
def test_the_images_are_those_of_a_sampler_that_computes_all_at_each_step(
    solver, scale
):
    nets, params, function, arguments = lowered("float32", solver=solver, scale=scale)
    programs, ids = Programs(nets), arguments[1]

    def velocity(z, t, null):
        return nets.dit.apply({"params": params["t2i"]["dit"]}, z, t, null)

    @jax.jit
    def plain(weight):
        z_txt = programs.project(params, ids).mean
        solve = samplers.SOLVERS[solver]
        z_img = solve(samplers.guided(velocity, scale), z_txt, STEPS)
        raw = weight * z_img / nets.tokenizer.latent_scale
        return programs.decode(params, raw, ids)

    got = jax.jit(function)(*arguments)
    np.testing.assert_allclose(got, plain(1.0), atol=1e-4)
    assert tiny.relative_error(got, plain(0.0)) > 1e-2


def test_a_tower_of_its_own_makes_the_source_and_the_frozen_one_guides_the_decoder():
    clip = {"trained_along": True}
    nets, params, function, arguments = lowered("float32", clip=clip)
    ids = arguments[1]

    def sources(params):
        return Programs(nets).project(params, ids).mean

    moved = tiny.random_like(params["clip"]["clip"], 7)
    own = params | {"t2i": params["t2i"] | {"clip": moved}}
    shared = params | {"clip": {"clip": moved}}
    assert np.abs(sources(own) - sources(params)).max() > 1e-3
    np.testing.assert_array_equal(sources(shared), sources(params))
    images = [function(p, *arguments[1:]) for p in (params, own, shared)]
    assert np.abs(images[1] - images[0]).max() > 1e-4
    assert np.abs(images[2] - images[0]).max() > 1e-4
