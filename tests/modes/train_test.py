"""All stages of a config, and a run that is asked to end between two of them."""

import json
import signal

import pytest

from flowtok_jax.modes.train import train_stages
from flowtok_jax.train import loop
from flowtok_jax.weights.workdir import read_config
from tests import run
from tests.train.log_test import read_events


def test_asked_to_end_while_a_stage_finishes_the_next_one_does_not_start(
    demo, tmp_path, monkeypatch
):
    started = []

    def train(config, task, workdir, *, preemption, **others):
        started.append(task.name)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.look()
        return loop.StageResult(1.0, "0" * 64, {})

    monkeypatch.setattr(loop, "train", train)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(loop.PreemptedError):
        train_stages(read_config(demo.workdir), tmp_path)
    assert started == ["tokenizer"]
    marker = json.loads((tmp_path / "preempted.json").read_text())
    assert marker == {"stage": "text_tokenizer", "step": 0}
    assert signal.getsignal(signal.SIGTERM) is before


ADVERSARIAL = {
    "train": {"num_steps": 8, "batch_size": 8, "steps_per_call": 2},
    "checkpoint.every": 2,
    "loss.tokenizer.gan.weight": 0.1,
    "loss.tokenizer.gan.start": 4,
    "loss.tokenizer.gan.width": 8,
    "loss.tokenizer.gan.stages": 1,
    "loss.tokenizer.gan.grid": 4,
}


def test_a_run_stopped_beside_its_discriminator_goes_on_to_the_same_bits(cli, tmp_path):
    whole = cli(*run.command(tmp_path / "whole", "tokenizer", **ADVERSARIAL))
    assert whole.status == 0, whole.stderr
    halves = tmp_path / "halves"
    for steps in (2, 4, 6, 8):  # before the discriminator's start, at it, and after
        more = {"train.num_steps": steps}
        outcome = cli(*run.command(halves, "tokenizer", **ADVERSARIAL, **more))
        assert outcome.status == 0, outcome.stderr
    wanted = run.digest(tmp_path / "whole", "tokenizer")
    assert run.digest(halves, "tokenizer") == wanted
    lines = [x for x in run.read_metrics(halves) if "loss/discriminator" in x]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for name in ("loss/discriminator", "discriminator_grad_norm", "lr_discriminator"):
        assert [line[name] > 0 for line in lines] == [False, False, True, True]
    # 0 until the discriminator begins, as all that is said of it.
    board = points(tmp_path / "whole")
    for name in ("logits/real", "logits/fake"):
        assert [line[name] != 0 for line in lines] == [False, False, True, True]
        wanted = [(line["step"], pytest.approx(line[name])) for line in lines]
        assert board[name] == wanted


def points(workdir):
    """What TensorBoard shows of the tokenizer: steps and values of each scalar."""
    (path,) = (workdir / "tb" / "tokenizer").iterdir()
    found = {}
    for event in read_events(path):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.mark.parametrize("key", ["preview_fid", "preview_lpips"])
def test_what_judges_previews_is_missed_before_the_run(cli, tmp_path, key):
    options = {f"log.{key}": True, "eval.weights": ""}
    outcome = cli(*run.command(tmp_path / "run", "tokenizer", **options))
    assert outcome.status == 2
    assert "eval.weights is empty; expected a directory with" in outcome.complaint
    assert not (tmp_path / "run").exists()


def test_a_judge_without_weights_is_missed_before_the_run(cli, tmp_path):
    options = ADVERSARIAL | {"loss.tokenizer.judges.lpips_weight": 0.1}
    options["eval.weights"] = ""
    outcome = cli(*run.command(tmp_path / "run", "tokenizer", **options))
    assert outcome.status == 2
    assert "--lpips=vgg16-397923af.pth,vgg.pth" in outcome.complaint
    assert not (tmp_path / "run").exists()
