"""--mode=eval through the command line, with metric networks that cost nothing."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowtok_jax.data import scenes
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.records import Side
from flowtok_jax.data.sources import make_source
from flowtok_jax.eval import protocols, reconstruction
from flowtok_jax.eval.captions import word_scores
from flowtok_jax.eval.fid import frechet_distance
from flowtok_jax.eval.previews import attribute_accuracy
from flowtok_jax.eval.reference_file import read_reference
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.digests import params_sha256
from tests import run
from tests.eval import fake
from tests.eval.features_test import by_hand
from tests.eval.protocols_test import coco, mjhq

COUNT = 24
NO_JAVA = {"PATH": "", "COLUMNS": "120"}  # whose metrics take seconds
OPTIONS = {"eval.samples": COUNT, "eval.judged": 20, "eval.chunk": 10}


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setenv("PATH", NO_JAVA["PATH"])
    for module in ("eval.parts", "eval.previews"):
        name = f"flowtok_jax.{module}.load_metric_net"
        monkeypatch.setattr(name, fake.load_metric_net)


def command(demo, workdir, **overrides) -> list[str]:
    """Arguments of main that evaluate the tiny demo; its own config is stored."""
    flags = [f"--config.{k}={v}" for k, v in {**OPTIONS, **overrides}.items()]
    return [
        "--mode=eval",
        f"--checkpoint={demo.workdir}",
        f"--workdir={workdir}",
        *flags,
    ]


def results(workdir) -> dict[str, dict]:
    """What the JSON files say, by part."""
    paths = pathlib.Path(workdir, "eval").glob("*.json")
    found = [json.loads(path.read_text()) for path in paths]
    return {x["part"]: x for x in found if isinstance(x, dict)}


def numbers(found) -> dict[str, dict]:
    """Without times."""
    return {
        part: {k: v for k, v in x.items() if k != "seconds"}
        for part, x in found.items()
    }


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    """An evaluation of all parts in one process of 8 devices; read-only."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(1, 8, *command(demo, workdir))[0]
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return workdir, stdout, stderr


def start(count, devices, *arguments) -> list[subprocess.Popen]:
    """Processes of main with the fake networks."""
    name = ["-m", "tests.eval.with_fake", "flowtok_jax.main", *arguments]
    address = f"--coordinator=127.0.0.1:{run.free_port()}"
    together = [address, f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [
                *(sys.executable, *name),
                *([*together, f"--process_id={i}"] if count > 1 else []),
            ],
            cwd=run.ROOT,
            env=os.environ | NO_JAVA | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def held_out(count=COUNT):
    source = make_source("shapes:held_out", image_size=32, seed=0)
    return source, [source[i] for i in range(count)]


def test_names_tell_samples_and_random_networks(whole):
    found = results(whole[0])
    assert set(found) == {"t2i", "i2t", "tokenizer"}
    features = {"inception_score", "inception_score_std", "kid", "kid_std"}
    features |= {"precision", "recall"}
    random = {f"{name}_random_inception_n20" for name in features}
    assert set(found["t2i"]["metrics"]) == {
        "fid_random_inception_n20",
        *random,
        "attribute_accuracy_n24",
    }
    assert found["t2i"]["not_measured"] == {"clip_score": "no weights of clip"}
    assert {"rfid_random_inception_n20", "lpips_random_n20", *random} < set(
        found["tokenizer"]["metrics"]
    )
    assert {
        "psnr_db_n24",
        "ssim_n24",
        "detail_kept_n24",
        "implied_latent_scale_n24",
    } < set(found["tokenizer"]["metrics"])
    assert "exact_match_n24" in found["i2t"]["metrics"]
    for name in ("fid_random_inception_n20", "clip_score", "psnr_db_n24"):
        assert name in whole[1]


def test_the_whole_protocol_stands_beside_the_numbers(whole, flowtok):
    found = results(whole[0])["t2i"]
    protocol = found["protocol"]
    assert protocol["data"] == "shapes:held_out"
    assert (protocol["samples"], protocol["seed"]) == (COUNT, 0)
    assert protocol["sampler"] == {
        "candidates": 1,
        "num_steps": 2,
        "scale": 2.0,
        "solver": "euler",
        "source": "sample",
        "times": "release",
    }
    weights = protocol["weights"]
    assert weights["kind"] == "ema"
    assert weights["steps"] == {"clip": 0, "tokenizer": 4, "t2i": 4}
    assert weights["sha256"]["t2i"] == params_sha256(flowtok.params["t2i"])
    assert protocol["precision"] == "float32"
    assert results(whole[0])["i2t"]["protocol"]["text_scale"] == 0.35
    features = protocol["features"]
    assert (features["resize"], features["images"]) == ("clean", 20)
    (path,) = (whole[0] / "eval").glob("reference_*.npz")
    assert features["reference"]["sha256"] == read_reference(path).digest()
    assert set(found["versions"]) > {"jax", "numpy"}
    assert set(found["seconds"]) == {"compute", "measure", "computed_samples"}


def test_the_numbers_are_those_of_the_images_by_hand(whole, flowtok):
    source, examples = held_out()
    images = flowtok.text_to_image([x["caption"] for x in examples])
    features, _ = by_hand(to_uint8(images)[:20])
    real, _ = by_hand(np.stack([x["image"] for x in examples[:20]]))
    a, b = (x.astype(np.float64) for x in (features, real))
    wanted = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    metrics = results(whole[0])["t2i"]["metrics"]
    assert metrics["fid_random_inception_n20"] == pytest.approx(wanted, rel=1e-3)
    accuracy = attribute_accuracy(images, [source.scene(i) for i in range(COUNT)])
    assert metrics["attribute_accuracy_n24"] == accuracy


def test_reconstructions_are_those_of_the_pipeline(whole, flowtok):
    _, examples = held_out()
    images = np.stack([x["image"] for x in examples]).astype(np.float32) / 255
    captions = [x["caption"] for x in examples]
    posterior = flowtok.encode_image(images)
    decoded = np.asarray(flowtok.decode_image(posterior.mean, captions))
    metrics = results(whole[0])["tokenizer"]["metrics"]
    errors = ((decoded - images) ** 2).mean((1, 2, 3))
    wanted = (-10 * np.log10(errors)).mean()
    assert metrics["psnr_db_n24"] == pytest.approx(wanted, rel=1e-4)
    kept = reconstruction.detail_kept(decoded, images)
    assert metrics["detail_kept_n24"] == pytest.approx(kept.mean(), rel=1e-4)
    lpips = np.abs(decoded - images)[:20].mean()
    assert metrics["lpips_random_n20"] == pytest.approx(lpips, rel=1e-4)
    std = np.sqrt(np.var(posterior.mean) + np.exp(posterior.logvar).mean())
    assert metrics["latent_std_n24"] == pytest.approx(std, rel=1e-4)


def test_captions_are_written_as_cocos_server_takes_them(whole, flowtok):
    (path,) = (whole[0] / "eval").glob("i2t_*.captions.json")
    rows = json.loads(path.read_text())
    source, examples = held_out()
    images = np.stack([x["image"] for x in examples]).astype(np.float32) / 255
    texts = flowtok.image_to_text(images)
    wanted = [{"image_id": i, "caption": text} for i, text in enumerate(texts)]
    assert rows == wanted
    right = [scenes.parse_caption(t) == source.scene(i) for i, t in enumerate(texts)]
    metrics = results(whole[0])["i2t"]["metrics"]
    assert metrics["exact_match_n24"] == np.mean(right)


@pytest.mark.parametrize("part", ["t2i", "i2t", "tokenizer"])
def test_a_picture_shows_the_first_samples(whole, part):
    (path,) = (whole[0] / "eval").glob(f"{part}_*.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_again_elsewhere_the_same_json_but_for_times(cli, demo, whole, tmp_path):
    outcome = cli(*command(demo, tmp_path))
    assert outcome.status == 0, outcome.stderr
    assert numbers(results(tmp_path)) == numbers(results(whole[0]))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    outcome = cli(*command(demo, tmp_path))
    assert "is there; delete it to measure again" in outcome.stderr
    assert "psnr_db_n24" in outcome.stdout
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_batch_chunk_and_devices_do_not_change_the_numbers(cli, demo, whole, tmp_path):
    sizes = {"eval.chunk": 7, "sample.batch_size": 3, "caption.batch_size": 5}
    sizes |= {"eval.batch_size": 2, "mesh.data": 2, "mesh.tensor": 4}
    sizes |= {"eval.parts": "t2i,i2t"}
    outcome = cli(*command(demo, tmp_path, **sizes))
    assert outcome.status == 0, outcome.stderr
    found = {part: x["metrics"] for part, x in results(tmp_path).items()}
    assert set(found) == {"t2i", "i2t"}
    wanted = {part: x for part, x in results(whole[0]).items() if part in found}
    for part, metrics in found.items():
        assert metrics == pytest.approx(wanted[part]["metrics"], rel=1e-3, abs=1e-3)
    # What names a run is its protocol, of which these are no part.
    names = {x["name"] for x in results(tmp_path).values()}
    assert names == {x["name"] for x in wanted.values()}


@pytest.mark.filterwarnings("ignore:'VariableState':DeprecationWarning")  # of qwix
def test_quantized_weights_are_evaluated_under_another_name(cli, demo, whole, tmp_path):
    pytest.importorskip("qwix")
    exact = results(whole[0])["t2i"]
    names = {exact["name"]}
    digests = {exact["protocol"]["weights"]["sha256"]["t2i"]}
    for how in ("int8", "int8_dynamic"):
        chosen = {"compute.quantize": how, "eval.parts": "t2i"}
        outcome = cli(*command(demo, tmp_path / how, **chosen))
        assert outcome.status == 0, outcome.stderr
        found = results(tmp_path / how)["t2i"]
        assert found["protocol"]["quantize"] == how
        names.add(found["name"])
        digests.add(found["protocol"]["weights"]["sha256"]["t2i"])
    assert (len(names), len(digests)) == (3, 2)


def test_sigterm_ends_it_in_one_line_and_two_processes_go_on(demo, whole, tmp_path):
    """What one process of 8 devices began, two of 4 finish: the same JSON."""
    arguments = command(demo, tmp_path, **{"eval.parts": "t2i,tokenizer"})
    (process,) = start(1, 8, *arguments)
    run.wait_for(process, lambda: list(tmp_path.rglob("00000-00010.npz")))
    process.send_signal(signal.SIGTERM)
    (first,) = tmp_path.rglob("t2i_*/00000-00010.npz")
    before = first.stat().st_mtime_ns
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert not list((tmp_path / "eval").glob("tokenizer_*.json"))
    found = start(2, 4, *arguments)
    outputs = [p.communicate(timeout=300) for p in found]
    assert [p.returncode for p in found] == [0, 0], outputs
    wanted = numbers(results(whole[0]))
    assert re.search("t2i goes on: [12]0 of 24 are there", outputs[0][1])
    assert first.stat().st_mtime_ns == before
    del wanted["i2t"]
    assert numbers(results(tmp_path)) == wanted
    assert "psnr_db_n24" in outputs[0][0]
    assert "psnr_db_n24" not in outputs[1][0]


@pytest.mark.slow
def test_four_processes_are_one(demo, whole, tmp_path):
    found = start(4, 2, *command(demo, tmp_path))
    outputs = [p.communicate(timeout=600) for p in found]
    assert [p.returncode for p in found] == [0] * 4, outputs
    assert numbers(results(tmp_path)) == numbers(results(whole[0]))


def write_protocol(tmp_path, monkeypatch, name, content, samples):
    """The protocol's captions, of a data set as small as this one."""
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    small = protocols.PROTOCOLS[name]._replace(samples=samples)
    monkeypatch.setitem(protocols.PROTOCOLS, name, small)
    return {"eval.protocol": name, "eval.captions": path, "eval.judged": 0}


@pytest.fixture
def quick(monkeypatch):
    """A FlowTok that compiles nothing, where it does not matter what it draws."""

    def draw(self, captions, *_):
        images = np.random.default_rng(0).random((len(captions), 32, 32, 3))
        return images.astype(np.float32)

    def encode(self, images):
        return Posterior(*jnp.zeros((2, len(images), 16, 16)))

    monkeypatch.setattr(FlowTok, "text_to_image", draw)
    monkeypatch.setattr(FlowTok, "encode_image", encode)
    monkeypatch.setattr(FlowTok, "decode_image", lambda self, _, x: draw(self, x))


def write_statistics(path, groups=(), **arrays):
    rng = np.random.default_rng(0)
    for end in ["", *(f"/{group}" for group in groups)]:
        rows = rng.standard_normal((50, fake.FEATURES))
        arrays |= {f"mu{end}": rows.mean(0), f"sigma{end}": np.cov(rows.T)}
    np.savez(path, **arrays)
    return path


def test_a_protocol_in_part_says_so(cli, demo, tmp_path, monkeypatch, quick):
    samples, suffix = 16, "_partial_n16"
    flags = write_protocol(tmp_path, monkeypatch, "coco_fid_30k", coco(30), 24)
    reference = write_statistics(tmp_path / "coco.npz")
    flags |= {"eval.samples": samples, "eval.fid.reference": reference}
    outcome = cli(*command(demo, tmp_path, **flags, **{"eval.weights": "DIR"}))
    assert outcome.status == 0, outcome.stderr
    (found,) = results(tmp_path).values()
    assert set(found["metrics"]) == {
        f"{name}{suffix}" for name in ("fid", "inception_score", "inception_score_std")
    }
    reasons = {found["not_measured"][f"{name}{suffix}"] for name in ("kid", "recall")}
    assert reasons == {
        "the reference holds no features; make it with --features to measure this"
    }
    assert found["protocol"]["protocol"] == "coco_fid_30k"
    assert found["protocol"]["features"]["reference"]["resize"] == "unknown"


def test_categories_are_measured_alone(cli, demo, tmp_path, monkeypatch, quick):
    flags = write_protocol(tmp_path, monkeypatch, "mjhq_30k", mjhq(30), 30)
    groups = [x for x in protocols.CATEGORIES if x != "art"]
    reference = write_statistics(tmp_path / "mjhq.npz", groups)
    flags |= {"eval.samples": 30, "eval.fid.reference": reference}
    outcome = cli(*command(demo, tmp_path, **flags, **{"eval.weights": "DIR"}))
    assert outcome.status == 0, outcome.stderr
    (found,) = results(tmp_path).values()
    assert {f"fid_{group}" for group in groups} | {"fid"} < set(found["metrics"])
    assert "no group art; make it with --by_folder" in found["not_measured"]["fid_art"]


def test_broken_images_are_counted(cli, demo, tmp_path, quick):
    (folder := tmp_path / "set").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"picture {i}")
    (folder / "03.png").write_bytes(b"no image")
    flags = {"data.eval": f"folder:{folder}", "eval.parts": "tokenizer"}
    flags |= {"eval.random_metrics": "all", "data.max_rejected": 0.1}
    outcome = cli(*command(demo, tmp_path, **flags))
    assert outcome.status == 0, outcome.stderr
    assert "12 images, fewer than the 24 asked for" in outcome.stderr
    said = f"1 of 12 records left out (not_an_image 1, first {folder}/03)"
    assert said in outcome.stderr
    found = results(tmp_path)["tokenizer"]
    assert found["rejected"] == {"not_an_image": 1}
    assert "psnr_db_n11" in found["metrics"]
    assert "rfid_random_inception_n11" in found["metrics"]


def test_of_flat_images_there_is_no_detail_to_keep(cli, demo, tmp_path, quick):
    (folder := tmp_path / "set").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 9, 9)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    flags = {"data.eval": f"folder:{folder}", "eval.parts": "tokenizer"}
    outcome = cli(*command(demo, tmp_path, **flags, **{"eval.weights": ""}))
    assert outcome.status == 0, outcome.stderr
    found = results(tmp_path)["tokenizer"]
    assert found["not_measured"]["detail_kept"] == "no image has high frequencies"
    assert "detail_kept_n3" not in found["metrics"]


def write_pictures(folder: pathlib.Path, count: int, seed: int = 0) -> str:
    """A source of noise with captions."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a red circle number {i}")
    return f"folder:{folder}"


def test_a_folder_is_measured_by_retrieval_and_words(cli, demo, flowtok, tmp_path):
    spec = write_pictures(tmp_path / "set", 7)
    flags = {"data.eval": spec, "eval.samples": 5, "eval.chunk": 3}
    flags["eval.retrieval.gallery"] = write_pictures(tmp_path / "more", 4, seed=1)
    outcome = cli(*command(demo, tmp_path, **flags))
    assert outcome.status == 0, outcome.stderr
    found = results(tmp_path)
    metrics = found["t2i"]["metrics"]
    for space in ("pixels", "latents"):
        for k in (1, 5):
            name = f"retrieval_top{k}_{space}"
            assert 0 <= metrics[f"{name}_n5_of11"] <= 1
            assert 0 <= metrics[f"{name}_reconstructed_n5_of11"] <= 1
    assert metrics["retrieval_top1_chance_of11"] == pytest.approx(1 / 11)
    # Nobody asked for networks that were never trained.
    assert not any("random" in name for x in found.values() for name in x["metrics"])
    lacking = found["t2i"]["not_measured"] | found["tokenizer"]["not_measured"]
    for name in ("fid", "clip_score", "rfid", "lpips"):
        assert "networks never trained" in lacking[name]
    assert found["t2i"]["protocol"]["drawn_by"] == 0
    drawn = np.random.default_rng(0).choice(7, 5, replace=False)
    captions = [f"a red circle number {i}" for i in drawn]
    texts = flowtok.image_to_text([tmp_path / "set" / f"{i:02d}.png" for i in drawn])
    wanted = word_scores(texts, [[c] for c in captions])
    copies = word_scores(flowtok.reconstruct_text(captions), [[c] for c in captions])
    said = found["i2t"]["metrics"]
    for name in ("exact_match", "word_f1"):
        assert said[f"{name}_n5"] == pytest.approx(wanted[name])
        assert said[f"{name}_text_tokenizer_n5"] == pytest.approx(copies[name])
    # Of five words others share four.
    assert said["word_f1_chance_n5"] == pytest.approx(0.8)
    assert said["exact_match_chance_n5"] == 0


def test_held_out_pictures_are_measured_and_searched_among_all(
    cli, demo, tmp_path, quick
):
    spec = write_pictures(tmp_path / "set", 20)
    flags = {"data.train": spec, "data.eval": "", "data.held_out": 0.3}
    outcome = cli(*command(demo, tmp_path, **flags, **{"eval.parts": "t2i"}))
    assert outcome.status == 0, outcome.stderr
    found = results(tmp_path)["t2i"]
    count = sum(Side(0.3, True).has(f"{i:02d}") for i in range(20))
    assert found["protocol"]["samples"] == count < 20
    assert found["protocol"]["held_out"] == 0.3
    assert f"retrieval_top1_pixels_n{count}_of20" in found["metrics"]


def test_a_folder_needs_no_networks_of_metrics(cli, demo, tmp_path, quick):
    flags = {"data.eval": write_pictures(tmp_path / "set", 3), "eval.parts": "t2i"}
    for side, is_measured in ((0, False), (4, True)):
        flags |= {"eval.weights": "", "eval.retrieval.side": side}
        outcome = cli(*command(demo, tmp_path / f"{side}", **flags))
        assert outcome.status == 0, outcome.stderr
        found = results(tmp_path / f"{side}")["t2i"]
        assert ("retrieval_top1_pixels_n3_of3" in found["metrics"]) is is_measured
        assert "names no metric weights" in found["not_measured"]["fid"]
        assert ("retrieval" in found["protocol"]) is is_measured


def test_a_config_of_an_older_version_is_evaluated(cli, demo, tmp_path, quick):
    copy = tmp_path / "run"
    shutil.copytree(demo.workdir, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["eval"]["retrieval"]
    del config["eval"]["random_metrics"]
    del config["data"]["held_out"]
    (copy / "config.json").write_text(json.dumps(config))
    flags = {"eval.parts": "tokenizer", "eval.retrieval.side": 8, "data.held_out": 0.0}
    older, newer = (
        command(x, tmp_path / "out", **flags)
        for x in (run.Demo(copy, demo.outcome), demo)
    )
    outcome = cli(*older)
    assert outcome.status == 0, outcome.stderr
    # The protocol is the same, and so is the name.
    assert "is there; delete it to measure again" in cli(*newer).stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"eval.samples": 1}, "eval.samples is 1; expected at least 2"),
        ({"eval.judged": 1}, "eval.judged is 1; statistics need 2 at least"),
        ({"eval.chunk": 0}, "eval.chunk is 0; expected at least 1"),
        ({"eval.captions": "x.json"}, "eval.captions=x.json needs --config.eval.pro"),
        ({"eval.parts": "t2i,fid"}, "eval.parts has 'fid'; expected some of t2i, i2t,"),
        (
            {"eval.fid.resize": "none"},
            "eval.fid.resize is 'none'; expected one",
        ),
        (
            {"eval.weights": "", "eval.fid.reference": "{tmp}/small.npz"},
            "eval.weights names no metric weights; expected a dir",
        ),
        ({"eval.retrieval.side": -1}, "eval.retrieval.side is -1; expected at least 0"),
        ({"eval.retrieval.images": 0}, "eval.retrieval.images is 0; expected at least"),
        ({"eval.random_metrics": "no"}, "eval.random_metrics is 'no'; expected one of"),
        (
            {"eval.protocol": "coco"},
            "eval.protocol is 'coco'; expected one of coco",
        ),
        ({"eval.protocol": "mjhq_30k"}, "needs --config.eval.captions=FILE, its meta_"),
        ({"eval.fid.reference": "no.npz"}, "reference no.npz does not exist; make it"),
        ({"eval.fid.reference": "{tmp}/small.npz"}, "has 4 dimensions, Inception's fe"),
        ({"data.eval": "folder:nowhere"}, "nowhere is no directory"),
        ({"data.eval": "latents:x/*.tar"}, "has latents or weights; expected"),
        ({"sample.num_steps": 0}, "sample.num_steps is 0; expected at least 1"),
        ({"caption.solver": "rk4"}, "caption.solver is 'rk4'; expected one of euler"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_one_line(cli, demo, tmp_path, flags, message):
    np.savez(tmp_path / "small.npz", mu=np.zeros(4), sigma=np.eye(4))
    flags = {key: str(value).format(tmp=tmp_path) for key, value in flags.items()}
    outcome = cli(*command(demo, tmp_path / "out", **flags))
    assert outcome.status == 2
    assert message in outcome.complaint
    assert not (tmp_path / "out").exists()


def test_a_protocol_needs_a_reference_of_its_own(cli, demo, tmp_path, monkeypatch):
    flags = write_protocol(tmp_path, monkeypatch, "coco_fid_30k", coco(30), 24)
    outcome = cli(*command(demo, tmp_path / "out", **flags))
    assert "needs --config.eval.fid.reference=FILE.npz; make it by" in outcome.complaint


def test_weights_without_a_part_are_told_from_those_with_it(cli, demo, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(demo.workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "t2i")
    arguments = ["--mode=eval", f"--workdir={copy}", "--config.eval.parts=t2i"]
    message = "eval.parts has t2i, the weights have i2t, tokenizer only"
    assert message in cli(*arguments).complaint
    config = json.loads((copy / "config.json").read_text())
    config["eval"] = {"samples": 16}
    (copy / "config.json").write_text(json.dumps(config))
    message = "has no keys of --mode=eval; give a config beside it: --config=configs"
    assert message in cli(*arguments[:2]).complaint
    assert "no weights named" in cli("--mode=eval").complaint
    (tmp_path / "empty").mkdir()
    given = ["--mode=eval", "--config=configs/demo.py", f"--workdir={tmp_path}/empty"]
    assert "the weights have none of t2i, i2t, token" in cli(*given).complaint
