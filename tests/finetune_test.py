"""Own images, by the command line: encoded, trained on, drawn; and broken ones."""

import functools
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from configs import demo as demo_config
from flowtok_jax.data import shards
from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import task_of
from flowtok_jax.train.check import check_fit
from flowtok_jax.train.start import find_starts
from flowtok_jax.weights.place import (
    find_place,
    open_start,
    open_starts,
    open_weights,
)
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


def test_a_run_that_encodes_first_is_that_on_latents_made_by_hand(
    cli, demo, photos, tmp_path
):
    spec, made_by_hand = f"folder:{photos}", tmp_path / "latents"
    held_out = {"data.held_out": 0.2}
    encode = command(demo.workdir, made_by_hand, spec)
    assert cli("--mode=pretokenize", *encode).status == 0
    latents = f"latents:{made_by_hand}/*.arrayrecord"
    train = command(demo.workdir, tmp_path / "by_hand", latents, **held_out)
    assert cli(*train).status == 0
    workdir = tmp_path / "mine [1]"  # a name that a glob would read otherwise
    first = {"data.encode_first": True, **held_out}
    for stage in ("t2i", "i2t"):
        outcome = cli(*command(demo.workdir, workdir, spec, stage, **first))
        assert outcome.status == 0, outcome.stderr
        assert "64 images as latents in" in outcome.stderr
    assert len(list((workdir / "latents").iterdir())) == 1  # both stages train on it
    found, wanted = (run.digest(tmp_path / n, "t2i") for n in ("mine [1]", "by_hand"))
    assert found == wanted
    assert read_config(workdir).data.train == spec


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data.transform.flip": True}, "crops or flips them at random"),
        ({"data.transform.crop": "random"}, "crops or flips them at random"),
    ],
)
def test_images_that_are_transformed_at_random_are_encoded_at_each_step(
    cli, demo, photos, tmp_path, overrides, said
):
    overrides = {"data.encode_first": True, **overrides}
    workdir = tmp_path / "mine"
    outcome = cli(*command(demo.workdir, workdir, f"folder:{photos}", **overrides))
    assert outcome.status == 0, outcome.stderr
    assert f"images are encoded at each step: data.transform {said}" in outcome.stderr
    assert not (workdir / "latents").exists()


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
    # As they were trained: finetune.py's own is for weights that say nothing of it.
    there = demo_config.get_config().loss
    assert here.loss.t2i.to_dict() == there.t2i.to_dict()
    assert here.loss.i2t.to_dict() == there.i2t.to_dict()


def test_fine_tuned_weights_are_a_start_as_any_others(cli, demo, photos, tmp_path):
    """Tokenizer and text tower stay where the first run found them."""
    spec = f"folder:{photos}"
    runs = [demo.workdir, *(tmp_path / name for name in ("once", "twice"))]
    for start, workdir in itertools.pairwise(runs):
        outcome = cli(*command(start, workdir, spec))
        assert outcome.status == 0, outcome.stderr
        assert f"t2i starts from {start}" in outcome.stderr
    once, twice = runs[1:]
    assert open_weights(twice).groups == ("t2i",)
    mine = FlowTok.from_pretrained(twice)
    with_adapters = tmp_path / "lora"
    small = {"lora.rank": 2}
    for stage, start in (("lora", twice), ("lora_i2t", demo.workdir)):
        outcome = cli(*command(twice, with_adapters, spec, stage, **small))
        assert outcome.status == 0, outcome.stderr
        assert f"starts from {start}" in outcome.stderr
    adapted = FlowTok.from_pretrained(with_adapters)
    assert adapted.text_to_image(["a red circle"], 0).shape == (1, 32, 32, 3)
    # What no run trained is the demo's, and what one did is not.
    jax.tree.map(
        np.testing.assert_array_equal,
        adapted.params["tokenizer"],
        mine.params["tokenizer"],
    )
    own = [x.params["t2i"]["projector"] for x in (adapted, mine)]
    jax.tree.map(np.testing.assert_array_equal, *own)
    encoded = command(twice, tmp_path / "latents", spec)
    assert cli("--mode=pretokenize", *encoded).status == 0
    # A start that has gone is named, where it is needed.
    shutil.move(once, tmp_path / "moved")
    outcome = cli(*command(twice, tmp_path / "third", spec))
    assert outcome.status == 2
    assert f"{once} does not exist" in outcome.complaint


@pytest.fixture
def over(demo, tmp_path):
    """Makes a run that trained nothing yet, over another place."""

    def make(name, start):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        stored = json.loads((demo.workdir / "config.json").read_text())
        stored["init_from"] = str(start)
        (folder / "config.json").write_text(json.dumps(stored))
        shutil.copy(demo.workdir / "vocabulary.json", folder)
        return folder

    return make


def found_starts(name, config, **changes):
    """Places of the groups that a task starts from, by group."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    task = task_of(config, name)
    found = find_starts(config, task, functools.cache(open_start))
    return {group: weights.place for group, weights in found.items()}


def test_what_a_run_goes_on_from_may_be_further_away(demo, over):
    near = over("near", demo.workdir)
    config = demo_config.get_config()
    config.init_from = str(near)
    # In sizes of its own a run takes what is near, or nothing.
    assert found_starts("t2i", config) == {}
    theirs = {"init_config": True}
    assert found_starts("t2i", config, **theirs) == {"t2i": demo.workdir}
    assert found_starts("t2i", config, **theirs, init_trained=False) == {}
    # Where it has to go on, or trains adapters, it takes what there is.
    only = {"loss.tokenizer.trains": "decoder"}
    assert found_starts("tokenizer", config, **only) == {"tokenizer": demo.workdir}
    rank = {"lora.rank": 2}
    assert found_starts("i2t", config, **rank) == {"i2t": demo.workdir}
    # Each part of a beginning is looked for by itself.
    parts = dict.fromkeys(("t2i", "text_tokenizer"), demo.workdir)
    assert found_starts("both", config, **theirs) == parts
    shutil.copytree(demo.workdir / "checkpoints/t2i", near / "checkpoints/t2i")
    assert found_starts("both", config, **theirs) == parts | {"t2i": near}
    assert found_starts("t2i", config) == {"t2i": near}


def test_a_start_that_has_gone_is_missed_only_by_who_needs_it(demo, over, tmp_path):
    config = demo_config.get_config()
    config.init_config = True
    config.init_from = str(over("near", tmp_path / "gone"))
    assert found_starts("t2i", config) == {}
    with pytest.raises(UserError, match="gone does not exist"):
        find_place("t2i", open_starts(config.init_from))
    config.init_from = str(tmp_path / "gone")
    with pytest.raises(UserError, match="gone does not exist"):
        found_starts("t2i", config)
    # Two runs that name one another have nothing more.
    round_about = over("a", tmp_path / "b"), over("b", tmp_path / "a")
    places = [weights.place for weights in open_starts(str(round_about[0]))]
    assert places == list(round_about)


def test_other_words_further_away_are_refused(demo, over):
    near = over("near", demo.workdir)
    config = read_config(near)
    config.update({"init_config": True, "init_from": str(near)})
    nowhere = near / "none"
    check_fit({"i2t": config}, nowhere, functools.cache(open_start), None)
    stored = json.loads((near / "config.json").read_text())
    del stored["vocabulary_sha256"]
    (near / "config.json").write_text(json.dumps(stored))
    Vocabulary.train(["other words"], 64, 16).save(near)
    with pytest.raises(UserError, match="other words than .*near, whose vocabulary"):
        check_fit({"i2t": config}, nowhere, functools.cache(open_start), None)


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


@pytest.fixture(scope="module")
def ducks(tmp_path_factory):
    return made.write_ducks(tmp_path_factory.mktemp("ducks") / "set")


NEW_WORDS = {"init_vocabulary": "captions"}


@pytest.mark.parametrize("stages", ["t2i", "i2t"])
def test_captions_in_other_words_are_refused_with_what_works(
    cli, demo, ducks, tmp_path, stages
):
    outcome = cli(*command(demo.workdir, tmp_path / "x", f"folder:{ducks}", stages))
    assert outcome.status == 2
    assert "lacks 71 % of the tokens of 24 captions" in outcome.complaint
    flags = " --config.stages=text_tokenizer,i2t" if stages == "i2t" else ""
    assert f"--config.init_vocabulary=captions{flags}, a" in outcome.complaint
    assert not (tmp_path / "x").exists()


def test_a_new_vocabulary_draws_and_describes_with_the_rows_of_shared_words(
    cli, demo, flowtok, ducks, tmp_path
):
    workdir = tmp_path / "mine"
    both = {**NEW_WORDS, "stages": "text_tokenizer,i2t,t2i"}
    arguments = command(demo.workdir, workdir, f"folder:{ducks}", **both)
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.stderr
    assert "words of captions: kept 5 of" in outcome.stderr
    assert "rows, 7 new" in outcome.stderr
    mine = FlowTok.from_pretrained(workdir)
    assert len(mine.vocabulary) == mine.nets.clip.vocab_size == 12
    captions = ["the red duck swims, number 0"]
    assert mine.vocabulary.decode(mine.vocabulary.encode(captions)) == captions
    find = [x.vocabulary.tokenizer.token_to_id for x in (mine, flowtok)]
    rows = [x.params["clip"]["clip"]["embed"]["embedding"] for x in (mine, flowtok)]
    for word in ("the", "red", "<|endoftext|>", "<pad>"):
        here, there = (r[f(word)] for r, f in zip(rows, find, strict=True))
        np.testing.assert_array_equal(here, there)
    blocks = [x.params["clip"]["clip"]["blocks"] for x in (mine, flowtok)]
    jax.tree.map(np.testing.assert_array_equal, *blocks)
    # Trained from there, and not from nothing.
    outs = [x.params["text_tokenizer"]["text_decoder"]["out"] for x in (mine, flowtok)]
    here, there = (o["kernel"][:, f("red")] for o, f in zip(outs, find, strict=True))
    np.testing.assert_allclose(here, there, atol=1e-3)
    assert cli(*arguments).status == 0  # the same command finds its own workdir
    longer = command(
        demo.workdir, workdir, f"folder:{ducks}", **both | {"train.num_steps": 4}
    )
    outcome = cli(*longer)
    assert outcome.status == 0, outcome.stderr
    assert FlowTok.from_pretrained(workdir).vocabulary.sha256() == (
        mine.vocabulary.sha256()
    )
    drawn = cli("--mode=sample", f"--checkpoint={workdir}", "--prompts=the red duck")
    assert drawn.status == 0, drawn.stderr
    said = cli("--mode=caption", f"--checkpoint={workdir}", f"--images={ducks}/1.png")
    assert said.status == 0, said.stderr
    # Weights with these words may be trained further on them, as they are.
    mine.save_pretrained(tmp_path / "saved")
    further = command(tmp_path / "saved", tmp_path / "further", f"folder:{ducks}")
    outcome = cli(*further)
    assert outcome.status == 0, outcome.stderr
    assert "lacks" not in outcome.stderr


@pytest.mark.parametrize(
    ("weights", "stage", "more", "said"),
    [
        ("demo", "i2t", {}, "expected it to be trained before i2t, by --config.stages"),
        ("demo", "t2i", {"clip.vocab_size": 9}, "clip.vocab_size is given, and init_"),
        ("", "t2i", {"init_config": False}, "no weights are named whose vocabulary"),
    ],
)
def test_a_new_vocabulary_that_cannot_be_is_refused(
    cli, demo, ducks, tmp_path, weights, stage, more, said
):
    arguments = command(
        demo.workdir, tmp_path / "x", f"folder:{ducks}", stage, **NEW_WORDS, **more
    )
    if not weights:
        del arguments[1]
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert said in outcome.complaint
    assert not (tmp_path / "x").exists()


def small(weights, workdir, **overrides) -> list[str]:
    """Arguments that train an S over the tokenizer of weights, on scenes."""
    overrides = {"data.train": "shapes", "dit.depth": 1, **SIZES, **overrides}
    return [
        "--config=configs/s.py",
        f"--checkpoint={weights}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]


@pytest.mark.slow
def test_a_dit_of_its_own_size_learns_over_another_tokenizer(
    cli, demo, flowtok, tmp_path
):
    arguments = small(demo.workdir, tmp_path / "s", init_trained=False)
    outcome = cli(*arguments)
    assert outcome.status == 0, outcome.stderr
    assert f"sizes of clip, tokenizer are those in {demo.workdir}" in outcome.stderr
    assert "t2i starts from nothing" in outcome.stderr
    mine = FlowTok.from_pretrained(tmp_path / "s")
    assert (mine.nets.dit.width, mine.nets.projector.depth) == (384, 6)
    here, there = (x.nets.tokenizer for x in (mine, flowtok))
    assert here.clone(remat=there.remat) == there
    for group in ("clip", "tokenizer"):
        jax.tree.map(
            np.testing.assert_array_equal, mine.params[group], flowtok.params[group]
        )
    assert cli(*arguments).status == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "t2i in {} does not fit the config: "),
        ({}, "or --config.init_config=True for all sizes"),
        ({}, "expected --config.init_trained=False to train t2i from nothing"),
        (
            {"init_trained": False, "latent.channels": 8},
            "tokenizer in {} does not fit the config: latent.channels is 4 there, 8 "
            "here; expected --config.latent.channels=4",
        ),
        (
            {"init_trained": False, "latent.tokens": 9},
            "latent.tokens is 16 there, 9 here\n  expected --config.latent.tokens=16",
        ),
    ],
    ids=str,
)
def test_sizes_that_cannot_work_are_refused(cli, demo, tmp_path, given, said):
    outcome = cli(*small(demo.workdir, tmp_path / "s", **given))
    assert outcome.status == 2
    assert said.format(demo.workdir) in outcome.stderr
    assert not (tmp_path / "s").exists()


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
