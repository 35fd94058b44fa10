"""Training beside a discriminator: two optimisers, two schedules, one step.

    L_D = hinge(D(image), D(copy)) + lecam_weight * LeCam                       (1)

The trained network makes its step first; D makes its own on the same copies, which were
computed before. Until step `start` the discriminator neither judges nor learns. Either
both networks take a step or, where a number is not finite, none (TA-TiTok's release,
`train_utils.py` and `modeling/modules/losses.py`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from flowtok_jax.array_types import Image, Params
from flowtok_jax.models.build import Nets
from flowtok_jax.models.critics import Discriminator
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.accumulate import by_parts
from flowtok_jax.tasks.base import Batch, Scalars, Task
from flowtok_jax.tasks.lora import through_adapters
from flowtok_jax.tasks.optimizer import make_optimizer, make_schedule
from flowtok_jax.tasks.state import Trainer, TrainState
from flowtok_jax.tasks.step import advance, average, make_rule, make_single_trainer

# What the state has of the discriminator.
OWN = ("discriminator", "discriminator_opt_state", "lecam_real", "lecam_fake")
# Numbers folded into a run's seed: the trained networks' are 0, see tasks/step.py.
DISCRIMINATOR = 1


class GanOptions(NamedTuple):
    """The section `gan` of a task's losses; see configs/default.py."""

    weight: float
    start: int
    lr: float | None
    lecam_weight: float
    lecam_decay: float
    width: int
    stages: int
    grid: int
    parts: int


class AdversarialState(TrainState):
    """A state with a discriminator, and the running averages of its mean logits."""

    discriminator: Any
    discriminator_opt_state: Any
    lecam_real: Any
    lecam_fake: Any


def beside(
    state: TrainState, discriminator: Params, opt_state: Any
) -> AdversarialState:
    """Puts a discriminator that has seen nothing beside a state."""
    fields = TrainState.__dataclass_fields__
    return AdversarialState(
        **{name: getattr(state, name) for name in fields},
        discriminator=discriminator,
        discriminator_opt_state=opt_state,
        lecam_real=jnp.zeros(()),
        lecam_fake=jnp.zeros(()),
    )


def make_discriminator(gan: GanOptions, dtype: DTypeLike) -> Discriminator:
    """Makes the discriminator of the options."""
    return Discriminator(gan.width, gan.stages, gan.grid, dtype)


def discriminator_loss(
    params: Params,
    image: Image,
    copy: Image,
    averages: tuple[Float[Array, ""], Float[Array, ""]],
    *,
    module: Discriminator,
    lecam_weight: float,
    parts: int = 1,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1).

    Args:
        averages: running averages of the mean logits of images and of copies.
        parts: parts of the rows that the discriminator sees one by one.
    """
    judge = by_parts(lambda p, x: module.apply({"params": p}, x), parts)
    real, fake = (judge(params, x) for x in (image, copy))
    hinge = losses.hinge_loss(real, fake)
    lecam = lecam_weight * losses.lecam_loss(real, fake, *averages)
    scalars = {
        "loss/discriminator": hinge + lecam,
        "loss/lecam": lecam,
        "logits/real": real.mean(),
        "logits/fake": fake.mean(),
    }
    return hinge + lecam, scalars


def adversarial_step(
    state: AdversarialState,
    frozen: Params,
    batch: Batch,
    *,
    loss: Callable,
    judge: Callable,
    optimizer: optax.GradientTransformation,
    judge_optimizer: optax.GradientTransformation,
    first: int,
    lecam_decay: float,
    ema_decay: float,
    ema_warms_up: bool = False,
) -> tuple[AdversarialState, Scalars]:
    """Makes one step of the trained network and one of its discriminator.

    Args:
        loss: (trained, frozen, batch, key, is_judged) -> loss, and its terms with the
            images and their copies.
        judge: `discriminator_loss` of (params, image, copy, averages).
        first: number of optimiser steps before the discriminator begins.
    """
    key = jax.random.fold_in(state.key, state.step)
    made = state.step - state.skipped
    is_judged = made >= first
    frozen = frozen | {"gan": state.discriminator}
    grad = jax.value_and_grad(loss, has_aux=True)
    (value, (scalars, pair)), grads = grad(state.params, frozen, batch, key, is_judged)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    own = {name: getattr(state, name) for name in OWN}
    learn = functools.partial(
        _learn, judge=judge, optimizer=judge_optimizer, decay=lecam_decay
    )
    # A branch and not a choice of values: most of a run's steps may come before it.
    judged = jax.lax.cond(is_judged, learn, _rest, own, jax.lax.stop_gradient(pair))
    learned, judge_scalars = judged
    norm = optax.tree.norm(grads)
    ema = average(state, params, ema_decay, ema_warms_up)
    new = {"params": params, "ema": ema, "opt_state": opt_state, **learned}
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    for name in ("loss/discriminator", "discriminator_grad_norm"):
        finite &= jnp.isfinite(judge_scalars[name])
    scalars |= {"loss/total": value, "grad_norm": norm} | judge_scalars
    return advance(state, new, finite, scalars)


def _learn(
    own: dict[str, Any],
    pair: tuple[Image, Image],
    *,
    judge: Callable,
    optimizer: optax.GradientTransformation,
    decay: float,
) -> tuple[dict[str, Any], Scalars]:
    """Makes the discriminator's step.

    Returns:
        What the state has of the discriminator, and scalars.
    """
    # LeCam compares with the averages as they were before this step.
    averages = own["lecam_real"], own["lecam_fake"]
    grad = jax.value_and_grad(judge, has_aux=True)
    (_, scalars), grads = grad(own["discriminator"], *pair, averages)
    updates, opt_state = optimizer.update(
        grads, own["discriminator_opt_state"], own["discriminator"]
    )
    scalars["discriminator_grad_norm"] = optax.tree.norm(grads)
    means = {f"lecam_{kind}": scalars[f"logits/{kind}"] for kind in ("real", "fake")}
    return {
        "discriminator": optax.apply_updates(own["discriminator"], updates),
        "discriminator_opt_state": opt_state,
        **{k: decay * own[k] + (1 - decay) * mean for k, mean in means.items()},
    }, scalars


def _rest(own: dict[str, Any], pair: tuple[Image, Image]) -> tuple[dict, Scalars]:
    """Leaves the discriminator as it is."""
    names = ("loss/discriminator", "loss/lecam", "logits/real", "logits/fake")
    return own, {name: jnp.zeros(()) for name in (*names, "discriminator_grad_norm")}


def _make_rate(config: ConfigDict, gan: GanOptions) -> optax.Schedule:
    """Makes the discriminator's schedule, which begins with its own first step."""
    if gan.start < 0:
        raise UserError(f"gan.start is {gan.start}; expected a step from 0 on")
    schedule = dict(config.schedule) | {"lr": gan.lr or config.schedule.lr}
    steps = max(1, config.train.num_steps - gan.start)
    return make_schedule(**schedule, num_steps=steps)


def make_adversarial_trainer(
    task: Task,
    config: ConfigDict,
    nets: Nets,
    loss: Callable,
    is_frozen: Callable[[tuple[str, ...]], bool] | None = None,
) -> Trainer:
    """Makes the trainer of a task and of a discriminator of its images.

    Args:
        loss: as of `adversarial_step`.
        is_frozen: says of the path of a parameter that it stays as it is.

    Raises:
        UserError: for options that cannot be.
    """
    gan = GanOptions(**config.loss[task.group].gan)
    judges = config.loss[task.group].judges
    rate = _make_rate(config, gan)
    judge_optimizer = make_optimizer(rate, **config.optimizer.to_dict())
    module = make_discriminator(gan, jnp.dtype(judges.dtype))
    alone = make_single_trainer(task, config, nets, is_frozen)

    def start(params: Params | None = None) -> AdversarialState:
        key = jax.random.fold_in(jax.random.key(config.train.seed), DISCRIMINATOR)
        side = nets.tokenizer.image_size
        own = module.init(key, jnp.zeros((1, side, side, 3)))["params"]
        return beside(alone.start(params), own, judge_optimizer.init(own))

    options = dict(lecam_weight=gan.lecam_weight, parts=gan.parts)
    judge = functools.partial(discriminator_loss, module=module, **options)
    step = functools.partial(
        adversarial_step,
        loss=through_adapters(task, loss),
        judge=judge,
        optimizer=make_rule(config, is_frozen)[1],
        judge_optimizer=judge_optimizer,
        first=gan.start,
        lecam_decay=gan.lecam_decay,
        ema_decay=config.train.ema_decay,
        ema_warms_up=config.train.ema_warms_up,
    )

    def rates(count: int) -> dict[str, float]:
        own = float(rate(count - gan.start)) if count >= gan.start else 0.0
        return alone.rates(count) | {"lr_discriminator": own}

    return Trainer(start, step, rates)
