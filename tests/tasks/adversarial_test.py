"""The tokenizer with a discriminator: two optimisers, two schedules, one step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from flowtok_jax import array_types as shapes
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.accumulate import by_parts
from flowtok_jax.tasks.adversarial import OWN
from flowtok_jax.tasks.step import make_trainer
from flowtok_jax.train import sharding
from flowtok_jax.train.checkpoint import Checkpoints, with_shardings
from tests import tiny
from tests.tasks.setting import batch

START = 2
STEPS = 6
GAN = {"weight": 0.1, "start": START, "width": 8, "stages": 1, "grid": 4}
JUDGE = "discriminator"


def make(**changes):
    """The trainer of the tiny tokenizer and its discriminator."""
    config = default.get_config()
    for name, section in tiny.config().items():
        config[name] = section
    config.update_from_flattened_dict(
        {
            "train.num_steps": STEPS,
            "schedule.warmup_steps": 0,
            "schedule.lr": 1e-3,
            "loss.tokenizer.caption_dropout": 0.0,
            **{f"loss.tokenizer.gan.{key}": value for key, value in GAN.items()},
            **changes,
        }
    )
    return make_trainer(TASKS["tokenizer"], config, tiny.nets())


@functools.cache
def frozen():
    return {"clip": tiny.random_params(tiny.nets(), "clip", seed=1)}


def run(trainer, steps, state=None, first=0):
    """The states after each step, and the scalars of each."""
    step = jax.jit(trainer.step)
    state = trainer.start() if state is None else state
    states = [state]
    scalars = []
    for i in range(first, first + steps):
        state, values = step(state, frozen(), batch(i))
        states.append(state)
        scalars.append(jax.device_get(values))
    return states, scalars


def close(a, b, **options):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **options), a, b)


def test_before_its_start_the_discriminator_neither_judges_nor_learns():
    states, scalars = run(make(), START)
    alone, _ = run(make(**{"loss.tokenizer.gan.weight": 0.0}), START)
    close(states[-1].params, alone[-1].params, rtol=1e-5, atol=1e-6)
    assert params_sha256({"a": states[0].discriminator}) == params_sha256(
        {"a": states[-1].discriminator}
    )
    names = ("loss/gan", "loss/discriminator", "loss/lecam", "logits/real")
    assert all(values[name] == 0 for values in scalars for name in names)
    assert states[-1].lecam_real == states[-1].lecam_fake == 0


def test_from_its_start_on_both_learn_from_the_same_reconstructions():
    states, scalars = run(make(), START + 2)
    first = scalars[START]
    assert first["loss/gan"] == pytest.approx(-0.1 * first["logits/fake"], rel=1e-4)
    assert first["discriminator_grad_norm"] > 0
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        states[START].discriminator,
        states[START + 1].discriminator,
    )
    assert all(jax.tree.leaves(moved))
    # Averages take in a step's means after LeCam has compared with the old ones.
    after = states[START + 1]
    for kind in ("real", "fake"):
        mean = 0.001 * first[f"logits/{kind}"]
        assert getattr(after, f"lecam_{kind}") == pytest.approx(mean, rel=1e-4)
    real, fake = first["logits/real"], first["logits/fake"]
    lecam = 0.001 * (max(real, 0) ** 2 + max(-fake, 0) ** 2)
    assert first["loss/lecam"] == pytest.approx(lecam, rel=1e-4)


def test_where_a_number_is_not_finite_neither_network_takes_a_step():
    trainer = make()
    states, _ = run(trainer, START + 1)
    state = states[-1]
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), state.discriminator)
    state = state.replace(discriminator=broken)
    (_, new), (values,) = run(trainer, 1, state)
    assert values["skipped"] == values["skipped_in_a_row"] == 1
    for name in ("params", "ema", "discriminator", "lecam_real"):
        old = {"a": getattr(state, name)}
        assert params_sha256({"a": getattr(new, name)}) == params_sha256(old)
    assert int(new.step) == START + 2


def test_a_skipped_step_delays_the_discriminator_and_its_schedule():
    trainer = make()
    state = trainer.start().replace(skipped=jnp.int32(1))
    _, scalars = run(trainer, START + 2, state)
    learns = [values["discriminator_grad_norm"] > 0 for values in scalars]
    assert learns == [False] * (START + 1) + [True]


def test_rates_are_those_of_two_schedules():
    changes = {"schedule.warmup_steps": 2, "schedule.schedule": "cosine"}
    rates = [make(**changes).rates(count) for count in range(STEPS)]
    own = [rate["lr_discriminator"] for rate in rates]
    assert own[: START + 1] == [0.0] * (START + 1)  # its first step warms up
    assert own[START + 2] == pytest.approx(rates[2]["lr"]) == pytest.approx(5e-4 * 2)
    other = make(**{"loss.tokenizer.gan.lr": 5e-5}).rates(START)
    assert other == {"lr": pytest.approx(1e-3), "lr_discriminator": pytest.approx(5e-5)}


@pytest.mark.parametrize(
    "key",
    ["train.accumulate", "loss.tokenizer.judges.parts", "loss.tokenizer.gan.parts"],
)
def test_parts_of_a_batch_add_up_to_the_whole(key):
    whole, wanted = run(make(), START + 1)
    parts, got = run(make(**{key: 2}), START + 1)
    close(wanted, got, rtol=1e-3, atol=1e-5)
    moments = [optax.tree.get(s[-1].opt_state, "mu") for s in (whole, parts)]
    close(*moments, rtol=1e-3, atol=1e-6)


def test_rows_by_parts_have_the_gradient_of_all():
    def loss(judge, w, x):
        return jnp.square(judge(w, x).mean())  # couples the rows

    def judge(w, x):
        return jnp.tanh(x @ w).sum(1)

    w = tiny.draw("w", 3, 4)
    x = tiny.draw("x", 8, 3)
    wanted = jax.grad(functools.partial(loss, judge), argnums=(0, 1))(w, x)
    got = jax.grad(functools.partial(loss, by_parts(judge, 4)), argnums=(0, 1))(w, x)
    close(got, wanted, rtol=1e-5, atol=1e-7)


def spread_step(trainer, state):
    """One step on eight devices, and the same on one."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    places = sharding.shardings(mesh, state), sharding.shardings(mesh, frozen())
    rows = jax.NamedSharding(mesh, shapes.ROWS)
    spread = jax.jit(trainer.step, in_shardings=(*places, rows))
    got = spread(*jax.device_put((state, frozen(), batch()), (*places, rows)))
    alone = jax.device_put(state, jax.devices()[0])
    return got, jax.jit(trainer.step)(alone, frozen(), batch())


def close_steps(got, wanted):
    close(got[1], wanted[1], rtol=1e-3, atol=1e-5)
    for name in ("opt_state", "discriminator_opt_state"):
        moments = (optax.tree.get(getattr(s[0], name), "mu") for s in (got, wanted))
        close(*moments, rtol=1e-3, atol=1e-5)


def test_eight_devices_compute_what_one_does():
    trainer = make()
    states, _ = run(trainer, START)
    close_steps(*spread_step(trainer, states[-1]))


def test_what_one_device_saved_goes_on_on_eight_from_the_same_bits(tmp_path):
    trainer = make()
    states, _ = run(trainer, START + 1)
    with Checkpoints(tmp_path, "tokenizer", keep=1) as checkpoints:
        checkpoints.save(states[-1], {}, examples=0)
    abstract = jax.eval_shape(trainer.start)
    places = sharding.shardings(make_mesh(data=2, fsdp=2, tensor=2), abstract)
    with Checkpoints(tmp_path, "tokenizer", keep=1) as checkpoints:
        state, _ = checkpoints.restore(with_shardings(abstract, places))
    for name in ("params", "ema", "opt_state", *OWN):
        whole, parts = ({name: getattr(s, name)} for s in (states[-1], state))
        assert params_sha256(parts) == params_sha256(whole), name
    for name in ("params", "discriminator", "discriminator_opt_state"):
        leaves = jax.tree.leaves(getattr(state, name))
        assert not all(leaf.is_fully_replicated for leaf in leaves), name
    got, wanted = spread_step(trainer, state)
    assert wanted[1]["discriminator_grad_norm"] > 0
    close_steps(got, wanted)


def test_the_encoder_stays_where_the_decoder_is_tuned_alone():
    trainer = make(**{"loss.tokenizer.trains": "decoder"})
    states, _ = run(trainer, START + 1)
    old, new = (s.params["tokenizer"] for s in (states[0], states[-1]))
    jax.tree.map(np.testing.assert_array_equal, old["encoder"], new["encoder"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), old["decoder"], new["decoder"])
    assert all(jax.tree.leaves(moved))
