"""A task added in this test: nothing but its `Task` and its config knows of it.

The toy guesses how bright an image is from its caption: its group has an align head of
its own, whose outputs are averaged. A second toy has two optimisers on two schedules.
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowtok_jax.models.build import init_networks
from flowtok_jax.perf import topologies
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.base import Preview, Task
from flowtok_jax.tasks.state import Trainer, TrainState, make_state
from flowtok_jax.tasks.step import train_step
from flowtok_jax.weights.workdir import steps_of
from tests import run

STEPS = 4
CONFIG = """
from configs import demo

def get_config():
    config = demo.get_config()
    config.stages = ("{name}",)
    config.loss.{name} = dict(weight=2.0)
    config.per_stage.{name} = dict(schedule=dict(lr=1e-2, warmup_steps=0))
    return config
"""


def guess(nets, params, words, caption_ids):
    """Computes the brightness of the images of captions [b, n], in [0, 1]."""
    text_feats = nets.clip.apply({"params": words["clip"]}, caption_ids)
    target, _ = nets.align_head.apply({"params": params["align_head"]}, text_feats)
    return jax.nn.sigmoid(target.mean((1, 2)))


def toy_loss(trained, frozen, batch, key, *, nets, weight, parts=1):
    """Computes the squared error of the guess, times `weight`."""
    found = guess(nets, trained, frozen["words"], batch["caption_ids"])
    error = jnp.square(found - batch["image"].mean((1, 2, 3)) / 255).mean()
    return weight * error, {"loss/brightness": error}


def preview(model, examples):
    """Draws images of one grey each, as bright as the captions' images may be."""
    ids = jnp.asarray(model.vocabulary.encode(examples.captions))
    grey = guess(model.nets, model.params["toy"], model.params["clip"], ids)
    images = np.broadcast_to(
        np.asarray(grey, np.float32)[:, None, None, None], examples.images.shape
    )
    return Preview(
        "greys",
        images=images,
        are_copies=True,
        scalars={"eval/grey": float(grey.mean())},
    )


TOY = Task(
    name="toy",
    networks=("align_head",),
    frozen={"words": "clip"},
    loss=toy_loss,
    preview=preview,
    draws=True,
    passes=("clip",),
    contents=("image",),
)


class DuelState(TrainState):
    """A state with a second network, its optimiser, and nothing to sample of it."""

    judge: Any
    judge_opt_state: Any


def make_duel(task, config, nets):
    """Trains the toy, and beside it a judge by an optimiser and a rate of its own."""
    rates = {"lr": 1e-2, "lr_judge": 1e-3}
    optimizer = optax.adam(rates["lr"])
    judging = optax.sgd(rates["lr_judge"])
    options = config.loss[task.name].to_dict()
    loss = functools.partial(task.loss, nets=nets, **options)
    decay = config.train.ema_decay

    def start(params=None):
        key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
        if params is None:
            params = init_networks(nets, task.networks, key)
        state = make_state(params, optimizer, config.train.seed)
        judge = init_networks(nets, task.networks, jax.random.fold_in(key, 1))
        return DuelState(
            **{name: getattr(state, name) for name in TrainState.__dataclass_fields__},
            judge=judge,
            judge_opt_state=judging.init(judge),
        )

    def step(state, frozen, batch):
        key = jax.random.fold_in(state.key, state.step)
        grads = jax.grad(lambda p: loss(p, frozen, batch, key)[0])(state.judge)
        updates, judge_opt_state = judging.update(grads, state.judge_opt_state)
        state, scalars = train_step(
            state, frozen, batch, loss=loss, optimizer=optimizer, ema_decay=decay
        )
        judge = optax.apply_updates(state.judge, updates)
        return state.replace(judge=judge, judge_opt_state=judge_opt_state), scalars

    return Trainer(start, step, lambda count: rates)


DUEL = TOY._replace(name="duel", preview=lambda *_: Preview(""), draws=False)
DUEL = DUEL._replace(make_trainer=make_duel)


@pytest.fixture
def toy(monkeypatch, cli, tmp_path):
    """Calls main with the config of a toy that is in the table; the toys' folder."""

    def command(name, *arguments, **overrides):
        file = tmp_path / f"{name}.py"
        file.write_text(CONFIG.format(name=name))
        sizes = {"train.num_steps": STEPS, "checkpoint.every": STEPS // 2}
        flags = run.flags(**sizes | overrides)
        return cli(f"--config={file}", *arguments, *flags)

    for task in (TOY, DUEL):
        monkeypatch.setitem(TASKS, task.name, task)
    return command


def train(toy, name, workdir, **overrides):
    outcome = toy(name, f"--workdir={workdir}", **overrides)
    assert outcome.status == 0, outcome.stderr
    return run.digest(workdir, name)


@pytest.mark.parametrize("name", ["toy", "duel"])
def test_it_trains_checkpoints_and_resumes_to_the_same_bits(toy, name, tmp_path):
    whole = train(toy, name, tmp_path / "whole")
    halves = tmp_path / "halves"
    half = train(toy, name, halves, **{"train.num_steps": STEPS // 2})
    assert steps_of(halves, name) == [2]
    rest = train(toy, name, halves)
    assert rest == whole != half
    assert steps_of(halves, name) == [2, 4]
    lines = [line for line in run.read_metrics(halves) if "loss/total" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["stage"] == name
        assert line["loss/total"] == pytest.approx(2 * line["loss/brightness"])
        assert line["lr"] == 1e-2
        assert ("lr_judge" in line) == (name == "duel")


def test_its_second_optimiser_is_kept_and_moves_its_network(toy, tmp_path):
    train(toy, "duel", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "duel" / "4"
    names = json.loads((folder / "state" / "_METADATA").read_text())["tree_metadata"]
    kept = {name.split("'")[1] for name in names}
    assert {"judge", "judge_opt_state", "opt_state", "params"} <= kept


def test_its_previews_have_scalars_of_its_own_and_are_judged_as_copies(toy, tmp_path):
    train(toy, "toy", tmp_path / "run")
    (line,) = [x for x in run.read_metrics(tmp_path / "run") if "eval/grey" in x]
    assert 0 < line["eval/grey"] < 1
    assert 0 < line["eval/psnr_db_n16"] < 40
    assert line["eval/attribute_accuracy_n16"] == 0
    (board,) = (tmp_path / "run" / "tb" / "toy").iterdir()
    assert b"greys" in board.read_bytes()


def test_its_data_are_checked_before_anything_is_written(toy, tmp_path):
    latents = {"data.train": f"latents:{tmp_path}/*.tar"}
    outcome = toy("toy", f"--workdir={tmp_path / 'run'}", **latents)
    assert outcome.status == 2
    assert not (tmp_path / "run").exists()


def test_training_it_is_timed(toy):
    options = {"parts": "('train',)", "batch_sizes": "(8,)", "repeats": 1}
    outcome = toy("toy", "--mode=bench", bench=options)
    assert outcome.status == 0, outcome.stderr
    (report,) = json.loads(outcome.stdout.splitlines()[-1])["runs"]
    assert report["options"]["stage"] == "toy"
    assert report["images_per_sec"] > 0
    assert report["model_tflop_per_call"] > 0


@pytest.mark.parametrize("name", ["toy", "duel"])
def test_its_step_is_compiled_for_devices_that_are_not_there(toy, name, monkeypatch):
    """The eight CPU devices stand in for them."""
    monkeypatch.setattr(topologies, "prepare_environment", lambda: None)
    monkeypatch.setattr(topologies, "devices", lambda topology: jax.devices())
    outcome = toy(name, "--mode=compile", "--topology=a100:8")
    assert outcome.status == 0, outcome.stderr
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert result["stage"] == name
    assert result["fits"] is True
    assert result["model_tflops_per_step"] >= 0
