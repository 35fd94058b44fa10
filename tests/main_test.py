"""The command line: what a user gets wrong, and the verbs that use trained weights."""

import errno
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from absl.flags import FLAGS
from PIL import Image

from flowtok_jax import main
from flowtok_jax.convert import __main__ as convert
from flowtok_jax.data import prepare
from flowtok_jax.eval import reference
from flowtok_jax.eval.previews import RANDOM_TOWER
from flowtok_jax.runtime import cli as cli_module
from tests import run

STEPS = "per_stage.text_tokenizer.train.num_steps"
SCENE = "a red circle at the top left"


def test_python_calls_the_command_whatever_its_own_arguments(cli, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel", "-f", "kernel.json"])
    outcome = cli("--config=configs/demo.py", "--config.train.seed=3", "--print_config")
    assert outcome.status == 0, outcome.stderr
    assert "seed=3, steps_per_call" in outcome.stdout
    assert sys.argv == ["ipykernel", "-f", "kernel.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=configs/nothing.py"], ["configs/nothing.py", "configs/demo.py"]),
        (["--config=configs"], ["configs does not exist"]),
        (["--config=configs/demo.py:paint"], ["paint", "text_tokenizer, t2i, i2t"]),
        (["--config=configs/h.py:3"], ["'3'", "1, 2, 512", "configs/h.py:1"]),
        (["--config=configs/default.py:1"], ["configs/default.py", "'1'"]),
        (
            ["--config=configs/demo.py", "--config.train.batchsize=3"],
            ["train.batchsize", "batch_size", "num_steps"],
        ),
        (
            ["--config=configs/demo.py", "--config.optimiser.eps=3"],
            ["config.optimiser", "optimizer"],
        ),
        (
            ["--config=configs/demo.py", "--config.train.seed.more=3"],
            ["config.train.seed.more", "no keys"],
        ),
        (["--config=configs/demo.py", "--config.train.seed=x"], ["config.train.seed"]),
        (["--config=configs/demo.py", "--mode=paint"], ["mode", "paint", "caption"]),
        (["--config=configs/demo.py", "--workdirr=x"], ["workdirr"]),
        (["--config=configs/demo.py", "--seed=many"], ["seed", "many"]),
        (
            ["--config=configs/demo.py", "--seed=-1"],
            ["--seed is -1", "from 0 to 2**32"],
        ),
        (["--config=configs/demo.py", "t2i"], ["'t2i'"]),
        (["--workdir=x"], ["no config", "--config=configs/demo.py"]),
        (["--mode=sample"], ["no prompts", "--prompts", "--prompts_file=FILE"]),
        (["--mode=sample", "--prompts=; ;"], ["no prompts"]),
        (["--mode=sample", "--prompts=a"], ["no weights", "--checkpoint=DIR"]),
        (
            ["--mode=sample", "--prompts=a", "--checkpoint=nowhere"],
            ["nowhere does not exist"],
        ),
        (
            ["--mode=sample", "--prompts=a", "--checkpoint=configs"],
            ["no config.json in configs"],
        ),
        (
            ["--mode=sample", "--prompts=a", "--num_images=0", "--checkpoint=x"],
            ["num_images is 0", "expected an integer from 1"],
        ),
        (["--mode=caption"], ["no images", "--images="]),
        (
            ["--mode=caption", "--images", "a.png", "b.png"],
            ["what is 'b.png'?", "--images='DIR/*.png' in quotes", "--images=DIR"],
        ),
        (
            ["--mode=caption", "--images=*.png", "--checkpoint=nowhere"],
            ["nowhere does not exist"],
        ),
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_flags_ends_in_one_line_and_status_2(cli, arguments, named):
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert outcome.stdout == ""
    assert outcome.complaint.startswith("error: ")
    for part in named:
        assert part in outcome.complaint


@pytest.mark.parametrize(
    ("stage", "override", "named"),
    [
        ("text_tokenizer", {STEPS: 0}, ["train.num_steps is 0"]),
        ("text_tokenizer", {"train.steps_per_call": 0}, ["steps_per_call is 0"]),
        ("text_tokenizer", {"train.batch_size": 12}, ["batch_size is 12", "of 8"]),
        ("text_tokenizer", {"mesh.data": 3}, ["mesh.data=3", "[1, 2, 4, 8]"]),
        ("text_tokenizer", {"schedule.schedule": "linear"}, ["'linear'", "cosine"]),
        ("text_tokenizer", {"compute.dtype": "int8"}, ["'int8'", "bfloat16"]),
        ("text_tokenizer", {"compute.remat": "some"}, ["'some'", "full"]),
        ("text_tokenizer", {"projector.heads": 3}, ["heads 3"]),
        ("text_tokenizer", {"data.train": "moon"}, ["'moon'", "shapes"]),
        ("text_tokenizer", {"data.eval": "shapes:all"}, ["shapes:all", "held_out"]),
        ("text_tokenizer", {"text.vocabulary": "./none"}, ["'./none'"]),
        ("text_tokenizer", {"text.weights": ""}, ["clip", "text.weights=random"]),
        ("text_tokenizer", {"loss.text_tokenizer.kl": "l2"}, ["'l2'", "gaussian_"]),
        ("text_tokenizer", {"stages": "('t2i', 'paint')"}, ["'paint'", "i2t"]),
        ("tokenizer", {"tokenizer.patch": 5}, ["tokenizer.patch = 5"]),
        ("t2i", {}, ["no weights of tokenizer", "init_from"]),
        ("t2i", {"init_from": "nowhere"}, ["nowhere does not exist"]),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_ends_in_one_line_and_status_2(
    cli, tmp_path, monkeypatch, stage, override, named
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = cli(*run.command(tmp_path / "run", stage, **override))
    assert outcome.status == 2
    assert outcome.complaint.startswith("error: ")
    for part in named:
        assert part in outcome.complaint


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"align": "euclidean"}, ["loss.t2i.align", "contrastive", "cosine"]),
        ({"align_groups": 3}, ["loss.t2i.align_groups is 3", "8 rows"]),
        ({"kl": "gaussian"}, ["'gaussian'", "release_batch_sum"]),
    ],
)
def test_a_loss_that_cannot_be_is_named(cli, demo, tmp_path, override, named):
    overrides = {f"loss.t2i.{key}": value for key, value in override.items()}
    outcome = cli(*run.command(tmp_path, "t2i", init_from=demo.workdir, **overrides))
    assert outcome.status == 2
    for part in named:
        assert part in outcome.complaint


def test_a_workdir_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "file").touch()
    outcome = cli(*run.command(tmp_path / "file"))
    assert outcome.status == 2
    assert "file" in outcome.complaint


def test_a_workdir_of_another_config_is_refused_and_left_as_it_is(cli, demo):
    before = (demo.workdir / "config.json").read_text()
    overrides = {"dit.width": 32, "train.seed": 5}
    outcome = cli(*run.command(demo.workdir, **overrides))
    assert outcome.status == 2
    assert "dit.width is 16 there, 32 here" in outcome.complaint
    assert "train.seed is 0 there, 5 here" in outcome.complaint
    assert (demo.workdir / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.train.num_steps=a b", "a whole number"),
        ("--config.schedule.lr=x", "a number"),
        ("--config.data.transform.flip=maybe", "true or false"),
        ("--config.train=x", "it has keys"),
        ("--seed=x", "a whole number"),
    ],
)
def test_a_value_of_another_type_says_which_is_expected(cli, flag, expected):
    outcome = cli("--config=configs/demo.py", flag)
    assert outcome.status == 2
    assert outcome.complaint.startswith(f"error: {flag}: ")
    assert expected in outcome.complaint


def test_the_exit_status_reaches_the_shell():
    process = run.start(["--config=configs/nothing.py"])
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert run.Outcome(2, stdout, stderr).complaint.startswith("error: ")


def test_prompts_become_a_png_each_and_a_grid(cli, demo, tmp_path):
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--workdir={tmp_path}",
        f"--prompts={SCENE}; a blue square at the top right ;",
    )
    assert outcome.status == 0
    samples = tmp_path / "samples" / "0001"
    names = [
        "0000_a_red_circle_at_the_top_left_seed0.png",
        "0001_a_blue_square_at_the_top_right_seed0.png",
        "grid.png",
    ]
    assert outcome.stdout.splitlines() == [str(samples / name) for name in names]
    assert sorted(p.name for p in samples.iterdir()) == names
    for name in names[:2]:
        with Image.open(samples / name) as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
    with Image.open(samples / "grid.png") as grid:
        assert grid.width > 256


def test_prompts_are_read_from_a_file_and_written_beside_the_weights(
    cli, demo, tmp_path
):
    workdir = shutil.copytree(demo.workdir, tmp_path / "run")
    (tmp_path / "prompts.txt").write_text(f"{SCENE}\n\n{SCENE}\n")
    outcome = cli(
        "--mode=sample",
        f"--workdir={workdir}",
        f"--prompts_file={tmp_path}/prompts.txt",
    )
    assert outcome.status == 0
    written = sorted(p.name for p in (workdir / "samples/0001").glob("0*.png"))
    assert written == [
        f"{i:04d}_a_red_circle_at_the_top_left_seed0.png" for i in (0, 1)
    ]
    first, second = (Image.open(workdir / "samples/0001" / name) for name in written)
    assert (np.asarray(first) != np.asarray(second)).any()  # a noise of their own


def test_a_prompt_longer_than_the_context_is_cut_with_a_warning_that_names_it(
    cli, demo, tmp_path
):
    long = " and ".join([SCENE] * 3)
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--workdir={tmp_path}",
        f"--prompts={SCENE};{long}",
    )
    assert outcome.status == 0
    warning, note = outcome.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "23 tokens" in warning
    assert f"{long!r}" in warning
    assert note == RANDOM_TOWER
    assert len(list((tmp_path / "samples").glob("0001/0*.png"))) == 2


def test_a_direction_that_was_not_trained_is_refused(cli, demo, tmp_path):
    workdir = shutil.copytree(demo.workdir, tmp_path / "run")
    for stage in ("t2i", "i2t"):
        shutil.rmtree(workdir / "checkpoints" / stage)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for arguments in (
        ["--mode=sample", "--prompts=a"],
        ["--mode=caption", f"--images={tmp_path}/a.png"],
    ):
        outcome = cli(*arguments, f"--checkpoint={workdir}")
        assert outcome.status == 2
        assert "train stage" in outcome.complaint


def test_weights_of_another_size_are_refused(cli, demo, tmp_path):
    outcome = cli(
        "--mode=sample",
        f"--config={run.CONFIG}",
        *run.flags(**{"dit.width": 32}),
        f"--checkpoint={demo.workdir}",
        f"--workdir={tmp_path}",
        "--prompts=a",
    )
    assert outcome.status == 2
    assert "dit" in outcome.complaint
    assert "16" in outcome.complaint
    assert "32" in outcome.complaint


def test_captions_are_a_line_a_file_and_other_files_are_named(cli, demo, tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 60), "red").save(tmp_path / name)
    (tmp_path / "c.png").write_text("no image")
    arguments = (
        "--mode=caption",
        f"--checkpoint={demo.workdir}",
        f"--images={tmp_path}/*",
    )
    outcome = cli(*arguments)
    assert outcome.status == 1
    lines = [line.partition(": ") for line in outcome.stdout.splitlines()]
    assert [line[0] for line in lines] == [f"{tmp_path}/a.png", f"{tmp_path}/b.jpg"]
    named, counted, note = outcome.stderr.splitlines()
    assert named.startswith(f"error: {tmp_path}/c.png is not a readable image")
    assert counted == "error: 1 of 3 files could not be read"
    assert note == RANDOM_TOWER  # said wherever such weights show results

    (tmp_path / "c.png").unlink()
    outcome = cli(*arguments, "--json")
    assert outcome.status == 0
    wanted = [{"file": line[0], "caption": line[2]} for line in lines]
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == wanted


def test_a_pattern_that_matches_nothing_is_refused(cli, demo, tmp_path):
    outcome = cli(
        "--mode=caption", f"--checkpoint={demo.workdir}", f"--images={tmp_path}/*.png"
    )
    assert outcome.status == 2
    assert f"--images={tmp_path}/*.png matches no file" in outcome.complaint


def test_help_names_every_mode_flag_and_command_once_in_80_columns(cli):
    outcome = cli("--help")
    assert outcome.status == 0
    lines = outcome.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    own = {flag.name for flag in FLAGS.flags_by_module_dict()["flowtok_jax.main"]}
    own |= {name for name, *_ in cli_module.CLUSTER_FLAGS}
    own |= {"config.KEY", "help", "help_config"}
    named = [line.split("=")[0][4:] for line in lines if line.startswith("  --")]
    assert sorted(named) == sorted(own)
    for mode in set(main.MODES) - {"train"}:
        assert f"--mode={mode}" in outcome.stdout
    package = run.ROOT / "flowtok_jax"
    for path in package.rglob("*.py"):
        if 'if __name__ == "__main__":' in path.read_text():
            name = ".".join(path.relative_to(run.ROOT).with_suffix("").parts)
            command = f"python -m {name.removesuffix('.__main__')}"
            assert re.search(rf"^  {command}( |$)", outcome.stdout, re.M), command


@pytest.mark.parametrize("flag", ["-h", "-help", "--helpfull", "help"])
def test_help_is_found_however_it_is_asked_for(cli, flag):
    assert cli(flag).stdout == cli("--help").stdout


def test_help_begins_with_what_comes_first(cli):
    said = cli("--help").stdout
    parts = ["--config=configs/demo.py\n", "--mode=sample", "--mode=caption -"]
    parts += ["--mode=eval", "folder:photos", "--mode=compile", "--help_config"]
    parts += ["Exit status", "\n  --config=", "\n  --workdir=", "\n  --prompts="]
    parts += ["\n  --coordinator=", "  python -m flowtok_jax.convert\n"]
    places = [said.index(part) for part in parts]
    assert places == sorted(places)


def test_help_config_says_values_and_meaning_of_keys(cli):
    outcome = cli("--help_config", "train.batch_size")
    assert outcome.status == 0
    expected = ["train.batch_size = 4096", "    rows on all devices together"]
    assert outcome.stdout.splitlines() == expected
    # Of the config that is named, with what its stages and the command line change.
    outcome = cli(
        "--config=configs/demo.py", "--config.train.batch_size=7", "--help_config=train"
    )
    lines = outcome.stdout.splitlines()
    place = lines.index("train.batch_size = 7")
    assert lines[place + 1] == "    rows on all devices together"
    outcome = cli("--help_config=train.num_steps", "--config=configs/demo.py")
    assert "    1600 in stage tokenizer" in outcome.stdout.splitlines()


def test_help_config_refuses_a_key_that_does_not_exist(cli):
    outcome = cli("--help_config", "train.batchsize")
    assert outcome.status == 2
    assert "'train.batchsize'; expected one such as train.batch_size" in (
        outcome.complaint
    )


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x"])
@pytest.mark.parametrize("mode", ["train", "sample", "eval", "bench", "pretokenize"])
def test_a_workdir_that_cannot_be_written_ends_in_one_line(cli, demo, mode, place):
    arguments = {
        "train": [f"--config={run.CONFIG}"],
        "sample": [f"--checkpoint={demo.workdir}", f"--prompts={SCENE}"],
        "eval": [f"--checkpoint={demo.workdir}"],
        "bench": [f"--config={run.CONFIG}"],
        "pretokenize": [*run.command(place), f"--checkpoint={demo.workdir}"],
    }
    outcome = cli(f"--mode={mode}", *arguments[mode], f"--workdir={place}")
    assert outcome.status == 2
    assert outcome.stdout == ""
    assert outcome.complaint.startswith(f"error: {place}/")
    assert " cannot be written" in outcome.complaint


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (prepare, ["--source=shapes", "--limit=2", "--out=/proc/x/set"]),
        (convert, ["--tokenizer=none.bin", "--out=/proc/x/set"]),
        (convert, ["--checkpoint=none", "--to_release=/proc/set.safetensors"]),
        (reference, ["--images=shapes", "--weights=random", "--out=/proc/x/set"]),
    ],
)
def test_commands_refuse_a_place_that_cannot_be_written(capsys, module, arguments):
    with run.own_logging():
        assert module.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    expected = "/proc/(x/)?set(.safetensors)? cannot be written"
    assert re.match(f"error: {expected} .nothing can be made there.; give", said)


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "", 141),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            "error: /x/y cannot be read or written (Permission denied)",
            2,
        ),
        (OSError(errno.EIO, "Input/output error", "/x/y"), "error: /x/y cannot be", 2),
        (OSError(errno.EIO, "Input/output error"), "error: a file cannot be", 2),
    ],
)
def test_what_the_system_refuses_ends_in_one_line(
    cli, monkeypatch, capsys, error, said, status
):
    def fail(arguments):
        raise error

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(main.MODES["train"], "run", fail)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as ended:
        cli()
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("sample.scales=3", ["config.sample.scales", "no such key", "num_steps"]),
        ("sample.num_steps=x", ["config.sample.num_steps=x: expected a whole number"]),
        ("sample.solver=magic", ["sample.solver", "'magic'", "heun"]),
        ("caption.solver=magic", ["caption.solver", "'magic'", "heun"]),
        ("caption.num_steps=0", ["caption.num_steps is 0"]),
    ],
)
def test_a_change_of_the_stored_config_that_cannot_be_is_named(
    cli, demo, change, named
):
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--prompts={SCENE}",
        f"--config.{change}",
    )
    assert outcome.status == 2
    for part in named:
        assert part in outcome.complaint


def test_the_stored_config_is_changed_by_flags(cli, demo, tmp_path):
    def draw(name, *changes):
        arguments = [f"--checkpoint={demo.workdir}", f"--workdir={tmp_path / name}"]
        outcome = cli("--mode=sample", *arguments, f"--prompts={SCENE}", *changes)
        assert outcome.status == 0
        return (tmp_path / name / "samples" / "0001" / "grid.png").read_bytes()

    plain = draw("plain")
    assert draw("same", "--config.sample.num_steps=2") == plain
    assert draw("other", "--config.sample.source=mean") != plain


def test_a_change_of_no_config_says_what_is_missing(cli):
    outcome = cli("--mode=sample", "--prompts=a", "--config.sample.scale=3")
    assert outcome.status == 2
    assert "--config.sample.scale changes no config" in outcome.complaint


def test_a_config_is_found_behind_spaces_and_a_prompt_that_looks_like_one_is_none(
    cli, tmp_path
):
    config = tmp_path / "a b" / "my demo.py"
    config.parent.mkdir()
    shutil.copy(run.CONFIG, config)
    for arguments in ([f"--config={config}"], ["--config", str(config)]):
        outcome = cli(
            *arguments, "--mode=pretokenize", "--prompts=a --config=nowhere.py:x b"
        )
        assert "no folder for the shards" in outcome.complaint


def test_prompts_given_one_by_one_are_drawn_as_they_stand(cli, demo, tmp_path):
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--workdir={tmp_path}",
        f"--prompt={SCENE}; a cow",
        "--prompt",
        "# 2 &amp; more",
    )
    assert outcome.status == 0
    names = ["0000_a_red_circle_at_the_top_left_a_cow", "0001_2_amp_more"]
    written = sorted((tmp_path / "samples" / "0001").iterdir())
    assert [path.stem for path in written] == [*(f"{n}_seed0" for n in names), "grid"]


def test_bytes_that_are_no_text_end_in_one_line(demo, tmp_path):
    arguments = ["--mode=sample", f"--checkpoint={demo.workdir}", "--prompts=caf\udce9"]
    process = run.start([*arguments, f"--workdir={tmp_path}"])
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stdout) == (2, "")
    assert "prompts[0] is 'caf\\udce9'" in run.Outcome(2, stdout, stderr).complaint


def test_a_name_that_stdout_cannot_show_is_escaped_there(demo, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "猫.png")
    arguments = ["--mode=caption", f"--checkpoint={demo.workdir}"]
    arguments += [f"--images={tmp_path}/*.png"]
    process = run.start(arguments, PYTHONIOENCODING="ascii")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.startswith(rf"{tmp_path}/\u732b.png: ")


def test_prompts_from_two_places_are_refused(cli, demo, tmp_path):
    (tmp_path / "prompts").write_text(SCENE)
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--prompts={SCENE}",
        f"--prompts_file={tmp_path}/prompts",
    )
    assert outcome.status == 2
    assert "give one of them" in outcome.complaint


def test_a_workdir_that_cannot_be_made_is_named(cli, demo, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--workdir={tmp_path}/file",
        f"--prompts={SCENE}",
    )
    assert outcome.status == 2
    assert f"{tmp_path}/file/samples" in outcome.complaint


def test_a_damaged_checkpoint_is_named(cli, demo, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(demo.workdir, workdir)
    (item,) = workdir.glob("checkpoints/t2i/*/ema")
    for path in item.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    outcome = cli("--mode=sample", f"--checkpoint={workdir}", f"--prompts={SCENE}")
    assert outcome.status == 2
    assert f"{item} is damaged" in outcome.complaint


def test_a_refused_mistake_leaves_no_workdir_behind(cli, tmp_path):
    workdir = tmp_path / "run"
    arguments = run.command(workdir, "tokenizer", **{"train.batch_size": 0})
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert "batch_size is 0" in outcome.complaint
    assert not workdir.exists()
