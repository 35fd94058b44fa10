"""Distillation: a flow in few steps of one call each, learned from a guided flow.

The teacher is the DiT of a trained t2i or i2t group; the student starts as a copy of it
and learns the average velocities of the teacher's guided flow
(flow/average_velocity.py). All else stays frozen: a source that learned too would let
the loss collapse it.

    path       the teacher goes from the source to the end in `trajectory_steps`; of
               each path the student learns `pairs` steps between two of its points
    jvp,       points z_t of the data's path, or with `trajectory_steps` of the
    difference teacher's; a share `equal_share` of the rows has r = t, where the target
               is the guided velocity
    L          mean over rows of l / stop_gradient(l + adaptive_floor)

Source of all but `path`: REFERENCE.md section 13; arXiv:2505.13447 and 2510.24474.
`path` is the plain regression that these avoid since a path costs many calls of the
teacher. Shared by its pairs it costs half of a step, and its targets are exact.
"""

import functools
import math
from collections.abc import Callable, Mapping
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
PATH = "path"  # learns averages of the path itself, the other methods their rule
METHODS = (PATH, *average_velocity.METHODS)
Scales = Float[Array, " b"]


class Options(NamedTuple):
    """Keys of config.loss.TASK that distillation of either direction has.

    Attributes:
        scale, scale_to: ends of the range of the guidance; without the second one
            `scale` alone.
        equal_share: share of the rows with r = t, in quarters.
        method: path, or of `average_target`.
        width: of `average_target`.
        locations: of the times.
        trajectory_steps: steps of the teacher's path; 0: z_t are points of the data's.
        pairs: steps learned of each path by method path, whose rows they multiply.
        adaptive_floor: of `adaptive_loss`.
    """

    scale: float
    scale_to: float | None
    equal_share: float
    method: str
    width: float
    locations: tuple[float, float]
    trajectory_steps: int
    pairs: int
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
        if self.method not in METHODS:
            raise UserError(
                f"loss.{name}.method is {self.method!r}; expected one of "
                f"{', '.join(METHODS)}"
            )
        quarters = self.equal_share * PARTS
        if quarters != int(quarters) or not 0 <= quarters <= PARTS:
            raise UserError(
                f"loss.{name}.equal_share is {self.equal_share}; expected 0, 0.25, "
                "0.5, 0.75 or 1"
            )
        if self.method == PATH and self.trajectory_steps < 2:
            raise UserError(
                f"loss.{name}.trajectory_steps is {self.trajectory_steps}; expected at "
                "least 2 with method=path, or method=jvp, which needs no path"
            )
        if self.pairs < 1:
            raise UserError(f"loss.{name}.pairs is {self.pairs}; expected at least 1")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest scale of the guidance."""
        return self.scale, self.scale if self.scale_to is None else self.scale_to

    @property
    def is_guided(self) -> bool:
        """The need to call the teacher for a null half too."""
        return self.range != (1, 1)

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


def trajectory(
    nets: Nets,
    dit: Params,
    z_src: Tokens,
    end: Time,
    scales: Scales | None,
    num_steps: int,
) -> Float[Array, "m b n c"]:
    """Computes the teacher's own guided paths from 0 to each row's end.

    Args:
        num_steps: Euler steps, of each row as long as its end is far.

    Returns:
        The points where steps begin or end, m = num_steps + 1.
    """

    def step(z, i):
        v = guided_velocity(nets, dit, z, end * (i / num_steps), scales)
        z = z + (end / num_steps)[:, None, None] * v
        return z, z

    points = jax.lax.scan(step, z_src, jnp.arange(num_steps))[1]
    return jnp.concatenate([z_src[None], points])


def distill_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    draw_ends: Callable[..., tuple[Tokens, Tokens | None]],
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
    scales = chosen.draw_scales(keys["scales"], z_src.shape[0])
    dit = frozen["teacher"]["dit"]
    lesson = _along_path if chosen.method == PATH else _at_points
    inputs = lesson(nets, dit, (z_src, z_tgt), scales, keys["times"], chosen)
    # Whatever made them, nothing but the student learns.
    inputs = jax.lax.stop_gradient(inputs)
    predicted, target = _compare(nets, trained["student"], inputs, chosen)
    error, loss = average_velocity.adaptive_loss(
        predicted, target, chosen.adaptive_floor
    )
    scalars = {
        "loss/velocity": error.mean() / math.prod(z_src.shape[1:]),
        "source/std": z_src.std(),
    }
    return loss.mean(), scalars


def _guidance(scales: Scales, options: Options) -> Scales | None:
    return scales if options.is_guided else None  # half the calls


def _along_path(
    nets: Nets,
    dit: Params,
    ends: tuple[Tokens, Tokens | None],
    scales: Scales,
    key: Key,
    options: Options,
) -> tuple[Float[Array, "bp ..."], ...]:
    """Draws z_t, t, r, u and the scale of steps on the teacher's paths.

    Returns:
        Of `pairs` steps of each path, bp = b * pairs.
    """
    z_src = ends[0]  # a path is the teacher's alone
    rows = z_src.shape[0]
    steps = options.trajectory_steps
    guidance = _guidance(scales, options)
    points = trajectory(nets, dit, z_src, jnp.ones(rows), guidance, steps)
    shape = rows, options.pairs
    first, last = average_velocity.sample_spans(key, shape, steps)
    of_rows = jax.vmap(lambda path, at: path[at], (1, 0))  # on the row's own device
    z_t = of_rows(points, first)  # [b p n c]
    z_r = of_rows(points, last)
    average = (z_r - z_t) * (steps / (last - first))[:, :, None, None]
    scales = jnp.repeat(scales[:, None], options.pairs, 1)
    arrays = z_t, first / steps, last / steps, average, scales
    # Pairs of a row stay together, as the rows of a device do.
    return tuple(x.reshape(-1, *x.shape[2:]) for x in arrays)


def _at_points(
    nets: Nets,
    dit: Params,
    ends: tuple[Tokens, Tokens | None],
    scales: Scales,
    key: Key,
    options: Options,
) -> tuple[Float[Array, "b ..."], ...]:
    """Draws z_t, t, r, the guided velocity at z_t and the scale of a step a row."""
    rows = scales.shape[0]
    t, r = average_velocity.sample_times(key, rows, options.locations)
    guidance = _guidance(scales, options)
    if steps := options.trajectory_steps:
        z_t = trajectory(nets, dit, ends[0], t, guidance, steps)[-1]
    else:
        z_t = paths.straight_path(*ends, t)[0]
    return z_t, t, r, guided_velocity(nets, dit, z_t, t, guidance), scales


def _compare(
    nets: Nets, student: Params, inputs: tuple[Array, ...], options: Options
) -> tuple[Tokens, Tokens]:
    """Computes predictions and targets, of rows with r = t without a derivative."""
    if options.method == PATH:  # the target is known
        z_t, t, r, average, scales = inputs
        return nets.student.apply({"params": student}, z_t, t, r, scales), average
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
) -> tuple[Tokens, Tokens | None]:
    """Draws caption tokens by the teacher's projector, and those of images, if any."""
    teacher = frozen["teacher"]
    text_feats = text_features(nets, frozen, batch, teacher)
    source = project(nets, teacher["projector"], text_feats, None)
    if {"image", "moments"}.isdisjoint(batch):
        return source.sample(keys["text"]), None
    image = image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    z_img = image.sample(keys["image"]) * nets.tokenizer.latent_scale
    return source.sample(keys["text"]), z_img


def count_passes(
    options: Mapping[str, Any], *, target: tuple[str, ...]
) -> dict[str, float]:
    """Counts passes of a row beside `Task.passes` and one of the student.

    Args:
        target: networks that only the target of the data's path needs.
    """
    chosen = Options(**{name: options[name] for name in Options._fields})
    steps = chosen.trajectory_steps
    found = dict.fromkeys(target, -1.0 if steps else 0.0)
    if chosen.method == PATH:
        found["dit"] = steps * (1.0 + chosen.is_guided)
        found["student"] = chosen.pairs - 1.0
    else:  # a derivative costs what a pass costs, of either method
        derived = 1 - chosen.equal_share
        found["dit"] = (steps + 1) * (1 + chosen.is_guided) + derived
    return found


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


def _make(
    teacher: Task, draw_ends: Callable, preview: Callable, target: tuple[str, ...]
) -> Task:
    name = f"{teacher.name}_distilled"
    return teacher._replace(
        name=name,
        networks=("student",),
        frozen={**teacher.frozen, "teacher": teacher.name},
        loss=functools.partial(distill_loss, draw_ends=draw_ends, name=name),
        preview=preview,
        # The projector too, which t2i trains.
        passes=tuple({**dict.fromkeys(teacher.passes), "projector": None}),
        more_passes=functools.partial(count_passes, target=target),
        trains_tower=False,
        init=copy_teacher,
    )


TASKS = (
    _make(t2i.TASK, draw_t2i_ends, _preview_images, ("encoder",))._replace(
        # The teacher's path begins at a caption, that of the data needs both ends.
        reads_contents=lambda options: not options["trajectory_steps"],
    ),
    _make(i2t.TASK, i2t.draw_ends, _preview_captions, ("clip", "projector")),
)
