"""Distillation: a flow in few steps of one call each, learned from a guided flow.

The teacher is the DiT of a trained t2i or i2t group; the student starts as a copy of it
and learns the average velocities of the teacher's guided flow
(flow/average_velocity.py). All else stays frozen: a source that learned too would let
the loss collapse it.

    points     z_t of the data's path, or with `trajectory_steps` of the teacher's own
    rows       a share `equal_share` has r = t, where the target is the guided velocity
    L          mean over rows of l / stop_gradient(l + adaptive_floor)

Source: REFERENCE.md section 13; arXiv:2505.13447 and arXiv:2510.24474.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowtok_jax.array_types import Key, Params, Time, Tokens
from flowtok_jax.flow import average_velocity, paths, samplers
from flowtok_jax.models.build import Nets, init_networks
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import i2t, t2i
from flowtok_jax.tasks.base import (
    Batch,
    Preview,
    PreviewModel,
    Scalars,
    Task,
    image_posterior,
    project,
    text_features,
)

# Parts of the rows, of which some whole ones have r = t: on every device alike.
PARTS = 4
Scales = Float[Array, " b"]


class Options(NamedTuple):
    """Keys of config.loss.TASK that distillation of either direction has.

    Attributes:
        scale, scale_to: ends of the range of the guidance; without the second one
            `scale` alone.
        equal_share: share of the rows with r = t, in quarters.
        method, width: of `average_target`.
        locations: of the times.
        trajectory_steps: steps of the teacher whose points are z_t; 0: the data's path.
        adaptive_floor: of `adaptive_loss`.
    """

    scale: float
    scale_to: float | None
    equal_share: float
    method: str
    width: float
    locations: tuple[float, float]
    trajectory_steps: int
    adaptive_floor: float

    def check(self, name: str, nets: Nets) -> "Options":
        """Validates the options and returns them unchanged.

        Raises:
            UserError: naming the key of config.loss.NAME.
        """
        low, high = self.range
        if not 0 < low <= high:
            raise UserError(
                f"loss.{name}.scale is {low} and scale_to {high}; expected numbers "
                "above 0, the smaller first"
            )
        if low != high and not nets.student.takes_scale:
            raise UserError(
                f"loss.{name}.scale_to is {high}, and the student takes no scale; "
                "expected --config.student.takes_scale=True, or no scale_to"
            )
        if self.method not in average_velocity.METHODS:
            raise UserError(
                f"loss.{name}.method is {self.method!r}; expected one of "
                f"{', '.join(average_velocity.METHODS)}"
            )
        quarters = self.equal_share * PARTS
        if quarters != int(quarters) or not 0 <= quarters <= PARTS:
            raise UserError(
                f"loss.{name}.equal_share is {self.equal_share}; expected 0, 0.25, "
                "0.5, 0.75 or 1"
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest scale of the guidance."""
        return self.scale, self.scale if self.scale_to is None else self.scale_to

    def draw_scales(self, key: Key, rows: int) -> Scales:
        """Draws log-uniform scales of the guidance, one a row."""
        low, high = (math.log(scale) for scale in self.range)
        return jnp.exp(jax.random.uniform(key, (rows,), minval=low, maxval=high))


def guided_velocity(
    nets: Nets, dit: Params, z: Tokens, t: Time, scales: Scales | None
) -> Tokens:
    """Computes the teacher's velocity, guided with a scale a row; None: not guided."""
    if scales is None:
        return nets.dit.apply({"params": dit}, z, t, jnp.zeros(1, bool))
    null = jnp.repeat(jnp.array([True, False]), z.shape[0])  # [2b]
    twice = jnp.concatenate([z, z]), jnp.concatenate([t, t])
    v_null, v_cond = jnp.split(nets.dit.apply({"params": dit}, *twice, null), 2)
    return v_null + scales[:, None, None] * (v_cond - v_null)


def trajectory_point(
    nets: Nets,
    dit: Params,
    z_src: Tokens,
    t: Time,
    scales: Scales | None,
    num_steps: int,
) -> Tokens:
    """Computes the points at which the teacher's own guided flow is at times t.

    Args:
        num_steps: Euler steps from 0 to t, of each row as long as its t is.
    """

    def step(z, i):
        at = t * (i / num_steps)
        v = guided_velocity(nets, dit, z, at, scales)
        return z + (t / num_steps)[:, None, None] * v, None

    return jax.lax.scan(step, z_src, jnp.arange(num_steps))[0]


def distill_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    draw_ends: Callable[..., tuple[Tokens, Tokens]],
    name: str,
    parts: int = 1,
    **options: Any,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes L.

    Args:
        draw_ends: draws source and target of the direction's path.
        name: of the task.
        options: fields of `Options`, and what `draw_ends` takes beside.
    """
    own = {field: options.pop(field) for field in Options._fields}
    chosen = Options(**own).check(name, nets)
    names = ("ends", "times", "scales")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    if parts != 1:
        raise UserError(f"train.accumulate is {parts}; expected 1 in stage {name}")
    ends = dict(zip(("image", "text"), jax.random.split(keys["ends"]), strict=True))
    z_src, z_tgt = draw_ends(frozen, batch, ends, nets=nets, **options)
    rows = z_src.shape[0]
    t, r = average_velocity.sample_times(keys["times"], rows, chosen.locations)
    scales = chosen.draw_scales(keys["scales"], rows)
    guidance = None if chosen.range == (1, 1) else scales  # half the calls
    teacher = frozen["teacher"]["dit"]
    if chosen.trajectory_steps:
        steps = chosen.trajectory_steps
        z_t = trajectory_point(nets, teacher, z_src, t, guidance, steps)
    else:
        z_t = paths.straight_path(z_src, z_tgt, t)[0]
    v = guided_velocity(nets, teacher, z_t, t, guidance)
    # Whatever made them, nothing but the student learns.
    inputs = jax.lax.stop_gradient((z_t, t, r, v, scales))
    predicted, target = _compare(nets, trained["student"], inputs, chosen)
    error, loss = average_velocity.adaptive_loss(
        predicted, target, chosen.adaptive_floor
    )
    scalars = {
        "loss/velocity": error.mean() / math.prod(z_t.shape[1:]),
        "source/std": z_src.std(),
    }
    return loss.mean(), scalars


def _compare(
    nets: Nets, student: Params, inputs: tuple[Array, ...], options: Options
) -> tuple[Tokens, Tokens]:
    """Computes predictions and targets, of rows with r = t without a derivative."""
    quarters = int(options.equal_share * PARTS)
    if inputs[0].shape[0] % PARTS:
        raise UserError(
            f"train.batch_size is {inputs[0].shape[0]}; expected a multiple of {PARTS}"
        )
    # Row i is in part i % 4, so that every device has rows of each kind.
    split = [x.reshape(-1, PARTS, *x.shape[1:]) for x in inputs]

    def take(part: slice) -> list[Array]:
        return [x[:, part].reshape(-1, *x.shape[2:]) for x in split]

    results = []
    if quarters:
        z_t, t, _, v, scales = take(slice(0, quarters))
        predicted = nets.student.apply({"params": student}, z_t, t, t, scales)
        results.append((predicted, v))
    if quarters < PARTS:
        z_t, t, r, v, scales = take(slice(quarters, PARTS))
        net = nets.student
        if options.method == average_velocity.JVP:
            # Kernels of cuDNN have no forward derivative, and bfloat16 spoils one.
            net = net.clone(attention="xla", dtype=jnp.float32)

        def u(z: Tokens, t: Time, r: Time) -> Tokens:
            return net.apply({"params": student}, z, t, r, scales)

        how = options.method, options.width
        results.append(average_velocity.average_target(u, z_t, t, r, v, *how))
    predicted, target = zip(*results, strict=True)
    return jnp.concatenate(predicted), jnp.concatenate(target)


def draw_t2i_ends(
    frozen: Params, batch: Batch, keys: dict[str, Key], *, nets: Nets
) -> tuple[Tokens, Tokens]:
    """Draws caption tokens by the teacher's projector, and image tokens."""
    teacher = frozen["teacher"]
    text_feats = text_features(nets, teacher if "clip" in teacher else frozen, batch)
    source = project(nets, teacher["projector"], text_feats, None)
    image = image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    z_img = image.sample(keys["image"]) * nets.tokenizer.latent_scale
    return source.sample(keys["text"]), z_img


def copy_teacher(nets: Nets, frozen: Params, key: Key) -> dict[str, Params]:
    """Makes the student's first parameters: the teacher's, and those it lacks."""
    fresh = init_networks(nets, ("student",), key)["student"]
    return {"student": fresh | dict(frozen["teacher"]["dit"])}


def _preview_images(model: PreviewModel, examples: Any) -> Preview:
    """Draws the examples' captions in few steps."""
    images = model.text_to_image(examples.captions, solver=samplers.AVERAGE)
    return Preview("few_steps", images=images)


def _preview_captions(model: PreviewModel, examples: Any) -> Preview:
    """Describes the examples' images in few steps."""
    examples = examples.with_images(model)
    one = {"solver": samplers.AVERAGE, "candidates": 1}
    captions = model.image_to_text(examples.floats, **one)
    return Preview("few_steps", captions=captions, described=examples.images)


def _make(teacher: Task, draw_ends: Callable, preview: Callable) -> Task:
    name = f"{teacher.name}_distilled"
    return teacher._replace(
        name=name,
        networks=("student",),
        frozen={**teacher.frozen, "teacher": teacher.name},
        loss=functools.partial(distill_loss, draw_ends=draw_ends, name=name),
        preview=preview,
        # The projector, which t2i trains, and the teacher for both halves of guidance.
        passes=tuple({**dict.fromkeys(teacher.passes), "projector": None})
        + ("dit",) * 2,
        trains_tower=False,
        init=copy_teacher,
    )


TASKS = (
    _make(t2i.TASK, draw_t2i_ends, _preview_images),
    _make(i2t.TASK, i2t.draw_ends, _preview_captions),
)
