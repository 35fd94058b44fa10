"""Own images, by the command line: encoded, trained on, drawn; and broken ones."""

import json
import shutil

import numpy as np
import pytest

from flowtok_jax.data import shards
from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.weights.place import open_weights
from flowtok_jax.weights.workdir import read_config
from tests import run
from tests.data import made

PROMPTS = "a red circle at the top left; a blue square"
SIZES = {"train.num_steps": 3, "train.batch_size": 8, "compute.dtype": "float32"}
SIZES |= {"log.every": 1, "log.preview_every": 2, "log.preview_samples": 16}
SIZES |= {"data.prefetch": 2, "data.threads": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return made.write_folder(tmp_path_factory.mktemp("photos") / "set", 64)


def command(weights, workdir, spec, stage="t2i", **overrides) -> list[str]:
    """Arguments of main that fine-tune weights on a source."""
    overrides = {"data.train": spec, **SIZES, **overrides}
    return [
        f"--config=configs/finetune.py:{stage}",
        f"--checkpoint={weights}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]


def test_a_folder_is_encoded_trained_on_both_ways_and_sampled(
    cli, demo, flowtok, photos, tmp_path
):
    """As in the README: the same config in every command, no size given."""
    latents, workdir = tmp_path / "latents", tmp_path / "mine"
    encode = command(demo.workdir, latents, f"folder:{photos}")
    outcome = cli("--mode=pretokenize", *encode)
    assert outcome.status == 0, outcome.stderr
    assert json.loads(outcome.stdout.splitlines()[-1])["records"] == 64
    spec = f"latents:{latents}/*.arrayrecord"
    for stage in ("t2i", "i2t"):
        outcome = cli(*command(demo.workdir, workdir, spec, stage))
        assert outcome.status == 0, outcome.stderr
        assert f"{stage} starts from {demo.workdir}" in outcome.stderr
    lines = run.read_metrics(workdir)
    steps = {(x["stage"], x["step"]) for x in lines if "lr" in x}
    assert steps == {(s, i) for s in ("t2i", "i2t") for i in (1, 2, 3)}
    # A grid after every second step, and at the end, of each stage.
    boards = (workdir / "tb").rglob("events*")
    assert sum(path.read_bytes().count(b"\x89PNG") for path in boards) == 4
    assert all(np.isfinite(x["loss/total"]) for x in lines if "loss/total" in x)
    assert set(open_weights(workdir).groups) == {"t2i", "i2t"}
    mine = FlowTok.from_pretrained(workdir)
    assert mine.nets.dit.width == flowtok.nets.dit.width == 16
    ids = [x.vocabulary.encode(PROMPTS.split("; ")) for x in (mine, flowtok)]
    np.testing.assert_array_equal(*ids)
    # From these weights, and not where they were.
    heads = [x.params["t2i"]["projector"]["out"]["kernel"] for x in (mine, flowtok)]
    assert 0 < np.abs(heads[0] - heads[1]).max() < 1e-3
    cli("--mode=sample", f"--checkpoint={workdir}", f"--prompts={PROMPTS}")
    paths = (workdir / "samples/0001").glob("000*.png")
    drawn = [CentreReader(32)(file_record(path)).astype(int) for path in paths]
    assert len(drawn) == 2
    assert np.abs(drawn[0] - drawn[1]).max() > 0
    images = f"--images={photos}/000*.png"
    outcome = cli("--mode=caption", f"--checkpoint={workdir}", images, "--json")
    assert len(outcome.stdout.splitlines()) == 10


def test_what_belongs_to_the_weights_is_taken_from_them(cli, demo, photos, tmp_path):
    workdir = tmp_path / "mine"
    given = {"sample.scale": 3.5, "loss.t2i.kl_weight": 0.25}
    arguments = command(demo.workdir, workdir, f"folder:{photos}", **given)
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.stderr
    there, here = read_config(demo.workdir), read_config(workdir)
    for section in ("latent", "clip", "text", "tokenizer", "projector", "dit"):
        assert here[section].to_dict() == there[section].to_dict(), section
    assert here.loss.t2i.time_location == there.loss.t2i.time_location == -1.0
    assert (here.sample.scale, here.loss.t2i.kl_weight) == (3.5, 0.25)
    assert here.sample.num_steps == there.sample.num_steps
    assert here.optimizer.clip_norm == 1.0
    assert (here.schedule.lr, here.train.ema_decay) == (2e-5, 0.999)
    assert cli(*arguments).status == 0  # the same command finds its own workdir


def test_pretrained_weights_are_a_start_too(cli, flowtok, photos, tmp_path):
    weights = tmp_path / "weights"
    flowtok.save_pretrained(weights)
    outcome = cli(*command(weights, tmp_path / "mine", f"folder:{photos}"))
    assert outcome.status == 0, outcome.stderr
    here = read_config(tmp_path / "mine")
    assert here.dit.width == 16
    assert here.loss.t2i.kl == "release_element_mean"


def test_mistakes_are_said_in_one_line(cli, demo, photos, tmp_path):
    spec = f"folder:{photos}"
    arguments = command("nowhere", tmp_path / "mine", spec)
    assert "nowhere does not exist" in cli(*arguments).complaint
    del arguments[1]
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert "takes their sizes; expected --checkpoint=DIR" in outcome.complaint
    wide = command(demo.workdir, tmp_path / "mine", spec, **{"dit.width": 32})
    outcome = cli(*wide)
    assert outcome.status == 2
    assert "does not fit the config" in outcome.complaint
    shutil.copytree(demo.workdir, tmp_path / "old")
    stored = json.loads((tmp_path / "old" / "config.json").read_text())
    stored["dit"]["colour"] = 1
    (tmp_path / "old" / "config.json").write_text(json.dumps(stored))
    outcome = cli(*command(tmp_path / "old", tmp_path / "other", spec))
    assert outcome.status == 2
    assert "is not that of this version's networks" in outcome.complaint
    assert "colour" in outcome.complaint
    assert not (tmp_path / "other").exists()


def test_a_run_on_dirty_tars_finishes_and_counts_what_is_broken(cli, demo, tmp_path):
    """One epoch and a row more: each broken record is met, and counted once."""
    folder = made.write_planted(tmp_path / "data" / "set")
    before = made.snapshot(tmp_path)
    workdir, steps = tmp_path / "run", -(-(made.WHOLE + len(made.PLANTED)) // 8)
    overrides = {"train.num_steps": steps, "data.cache": tmp_path / "cache"}
    overrides |= {"data.max_rejected": 0.4, "log.preview_every": 0}
    overrides["text.max_unknown"] = 1  # words that the demo lacks
    outcome = cli(*command(demo.workdir, workdir, f"tars:{folder}/*.tar", **overrides))
    assert outcome.status == 0, outcome.stderr
    wanted = {reason: 1 for _, reason in made.PLANTED.values()}
    summary = json.loads((workdir / "summary.json").read_text())["rejected"]["t2i"]
    assert summary["counts"] == wanted
    for key, (_, reason) in made.PLANTED.items():
        assert summary["first"][reason] == [f"{folder}/1.tar:{key}"]
    lines = [x for x in run.read_metrics(workdir) if "lr" in x]
    assert lines[-1]["step"] == steps
    prefix = "data/rejected/"
    counts = {k.removeprefix(prefix): v for k, v in lines[-1].items() if prefix in k}
    assert counts == wanted
    new = {p.split("/")[0] for p in made.snapshot(tmp_path) - before}
    assert new == {"run", "cache"}


@pytest.mark.slow
def test_two_thousand_images_are_encoded_trained_on_and_drawn(demo, tmp_path):
    """With the demo's own commands, each in a process of its own."""
    folder = made.write_folder(tmp_path / "set", 2000)
    latents, workdir = tmp_path / "latents", tmp_path / "mine"
    spec = f"latents:{latents}/*.arrayrecord"
    more = {"train.num_steps": 200, "train.batch_size": 64, "log.every": 50}
    encode = command(demo.workdir, latents, f"folder:{folder}")
    both = [command(demo.workdir, workdir, spec, s, **more) for s in ("t2i", "i2t")]
    draw = ["--mode=sample", f"--checkpoint={workdir}", f"--prompts={PROMPTS}"]
    for arguments in (["--mode=pretokenize", *encode], *both, draw):
        process = run.start(arguments)
        _, stderr = process.communicate(timeout=900)
        assert process.returncode == 0, stderr
    assert sum(shard.records for shard in shards.read_manifest(latents)) == 2000
    assert (workdir / "samples" / "0001" / "grid.png").is_file()
