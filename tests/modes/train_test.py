"""All stages of a config, and a run that is asked to end between two of them."""

import json
import signal

import pytest

from flowtok_jax.modes.train import train_stages
from flowtok_jax.train import loop
from flowtok_jax.weights.workdir import read_config


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
