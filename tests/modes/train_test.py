"""All stages of a config, and a run that is asked to end between two of them."""

import json
import signal

import pytest

from configs import demo as demo_config
from flowtok_jax.modes import train as train_mode
from flowtok_jax.modes.train import InterruptedRunError, train_stages
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.train import loop
from flowtok_jax.weights.workdir import read_config
from tests import run
from tests.data import made
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
    with pytest.raises(loop.PreemptedError) as raised:
        train_stages(read_config(demo.workdir), tmp_path)
    assert not isinstance(raised.value, InterruptedRunError)
    assert raised.value.args == ("text_tokenizer", 0, 32)
    assert started == ["tokenizer"]
    marker = json.loads((tmp_path / "preempted.json").read_text())
    assert marker == {"stage": "text_tokenizer", "step": 0}
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_at_the_end_of_the_last_stage_leaves_the_rest_for_later(
    demo, tmp_path, monkeypatch
):
    def train(config, task, workdir, *, preemption, **others):
        signal.raise_signal(signal.SIGINT)
        return loop.StageResult(1.0, "0" * 64, {})

    monkeypatch.setattr(loop, "train", train)
    config = read_config(demo.workdir)
    config.stages = ("text_tokenizer",)
    with pytest.raises(InterruptedRunError) as raised:
        train_stages(config, tmp_path)
    assert raised.value.args == ("text_tokenizer", 32, 32)
    assert not (tmp_path / "summary.json").exists()


def test_print_config_shows_all_of_it_and_trains_nothing(cli, tmp_path):
    outcome = cli("--print_config", *run.command(tmp_path / "run"))
    assert outcome.status == 0
    assert "batch_size=8" in outcome.stdout
    assert outcome.stdout.count("mlp_width=16") == 2
    assert not (tmp_path / "run").exists()


def test_an_end_that_has_nothing_to_measure_is_refused_before_the_run(cli, tmp_path):
    options = {"data.eval": "shapes@2", "data.train": "shapes"}
    outcome = cli(*run.command(tmp_path / "run", "tokenizer", **options))
    assert outcome.status == 2
    assert "eval.after_training: data.eval=shapes@2 has" in outcome.complaint
    assert not (tmp_path / "run").exists()


FOLDER = {"data.held_out": 0.3, "data.eval": "", "eval.samples": 8}


@pytest.mark.slow
def test_a_run_on_a_folder_ends_in_numbers_of_pictures_held_out(cli, tmp_path):
    folder = made.write_folder(tmp_path / "set", 40)
    for i in range(8):  # the run is trained, and measured, without these
        (folder / f"{i:04d}.png").write_bytes(b"no picture")
    options = {"data.train": f"folder:{folder}", "text.max_unknown": 1, **FOLDER}
    options["data.max_rejected"] = 0.4
    arguments = run.command(tmp_path / "run", **options)
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.stderr
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation"]
    count, broken = found["pictures"], found["rejected"]["not_an_image"]
    assert (count + broken, broken > 0) == (8, True)
    assert not found["seen"]
    assert set(found["metrics"]) == {"t2i", "i2t", "tokenizer"}
    assert any(n.startswith("retrieval_top1_pixels") for n in found["metrics"]["t2i"])
    for name in ("text_to_image", "image_to_text", "reconstructions"):
        assert (tmp_path / "run" / "samples" / f"{name}.png").is_file()
    without = f"without {broken} that cannot be used"
    assert f"On {count} pictures of folder:{folder}, {without}:" in outcome.stdout
    assert "are nearest to the picture" in outcome.stdout
    assert f"these numbers are of {count} pictures only" in outcome.stdout
    assert f"    --images={folder}\n" in outcome.stdout
    again = cli(*arguments)
    assert again.stdout == outcome.stdout


ADVERSARIAL = {
    "train": {"num_steps": 8, "batch_size": 8, "steps_per_call": 2},
    "checkpoint.every": 2,
    "loss.tokenizer.gan.weight": 0.1,
    "loss.tokenizer.gan.start": 4,
    "loss.tokenizer.gan.width": 8,
    "loss.tokenizer.gan.stages": 1,
    "loss.tokenizer.gan.grid": 4,
}


@pytest.mark.slow
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


def test_a_trained_run_whose_pictures_cannot_be_measured_says_so(
    tmp_path, monkeypatch, caplog, capsys
):
    def measure(*arguments):
        raise UserError("image 2 of folder:photos cannot be used")

    monkeypatch.setattr(train_mode.ending, "measure_ending", measure)
    config = demo_config.get_config()
    (tmp_path / "summary.json").write_text(json.dumps({"params_sha256": {"t2i": "a"}}))
    (tmp_path / "config.json").write_text("{}")
    train_mode._summarize(config, tmp_path, {})
    assert "not measured: image 2 of folder:photos" in caplog.text
    assert "--mode=sample" in capsys.readouterr().out
