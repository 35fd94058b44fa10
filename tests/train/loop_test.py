"""The loop: resuming, seeds, what it writes, and 8 devices."""

import json
import logging

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from flowtok_jax.models.build import make_nets
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.processes import Preemption
from flowtok_jax.tasks import TASKS, abstract_groups
from flowtok_jax.train import loop
from flowtok_jax.train.checkpoint import Checkpoints
from flowtok_jax.train.log import Metrics
from flowtok_jax.weights.place import load_groups, open_weights
from flowtok_jax.weights.workdir import open_vocabulary, read_config, steps_of
from tests import run

TASK = "text_tokenizer"  # the quickest to compile


@pytest.fixture(scope="module")
def config(demo) -> ConfigDict:
    config = for_stage(read_config(demo.workdir), TASK)
    config.train.num_steps = 4
    config.checkpoint.every = config.log.every = 2
    return config


@pytest.fixture(scope="module")
def train(flowtok, config):
    """Trains the stage in a folder, with overrides; the result."""

    def function(workdir, evaluate=lambda ema, frozen: ({}, {}), **overrides):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(overrides)
        return loop.train(
            changed,
            TASKS[TASK],
            workdir,
            nets=flowtok.nets,
            frozen={"clip": flowtok.params["clip"]},
            vocabulary=flowtok.vocabulary,
            evaluate=evaluate,
            preemption=Preemption(),
        )

    return function


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The folder of an uninterrupted run, and its result."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(workdir)


def losses(workdir):
    """Step and loss of every line of training."""
    lines = [line for line in run.read_metrics(workdir) if "lr" in line]
    return {line["step"]: line["loss/total"] for line in lines}


def test_a_run_stopped_and_gone_on_equals_an_uninterrupted_one(
    train, whole, tmp_path, monkeypatch
):
    starts, make_loader = [], loop.Loader

    def watched(config, vocabulary, start_step, *rest):
        starts.append(start_step)
        return make_loader(config, vocabulary, start_step, *rest)

    monkeypatch.setattr(loop, "Loader", watched)
    half = train(tmp_path, **{"train.num_steps": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "text_tokenizer", "step": 3, "lr": 1.0}\n{"stage": "te')
    rest = train(tmp_path)
    assert starts == [0, 2]
    assert rest.sha256 == whole[1].sha256 != half.sha256
    assert rest.seconds > half.seconds > 0
    assert losses(tmp_path) == losses(whole[0])
    assert list(losses(tmp_path)) == [2, 4]


def test_another_seed_gives_other_weights_by_one_program(
    train, whole, tmp_path, caplog
):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = train(tmp_path, **{"train.seed": 1})
    assert result.sha256 != whole[1].sha256
    compiled = [m for m in caplog.messages if "XLA compilation of jit(train_s" in m]
    assert len(compiled) == 1


def test_the_state_is_restored_bit_by_bit(flowtok, config, whole):
    frozen = {"clip": flowtok.params["clip"]}
    made = loop.make_program(config, TASKS[TASK], flowtok.nets, frozen)
    with Checkpoints(whole[0], TASK, keep=2) as checkpoints:
        state, meta = checkpoints.restore(made.abstract)
    assert meta["step"] == int(state.step) == 4
    assert params_sha256(state.params) == meta["params_sha256"] == whole[1].sha256
    assert params_sha256(state.ema) != meta["params_sha256"]
    data = whole[0] / "checkpoints" / TASK / "4" / "data" / "metadata"
    assert json.loads(data.read_text()) == {"examples_seen": 4 * 8}


def test_finished_stages_are_known_and_others_are_not(config, whole, tmp_path):
    assert loop.finished(config, TASKS[TASK], tmp_path) is None
    assert loop.finished(config, TASKS[TASK], whole[0]) == whole[1]
    longer = config.copy_and_resolve_references()
    longer.train.num_steps = 5
    assert loop.finished(longer, TASKS[TASK], whole[0]) is None


@pytest.mark.parametrize(
    ("overrides", "saved", "logged", "shown"),
    [
        ({"checkpoint.every": 2, "log.every": 1}, [4, 5], [1, 2, 3, 4, 5], [5]),
        (
            {"checkpoint.every": 0, "log.every": 0, "log.preview_every": 2},
            [5],
            [5],
            [2, 4, 5],
        ),
    ],
    ids=str,
)
def test_saving_logging_and_previews_come_at_their_steps_and_at_the_end(
    train, tmp_path, overrides, saved, logged, shown
):
    seen = []

    def evaluate(ema, frozen):
        seen.append(ema)
        return {"eval/value": 0.5}, {"grid": np.zeros((4, 4, 3), np.uint8)}

    many = {"train.num_steps": 5, "train.steps_per_call": 4, "checkpoint.keep": 2}
    train(tmp_path, evaluate, **many, **overrides)
    assert steps_of(tmp_path, TASK) == saved  # the newest two
    assert list(losses(tmp_path)) == logged
    lines = [line for line in run.read_metrics(tmp_path) if "eval/value" in line]
    assert [line["step"] for line in lines] == shown
    assert len(seen) == len(shown)


def test_steps_per_call_changes_no_loss_beyond_rounding(train, whole, tmp_path):
    train(tmp_path, **{"train.steps_per_call": 1})
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=1e-4)


def test_the_line_of_a_saved_step_is_written_before_it_is_saved(
    train, tmp_path, monkeypatch
):
    """Else a run killed between the two would miss it for ever."""

    class KilledError(Exception):
        pass

    def save(*arguments):
        raise KilledError

    stored = []
    monkeypatch.setattr(Metrics, "store", lambda _: stored.extend(losses(tmp_path)))
    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(KilledError):
        train(tmp_path)
    assert list(losses(tmp_path)) == stored == [2]


def test_a_start_is_from_given_parameters_or_from_those_of_the_seed(flowtok, config):
    frozen = {"clip": flowtok.params["clip"]}
    made = loop.make_program(config, TASKS[TASK], flowtok.nets, frozen)
    given = params_sha256(flowtok.params[TASK])
    state = made.start(flowtok.params[TASK])
    assert params_sha256(state.params) == params_sha256(state.ema) == given
    assert params_sha256(flowtok.params[TASK]) == given
    fresh = params_sha256(made.start(None).params)
    config = config.copy_and_resolve_references()
    config.train.seed = 1
    made = loop.make_program(config, TASKS[TASK], flowtok.nets, frozen)
    assert len({given, fresh, params_sha256(made.start(None).params)}) == 3


def test_eight_devices_learn_what_one_does(demo, flowtok, tmp_path):
    """The tiny demo ran on one device, in a process of its own."""
    assert jax.device_count() == 8
    stored = read_config(demo.workdir)
    stored.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    config = for_stage(stored, "t2i")
    loop.train(
        config,
        TASKS["t2i"],
        tmp_path,
        nets=make_nets(config),
        frozen=load_groups(
            abstract_groups(flowtok.nets, ("clip", "tokenizer")),
            flowtok.nets,
            [open_weights(demo.workdir)],
        ),
        vocabulary=open_vocabulary(demo.workdir, config),
        evaluate=lambda ema, frozen: ({}, {}),
        preemption=Preemption(),
    )
    wanted = [x for x in demo.metrics if x["stage"] == "t2i" and "lr" in x]
    got = [x for x in run.read_metrics(tmp_path) if "lr" in x]
    assert [line["step"] for line in got] == [line["step"] for line in wanted] == [2, 4]
    names = [name for name in wanted[0] if not name.startswith("perf/")]
    for a, b in zip(got, wanted, strict=True):
        assert set(a) == set(b)
        for name in names[2:]:
            assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_a_run_that_diverges_stops_with_its_last_good_checkpoint(
    train, tmp_path, caplog
):
    wild = {"schedule.lr": 1e30, "train.num_steps": 40, "log.every": 1}
    wild |= {"train.max_skipped_in_a_row": 6, "schedule.warmup_steps": 0}
    with pytest.raises(UserError, match="not finite in the .*lower schedule.lr"):
        train(tmp_path, **wild, **{"optimizer.clip_norm": None})
    assert "loss or gradient was not finite" in caplog.text
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["skipped"] >= 6
    assert json.loads(lines[-1])["loss/total"] is None  # JSON knows no NaN
    with Checkpoints(tmp_path, TASK, keep=2) as checkpoints:
        assert checkpoints.read_meta()["step"] < 40


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.num_steps", 0, "train.num_steps is 0; expected at least 1"),
        ("train.batch_size", -8, "train.batch_size is -8; expected at least 1"),
        ("train.steps_per_call", 0, "train.steps_per_call is 0; expected at least 1"),
        ("train.batch_size", 12, "train.batch_size is 12; expected a multiple of 8"),
        ("checkpoint.keep", 0, "checkpoint.keep is 0; expected at least 1"),
        ("train.accumulate", 3, "is 8; expected a multiple of 24, the parts"),
        ("optimizer.moments", "int8", "optimizer.moments is 'int8'; expected one of"),
    ],
)
def test_numbers_that_cannot_be_are_refused(train, tmp_path, key, value, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path, **{key: value})
