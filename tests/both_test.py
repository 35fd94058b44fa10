"""Both directions by one group, from the command line: trained, used, gone on from."""

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest

from flowtok_jax.models.build import STANDS_FOR
from flowtok_jax.perf.work import WeightMaker
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import pick_group
from flowtok_jax.weights.card import find_tasks
from flowtok_jax.weights.place import open_weights
from tests import run, tiny
from tests.data import made

PROMPTS = ["a red circle at the top left", "a blue square at the bottom right"]
WAYS = ("t2i", "i2t")
STEPS = {"train.num_steps": 2, "train.batch_size": 8, "data.train": "shapes"}
STEPS |= {"log.preview_every": 0, "log.preview_samples": 4, "data.threads": 1}


def train(workdir: pathlib.Path, start: pathlib.Path, **overrides) -> run.Outcome:
    """Trains the tiny demo's `both` on the tokenizer of a run."""
    config = f"--config={run.ROOT / 'configs' / 'both.py'}:demo"
    own = {"stages": "both", "init_from": start, "log.preview_every": 2, **overrides}
    process = run.start([config, f"--workdir={workdir}", *run.flags(**own)])
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return run.Outcome(process.returncode, stdout, stderr)


@dataclasses.dataclass
class Trained:
    """A run, and its weights with noise for velocities, which begin near 0."""

    workdir: pathlib.Path
    outcome: run.Outcome
    flowtok: FlowTok
    saved: pathlib.Path


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("both")
    outcome = train(folder / "run", demo.workdir)
    flowtok = FlowTok.from_pretrained(folder / "run")
    own = flowtok.params["both"]
    own["shared_dit"] = tiny.random_like(own["shared_dit"])
    flowtok.save_pretrained(folder / "saved")
    return Trained(folder / "run", outcome, flowtok, folder / "saved")


@pytest.fixture(scope="module")
def images(trained) -> np.ndarray:
    return trained.flowtok.text_to_image(PROMPTS)


def test_it_starts_as_text_to_image_and_previews_show_both_directions(demo, trained):
    said = f"both starts as a copy of t2i and text_tokenizer in {demo.workdir}"
    assert said in trained.outcome.stderr
    lines = run.read_metrics(trained.workdir)
    looked = [line for line in lines if "eval/exact_match_n16" in line]
    assert [line["step"] for line in looked] == [2, 4]
    assert all("eval/attribute_accuracy_n16" in line for line in looked)
    grids = (trained.workdir / "tb").rglob("events*")
    assert sum(path.read_bytes().count(b"\x89PNG") for path in grids) == 4
    assert "To draw:" in trained.outcome.stdout
    assert "To describe:" in trained.outcome.stdout


def test_a_run_that_goes_on_is_that_of_one_piece(demo, trained, tmp_path):
    train(tmp_path, demo.workdir, **{"train": run.TINY["train"] | {"num_steps": 2}})
    train(tmp_path, demo.workdir)
    assert run.digest(tmp_path, "both") == run.digest(trained.workdir, "both")


def test_it_draws_and_describes_as_its_parts_do(trained, images):
    flowtok = trained.flowtok
    assert sorted(flowtok.params) == ["both", "clip", "tokenizer"]
    parts = {g: pick_group(flowtok.params, g, flowtok.nets) for g in STANDS_FOR}
    rest = {g: flowtok.params[g] for g in ("clip", "tokenizer")}
    options = {"sample": flowtok.sample, "caption": flowtok.caption}
    options["text_scale"] = flowtok.text_scale
    apart = FlowTok(flowtok.nets, rest | parts, flowtok.vocabulary, **options)
    np.testing.assert_array_equal(apart.text_to_image(PROMPTS), images)
    assert apart.image_to_text(images) == flowtok.image_to_text(images)
    assert apart.reconstruct_text(PROMPTS) == flowtok.reconstruct_text(PROMPTS)
    several = {"candidates": 3, "source": "sample"}
    said = flowtok.image_to_text(images, **several)
    assert said == apart.image_to_text(images, **several)
    # The directions differ: what one has learned is not what the other does.
    other = {**parts["t2i"], "dit": parts["i2t"]["dit"]}
    turned = FlowTok(
        flowtok.nets, rest | parts | {"t2i": other}, flowtok.vocabulary, **options
    )
    assert np.abs(turned.text_to_image(PROMPTS) - images).max() > 1e-3


def test_saved_weights_are_the_same_in_one_file(trained, images):
    names = {path.name for path in trained.saved.glob("*.safetensors")}
    assert names == {"both.safetensors", "clip.safetensors", "tokenizer.safetensors"}
    again = FlowTok.from_pretrained(trained.saved)
    np.testing.assert_array_equal(again.text_to_image(PROMPTS), images)
    assert again.image_to_text(images) == trained.flowtok.image_to_text(images)
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.flowtok.params)
    assert find_tasks(again.params) == ["text-to-image", "image-to-text"]
    again.compile([2])
    programs = list(again._directions({}))
    assert [p.function.__name__ for p in programs] == ["text_to_image", "image_to_text"]
    assert all("both" in program.params for program in programs)


def test_it_has_no_distilled_flow_before_one_is_made(trained):
    with pytest.raises(UserError, match="group 't2i_distilled' is not among both"):
        trained.flowtok.text_to_image(PROMPTS, solver="average")


def test_every_part_is_evaluated(cli, trained, tmp_path):
    sizes = {"eval.samples": 4, "eval.weights": ""}
    outcome = cli(
        "--mode=eval",
        f"--checkpoint={trained.saved}",
        "--config=configs/eval.py",
        f"--workdir={tmp_path}",
        "--config.data.eval=shapes:held_out",
        *(f"--config.{key}={value}" for key, value in sizes.items()),
    )
    assert outcome.status == 0, outcome.stderr
    found = [
        json.loads(p.read_text())
        for p in (tmp_path / "eval").glob("*_n4_????????.json")
    ]
    digests = {x["part"]: x["protocol"]["weights"]["sha256"] for x in found}
    assert {part: set(groups) for part, groups in digests.items()} == {
        "t2i": {"both", "clip", "tokenizer"},
        "i2t": {"both", "tokenizer"},
        "tokenizer": {"clip", "tokenizer"},
    }


def go_on(cli, config, weights, workdir, **overrides):
    outcome = cli(
        f"--config=configs/{config}",
        f"--checkpoint={weights}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in (STEPS | overrides).items()),
    )
    assert outcome.status == 0, outcome.stderr
    return outcome.stderr


@pytest.mark.parametrize(
    "stage", ["both", "t2i", pytest.param("i2t", marks=pytest.mark.slow)]
)
def test_it_is_trained_further_whole_or_in_one_direction(cli, trained, tmp_path, stage):
    said = go_on(cli, f"finetune.py:{stage}", trained.saved, tmp_path)
    assert f"{stage} starts from {trained.saved}" in said
    mine = FlowTok.from_pretrained(tmp_path)
    here, there = (pick_group(x.params, stage, x.nets) for x in (mine, trained.flowtok))
    name = "shared_dit" if stage == "both" else "dit"
    rows = [x[name]["indicator"]["embedding"] for x in (here, there)]
    assert 0 < np.abs(rows[0] - rows[1]).max() < 1e-3
    if stage != "i2t":
        assert len(mine.text_to_image(PROMPTS)) == 2
    if stage != "t2i":  # with the text tokenizer of the weights that it started from
        assert len(mine.image_to_text(np.zeros((2, 32, 32, 3), np.float32))) == 2


@pytest.mark.parametrize("flow", [pytest.param("t2i", marks=pytest.mark.slow), "i2t"])
def test_it_teaches_few_steps_in_either_direction(cli, trained, tmp_path, flow):
    said = go_on(cli, f"distill.py:{flow}", trained.saved, tmp_path)
    assert "starts as a copy of its teacher" in said
    flowtok = FlowTok.from_pretrained(tmp_path)
    assert {"both", f"{flow}_distilled"} < set(flowtok.params)
    table = flowtok.params["both"]["shared_dit"]["indicator"]["embedding"]
    student = flowtok.params[f"{flow}_distilled"]["student"]
    own = student["indicator"]["embedding"]
    way = STANDS_FOR[flow]
    assert np.abs(own - table[2 * way : 2 * way + 2]).max() < 1e-3
    if flow == "t2i":
        assert flowtok.text_to_image(PROMPTS, solver="average").shape[0] == 2
    else:
        images = np.zeros((1, 32, 32, 3), np.float32)
        assert len(flowtok.image_to_text(images, solver="average")) == 1


@pytest.mark.parametrize(
    ("variant", "group"),
    [("lora", "t2i"), ("lora_i2t", "i2t"), ("lora_both", "both")],
)
def test_adapters_are_over_all_of_it_or_over_one_direction(
    cli, trained, images, tmp_path, variant, group
):
    rate = {"schedule.lr": 0.5, "schedule.warmup_steps": 0}
    go_on(cli, f"finetune.py:{variant}", trained.saved, tmp_path / "run", **rate)
    assert set(open_weights(tmp_path / "run").steps) == {f"{group}_lora"}
    base = {
        g: pick_group(trained.flowtok.params, g, trained.flowtok.nets) for g in WAYS
    }
    over = FlowTok.from_pretrained(trained.saved, lora=tmp_path / "run")
    # A direction that was not adapted is as it was.
    for way in WAYS:
        now = pick_group(over.params, way, over.nets)
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), now, base[way])
        assert any(jax.tree.leaves(moved)) == (group in (way, "both"))
    assert np.array_equal(over.text_to_image(PROMPTS), images) == (group == "i2t")
    over.save_pretrained(tmp_path / "saved")
    for place in (tmp_path / "run", tmp_path / "saved"):
        again = FlowTok.from_pretrained(place)
        wanted = over.params[group]
        jax.tree.map(np.testing.assert_array_equal, again.params[group], wanted)


def test_adapters_over_what_would_only_begin_as_both_are_refused(cli, demo, tmp_path):
    start = f"--checkpoint={demo.workdir}", f"--workdir={tmp_path / 'run'}"
    flags = [f"--config.{key}={value}" for key, value in STEPS.items()]
    outcome = cli("--config=configs/finetune.py:lora_both", *start, *flags)
    assert outcome.status == 2
    assert "adapters of both, and the weights have none" in outcome.complaint
    assert "--config=configs/finetune.py:both" in outcome.complaint
    assert not (tmp_path / "run").exists()  # refused before anything is written


def test_it_goes_on_in_other_words(cli, trained, tmp_path):
    ducks = made.write_ducks(tmp_path / "ducks")
    words = {"init_vocabulary": "captions", "data.train": f"folder:{ducks}"}
    said = go_on(cli, "finetune.py:both", trained.saved, tmp_path / "run", **words)
    assert "both gets the run's vocabulary" in said
    mine = FlowTok.from_pretrained(tmp_path / "run")
    assert mine.vocabulary.decode(mine.vocabulary.encode(["red duck"])) == ["red duck"]
    assert len(mine.text_to_image(["the red duck"])) == 1
    # Of words that both know the rows are kept, of the text decoder's too.
    outs = [x.params["both"]["text_decoder"]["out"] for x in (mine, trained.flowtok)]
    ids = [x.vocabulary.tokenizer.token_to_id("red") for x in (mine, trained.flowtok)]
    here, there = (out["kernel"][:, i] for out, i in zip(outs, ids, strict=True))
    np.testing.assert_allclose(here, there, atol=1e-3)
    assert outs[0]["kernel"].shape[1] == 12


def test_a_text_to_image_of_another_size_is_no_start(cli, demo, tmp_path, caplog):
    flags = run.flags(**{"stages": "both", "init_from": demo.workdir, "dit.width": 8})
    with caplog.at_level(logging.ERROR):
        outcome = cli(
            "--config=configs/both.py:demo", f"--workdir={tmp_path / 'x'}", *flags
        )
    assert outcome.status == 2
    assert "t2i in" in outcome.complaint
    assert "dit.width is 16 there, 8 here" in outcome.complaint
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("group", ["t2i", "both"])
def test_it_is_timed_as_it_lies(trained, group):
    """What --mode=bench reads of weights: a group, or its part of `both`."""
    maker = WeightMaker(open_weights(trained.saved))
    nets = trained.flowtok.nets
    assert maker.find_stage(group) == "both"
    wanted = pick_group(trained.flowtok.params, group, nets)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: one, wanted)
    found = maker.at(group, nets, places)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
