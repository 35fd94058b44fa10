"""The whole demo, tiny, through the command line."""

import json
import math
import re
import shlex
import signal
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from configs.demo import get_config
from flowtok_jax.weights.workdir import read_config, steps_of
from tests import run

STAGES = get_config().stages
SHARES = {
    "oracle_accuracy_real",
    "t2i_attribute_accuracy",
    "t2i_attribute_accuracy_mean_source",
    "t2i_attribute_accuracy_seen",
    "t2i_diversity",
    "tokenizer_wrong_caption_accuracy",
    "tokenizer_mean_latent_accuracy",
    "i2t_exact_match",
}
MAIN = ("python", "-m", "flowtok_jax.main")
PICTURES = ("image_to_text", "reconstructions", "text_to_image")


def events(folder):
    """The values of TensorBoard's event files: (step, tag, kind)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboardX.proto.event_pb2 import Event
    found = set()
    for path in folder.glob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.add((event.step, value.tag, value.WhichOneof("value")))
    return found


def times(workdir):
    """When each file that training or the summary makes was last written."""
    names = ("checkpoints", "samples", "tb", "metrics.jsonl", "summary.json")
    paths = [
        p for name in names for p in (workdir / name, *workdir.glob(f"{name}/**/*"))
    ]
    return {p: p.stat().st_mtime_ns for p in paths}


def test_it_ends_well_and_says_where_summary_and_pictures_are(demo):
    assert demo.outcome.status == 0, demo.outcome.stderr
    assert "Traceback" not in demo.outcome.stderr
    assert str(demo.workdir / "summary.json") in demo.outcome.stdout.replace("\n", "")
    for name in PICTURES:
        path = demo.workdir / "samples" / f"{name}.png"
        assert f"picture: {path}\n" in demo.outcome.stdout


def test_the_summary_has_what_the_demo_is_to_show(demo):
    summary = demo.summary
    for name in SHARES:
        assert 0 <= summary[name] <= 1, name
    assert summary["oracle_accuracy_real"] == 1
    assert summary["t2i_diversity"] > 0
    assert summary["samples"] == 16
    assert summary["source_sigma"] > 0
    assert math.isfinite(summary["tokenizer_psnr_db"])
    assert set(summary["seconds"]) == set(summary["params_sha256"]) == set(STAGES)
    assert all(seconds > 0 for seconds in summary["seconds"].values())
    digests = set(summary["params_sha256"].values())
    assert len(digests) == len(STAGES)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_something(demo, name):
    with Image.open(demo.workdir / "samples" / f"{name}.png") as picture:
        assert picture.mode == "RGB"
        pixels = np.asarray(picture)
    assert min(pixels.shape[:2]) > 96
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_config_is_stored_and_not_printed(demo):
    config = read_config(demo.workdir)
    assert config.stages == STAGES
    assert config.dit.to_dict() == {"width": 16, "depth": 1, "heads": 2}
    assert "mlp_width" not in demo.outcome.stdout + demo.outcome.stderr


def test_it_begins_in_about_ten_lines(demo):
    start = demo.outcome.stderr.split("Ctrl-C ")[0].splitlines()
    assert len(start) <= 10
    assert start[0] == f"run             {demo.workdir}, new"
    assert "data            shapes; looked at: shapes:held_out" in start
    assert "text_tokenizer  32 steps of 8" in start


def test_it_ends_in_numbers_what_looks_weak_and_how_to_go_on(demo):
    _, end = demo.outcome.stdout.split("On 16 pictures of scenes held out of training:")
    assert "- copied: the tokenizer's copies have a PSNR of" in end
    assert "with every shape, colour and place right" in end
    assert "- the tokenizer: below 25 dB small things blur" in end
    assert "--config.per_stage.tokenizer.train.num_steps=3200" not in end  # overridden
    main = f"  python -m flowtok_jax.main --checkpoint={demo.workdir} --mode="
    assert f"{main}sample \\\n    --prompt='" in end
    assert f"{main}caption \\\n    --images='{demo.workdir}/samples/0001/0" in end
    weak = end.split("To draw:")[0]
    assert max(map(len, weak.splitlines())) <= 80


def test_previews_are_on_disk_too(demo):
    found = sorted(p.name for p in (demo.workdir / "previews").glob("*/*.png"))
    assert found == [
        "step_000004_image_to_text.png",
        "step_000004_reconstructions.png",
        "step_000004_text_to_image.png",
    ]


def test_metrics_have_lines_of_every_stage_and_the_source_of_t2i(demo):
    steps = {"text_tokenizer": list(range(2, 33, 2))}
    for stage in STAGES:
        lines = [line for line in demo.metrics if line["stage"] == stage]
        trained = [line for line in lines if "loss/total" in line]
        assert [line["step"] for line in trained] == steps.get(stage, [2, 4])
        assert "perf/images_per_sec" not in trained[0]  # it would count compilation
        for i, line in enumerate(trained):
            assert i == 0 or line["perf/images_per_sec"] > 0
            assert line["lr"] > 0
            assert ("source/sigma" in line) == (stage == "t2i")
            if stage == "t2i":
                assert line["source/sigma"] > 0
                assert line["source/mean_std"] > 0
        evaluated = [line for line in lines if any("eval/" in name for name in line)]
        assert [line["step"] for line in evaluated] == steps.get(stage, [4])[-1:]


def test_tensorboard_has_scalars_of_every_stage_and_images(demo):
    for stage in STAGES:
        found = events(demo.workdir / "tb" / stage)
        last = 32 if stage == "text_tokenizer" else 4
        assert (last, "loss/total", "simple_value") in found
        images = {"tokenizer": "reconstructions", "t2i": "text_to_image"}
        images |= {"i2t": "image_to_text"}
        if stage in images:
            assert (last, images[stage], "image") in found


def test_the_same_command_again_changes_nothing_and_shows_the_summary(demo, cli):
    before = times(demo.workdir)
    assert len(before) > 20
    outcome = cli(*run.command(demo.workdir))
    assert outcome.status == 0
    assert times(demo.workdir) == before
    assert "t2i_attribute_accuracy" in outcome.stdout
    assert demo.summary["params_sha256"]["t2i"][:12] in outcome.stdout
    assert "mlp_width" not in outcome.stdout


def test_an_interrupted_and_a_killed_run_go_on_to_the_same_weights(demo, tmp_path):
    arguments = run.command(tmp_path, "text_tokenizer")

    def interrupt(how):
        seen = steps_of(tmp_path, "text_tokenizer")
        process = run.start(arguments)
        run.wait_for(
            process, lambda: steps_of(tmp_path, "text_tokenizer")[-1:] > seen[-1:]
        )
        process.send_signal(how)
        _, stderr = process.communicate(timeout=300)
        assert steps_of(tmp_path, "text_tokenizer")[-1] < 32
        return process.returncode, stderr

    status, stderr = interrupt(signal.SIGINT)
    assert status == 130
    assert "Traceback" not in stderr
    first = steps_of(tmp_path, "text_tokenizer")[-1]
    assert f"asked to end: text_tokenizer saved at step {first} of 32" in stderr
    assert stderr.endswith(f"  {shlex.join([*MAIN, *arguments])}\n")
    marker = json.loads((tmp_path / "preempted.json").read_text())
    assert marker == {"stage": "text_tokenizer", "step": first}
    assert interrupt(signal.SIGKILL)[0] == -signal.SIGKILL
    status, stderr = interrupt(signal.SIGTERM)
    assert status == 0, stderr
    assert "text_tokenizer: resuming at step " in stderr
    assert " of 32\n" in stderr
    step = steps_of(tmp_path, "text_tokenizer")[-1]
    assert f"asked to end: text_tokenizer saved at step {step}" in stderr
    marker = json.loads((tmp_path / "preempted.json").read_text())
    assert marker == {"stage": "text_tokenizer", "step": step}
    process = run.start(arguments)
    assert process.wait(300) == 0, process.stderr.read()
    process.communicate()
    assert not (tmp_path / "preempted.json").exists()
    resumed = run.Demo(tmp_path, None)
    assert resumed.summary["params_sha256"] == {
        "text_tokenizer": demo.summary["params_sha256"]["text_tokenizer"]
    }
    lines = [line["step"] for line in resumed.metrics if "loss/total" in line]
    assert lines == list(range(2, 33, 2))
