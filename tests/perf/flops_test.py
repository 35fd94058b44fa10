"""FLOPs by arithmetic against those that XLA counts: published widths, one block."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import default
from flowtok_jax.flow import samplers
from flowtok_jax.models.build import make_nets
from flowtok_jax.models.layers import REMAT
from flowtok_jax.perf import flops
from flowtok_jax.sampling import Programs, SampleOptions
from flowtok_jax.tasks import TASKS, abstract_group

ROWS = 4


def nets(remat: str = "none"):
    """FlowTok-B's networks, one block each: XLA counts a loop's body once."""
    config = default.get_config()
    config.compute.update({"dtype": "float32", "remat": remat})
    for part in ("clip", "projector", "text_decoder", "dit"):
        config[part].depth = 1
    for side in ("encoder", "decoder"):
        config.tokenizer[side].depth = 1
    return make_nets(config)


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


INPUTS = {
    "clip": (spec(ROWS, 77, dtype=jnp.int32),),
    "projector": (spec(ROWS, 77, 768),),
    "align_head": (spec(ROWS, 77, 768),),
    "dit": (spec(ROWS, 77, 16), spec(ROWS), spec(ROWS, dtype=bool)),
    "text_decoder": (spec(ROWS, 77, 16),),
    "tokenizer": (spec(ROWS, 256, 256, 3), spec(ROWS, 77, 768)),
}
GROUP = dict(
    zip(
        INPUTS,
        ("clip", "t2i", "t2i", "t2i", "text_tokenizer", "tokenizer"),
        strict=True,
    )
)


def counted(function, *shapes) -> float:
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def network(name: str, remat: str = "none"):
    """A network as a function, its abstract parameters and its inputs."""
    built = nets(remat)
    params = abstract_group(built, GROUP[name])[name]

    def apply(params, *inputs):
        return getattr(built, name).apply({"params": params}, *inputs)

    return apply, params, INPUTS[name]


@pytest.mark.parametrize("name", INPUTS)
def test_a_forward_pass_has_the_flops_that_xla_counts(name):
    apply, params, inputs = network(name)
    wanted = ROWS * sum(part.total for part in flops.forward(nets())[name])
    assert counted(apply, params, *inputs) == pytest.approx(wanted, rel=0.03)


@functools.cache
def backward(name: str, remat: str) -> float:
    apply, params, inputs = network(name, remat)

    def loss(params, *inputs):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(apply(params, *inputs)))

    return counted(jax.grad(loss), params, *inputs)


REMATS = "none", "full", "dense_but_qkv"


@pytest.mark.parametrize("name", ["projector", "dit", "text_decoder", "tokenizer"])
@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_a_policy_recomputes_the_flops_that_it_says(name, remat):
    parts = flops.forward(nets())[name]
    wanted = ROWS * sum(part.recomputed(remat) for part in parts)
    whole = ROWS * sum(part.total for part in parts)
    extra = backward(name, remat) - backward(name, "none")
    assert extra == pytest.approx(wanted, abs=0.03 * whole)
    assert wanted > 0 or remat == "none"


PATHS = ("jvp", 0), ("jvp", 2), ("difference", 0)
CASES = [
    *((task, remat, {}) for task in TASKS for remat in REMATS),
    *(
        ("t2i_distilled", "none", {"method": method, "trajectory_steps": steps})
        for method, steps in PATHS
    ),
]


@pytest.mark.parametrize(("task", "remat", "changes"), CASES, ids=str)
def test_a_step_has_three_forward_passes_of_what_it_trains(
    monkeypatch, task, remat, changes
):
    # Calls of the teacher are a loop, whose body XLA counts once.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    built = nets(remat)
    options = default.get_config().loss[task].to_dict() | changes
    if options.get("method") == "path":
        options |= {"trajectory_steps": 3, "pairs": 2}
    frozen = TASKS[task].frozen.items()
    groups = {role: abstract_group(built, group) for role, group in frozen}
    trained = abstract_group(built, task)
    batch = {
        "image": spec(ROWS, 256, 256, 3, dtype=jnp.uint8),
        "caption_ids": spec(ROWS, 77, dtype=jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = functools.partial(TASKS[task].loss, nets=built, **options)
    grad = jax.grad(loss, has_aux=True)
    cost = flops.count_train_step(built, TASKS[task], options, ROWS, has_moments=False)
    got = counted(grad, trained, groups, batch, key)
    assert got == pytest.approx(cost.model + cost.recomputed, rel=0.06)
    assert (cost.recompute_fraction > 0) == (remat != "none")


def test_stored_moments_save_the_encoder_in_text_to_image():
    built = nets()
    whole, stored = (
        flops.count_train_step(built, TASKS["t2i"], {}, ROWS, has).model
        for has in (False, True)
    )
    assert whole - stored == ROWS * flops.encoder(built.tokenizer).total


def test_all_of_it_trained_and_recomputed_is_a_third():
    blocks = flops.dit(make_nets(default.get_config()).dit).blocks
    cost = flops.Forward(blocks, 0)
    assert cost.recomputed("full") / (3 * cost.total) == pytest.approx(1 / 3)
    assert cost.recomputed("none") == 0


@pytest.mark.parametrize("solver", samplers.SOLVERS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_sampling_has_the_flops_that_xla_counts(direction, scale, solver):
    """Of one step, because XLA counts a loop's body once."""
    built = nets()
    options = SampleOptions(num_steps=1, scale=scale, solver=solver)
    function = getattr(Programs(built), direction)
    is_text = direction == "text_to_image"
    groups = ("clip", "t2i") if is_text else ("text_tokenizer", "i2t")
    params = {g: abstract_group(built, g) for g in (*groups, "tokenizer")}
    data = INPUTS["clip"][0] if is_text else spec(ROWS, 256, 256, 3)
    key = jax.eval_shape(lambda: jax.random.key(0))
    got = counted(
        functools.partial(function, options=options),
        *(params, data, key, spec(ROWS, dtype=jnp.int32)),
    )
    run = {"num_steps": 1, "scale": scale, "solver": solver}
    costs = flops.count_sampling(built, direction, ROWS, **run)
    wanted = sum(cost.total for cost in costs.values())
    assert got == pytest.approx(wanted, rel=0.04)


@pytest.mark.parametrize(("solver", "times"), [("euler", 5), ("heun", 10)])
def test_modulations_count_once_a_time_however_many_rows(solver, times):
    few, many = (
        flops.count_sampling(
            nets(), "text_to_image", rows, num_steps=5, scale=2.0, solver=solver
        )["dit"].blocks
        for rows in (1, 8)
    )
    conditional_and_null = 2 * (2 * 6 * 768**2)
    assert few["modulation"] == many["modulation"] == times * conditional_and_null
    assert many["qkv"] == 8 * few["qkv"] == 8 * times * 2 * 77 * 2 * 3 * 768**2
