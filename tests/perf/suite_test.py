"""Suites of measurements: their rows, their order, their budget, what stays of them."""

import runpy

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from configs import default
from flowtok_jax.perf import suite, suite_rows, tables, work
from flowtok_jax.perf.suite_rows import RowTimer, find_batch
from flowtok_jax.perf.suite_table import FIRST, SUITES, Suite, SuiteRow, rows_for
from flowtok_jax.runtime.compilation_cache import fresh_cache
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import read_json
from tests.run import ROOT

HIT = "/jax/compilation_cache/cache_hits"
ROWS = (
    SuiteRow("matmul", dtype="float32"),
    SuiteRow("sample", "xl", 4, "euler", 2, dtype="float32"),
    SuiteRow("sample", "xl", 4, "euler", 2, "cudnn", dtype="float32"),
    SuiteRow("sample", "xl", 4, "average", 1, dtype="float32"),
    SuiteRow("profile", "xl", 4, "euler", 2, dtype="float32"),
    SuiteRow("train", "b", 2, dtype="float32"),
)


def tiny_suite(rows: tuple[SuiteRow, ...] = ROWS) -> Suite:
    """The sizes for a CPU with rows of a few calls."""
    return SUITES["small"]._replace(rows=rows, matmul_sides=(16, 32), matmul_flops=1e6)


def open_file(tmp_path, settings=()) -> suite.SuiteFile:
    return suite.SuiteFile(tmp_path / suite.FILE, "small", list(settings))


def never(row, tried, check_time):
    raise AssertionError(f"{row.name} is measured")


class Fake:
    """Something that measures in no time of ours, and what it was asked for."""

    def __init__(self, monkeypatch, seconds=60.0, **results):
        self.asked = []
        self.now = 0.0
        self._seconds = seconds
        self._results = results
        monkeypatch.setattr(suite.time, "monotonic", lambda: self.now)

    def measure(self, row, tried, check_time):
        self.asked.append(row.name)
        self.now += self._seconds
        result = self._results.get(row.kind, {"tflops_per_sec": 1.0})
        if isinstance(result, BaseException):
            raise result
        return dict(result)


@pytest.fixture
def matmuls():
    """Rows of one kind that differ in their name."""
    return [SuiteRow("matmul", dtype=f"float{n}") for n in (8, 16, 32, 64)]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_all_kinds_of_rows_the_worthiest_first(name):
    rows = SUITES[name].rows
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert tuple(names[: len(FIRST)]) == FIRST
    found = {tuple(r[1:6]) for r in rows if r.kind == "sample"}
    wanted = {
        (size, batch, solver, steps, attention)
        for size in ("xl", "h")
        for batch in (1, 8, 64)
        for solver, steps in (("euler", 20), ("average", 4), ("average", 1))
        for attention in ("xla", "cudnn")
    }
    assert found == wanted
    assert {r.size for r in rows if r.kind == "train"} == {"b", "xl", "h"}
    assert {r.dtype for r in rows if r.kind == "matmul"} == {"bfloat16", "float32"}
    assert {r.size for r in rows} - {""} == set(SUITES[name].sizes)
    on_tpu = rows_for(rows, "tpu")
    assert {r.attention for r in on_tpu} == {"xla"}
    assert len(rows_for(rows, "gpu")) == len(rows) == len(on_tpu) + 18


@pytest.mark.parametrize("size", ["b", "xl", "h"])
def test_the_full_sizes_are_those_of_the_configs(size):
    path = ROOT / "configs" / f"{size}.py"
    config = runpy.run_path(str(path))["get_config"]()
    ours = SUITES["full"].sizes[size]
    assert ours["dit"] == config.dit.to_dict()
    assert ours["compute"]["remat"] == config.compute.remat


@pytest.mark.parametrize(
    ("first", "fixed", "a_row", "room", "most", "found", "compiled"),
    [
        (2, 10, 0.5, 100, 1024, 128, [2, 4, 128]),  # jumps along the line
        (64, 10, 0.5, 100, 1024, 128, [64, 128]),
        (64, 10, 0.5, 20, 1024, 16, [64, 32, 16]),  # halves
        (2, 10, 0.5, 100, 16, 16, [2, 4, 16]),  # no further than most
        (64, 10, 0.5, 1000, 32, 32, [32]),
        (2, 1, 0.0, 100, 8, 8, [2, 4, 8]),  # memory that does not grow
    ],
)
def test_the_largest_batch_is_found_by_few_programs(
    first, fixed, a_row, room, most, found, compiled
):
    asked = []

    def gib_of(batch):
        asked.append(batch)
        gib = fixed + a_row * batch
        return gib if gib <= room else None

    assert find_batch(gib_of, float(room), {}, first, most) == found
    assert asked == compiled


def test_a_line_that_promised_too_much_is_left_and_what_is_known_is_not_tried():
    limit = 60

    def gib_of(batch):
        assert batch not in (2, 4)
        return batch / 10 if batch <= limit else None

    tried = {2: 0.2, 4: 0.4}
    assert find_batch(gib_of, 100.0, tried, 2, 4096) == 32
    assert tried == {2: 0.2, 4: 0.4, 512: None, 256: None, 128: None, 64: None, 32: 3.2}


def test_a_batch_of_one_that_does_not_fit_is_said():
    with pytest.raises(work.TooLargeError, match="batch of 1 does not fit into 3.0"):
        find_batch(lambda batch: None, 3.0, {}, 4, 8)


@pytest.fixture
def little_memory(monkeypatch):
    """Makes the device one whose memory ends above a batch of 4 in training."""
    training_work = work.training_work

    def limited(config, rows, *others):
        with work.fitting(f"training at batch {rows}"):
            if rows > 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")
            return training_work(config, rows, *others)

    monkeypatch.setattr(work, "training_work", limited)


def test_every_kind_of_row_is_measured_once(little_memory, tmp_path, capsys):
    heard = []
    jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
    hits = {}
    timer = RowTimer(default.get_config(), tiny_suite(), 2, 1)

    def measure(row, *others):
        heard.clear()
        try:
            return timer.measure(row, *others)
        finally:
            hits[row.name] = heard.count(HIT)

    with fresh_cache():
        report = suite.run_suite(ROWS, measure, open_file(tmp_path), 60.0)
    assert (report["measured_now"], report["left"]) == (len(ROWS), [])
    matmul, euler, cudnn, average, profile, train = report["rows"]
    assert [row["name"] for row in report["rows"]] == [row.name for row in ROWS]
    assert [side["side"] for side in matmul["sides"]] == [16, 32]
    assert matmul["sides"][1]["products"] == round(1e6 / (2 * 32**3))
    assert report["matmul_tflops"] == {"float32": matmul["tflops_per_sec"]}
    for row in (euler, average, train):
        assert row["compile_seconds"] > 0
        assert hits[row["name"]] > 0  # the second compilation reads the first
        assert row["warm_compile_seconds"] > 0
        share = row["tflops_per_sec"] / matmul["tflops_per_sec"]
        assert row["mfu_by_matmul"] == pytest.approx(share)
        assert row["mfu"] is None
        assert row["memory"]["program_gib"] > 0
    assert euler["options"]["solver"] == "euler"
    assert average["options"]["solver"] == "average"
    assert (average["options"]["num_steps"], average["batch_size"]) == (1, 4)
    # Two steps with guidance are four calls of the DiT, one step of a student is one.
    assert average["model_tflop_per_call"] < euler["model_tflop_per_call"]
    assert "cuDNN" in cudnn["reason"]
    assert "compile_seconds" not in profile
    assert {m["network"] for m in profile["profile"]["modules"]} >= {"dit", "decoder"}
    assert (train["batch_size"], train["options"]["stage"]) == (4, "t2i")
    assert [batch for batch, gib in train["tried"] if gib is not None] == [2, 4]
    assert [8, None] in train["tried"]
    # A row measured again would have a reason in place of its figures.
    again = suite.run_suite(ROWS, never, open_file(tmp_path), 60.0)
    assert again["measured_now"] == 0
    assert again["rows"] == report["rows"]
    tables.show_suite(again | {"minutes": 60.0})
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for part in ("train b, batch 4", "all rows are there", "1 failed", "dit attention"):
        assert part in shown
    assert f"{ROWS[2].name}: RuntimeError" in shown


def test_training_that_compiles_and_does_not_run_is_halved(monkeypatch):
    def training_work(config, rows, *others):
        def call():
            with work.fitting("it"):
                if rows > 8:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: at last")

        parts = dict.fromkeys(work.Work._fields)
        made = {"part": "train", "rows": rows, "flops": 10**9, "costs": {}}
        made |= {"options": config.compute.to_dict(), "start": lambda: call}
        compiled = {"compile_seconds": float(rows), "program_gib": 1.0 + rows / 10}
        return work.Work(**parts | made | compiled)

    monkeypatch.setattr(work, "training_work", training_work)
    monkeypatch.setattr(suite_rows, "room_gib", lambda _: 5.0)
    timer = RowTimer(default.get_config(), SUITES["full"], 2, 1)
    tried = {}
    result = timer.measure(SuiteRow("train", "xl", 2), tried, lambda: None)
    assert result["batch_size"] == 8
    # 32 fits by the line, but does not run, nor does 16.
    assert tried == {2: 1.2, 4: 1.4, 32: None, 16: None, 8: 1.8}
    assert result["compile_seconds"] == 8.0
    assert result["options"]["remat"] == "dense_but_qkv"


def test_a_budget_ends_the_suite_and_the_same_command_goes_on(
    monkeypatch, matmuls, tmp_path, capsys
):
    fake = Fake(monkeypatch)
    report = suite.run_suite(matmuls, fake.measure, open_file(tmp_path), 2.5)
    # A third would end at 180 seconds, the budget at 150.
    assert fake.asked == [row.name for row in matmuls[:2]]
    assert report["left"] == [row.name for row in matmuls[2:]]
    tables.show_suite(report | {"minutes": 2.5})
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 rows measured, 0 failed; the 2.5 minutes of bench.minutes" in shown
    assert "the same command goes on with them: matmul float32, matmul float64" in shown
    # Less than a row takes is enough for one row.
    suite.run_suite(matmuls, fake.measure, open_file(tmp_path), 0.1)
    assert fake.asked == [row.name for row in matmuls[:3]]


def test_a_search_that_runs_out_of_time_keeps_its_tries(monkeypatch, tmp_path):
    fake = Fake(monkeypatch)
    row = SuiteRow("train", "b", 2)

    def search(row, tried, check_time):
        fake.now += 1
        for batch in (2, 4, 8):
            if batch not in tried:
                check_time()
                fake.now += 60
                tried[batch] = batch / 10
        return {"tflops_per_sec": 1.0, "found": max(tried)}

    report = suite.run_suite([row], search, open_file(tmp_path), 1.5)
    assert (report["left"], report["rows"]) == ([row.name], [])
    stored = read_json(tmp_path / suite.FILE)
    assert stored["tried"] == {row.name: {"2": 0.2, "4": 0.4}}
    # Ending for want of time, any number of times, is no failure.
    for _ in range(suite.BEGINNINGS):
        suite.run_suite([row], search, open_file(tmp_path), 1e-9)
    assert open_file(tmp_path).rows[row.name]["found"] == 8


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (work.TooLargeError(f"it needs 9 GiB; {work.CURE}"), "it needs 9 GiB"),
        (RuntimeError("cuDNN is not detected.\nmore"), "RuntimeError: cuDNN is not"),
        (NotImplementedError("head dim"), "NotImplementedError: head dim"),
    ],
)
def test_a_row_that_fails_has_its_reason_and_the_others_follow(
    monkeypatch, tmp_path, error, reason
):
    fake = Fake(monkeypatch, sample=error)
    rows = [SuiteRow("sample", "xl", 1), SuiteRow("matmul")]
    report = suite.run_suite(rows, fake.measure, open_file(tmp_path), 9.0)
    assert report["rows"][0]["reason"].startswith(reason)
    assert work.CURE not in report["rows"][0]["reason"]
    assert "reason" not in report["rows"][1]
    suite.run_suite(rows, fake.measure, open_file(tmp_path), 9.0)
    assert len(fake.asked) == 2


def test_a_device_that_is_lost_ends_the_command_not_the_suite(monkeypatch, tmp_path):
    fake = Fake(monkeypatch, sample=RuntimeError("illegal address"))
    monkeypatch.setattr(suite, "_is_alive", lambda: False)
    rows = [SuiteRow("sample", "xl", 1), SuiteRow("matmul")]
    report = suite.run_suite(rows, fake.measure, open_file(tmp_path), 9.0)
    assert report["rows"][0]["reason"].endswith(suite.LOST)
    assert report["left"] == ["matmul bfloat16"]


def test_ctrl_c_leaves_no_row_and_a_killed_process_counts(monkeypatch, tmp_path):
    row = SuiteRow("sample", "xl", 1)
    fake = Fake(monkeypatch, sample=KeyboardInterrupt())
    for _ in range(suite.BEGINNINGS + 1):
        with pytest.raises(KeyboardInterrupt):
            suite.run_suite([row], fake.measure, open_file(tmp_path), 9.0)
    assert open_file(tmp_path).rows == {}
    for _ in range(suite.BEGINNINGS):
        open_file(tmp_path).begin(row.name)  # and is killed
    report = suite.run_suite([row], never, open_file(tmp_path), 9.0)
    assert "the process ended 2 times" in report["rows"][0]["reason"]


def test_rows_of_other_settings_are_refused(monkeypatch, tmp_path):
    open_file(tmp_path, ["a"]).save()
    open_file(tmp_path, ["a"])
    with pytest.raises(UserError, match="of another config.*give another --workdir"):
        open_file(tmp_path, ["b"])
    with pytest.raises(UserError, match="of another suite: got small, expected full"):
        suite.SuiteFile(tmp_path / suite.FILE, "full", ["a"])
    machine = suite.describe_machine(jax.devices()) | {"device_kind": "TPU v4"}
    monkeypatch.setattr(suite, "describe_machine", lambda _: machine)
    with pytest.raises(UserError, match="of another device_kind: got cpu"):
        open_file(tmp_path, ["a"])


def test_a_fresh_cache_is_empty_serves_twice_and_goes():
    before = jax.config.jax_compilation_cache_dir
    heard = []
    jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
    for _ in range(2):
        with fresh_cache():
            for wanted in (0, 1):
                jax.clear_caches()
                heard.clear()
                jax.jit(lambda x: x * 3 + 1).lower(2.0).compile()
                assert heard.count(HIT) == wanted
    assert jax.config.jax_compilation_cache_dir == before
    jax_cache.reset_cache()
