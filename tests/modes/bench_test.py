"""`--mode=bench` through the command line, on the tiny demo's sizes."""

import json

import jax
import pytest

from configs import demo
from flowtok_jax.models.build import make_nets
from flowtok_jax.perf import flops, suite_table
from flowtok_jax.perf.suite import FILE
from flowtok_jax.perf.work import fitting
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS
from tests import run

BENCH = ("--mode=bench", f"--config={run.CONFIG}", *run.flags())
ROWS = 8
SUITE_ROWS = ("matmul bfloat16", "sample xl 1 average 1 xla")
RUN_KEYS = {
    *("part", "batch_size", "devices", "options", "images_per_sec", "seconds"),
    *("model_tflop_per_call", "model_gflop_per_image", "tflops_per_sec", "mfu"),
    *("peak_bf16_tflops_per_sec", "compile_seconds", "first_call_seconds", "memory"),
    *("load_average", "host_cpu_seconds"),
}


def tiny_nets(stage: str):
    config = demo.get_config()
    for key, value in run.TINY.items():
        *path, last = key.split(".")
        section = config
        for name in path:
            section = section[name]
        section[last].update(value) if isinstance(value, dict) else section.update(
            {last: value}
        )
    return make_nets(for_stage(config, stage))


def test_every_part_is_measured_and_the_last_line_is_the_report(cli, tmp_path):
    outcome = cli(
        *BENCH,
        f"--workdir={tmp_path}",
        "--config.bench.parts=('text_to_image','image_to_text','train')",
        f"--config.bench.batch_sizes=({ROWS},)",
        "--config.bench.num_steps=(3,)",
        "--config.bench.repeats=3",
        "--config.bench.profile=True",
    )
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "bench.json").read_text())
    assert max(map(len, outcome.stdout.splitlines()[:-1])) <= 80
    assert report["machine"]["jax"] == jax.__version__
    assert report["machine"]["device_kind"] == jax.devices()[0].device_kind
    assert "--config.bench.repeats=3" in report["command"]
    assert (report["precision"], report["attention"]) == ("float32", "xla")
    assert report["weights"] == "random"
    text, image, train = report["runs"]
    assert [r["part"] for r in report["runs"]] == [
        *("text_to_image", "image_to_text", "train")
    ]
    for one in report["runs"]:
        assert set(one) - {"profile"} == RUN_KEYS
        assert 0 < one["seconds"]["p50"] <= one["seconds"]["p95"]
        assert len(one["seconds"]["all"]) == 3
        assert one["images_per_sec"] == pytest.approx(ROWS / one["seconds"]["p50"])
        assert one["mfu"] is None
        assert one["memory"]["program_gib"] > 0
        assert one["memory"]["process_resident_peak_gib"] > 0
    check_flops(text, image, train)
    for one in (text, image):
        check_profile(one)
    assert "profile" not in train
    assert (text["devices"], train["devices"]) == (1, 8)


def check_flops(text: dict, image: dict, train: dict) -> None:
    for one, direction, scale in (
        (text, "text_to_image", 2.0),
        (image, "image_to_text", 1.5),
    ):
        stage = "t2i" if one is text else "i2t"
        options = {"num_steps": 3, "scale": scale, "solver": "euler"}
        costs = flops.count_sampling(tiny_nets(stage), direction, ROWS, **options)
        wanted = sum(cost.total for cost in costs.values())
        assert one["model_gflop_per_image"] == pytest.approx(wanted / ROWS / 1e9)
        rate = wanted / one["seconds"]["p50"] / 1e12
        assert one["tflops_per_sec"] == pytest.approx(rate)
    wanted = flops.count_train_step(
        tiny_nets("t2i"), TASKS["t2i"], {}, ROWS, False
    ).model
    assert train["model_tflop_per_call"] == pytest.approx(wanted / 1e12)


def check_profile(one: dict) -> None:
    found = one["profile"]
    modules = {(m["network"], m["part"]): m for m in found["modules"]}
    for part in ("attention", "mlp", "modulation"):
        assert modules["dit", part]["seconds"] > 0
        assert modules["dit", part]["gflop"] > 0
    spent = sum(m["seconds"] for m in found["modules"])
    assert spent == pytest.approx(found["instructions_seconds"], abs=1e-3)
    work = sum(m["gflop"] for m in found["modules"])
    assert work == pytest.approx(1e3 * one["model_tflop_per_call"])


def test_a_runs_weights_are_used_where_a_checkpoint_is_named(cli, demo):
    outcome = cli(
        *BENCH,
        f"--checkpoint={demo.workdir}",
        "--config.bench.batch_sizes=(8,)",
        "--config.bench.num_steps=(1,)",
        "--config.bench.repeats=1",
        "--config.bench.devices=0",
    )
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert report["weights"] == str(demo.workdir)
    assert [r["devices"] for r in report["runs"]] == [8]


def test_weights_of_other_sizes_are_refused(cli, demo):
    wider = "--config.dit.width=32"
    outcome = cli(*BENCH, f"--checkpoint={demo.workdir}", wider)
    assert outcome.status == 2
    assert "does not fit the config" in outcome.complaint


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bench.parts=('paint',)"], ["bench.parts has 'paint'", "text_to_image"]),
        (["bench.parts=()"], ["bench.parts is empty"]),
        (["bench.batch_sizes=(0,)"], ["bench.batch_sizes has 0", "from 1"]),
        (["bench.num_steps=(2.5,)"], ["expected whole numbers"]),
        (["bench.repeats=0"], ["bench.repeats is 0"]),
        (["bench.warmup=0"], ["bench.warmup is 0"]),
        (["bench.suite=all"], ["bench.suite is 'all'", "one of full, small"]),
        (["bench.minutes=0"], ["bench.minutes is 0.0", "more than 0"]),
        (
            ["bench.suite=full"],
            [
                "bench.suite is 'full' and the device a CPU",
                "--config.bench.suite=small",
            ],
        ),
        (["bench.devices=9"], ["bench.devices is 9", "1 to 8"]),
        (
            ["bench.devices=0", "bench.batch_sizes=(12,)"],
            ["batch 12 does not divide over 8 devices"],
        ),
        (
            ["bench.parts=('train',)", "bench.batch_sizes=(12,)"],
            ["batch_size is 12", "multiple of 8"],
        ),
        (
            ["bench.parts=('image_to_text',)", "bench.batch_sizes=(1000000000,)"],
            ["image_to_text at batch 1000000000 needs", "lower bench.batch_sizes"],
        ),
    ],
    ids=str,
)
def test_a_mistake_ends_in_one_line(cli, arguments, named):
    outcome = cli(*BENCH, *(f"--config.{a}" for a in arguments))
    assert outcome.status == 2
    assert outcome.stdout == ""
    for part in named:
        assert part in outcome.complaint


def test_what_was_measured_stays_where_the_next_is_too_large(cli, tmp_path):
    outcome = cli(
        *BENCH,
        f"--workdir={tmp_path}",
        "--config.bench.parts=('image_to_text',)",
        "--config.bench.batch_sizes=(2,1000000000)",
        "--config.bench.num_steps=(1,)",
        "--config.bench.repeats=1",
    )
    assert outcome.status == 2
    assert "batch 1000000000 needs" in outcome.complaint
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [r["batch_size"] for r in report["runs"]] == [2]


@pytest.fixture
def two_rows(monkeypatch):
    """The suite for a CPU with two rows."""
    rows = suite_table.SUITES["small"].rows
    kept = tuple(r for r in rows if r.name in SUITE_ROWS)
    small = suite_table.SUITES["small"]._replace(rows=kept)
    monkeypatch.setitem(suite_table.SUITES, "small", small)


def test_a_suite_needs_no_config_and_the_same_command_goes_on(cli, two_rows, tmp_path):
    command = ("--mode=bench", "--config.bench.suite=small", f"--workdir={tmp_path}")
    command += ("--config.bench.repeats=1",)
    for measured in (1, 1, 0):  # each command one row, the last none
        outcome = cli(*command, "--config.bench.minutes=1e-6")
        assert outcome.status == 0, outcome.stderr
        report = json.loads(outcome.stdout.splitlines()[-1])
        assert report["measured_now"] == measured
    assert [row["name"] for row in report["rows"]] == list(SUITE_ROWS)
    assert report["rows"] == json.loads((tmp_path / FILE).read_text())["rows"]
    assert report["machine"]["devices"] == 1
    assert "--config.bench.suite=small" in report["command"]
    shown = outcome.stdout.splitlines()[:-1]
    assert max(map(len, shown)) <= 80
    assert "2 of 2 rows measured, 0 failed; all rows are there" in shown
    assert any(line.startswith(f" {SUITE_ROWS[1]}") for line in shown)


def test_a_suite_has_weights_of_its_own(cli, demo):
    outcome = cli(
        "--mode=bench", "--config.bench.suite=small", f"--checkpoint={demo.workdir}"
    )
    assert outcome.status == 2
    assert "--checkpoint is given, and bench.suite=small" in outcome.complaint


def test_memory_that_a_device_runs_out_of_is_the_users_to_mend():
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with (
        pytest.raises(UserError, match="training at batch 64 does not fit.*lower"),
        fitting("training at batch 64"),
    ):
        raise full
    bug = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), fitting("x"):
        raise bug


def test_weights_that_are_not_there_end_in_one_line(cli):
    outcome = cli(*BENCH, "--checkpoint=nowhere")
    assert outcome.status == 2
    assert "nowhere does not exist" in outcome.complaint
