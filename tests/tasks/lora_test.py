"""Tasks of adapters: their first loss, their steps, and eight devices."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from configs import default
from flowtok_jax import array_types as shapes
from flowtok_jax.models.lora import init_adapters
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks import TASKS, task_of
from flowtok_jax.tasks.lora import BASE, through_adapters, whole_params
from flowtok_jax.tasks.state import make_state
from flowtok_jax.tasks.step import make_trainer, train_step
from flowtok_jax.train import sharding
from tests import tiny
from tests.tasks.setting import OPTIONS, batch

RATE = optax.adam(1e-3)


def lora_config(pattern="blocks/", **keys):
    config = default.get_config()
    config.lora.update({"rank": 4, "pattern": pattern})
    config.update_from_flattened_dict(keys)
    return config


@functools.cache
def setting(stage, is_fresh=False, pattern="blocks/"):
    """A task of adapters: its state, frozen parameters and step; B is 0 if fresh."""
    nets = tiny.nets()
    task = task_of(lora_config(pattern), stage)
    frozen = {
        role: tiny.random_params(nets, group, seed=i + 1)
        for i, (role, group) in enumerate(task.frozen.items())
    }
    adapters = init_adapters(frozen[BASE], task.lora, jax.random.key(0))
    adapters = adapters if is_fresh else tiny.random_like(adapters)
    loss = functools.partial(task.loss, nets=nets, **OPTIONS[stage].to_dict())
    step = functools.partial(
        train_step, loss=through_adapters(task, loss), optimizer=RATE, ema_decay=0.9
    )
    return make_state(adapters, RATE, seed=0), frozen, step, loss


@pytest.mark.parametrize("stage", TASKS)
def test_the_first_networks_are_the_base_bit_for_bit_and_so_is_their_loss(stage):
    """Compiled into one program with the merging, the loss may round otherwise."""
    state, frozen, step, loss = setting(stage, is_fresh=True)
    key = jax.random.fold_in(state.key, state.step)
    used = frozen, batch(), key
    task = task_of(lora_config(), stage)
    whole = whole_params(task, state.params, frozen)
    jax.tree.map(np.testing.assert_array_equal, whole, frozen[BASE])
    wanted = jax.jit(loss)(frozen[BASE], *used)
    assert jax.jit(loss)(whole, *used) == wanted
    got = jax.jit(step.keywords["loss"])(state.params, *used)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)


@pytest.mark.parametrize("stage", TASKS)
def test_a_step_moves_every_adapter_and_nothing_else(stage):
    state, frozen, step, _ = setting(stage)
    before = params_sha256(frozen)
    new, scalars = jax.jit(step)(state, frozen, batch())
    assert params_sha256(frozen) == before
    assert all(np.isfinite(v) for v in jax.tree.leaves(scalars))
    for tree in (new.params, new.ema, optax.tree.get(new.opt_state, "mu")):
        names = {path.rpartition("/")[2] for path in flatten_dict(tree, sep="/")}
        assert names == {"lora_a", "lora_b"}
    moved = jax.tree.map(lambda a, b: (a != b).any(), state.params, new.params)
    assert all(jax.tree.leaves(moved))


def test_a_tower_that_is_trained_along_may_have_adapters():
    nets = tiny.nets(clip=dict(trained_along=True))
    task = task_of(lora_config("^clip/blocks/"), "t2i")
    frozen = {r: tiny.random_params(nets, g) for r, g in task.frozen.items()}
    adapters = tiny.random_like(
        init_adapters(frozen[BASE], task.lora, jax.random.key(0))
    )
    assert set(adapters) == {"clip"}
    loss = functools.partial(task.loss, nets=nets, **OPTIONS.t2i.to_dict())

    def value(adapters):
        key = jax.random.key(0)
        return through_adapters(task, loss)(adapters, frozen, batch(), key)[0]

    grads = jax.jit(jax.grad(value))(adapters)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"loss.tokenizer.trains": "decoder"},
        pytest.param({"loss.tokenizer.gan.weight": 0.1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_trainer_of_the_tokenizer_starts_and_steps_adapters(changes):
    """Also beside a discriminator, and of the decoder alone."""
    nets = tiny.nets()
    small = {"loss.tokenizer.gan.width": 4, "loss.tokenizer.gan.stages": 1}
    small |= {"loss.tokenizer.gan.grid": 4, "loss.tokenizer.gan.start": 0}
    # Neither warms up nor decays: a step moves by the gradient alone.
    still = {"schedule.warmup_steps": 0, "optimizer.weight_decay": 0.0}
    config = lora_config(**small, **changes, **still)
    task = task_of(config, "tokenizer")
    trainer = make_trainer(task, config, nets)
    frozen = {r: tiny.random_params(nets, g) for r, g in task.frozen.items()}
    state = trainer.start(None)
    new, _ = jax.jit(trainer.step)(state, frozen, batch())
    moved = flatten_dict(
        jax.tree.map(lambda a, b: bool((a != b).any()), state.params, new.params),
        sep="/",
    )
    for path, has_moved in moved.items():
        is_still = "encoder" in path and changes.get("loss.tokenizer.trains")
        # Of A the first gradient is 0, as B is.
        assert has_moved == (path.endswith("lora_b") and not is_still), path


@pytest.mark.parametrize(
    ("stage", "sizes"),
    [
        pytest.param("t2i", (8, 1, 1), marks=pytest.mark.slow),
        ("t2i", (2, 2, 2)),
        pytest.param("tokenizer", (1, 4, 2), marks=pytest.mark.slow),
    ],
)
def test_eight_devices_compute_what_one_does(stage, sizes):
    state, frozen, step, _ = setting(stage)
    wanted = jax.jit(step)(state, frozen, batch())
    mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    places = sharding.shardings(mesh, state), sharding.shardings(mesh, frozen)
    rows = jax.NamedSharding(mesh, shapes.ROWS)
    compiled = jax.jit(step, in_shardings=(*places, rows))
    got = compiled(*jax.device_put((state, frozen, batch()), (*places, rows)))
    for a, b in ((got[1], wanted[1]), (got[0].opt_state, wanted[0].opt_state)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b
        )


def test_adapters_lie_as_the_rows_and_the_columns_of_their_kernels():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    state, *_ = setting("t2i")
    places = flatten_dict(sharding.shardings(mesh, state.params), sep="/")
    block = "dit/blocks/attention"
    found = {
        k: places[f"{block}/{k}"].spec
        for k in (
            "qkv/kernel/lora_a",
            "qkv/kernel/lora_b",
            "proj/kernel/lora_a",
            "proj/kernel/lora_b",
        )
    }
    assert found == {
        "qkv/kernel/lora_a": PartitionSpec(None, "fsdp", None),
        "qkv/kernel/lora_b": PartitionSpec(None, None, "tensor"),
        "proj/kernel/lora_a": PartitionSpec(None, "tensor", None),
        "proj/kernel/lora_b": PartitionSpec(None, None, "fsdp"),
    }


def test_a_config_without_a_rank_has_the_tasks_themselves():
    config = default.get_config()
    assert all(task_of(config, stage) is task for stage, task in TASKS.items())
    assert {task.group for task in TASKS.values()} == set(TASKS)
    adapted = task_of(lora_config(), "t2i")
    assert (adapted.name, adapted.group) == ("t2i_lora", "t2i")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora.rank", -1, "lora.rank is -1"),
        ("init_vocabulary", "captions", "asks for new words"),
    ],
)
def test_what_cannot_be_is_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        task_of(lora_config(**{key: value}), "t2i")
