"""The scripts of benchmarks/ on the tiny demo: resumed, refused, drawn."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import ablations, plots
from configs import demo as demo_config
from flowtok_jax.data.loader import open_evaluation
from flowtok_jax.eval import previews
from flowtok_jax.runtime.config import config_to_json, for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.train.loop import PreemptedError
from tests.data import made

ROOT = pathlib.Path(__file__).parents[1]
REPORT = {
    "command": "python benchmarks/ablations.py",
    "machine": {"cores": 2, "processor": "a processor"},
    "steps": 4,
    "samples": 16,
    "variants": [
        {"variant": v, "seed": s, "accuracy": a, "accuracy_mean_source": a + 0.1}
        for v, s, a in (("as_is", 0, 0.8), ("as_is", 1, 0.6), ("cosine", 0, 0.5))
    ],
    "sampling": [
        {"times": t, "scale": s, "num_steps": n, "accuracy": n / 50}
        for t in ("release", "left")
        for s in (1.0, 2.0)
        for n in (5, 20)
    ],
}


def arguments(demo, out: pathlib.Path, *more: str) -> list[str]:
    return [
        *(f"--demo={demo.workdir}", f"--out={out}", "--steps=4", "--only=as_is,cosine"),
        *("--samples=16", "--scales=1", "--sample_steps=1", *more),
    ]


@pytest.fixture
def drawn(monkeypatch):
    """Reports that were to be drawn, in place of pictures."""
    reports = []
    monkeypatch.setattr(plots, "draw_ablations", lambda r, path: reports.append(r))
    return reports


@pytest.mark.slow
def test_a_second_run_does_only_what_is_missing(demo, tmp_path, drawn, monkeypatch):
    out = tmp_path / "out"
    report = ablations.run(arguments(demo, out))
    assert [r["variant"] for r in report["variants"]] == ["as_is", "cosine"]
    assert all(r["steps"] == 4 and r["samples"] == 16 for r in report["variants"])
    assert {r["times"] for r in report["sampling"]} == {"release", "left", "early"}
    cosine = json.loads((out / "cosine-steps4-seed0" / "config.json").read_text())
    assert cosine["loss"]["t2i"]["align"] == "cosine"
    assert cosine["per_stage"]["t2i"]["train"].get("num_steps", 4) == 4
    assert drawn == [report]
    text = (out / "ablations.md").read_text()
    assert "| cosine | `loss.t2i.align=cosine` | 1 |" in text
    trained = []
    monkeypatch.setattr(
        ablations.train, "train_stages", lambda *_: trained.append("trained again")
    )
    monkeypatch.setattr(ablations, "measure", lambda *_, **__: trained.append("again"))
    assert ablations.run(arguments(demo, out))["variants"] == report["variants"]
    assert trained == []


def test_pictures_that_are_no_scenes_are_judged_by_retrieval(tmp_path):
    folder, more = (made.write_folder(tmp_path / n, 12) for n in ("a", "b"))
    config = demo_config.get_config()
    config.data.update({"train": f"folder:{more}", "eval": f"folder:{folder}"})
    config.eval.retrieval.gallery = config.data.train
    judge = ablations.make_judge(config, 8)
    assert len(judge.captions) == 8
    source = open_evaluation(config)
    examples = previews.load_examples(source, 8, config.eval.seed)
    assert judge.captions == examples.captions
    assert judge.share_right(examples.images / 255) == 1
    assert judge.share_right(examples.images[::-1] / 255) == 0


def test_a_variant_changes_what_it_names_also_for_the_stage(tmp_path):
    stored = demo_config.get_config()
    (tmp_path / "config.json").write_text(config_to_json(stored))
    assert "num_steps" in stored.per_stage.t2i.train
    changes = {"train.num_steps": 7, "loss.t2i.align_weight": 2.0}
    config = ablations.make_config(tmp_path, changes)
    resolved = for_stage(config, "t2i")
    assert (resolved.train.num_steps, resolved.loss.t2i.align_weight) == (7, 2.0)
    assert config.stages == ("t2i",)


def test_every_variant_names_keys_of_the_demo_and_changes_them():
    before = demo_config.get_config("t2i")
    for variant in ablations.VARIANTS.values():
        after = before.copy_and_resolve_references()
        after.update_from_flattened_dict(variant.changes)
        assert (after.to_dict() == before.to_dict()) == (not variant.changes)


def test_mistakes_end_in_one_line(demo, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no variant 'paint'; expected some of as_is"):
        ablations.run(arguments(demo, tmp_path, "--only=paint"))
    monkeypatch.setattr(
        ablations.sys, "argv", ["ablations.py", f"--demo={tmp_path}/nowhere"]
    )
    monkeypatch.chdir(tmp_path)
    assert ablations.main() == 2
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), PreemptedError("t2i", 20)])
def test_stopped_it_says_how_to_go_on(stop, monkeypatch, capsys):
    def run(_):
        raise stop

    monkeypatch.setattr(ablations, "run", run)
    assert ablations.main() == 130
    assert capsys.readouterr().err == (
        "interrupted; the same command goes on from here\n"
    )


def test_the_table_has_means_and_spreads_over_seeds():
    lines = ablations.markdown(REPORT).splitlines()
    assert "| as_is | none | 2 | 0.700 ± 0.141 | 0.800 ± 0.141 | 29.14 |" in lines
    assert "| cosine | `loss.t2i.align=cosine` | 1 | 0.500 | 0.600 | 31.8 |" in lines
    assert "| left | 2 | 0.100 | 0.400 |" in lines


def test_the_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -r requirements-eval.txt")
    reports = [json.loads(line) for line in plots.RESULTS.read_text().splitlines()]
    plots.draw_ablations(REPORT, tmp_path / "ablations.png")
    plots.draw_results(reports, tmp_path / "results.png")
    for name in ("ablations", "results"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_kept_results_say_where_they_come_from():
    for line in plots.RESULTS.read_text().splitlines():
        report = json.loads(line)
        assert report["command"].startswith("python -m flowtok_jax.main --mode=bench")
        assert {"device_kind", "cores", "jax"} <= set(report["machine"])
        assert all(run["images_per_sec"] > 0 for run in report["runs"])


def test_the_walk_of_sampling_is_short(demo):
    """What a reader crosses from the command line to the caption."""
    script = [sys.executable, str(ROOT / "benchmarks" / "walk.py")]
    command = [*script, f"--checkpoint={demo.workdir}", "--show"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    *moves, counts = found.stdout.splitlines()
    counts = json.loads(counts)
    assert counts["moves"] == len(moves)
    assert counts["files"] <= 34
    assert counts["before_the_caption"] <= 84
    assert "pipeline/flowtok.py -> data/vocabulary.py Vocabulary.encode" in moves
    assert moves.index("main.py -> modes/sample.py run") < counts["before_the_caption"]
