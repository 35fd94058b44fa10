"""Adapters by the command line: trained, resumed, handed on, loaded and refused."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors
from flax.traverse_util import unflatten_dict

from flowtok_jax.models.lora import merge_on_host
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights.lora import open_loras, parse_loras
from flowtok_jax.weights.place import open_weights
from flowtok_jax.weights.safetensors import read_safetensors, write_safetensors
from tests import run

PROMPTS = ["a red circle at the top left", "a blue square"]
PATTERN = "dit/(blocks|final)/"
SIZES = {
    "data.train": "shapes",
    "train": {"num_steps": 4, "batch_size": 8},
    "schedule": {"warmup_steps": 0, "lr": 0.05, "schedule": "constant"},
    "checkpoint.every": 2,
    "log": {"every": 1, "preview_every": 0, "preview_samples": 4},
    "data.threads": 2,
    "compute.dtype": "float32",
}


def command(weights, workdir, variant="lora", **overrides) -> list[str]:
    """Arguments of main that train adapters over weights."""
    config = f"finetune.py:{variant}" if "." not in variant else variant
    found = [
        f"--config=configs/{config}",
        f"--checkpoint={weights}",
        f"--workdir={workdir}",
    ]
    for key, value in (*SIZES.items(), *overrides.items()):
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            found.append(f"--config.{key}{'.' if name else ''}{name}={part}")
    return found


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """A finished run of adapters of text to image."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    # Gates of blocks are still near 0 in the demo: its final layer changes pictures.
    process = run.start(command(demo.workdir, workdir, **{"lora.pattern": PATTERN}))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return workdir


def equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_a_run_holds_adapters_only_and_goes_on_bit_by_bit(cli, demo, trained, tmp_path):
    halves = tmp_path / "halves"
    alone = tmp_path / "alone"
    for workdir, steps in ((halves, 2), (halves, 4), (alone, 4)):
        outcome = cli(*command(demo.workdir, workdir, **{"train.num_steps": steps}))
        assert outcome.status == 0, outcome.stderr
        # The file is that of the steps made, also where there were fewer before.
        (found,) = open_loras(workdir)
        ema = open_weights(workdir).read_adapters("t2i", wanted(workdir))
        equal(found.adapters, ema)
    assert run.digest(halves, "t2i") == run.digest(alone, "t2i")
    state = trained / "checkpoints" / "t2i_lora" / "4"
    assert not (trained / "checkpoints" / "t2i").exists()
    names = json.loads((state / "state" / "_METADATA").read_text())["tree_metadata"]
    kernels = [name for name in names if "kernel" in name]
    assert kernels
    assert all("lora_a" in name or "lora_b" in name for name in kernels)
    assert cli(*command(demo.workdir, trained, **{"lora.pattern": PATTERN})).status == 0


def wanted(place):
    weights = open_weights(place)
    return abstract_group(weights.make_nets(), "t2i")


def test_the_file_says_what_it_is_and_is_small(demo, trained, flowtok):
    path = trained / "lora" / "t2i.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        said = file.metadata()
    assert said == {
        "format": "flowtok_lora",
        "group": "t2i",
        "rank": "4",
        "alpha": "8.0",
        "pattern": PATTERN,
        "base_sha256": params_sha256(jax.device_get(flowtok.params["t2i"])),
    }
    names = read_safetensors(path)
    assert all(name.startswith(("dit/blocks/", "dit/final/")) for name in names)
    assert len(names) == 14


def test_adapters_are_added_to_the_weights_by_their_weight(demo, trained, flowtok):
    (lora,) = open_loras(trained)
    base = jax.device_get(flowtok.params["t2i"])
    assert lora.weight == 1.0
    plain = flowtok.text_to_image(PROMPTS)
    for given, weight in ((trained, 1.0), ({trained / "lora": 0.5}, 0.5)):
        made = FlowTok.from_pretrained(demo.workdir, lora=given)
        added = merge_on_host(base, lora.adapters, weight * 2.0)
        equal(jax.device_get(made.params["t2i"]), jax.device_get(added))
        equal(made.params["i2t"], flowtok.params["i2t"])
        # Of four steps little is learned; rounding alone is 1e-7.
        assert np.abs(made.text_to_image(PROMPTS) - plain).max() > 1e-5
    listed = FlowTok.from_pretrained(demo.workdir, lora=[trained])
    equal(jax.device_get(listed.params["t2i"]), merge_on_host(base, lora.adapters, 2.0))
    none = FlowTok.from_pretrained(demo.workdir, lora={trained: 0})
    np.testing.assert_array_equal(none.text_to_image(PROMPTS), plain)


def test_several_adapters_at_once_add_up(demo, trained, flowtok, tmp_path):
    copy = shutil.copytree(trained / "lora", tmp_path / "copy")
    both = {trained: 0.75, copy: 0.25}
    got = FlowTok.from_pretrained(demo.workdir, lora=both)
    once = FlowTok.from_pretrained(demo.workdir, lora=trained)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        got.params["t2i"],
        once.params["t2i"],
    )


def test_a_runs_own_workdir_is_weights_and_merged_ones_are_saved(
    demo, trained, tmp_path
):
    own = FlowTok.from_pretrained(trained)
    over = FlowTok.from_pretrained(demo.workdir, lora=trained)
    equal(own.params["t2i"], over.params["t2i"])
    assert open_weights(trained).groups == ("t2i",)
    over.save_pretrained(tmp_path / "merged")
    merged = FlowTok.from_pretrained(tmp_path / "merged")
    equal(merged.params, over.params)
    np.testing.assert_array_equal(
        merged.text_to_image(PROMPTS), over.text_to_image(PROMPTS)
    )


def test_other_weights_that_fit_are_said_and_take_them(
    cli, demo, trained, flowtok, tmp_path
):
    other = FlowTok.from_pretrained(demo.workdir)
    other.params["t2i"] = jax.tree.map(lambda x: 1.01 * x, other.params["t2i"])
    other.save_pretrained(tmp_path / "other")
    prompts = f"--prompts={';'.join(PROMPTS)}"
    for place, is_other in ((tmp_path / "other", True), (demo.workdir, False)):
        outcome = cli(
            "--mode=sample",
            f"--checkpoint={place}",
            f"--lora={trained}:0.5",
            f"--workdir={tmp_path}",
            prompts,
        )
        assert outcome.status == 0, outcome.stderr
        said = "was trained over other weights of t2i" in outcome.stderr
        assert said == is_other


def test_captions_are_adapted_too(cli, demo, tmp_path):
    workdir = tmp_path / "i2t"
    outcome = cli(*command(demo.workdir, workdir, "lora_i2t"))
    assert outcome.status == 0, outcome.stderr
    assert [lora.group for lora in open_loras(workdir)] == ["i2t"]
    image = tmp_path / "a.png"
    FlowTok.from_pretrained(demo.workdir).draw(PROMPTS[:1])[0].save(image)
    said = cli(
        "--mode=caption",
        f"--checkpoint={demo.workdir}",
        f"--lora={workdir}",
        f"--images={image}",
    )
    assert said.status == 0, said.stderr


def test_a_text_tokenizer_has_adapters_by_a_pattern_of_its_own(cli, demo, tmp_path):
    stage = "text_tokenizer"
    adapted = {"stages": stage, "lora.pattern": "blocks/attention"}
    workdir = tmp_path / "run"
    outcome = cli(*command(demo.workdir, workdir, **adapted))
    assert outcome.status == 0, outcome.stderr
    made = FlowTok.from_pretrained(demo.workdir, lora=workdir)
    plain = FlowTok.from_pretrained(demo.workdir)
    assert params_sha256(made.params[stage]) != params_sha256(plain.params[stage])


@pytest.fixture(scope="module")
def students(demo, tmp_path_factory):
    """A finished run of adapters of students of both directions."""
    workdir = tmp_path_factory.mktemp("students") / "run"
    few = {"lora.rank": 2, "lora.pattern": "student/blocks"}
    few |= {"loss.t2i_distilled.trajectory_steps": 2}
    few |= {"loss.i2t_distilled.trajectory_steps": 2}
    for _ in range(2):  # the second finds it finished
        process = run.start(command(demo.workdir, workdir, "distill.py:t2i,i2t", **few))
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    return FlowTok.from_pretrained(workdir)


def test_a_student_learns_as_adapters_of_a_copy_of_its_teacher(
    demo, students, tmp_path
):
    assert (students.sample.solver, students.caption.solver) == ("average", "average")
    drawn = students.text_to_image(PROMPTS)
    assert np.isfinite(drawn).all()
    assert len(students.image_to_text(drawn, num_steps=1)) == len(PROMPTS)
    teacher = {"student": students.params["t2i"]["dit"]}
    assert params_sha256(students.params["t2i_distilled"]) != params_sha256(teacher)
    with pytest.raises(UserError, match="adapts i2t_distilled; .* has .* only"):
        FlowTok.from_pretrained(demo.workdir, lora=students.place)
    students.save_pretrained(tmp_path / "saved")
    again = FlowTok.from_pretrained(tmp_path / "saved", lora=students.place)
    assert again.text_to_image(PROMPTS).shape == drawn.shape


def test_a_student_has_its_guidance_inside(students):
    own = students.sample.scale
    np.testing.assert_array_equal(
        students.text_to_image(PROMPTS, scale=own), students.text_to_image(PROMPTS)
    )
    with pytest.raises(UserError, match="scale is 9.0, and the distilled flow has its"):
        students.text_to_image(PROMPTS, scale=9.0)
    with pytest.raises(UserError, match="scale is 9.0"):
        students.image_to_text(students.text_to_image(PROMPTS), scale=9.0)
    assert len(students.text_to_image(PROMPTS, scale=9.0, solver="euler")) == 2


def test_adapters_of_its_teacher_are_drawn_with_by_the_teacher(
    students, trained, tmp_path, caplog
):
    students.save_pretrained(tmp_path / "saved")
    with caplog.at_level(logging.INFO):
        made = FlowTok.from_pretrained(tmp_path / "saved", lora=trained)
    assert "t2i: no t2i_distilled fits it; it runs with {'solver': 'euler'" in str(
        caplog.messages
    )
    # The path that the student learned.
    own = students.losses["t2i_distilled"]
    teacher = ("euler", "left", own["trajectory_steps"], own["scale"])
    sample = made.sample
    assert (sample.solver, sample.times, sample.num_steps, sample.scale) == teacher
    assert made.caption == students.caption
    plain = students.text_to_image(PROMPTS, **sample._asdict())
    assert not np.array_equal(made.text_to_image(PROMPTS), plain)
    with pytest.raises(UserError, match="group 't2i_distilled' is not among"):
        made.text_to_image(PROMPTS, solver="average")


def test_a_picture_is_edited_by_the_flow_and_not_by_its_student(demo, students):
    own = students.losses["t2i_distilled"]
    flow = FlowTok.from_pretrained(demo.workdir)
    flow.sample = flow.sample._replace(times="left", num_steps=own["trajectory_steps"])
    made = [
        by.edit(flow.draw(PROMPTS[:1]), PROMPTS[0], PROMPTS[1], num_steps=2)
        for by in (flow, students)
    ]
    np.testing.assert_array_equal(made[0].images, made[1].images)


@pytest.mark.parametrize(
    ("config", "solvers"),
    [
        ("finetune.py", ("euler", "euler")),
        ("distill.py:i2t", ("euler", "average")),
        ("eval.py", ("average", "average")),
    ],
)
def test_what_is_trained_further_is_sampled_by_itself(
    cli, students, tmp_path, config, solvers
):
    students.save_pretrained(tmp_path / "saved")
    mode = "eval" if config == "eval.py" else "train"
    outcome = cli(
        f"--mode={mode}",
        f"--config=configs/{config}",
        f"--checkpoint={tmp_path / 'saved'}",
        f"--workdir={tmp_path}",
        "--print_config",
    )
    assert outcome.status == 0, outcome.stderr
    shown = re.findall('^(sample|caption): .*solver="([a-z]+)"', outcome.stdout, re.M)
    assert dict(shown) == dict(zip(("sample", "caption"), solvers, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_students_that_are_adapters_are_stored_as_these(students, tmp_path, dtype):
    students.save_pretrained(tmp_path / "a", dtype=dtype)
    size = {p.name: p.stat().st_size for p in (tmp_path / "a").glob("*.safetensors")}
    for flow in ("t2i", "i2t"):
        adapters, whole = (
            size[f"{g}.safetensors"] for g in (f"{flow}_distilled", flow)
        )
        assert adapters < whole / 4
    # What is read is stored again, and loads the same.
    again = FlowTok.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b", dtype=dtype)
    equal(FlowTok.from_pretrained(tmp_path / "b").params, again.params)
    if dtype == "float32":
        equal(again.params, students.params)


def test_programs_without_the_package_find_students_whole(students, tmp_path):
    students.save_pretrained(tmp_path / "whole", whole=True)
    students.export(tmp_path / "exported", num_steps=1)
    for folder in (tmp_path / "whole", tmp_path / "exported" / "weights"):
        stored = read_safetensors(folder / "t2i_distilled.safetensors")
        got = unflatten_dict({k: np.array(x) for k, x in stored.items()}, sep="/")
        equal(got, students.params["t2i_distilled"])


@pytest.mark.parametrize("changed", ["t2i", "t2i_distilled"])
def test_a_student_is_stored_whole_where_it_or_its_teacher_changed(
    students, tmp_path, changed
):
    other = FlowTok.from_pretrained(students.place)
    other.params = dict(other.params)
    other.params[changed] = jax.tree.map(lambda x: 1.01 * x, other.params[changed])
    other.save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert config["derived"] == {"i2t_distilled": "i2t/dit"}
    equal(FlowTok.from_pretrained(tmp_path / "other").params, other.params)


def test_adapters_beside_what_they_are_not_over_are_refused(students, tmp_path):
    saved = tmp_path / "saved"
    students.save_pretrained(saved)
    stored = read_safetensors(saved / "t2i.safetensors")
    moved = {name: 1.01 * np.array(leaf) for name, leaf in stored.items()}
    write_safetensors(saved / "t2i.safetensors", moved)
    with pytest.raises(UserError, match="made over another t2i/dit than .* beside it"):
        FlowTok.from_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    config["derived"]["t2i_distilled"] = "t2i/net"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="t2i.safetensors has no net, over which"):
        FlowTok.from_pretrained(saved)
    config["derived"]["t2i_distilled"] = "t2i/dit"
    (saved / "config.json").write_text(json.dumps(config))
    path = saved / "t2i_distilled.safetensors"
    two = {k.replace("student/", "net/"): x for k, x in read_safetensors(path).items()}
    rewrite(path, two | read_safetensors(path))
    with pytest.raises(UserError, match="has adapters of 2 networks; expected one"):
        FlowTok.from_pretrained(saved)


def test_mistakes_are_said_in_one_line(cli, demo, trained, flowtok, tmp_path):
    nowhere = cli(*command(demo.workdir, tmp_path / "x", **{"lora.pattern": "dit/b1"}))
    assert nowhere.status == 2
    assert "matches none of" in nowhere.complaint
    assert "dit/blocks/" in nowhere.complaint
    fresh = cli(*command(demo.workdir, tmp_path / "x", init_trained=False))
    assert fresh.status == 2
    flags = [f"--lora={trained}", *command(demo.workdir, tmp_path / "x")]
    assert "is not for training" in cli(*flags).complaint
    flowtok.save_pretrained(tmp_path / "saved")
    cases = {
        tmp_path / "absent": "does not exist; expected the workdir of a run",
        tmp_path / "saved": "holds no adapters",
        demo.workdir / "samples": "has no adapters",
    }
    (demo.workdir / "samples").mkdir(exist_ok=True)
    for place, said in cases.items():
        with pytest.raises(UserError, match=said):
            FlowTok.from_pretrained(demo.workdir, lora=place)
    with pytest.raises(UserError, match="has weight nan"):
        FlowTok.from_pretrained(demo.workdir, lora={trained: float("nan")})
    with pytest.raises(UserError, match="has weight '0.7'; expected 0.7, say"):
        FlowTok.from_pretrained(demo.workdir, lora={trained: "0.7"})
    for twice in ([trained, trained], [trained, trained / "lora"]):
        with pytest.raises(UserError, match="lora/t2i.safetensors is given twice"):
            FlowTok.from_pretrained(demo.workdir, lora=twice)


def rewrite(path, arrays=None, **metadata):
    """Writes a file of adapters again, with other arrays or metadata."""
    with safetensors.safe_open(path, framework="numpy") as file:
        said = file.metadata() | metadata
    stored = {k: np.array(x) for k, x in read_safetensors(path).items()}
    write_safetensors(path, arrays or stored, {k: v for k, v in said.items() if v})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": "2"}, "does not fit these weights: wrong shape"),
        ({"rank": "two"}, "does not say what its adapters are"),
        ({"rank": ""}, "does not say what its adapters are"),
        ({"pattern": "dit/blocks/attention"}, "does not fit these weights: not used"),
        ({"pattern": "nothing"}, "does not fit these weights: .*matches none"),
        ({"group": "plain"}, "adapts plain; .* has .* only"),
        ({"format": "other"}, "holds no adapters"),
    ],
)
def test_files_that_do_not_fit_are_refused(demo, trained, tmp_path, changes, message):
    folder = shutil.copytree(trained / "lora", tmp_path / "lora")
    rewrite(folder / "t2i.safetensors", **changes)
    with pytest.raises(UserError, match=message):
        FlowTok.from_pretrained(demo.workdir, lora=folder)


def test_a_weight_stands_behind_a_colon():
    given = ["runs/a:0.7", "b", "gs://bucket/c", "gs://bucket/d:-1"]
    found = {"runs/a": 0.7, "b": 1.0, "gs://bucket/c": 1.0, "gs://bucket/d": -1.0}
    assert parse_loras(given) == found
    with pytest.raises(UserError, match="--lora=b is given twice"):
        parse_loras(["b", "b:0.5"])
