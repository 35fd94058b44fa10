"""Losses, samples and a training run of the tiny release model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from flowtok_jax.convert.groups import read_sizes, to_release
from flowtok_jax.flow import paths, samplers
from flowtok_jax.tasks import losses
from tests import tiny

STEPS, EMA = 10, 0.9


@pytest.fixture(scope="module")
def loss_golden():
    return tiny.golden("flowtok_tiny.loss")


def forward(params, text, eps, z_tgt, t, chosen) -> dict:
    """Every loss of a step, as the release computes it, without dropout."""
    nets, _ = tiny.golden_nets()
    posterior = nets.projector.apply({"params": params["projector"]}, text)
    z_src = posterior.mean + posterior.std * eps
    target, tau = nets.align_head.apply({"params": params["align_head"]}, text)
    z_tgt, null = paths.null_row_targets(z_tgt, chosen)
    z_t, velocity = paths.straight_path(z_src, z_tgt, t)
    predicted = nets.dit.apply({"params": params["dit"]}, z_t, t, null)
    return {
        "flow": losses.velocity_loss(predicted, velocity),
        "align": losses.contrastive_alignment(z_src, target, tau),
        "kl": losses.kl_loss(posterior.mean, posterior.logvar, "release_batch_sum"),
    }


def text_to_image_params():
    _, params = tiny.golden_nets()
    return {name: params[name] for name in ("projector", "align_head", "dit")}


@pytest.mark.parametrize("null", ["null", "null_single"])
def test_golden_losses(loss_golden, null):
    names = ("text", "eps", "image_tokens", "t", null)
    inputs = (jnp.asarray(loss_golden[name]) for name in names)
    got = jax.jit(forward)(text_to_image_params(), *inputs)
    suffix = null.removeprefix("null")
    total = got["flow"] + got["align"] + 0.01 * got["kl"]
    for value, wanted in (
        (got["flow"], loss_golden["flow" + suffix]),
        (got["align"], loss_golden["align"]),
        (0.01 * got["kl"], loss_golden["kl_reference"]),
        (total, loss_golden["total" + suffix]),
    ):
        assert tiny.relative_error(value, wanted) < 2e-5


def test_golden_loss_needs_its_null_rows(loss_golden):
    """The two goldens differ, so that their tests can tell null rows from none."""
    rows = loss_golden["null"]
    assert rows.sum() > 1
    assert loss_golden["null_single"].sum() == 1
    changed = np.abs(loss_golden["flow"] - loss_golden["flow_single"]) > 1e-3
    np.testing.assert_array_equal(changed, rows)


@pytest.fixture(scope="module")
def sample():
    nets, params = tiny.golden_nets()

    def run(z_src, num_steps, scale):
        def velocity(z, t, null):
            return nets.dit.apply({"params": params["dit"]}, z, t, null)

        return samplers.euler(samplers.guided(velocity, scale), z_src, num_steps)

    return jax.jit(run, static_argnums=(1, 2))


@pytest.mark.parametrize(("num_steps", "scale"), [(20, 2.0), (5, 1.5), (50, 7.0)])
def test_golden_samples(sample, num_steps, scale):
    golden = tiny.golden("flowtok_tiny.sample")
    got = sample(jnp.asarray(golden["z0"]), num_steps, scale)
    wanted = golden[f"steps{num_steps}_scale{scale}"]
    assert tiny.relative_error(got, wanted) < 1e-4


def test_golden_end_to_end(sample):
    nets, params = tiny.golden_nets()
    golden = {k: jnp.asarray(x) for k, x in tiny.golden("end_to_end_tiny").items()}
    project = jax.jit(nets.projector.apply)
    posterior = project({"params": params["projector"]}, golden["text"])
    z_src = posterior.mean + posterior.std * golden["eps"]
    assert tiny.relative_error(z_src, golden["z0"]) < 2e-5
    z_img = sample(z_src, 20, 2.0)
    assert tiny.relative_error(z_img, golden["z1"]) < 1e-4
    decode = jax.jit(lambda p, *x: nets.tokenizer.apply(p, *x, method="decode"))
    tokens = z_img / nets.tokenizer.latent_scale
    image = decode({"params": params["tokenizer"]}, tokens, golden["text"])
    assert tiny.relative_error(image, golden["image"].transpose(0, 2, 3, 1)) < 1e-4


@pytest.fixture(scope="module")
def training():
    """Losses, gradient norms, parameters and averages of a plain loop of 10 steps."""
    golden = tiny.golden("flowtok_tiny.train")
    params = average = text_to_image_params()
    rates = jnp.asarray(golden["lrs"], jnp.float32)
    optimizer = optax.adamw(
        lambda step: rates[step], b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.03
    )

    def total(params, *inputs):
        parts = forward(params, *inputs)
        return (parts["flow"] + parts["align"] + 1e-4 * parts["kl"]).mean()

    @jax.jit
    def step(params, average, state, *inputs):
        loss, gradient = jax.value_and_grad(total)(params, *inputs)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 1 - EMA)
        return params, average, state, (loss, optax.tree.norm(gradient))

    state, logs = optimizer.init(params), []
    for i in range(STEPS):
        inputs = (
            tiny.draw(f"train/text/{i}", 4, 77, 32),
            tiny.draw(f"train/eps/{i}", 4, 77, 16),
            tiny.draw(f"train/x1/{i}", 4, 77, 16),
            tiny.uniform(f"train/t/{i}", 4),
            np.array([i % 2 == 0, True, False, False]),
        )
        inputs = map(jnp.asarray, inputs)
        params, average, state, log = step(params, average, state, *inputs)
        logs.append(log)
    return golden, params, average, np.array(logs)


def test_golden_training_losses(training):
    golden, _, _, logs = training
    np.testing.assert_allclose(logs[:, 0], golden["losses"], rtol=1e-4)


def test_golden_training_gradient_norms(training):
    golden, _, _, logs = training
    np.testing.assert_allclose(logs[:, 1], golden["grad_norms"], rtol=1e-3)


def test_golden_training_parameters_and_averages(training):
    golden, params, average, _ = training
    state = tiny.state_dict("flowtok_tiny")
    sizes = read_sizes("t2i", {k: x.shape for k, x in state.items()}, tiny.HEADS)
    trained, averaged = (to_release("t2i", p, sizes) for p in (params, average))
    trained["t2t_final"] = trained["t2t_temperature"]
    names = [name for name in golden if name not in ("losses", "lrs", "grad_norms")]
    assert len(names) == 9
    for name in names:
        key = name.replace("/", ".")
        got = averaged[key[4:]] if key.startswith("ema.") else trained[key]
        assert tiny.relative_error(got, golden[name]) < 5e-4, name


def test_training_moved_every_leaf(training):
    _, params, _, _ = training
    before, after = flatten_dict(text_to_image_params()), flatten_dict(params)
    for path, leaf in after.items():
        assert np.abs(leaf - before[path]).max() > 1e-5, path
