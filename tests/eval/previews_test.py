import logging

import jax
import numpy as np
import pytest

from configs import demo
from flowtok_jax.data import scenes
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.scenes import Object
from flowtok_jax.data.sources import Shapes, make_source
from flowtok_jax.eval import demo as demo_summary
from flowtok_jax.eval import previews
from flowtok_jax.eval.fid import frechet_distance
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import make_mesh, put, replicated
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.base import Preview
from flowtok_jax.weights.workdir import read_config
from tests.eval import fake
from tests.eval.features_test import by_hand

RED = Object("circle", "red", "top left")
BLUE = Object("square", "blue", "bottom right")


def examples(count=8, split="held_out"):
    source = make_source(f"shapes:{split}", image_size=32, seed=0)
    return previews.load_examples(source, count)


def test_attribute_accuracy_is_the_share_of_images_with_every_object_right():
    rng = np.random.default_rng(0)
    drawn = [(RED,), (RED, BLUE), (BLUE,), (RED, BLUE)]
    images = np.stack([scenes.render(s, rng, 32) for s in drawn]) / 255
    assert previews.attribute_accuracy(images, drawn) == 1
    wanted = [(RED,), (RED,), (RED,), (RED, BLUE._replace(colour="green"))]
    assert previews.attribute_accuracy(images, wanted) == 0.25


def test_a_caption_is_right_where_it_names_every_attribute_and_nothing_else():
    cases = {
        "a red circle at the top left": True,
        "in the top left we see a red circle": True,
        "a red circle at the top right": False,
        "a red square at the top left": False,
        "a blue circle at the top left": False,
        "a red circle": False,
        "a red circle at the top left and a blue square at the bottom right": False,
        "": False,
    }
    found = previews.captions_right(list(cases), [(RED,)] * len(cases))
    assert found == list(cases.values())


def test_examples_have_captions_all_different_and_the_scenes_they_name():
    found = examples(200)
    assert len(set(found.captions)) == len(found.captions) == len(found.images) == 200
    for caption, scene in zip(found.captions, found.scenes, strict=True):
        assert scenes.parse_caption(caption) == scene
        assert scenes.is_held_out(scene)
    assert found.images.dtype == np.uint8
    assert found.floats.max() <= 1
    # More than 200 records had to be looked at to find them.
    source = Shapes("held_out", 32, 0)
    assert len({source[i]["caption"] for i in range(200)}) < 200


def test_a_source_with_too_few_captions_gives_all_it_has_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        found = previews.load_examples(Shapes("train", 32, 0, length=5), 8)
    assert len(found.captions) == 5
    wanted = "only 5 different captions to show, fewer than the 8 asked for"
    assert caplog.messages == [wanted]


class Perfect(FlowTok):
    """Stands in for a FlowTok that draws and says what it is told, but for its first
    `wrong` samples and captions; the mean of its source is right. Its tokens carry the
    image, its captions do not.
    """

    def __init__(self, wrong=0):
        self.nets = type("Nets", (), {"tokenizer": type("T", (), {"image_size": 32})})
        self.wrong = wrong

    def text_to_image(self, captions, seed=0, source="sample"):
        rng = np.random.default_rng(seed)
        drawn = [scenes.parse_caption(caption) for caption in captions]
        if source == "sample":
            drawn[: self.wrong] = [(RED, BLUE)] * self.wrong
        return np.stack([scenes.render(s, rng, 32) for s in drawn]) / np.float32(255)

    def image_to_text(self, images):
        found = [previews.read_scene(image) for image in images]
        texts = [scenes.captions_of(scene)[1] for scene in found]
        return ["a dog"] * self.wrong + texts[self.wrong :]

    def reconstruct_text(self, captions):
        return ["a dog"] * self.wrong + list(captions)[self.wrong :]

    def encode_image(self, images):
        return type("Posterior", (), {"mean": images})

    def encode_text(self, captions):
        return type("Posterior", (), {"std": np.full((1, 2, 3), 0.75)})

    def decode_image(self, tokens, captions):
        return 0.99 * tokens


def test_the_summary_of_a_perfect_model_is_perfect():
    scalars, grids = demo_summary.summarize_scenes(Perfect(), samples=16, seed=0)
    ones = [name for name in scalars if "accuracy" in name or "match" in name]
    ones = [name for name in ones if name != "tokenizer_mean_latent_accuracy"]
    assert len(ones) == 9
    assert {name: scalars[name] for name in ones} == dict.fromkeys(ones, 1.0)
    assert scalars["tokenizer_mean_latent_accuracy"] == 0
    assert scalars["source_sigma"] == 0.75
    assert scalars["samples"] == 16
    assert 0 < scalars["t2i_diversity"] < 0.1
    assert set(grids) == {"text_to_image", "image_to_text", "reconstructions"}


def test_the_summary_counts_what_is_wrong():
    scalars, _ = demo_summary.summarize_scenes(Perfect(wrong=4), samples=16, seed=0)
    for name in (
        "t2i_attribute_accuracy",
        "t2i_attribute_accuracy_seen",
        "i2t_exact_match",
        "i2t_exact_match_seen",
        "i2t_grammatical",
        "text_tokenizer_exact_match",
    ):
        assert scalars[name] == 0.75, name
    assert scalars["t2i_attribute_accuracy_mean_source"] == 1
    assert scalars["oracle_accuracy_real"] == 1


class Cheat(Perfect):
    """One whose decoder reads the caption and looks at no token."""

    def decode_image(self, tokens, captions):
        return self.text_to_image(captions)


def test_a_decoder_that_reads_the_caption_is_found_out():
    scalars, _ = demo_summary.summarize_scenes(Cheat(), samples=16, seed=0)
    assert scalars["tokenizer_accuracy"] == 1
    assert scalars["tokenizer_wrong_caption_accuracy"] == 0
    assert scalars["tokenizer_mean_latent_accuracy"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_previews_measure_and_show_the_parameters_they_are_given(demo, flowtok, task):
    config = read_config(demo.workdir)
    config.log.preview_samples = 5
    groups = TASKS[task].frozen.items()
    frozen = {role: flowtok.params[group] for role, group in groups}
    trained = flowtok.params.get(task)
    if trained is None:  # one that starts as a copy of others
        given = {**flowtok.params, **frozen}
        trained = TASKS[task].init(flowtok.nets, given, jax.random.key(0))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    preview = previews.make_preview(config, TASKS[task], flowtok.vocabulary, mesh)
    scalars, grids = preview(
        put(trained, replicated(mesh)), put(frozen, replicated(mesh))
    )
    names = {
        "tokenizer": {
            "eval/psnr_db_n5",
            "eval/detail_kept_n5",
            "eval/attribute_accuracy_n5",
        },
        "text_tokenizer": {"eval/exact_match_n5"},
        "t2i": {"eval/attribute_accuracy_n5"},
        "i2t": {"eval/exact_match_n5"},
    }
    names["both"] = names["t2i"] | names["i2t"]
    assert set(scalars) == names[task.removesuffix("_distilled")]
    assert all(np.isfinite(value) for value in scalars.values())
    assert len(grids) == {"text_tokenizer": 0, "both": 2}.get(task, 1)
    for grid in grids.values():
        assert grid.dtype == np.uint8
    assert task not in frozen


def test_previews_have_fid_where_the_config_asks_for_it(demo, flowtok, monkeypatch):
    monkeypatch.setattr(previews, "load_metric_net", fake.load_metric_net)
    config = read_config(demo.workdir)
    config.log.update({"preview_samples": 5, "preview_fid": True})
    mesh, params = make_mesh(data=8, fsdp=1, tensor=1), flowtok.params
    preview = previews.make_preview(config, TASKS["t2i"], flowtok.vocabulary, mesh)
    frozen = {role: params[group] for role, group in TASKS["t2i"].frozen.items()}
    scalars, _ = preview(*(put(x, replicated(mesh)) for x in (params["t2i"], frozen)))
    shown = examples(5)
    drawn = to_uint8(flowtok.text_to_image(shown.captions))
    a, b = (by_hand(x)[0].astype(np.float64) for x in (drawn, shown.images))
    wanted = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    found = scalars["eval/fid_random_inception_n5"]
    assert found == pytest.approx(wanted, rel=1e-3)


def tokenizer_preview(demo, flowtok, **options):
    """The scalars of a preview of the tokenizer."""
    config = read_config(demo.workdir)
    config.log.update({"preview_samples": 5, **options})
    mesh = make_mesh(data=4, fsdp=1, tensor=2)
    task = TASKS["tokenizer"]
    preview = previews.make_preview(config, task, flowtok.vocabulary, mesh)
    params = flowtok.params["tokenizer"], {"clip": flowtok.params["clip"]}
    return preview(*(put(x, replicated(mesh)) for x in params))[0]


def test_copies_have_rfid_and_lpips_where_the_config_asks_for_them(
    demo, flowtok, monkeypatch
):
    monkeypatch.setattr(previews, "load_metric_net", fake.load_metric_net)
    asked = {"preview_fid": True, "preview_lpips": True}
    scalars = tokenizer_preview(demo, flowtok, **asked)
    shown = examples(5)
    tokens = flowtok.encode_image(shown.floats).mean
    copies = np.asarray(flowtok.decode_image(tokens, shown.captions))
    lpips = np.abs(copies - shown.floats).mean()
    assert scalars["eval/lpips_random_n5"] == pytest.approx(lpips, rel=1e-4)
    a, b = (by_hand(x)[0].astype(np.float64) for x in (to_uint8(copies), shown.images))
    rfid = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    found = scalars["eval/rfid_random_inception_n5"]
    assert found == pytest.approx(rfid, rel=1e-3)
    assert not any(name.startswith("eval/fid") for name in scalars)
    alone = tokenizer_preview(demo, flowtok, preview_lpips=True)
    assert {name for name in scalars if "rfid" not in name} == set(alone)


def test_drawings_have_no_lpips(demo, flowtok, monkeypatch):
    monkeypatch.setattr(previews, "load_metric_net", None)  # nothing is loaded
    config = read_config(demo.workdir)
    config.log.preview_lpips = True
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    found = previews.make_net_metrics(config, TASKS["t2i"], examples(2), mesh)
    assert found == []


def test_detail_is_of_the_images_that_have_any():
    pair = np.stack([np.full((16, 16, 3), 9), np.indices((16, 16, 3)).sum(0) % 2 * 200])
    shown = previews.PreviewExamples(np.uint8(pair), None, ["flat", "not"], None)
    made = Preview("copies", images=shown.floats / 2, are_copies=True)
    scalars, grids = previews.judge(made, shown)
    assert scalars["eval/detail_kept_n1"] == pytest.approx(0.25)
    assert set(scalars) == {"eval/detail_kept_n1", "eval/psnr_db_n2"}
    assert set(grids) == {"copies"}
    flat = previews.PreviewExamples(np.uint8(pair[:1]), None, ["flat"], None)
    made = made._replace(images=flat.floats + 0.1)
    assert set(previews.judge(made, flat)[0]) == {"eval/psnr_db_n1"}


def test_a_preview_without_weights_of_metrics_says_where_they_come_from(demo, flowtok):
    config = read_config(demo.workdir)
    config.log.preview_fid, config.eval.weights = True, ""
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    with pytest.raises(UserError, match="names no metric weights; expected a dir"):
        previews.make_preview(config, TASKS["t2i"], flowtok.vocabulary, mesh)
    config.log.update({"preview_fid": False, "preview_lpips": True})
    with pytest.raises(UserError, match="names no metric weights; expected a dir"):
        previews.make_preview(config, TASKS["tokenizer"], flowtok.vocabulary, mesh)


@pytest.mark.parametrize(
    ("train", "evaluated", "is_measured"),
    [
        ("shapes", "", True),
        ("shapes", "shapes:held_out", True),
        ("folder:x", "", False),
    ],
)
def test_a_run_on_scenes_is_measured_wherever_they_are_named(
    tmp_path, monkeypatch, train, evaluated, is_measured
):
    config = demo.get_config()
    config.data.update({"train": train, "eval": evaluated})
    monkeypatch.setattr(demo_summary.FlowTok, "from_weights", lambda *a: None)
    monkeypatch.setattr(
        demo_summary, "summarize_scenes", lambda *a, **options: ({"found": 1}, {})
    )
    trained = set(config.stages)
    found, _ = demo_summary.summarize_demo(config, tmp_path, trained)
    assert found == ({"found": 1} if is_measured else {})
