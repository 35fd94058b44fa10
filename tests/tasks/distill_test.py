"""Distillation: its start, its loss, and students that come close to their teacher."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowtok_jax.flow import samplers
from flowtok_jax.models.dit import average_modulations
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.sampling import SampleOptions, _flow
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.distill import copy_teacher, guided_velocity, trajectory
from tests import run, tiny

OPTIONS = {
    "scale": 2.0,
    "scale_to": None,
    "equal_share": 0.5,
    "method": "jvp",
    "width": 0.005,
    "locations": (-0.4, 1.2),
    "trajectory_steps": 0,
    "pairs": 2,
    "adaptive_floor": 0.01,
}
OWN = {"t2i_distilled": {}, "i2t_distilled": {"target": "mean", "text_scale": 0.5}}
SCALED = tiny.nets(student=dict(takes_scale=True))
NETS = tiny.nets()
ROWS = 8


def make_frozen(nets, name):
    """The frozen groups of a task by role, none of their leaves at its first value."""
    groups = TASKS[name].frozen
    return {role: tiny.random_params(nets, group) for role, group in groups.items()}


def start(nets, frozen):
    return jax.jit(lambda f: copy_teacher(nets, f, jax.random.key(0)))(frozen)


def compute_loss(name, nets, student, frozen, key=0, **changes):
    options = OPTIONS | OWN[name] | changes
    return TASKS[name].loss(
        student, frozen, tiny.batch(ROWS), jax.random.key(key), nets=nets, **options
    )


@pytest.fixture(scope="module")
def frozen():
    return make_frozen(NETS, "t2i_distilled")


@pytest.mark.parametrize("nets", [NETS, SCALED])
def test_the_first_student_has_the_conditional_velocity_of_its_teacher(nets):
    frozen = make_frozen(nets, "t2i_distilled")
    student = start(nets, frozen)["student"]
    rng = np.random.default_rng(0)
    z = tiny.normal(rng, ROWS, 6, 4)
    t = jnp.asarray(rng.random(ROWS, np.float32))
    scale = jnp.linspace(1.0, 4.0, ROWS)
    got = nets.student.apply({"params": student}, z, t, t, scale)
    dit = {"params": frozen["teacher"]["dit"]}
    wanted = nets.dit.apply(dit, z, t, jnp.zeros(1, bool))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    # Another end of the step is another velocity.
    other = nets.student.apply(
        {"params": student}, z, t, jnp.minimum(t + 0.3, 1), scale
    )
    assert np.abs(other - wanted).max() > 1e-3


@pytest.mark.parametrize("nets", [NETS, SCALED])
def test_steps_by_tabulated_modulations_are_those_of_the_network(nets):
    params = tiny.random_like(start(nets, make_frozen(nets, "t2i_distilled")))
    student = params["student"]
    z = tiny.normal(np.random.default_rng(0), 3, 6, 4)
    grid = jnp.linspace(0.0, 1.0, 5)
    table = average_modulations(nets.student, student, grid, 3.0)
    for k in range(4):
        at = jax.tree.map(lambda x, k=k: x[k], table)
        t, r, scale = (jnp.full(3, x) for x in (grid[k], grid[k + 1], 3.0))
        np.testing.assert_allclose(
            nets.student.apply({"params": student}, z, at),
            nets.student.apply({"params": student}, z, t, r, scale),
            atol=1e-5,
        )


def test_a_scale_changes_only_a_student_that_takes_one():
    z = tiny.normal(np.random.default_rng(0), 3, 6, 4)
    times = jnp.full(3, 0.2), jnp.full(3, 0.7)
    for nets, changes in ((NETS, False), (SCALED, True)):
        params = tiny.random_like(start(nets, make_frozen(nets, "t2i_distilled")))
        outs = [
            nets.student.apply({"params": params["student"]}, z, *times, jnp.full(3, s))
            for s in (1.5, 4.0)
        ]
        assert (np.abs(outs[0] - outs[1]).max() > 1e-4) == changes


def test_the_teacher_is_guided_row_by_row(frozen):
    rng = np.random.default_rng(0)
    z = tiny.normal(rng, 3, 6, 4)
    t = jnp.asarray([0.1, 0.5, 0.9])
    dit = frozen["teacher"]["dit"]
    got = guided_velocity(NETS, dit, z, t, jnp.asarray([1.0, 2.0, 3.5]))
    for row, scale in enumerate((1.0, 2.0, 3.5)):
        one = slice(row, row + 1)
        wanted = samplers.guided(
            lambda z, at, null: NETS.dit.apply({"params": dit}, z, at, null), scale
        )(z[one], t[one])
        np.testing.assert_allclose(got[one], wanted, atol=1e-5)


def test_points_of_a_trajectory_are_those_of_the_sampler(frozen):
    z = tiny.normal(np.random.default_rng(0), 3, 6, 4)
    dit = frozen["teacher"]["dit"]
    end = jnp.full(3, samplers.END)
    got = trajectory(NETS, dit, z, end, jnp.full(3, 2.0), 7)[-1]
    options = SampleOptions(num_steps=7, scale=2.0, times="left")
    wanted = _flow(NETS, {"t2i": {"dit": dit}}, "t2i", z, options)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"equal_share": 1.0},
        {"equal_share": 0.0},
        {"method": "difference"},
        {"method": "path", "trajectory_steps": 4},
        {"trajectory_steps": 3},
        {"scale": 1.0},
        {"adaptive_floor": 1.0},
        {"locations": (-2.0, 2.0)},
    ],
    ids=str,
)
def test_every_option_gives_a_finite_gradient_of_its_own(name, changes):
    frozen = make_frozen(NETS, name)
    student = start(NETS, frozen)

    def value(student, **changes):
        return compute_loss(name, NETS, student, frozen, **changes)[0]

    grads = jax.jit(jax.grad(lambda s: value(s, **changes)))(student)
    norm = float(optax.tree.norm(grads))
    assert 0 < norm < np.inf
    if changes:
        plain = jax.jit(jax.grad(value))(student)
        assert norm != pytest.approx(float(optax.tree.norm(plain)), rel=1e-6)


def test_the_loss_of_rows_with_equal_times_is_the_distance_from_the_guided_velocity(
    frozen,
):
    student = start(NETS, frozen)
    _, scalars = compute_loss(
        "t2i_distilled", NETS, student, frozen, scale=1.0, equal_share=1.0
    )
    assert scalars["loss/velocity"] < 1e-10  # a copy of a teacher without guidance
    _, scalars = compute_loss("t2i_distilled", NETS, student, frozen, equal_share=1.0)
    assert scalars["loss/velocity"] > 1e-4


def test_both_ways_to_differentiate_agree(frozen):
    student = tiny.random_like(start(NETS, frozen), std=0.1)
    values = []
    for how in ({}, {"method": "difference", "width": 0.001}):
        _, scalars = compute_loss("t2i_distilled", NETS, student, frozen, **how)
        values.append(float(scalars["loss/velocity"]))
    assert values[0] == pytest.approx(values[1], rel=0.02)


def test_without_pictures_captions_alone_decide(frozen):
    student = start(NETS, frozen)
    batch = tiny.batch(ROWS)
    others = batch | {"moments": batch["moments"] + 1}
    values = [
        TASKS["t2i_distilled"].loss(
            student,
            frozen,
            b,
            jax.random.key(0),
            nets=NETS,
            **OPTIONS | {"trajectory_steps": 2},
        )[0]
        for b in (batch, others)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_to": 4.0}, "student.takes_scale=True"),
        ({"scale": 0.0}, "above 0"),
        ({"method": "forward"}, "expected one of path, jvp, difference"),
        ({"equal_share": 0.3}, "expected 0, 0.25"),
        ({"method": "path"}, "trajectory_steps is 0; expected at least 2"),
        ({"pairs": 0}, "pairs is 0"),
        ({"parts": 2}, "train.accumulate is 2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(frozen, changes, message):
    student = start(NETS, frozen)
    with pytest.raises(UserError, match=message):
        compute_loss("t2i_distilled", NETS, student, frozen, **changes)


def test_a_student_learns_the_end_of_its_teachers_flow_in_one_call(frozen):
    """The yardstick of REFERENCE.md 13: one call against 50 steps of the teacher."""
    student = start(NETS, frozen)
    z = tiny.normal(np.random.default_rng(1), 64, 6, 4)
    params = {"t2i": frozen["teacher"]}
    end = _flow(NETS, params, "t2i", z, SampleOptions(num_steps=50, times="left"))
    one = SampleOptions(num_steps=1, solver=samplers.AVERAGE)

    def distance(student):
        got = _flow(NETS, {"t2i_distilled": student}, "t2i", z, one)
        return float(jnp.square(got - end).mean())

    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(student, state, key):
        def value(student):
            batch = tiny.batch(ROWS * 4)
            options = OPTIONS | {"trajectory_steps": 4}
            loss = TASKS["t2i_distilled"].loss
            return loss(student, frozen, batch, key, nets=NETS, **options)[0]

        updates, state = optimizer.update(jax.grad(value)(student), state)
        return optax.apply_updates(student, updates), state

    before = distance(student)
    state = optimizer.init(student)
    for i in range(150):
        student, state = step(student, state, jax.random.key(i))
    assert distance(student) < 0.5 * before


FLAGS = {
    "train.batch_size": 8,
    "checkpoint.every": 2,
    "schedule.warmup_steps": 0,
    "schedule.schedule": "constant",  # whatever the number of steps
    "log.preview_every": 0,
    "log.preview_samples": 4,
    "data.threads": 1,
}


@pytest.mark.parametrize("flow", ["t2i", "i2t"])
def test_a_run_distils_resumes_bitwise_and_its_weights_take_few_steps(
    cli, demo, tmp_path, flow
):
    def train(workdir, steps):
        sizes = FLAGS | {"train.num_steps": steps, "data.train": "shapes"}
        flags = [f"--config.{key}={value}" for key, value in sizes.items()]
        outcome = cli(
            f"--config=configs/distill.py:{flow}",
            f"--checkpoint={demo.workdir}",
            f"--workdir={workdir}",
            *flags,
        )
        assert outcome.status == 0, outcome.stderr
        return outcome

    name = f"{flow}_distilled"
    said = train(tmp_path / "whole", 4)
    assert "starts as a copy of its teacher" in said.stderr
    train(tmp_path / "halves", 2)
    train(tmp_path / "halves", 4)
    assert run.digest(tmp_path / "halves", name) == run.digest(tmp_path / "whole", name)
    flowtok = FlowTok.from_pretrained(tmp_path / "whole")
    options = flowtok.sample if flow == "t2i" else flowtok.caption
    assert (options.solver, options.num_steps) == (samplers.AVERAGE, 4)
    stored = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert stored["loss"][name]["scale"] == options.scale

    def use(flowtok):
        if flow == "t2i":
            return flowtok.text_to_image(["a red circle at the top left"])
        return flowtok.image_to_text(np.zeros((1, 32, 32, 3), np.float32))

    flowtok.save_pretrained(tmp_path / "saved")
    again = FlowTok.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(use(flowtok), use(again))
    whole = FlowTok.from_pretrained(demo.workdir)
    with pytest.raises(UserError, match=name):
        whole.text_to_image(["a"], solver="average") if flow == "t2i" else (
            whole.image_to_text(np.zeros((1, 32, 32, 3), np.float32), solver="average")
        )
