"""benchmarks/against_release.py with stand-ins for the release, without PyTorch."""

import pathlib
import sys

import numpy as np
import pytest

from benchmarks import against_release as against
from benchmarks import duel
from flowtok_jax.runtime.errors import UserError
from tests.run import ROOT

OURS = against.OURS
START = f"""
import pathlib
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.duel import Entry, serve
"""
# Doubles its input, but for the factor in the release's folder, where it notes calls.
DOUBLES = (
    START
    + """
NAME = pathlib.Path(__file__).stem

def make(folder, spec, inputs):
    release = pathlib.Path(spec["release"])
    factor = float((release / NAME).read_text())

    def call():
        print("not an answer")
        with (release / "calls").open("a") as file:
            file.write(NAME + "\\n")

    about = {"torch": "0.0", "jax": "0.1", "layout": "batch"}
    return Entry(lambda: {"y": factor * inputs["x"]}, call, about)

serve(NAME, make)
"""
)
# The release's DiT by our own networks in another layout, not compiled.
COMPUTES = (
    START
    + """
import jax
import numpy as np
from flowtok_jax.convert.groups import to_release
from flowtok_jax.models.build import make_nets
from flowtok_jax.runtime.config import config_from_json
from flowtok_jax.weights.safetensors import write_safetensors
from tests import tiny

def make(folder, spec, inputs):
    config = config_from_json((folder / "config.json").read_text())
    config.compute.layout = "rows"
    nets = make_nets(config)
    params = tiny.random_params(nets, "t2i")
    names = ("latent", "projector", "align_head", "dit")
    sizes = {name: config[name].to_dict() for name in names}
    sizes["clip"] = {"width": config.clip.width}
    write_safetensors(folder / "t2i.safetensors", to_release("t2i", params, sizes))

    def call():
        given = (inputs[name] for name in ("x", "t", "null"))
        return {"velocity": nets.dit.apply({"params": params["dit"]}, *given)}

    return Entry(call, call, {"torch": "none"})

serve("release", make)
"""
)


@pytest.fixture
def release(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder of stand-ins for both sides that compute the same."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name in ("release", "ours"):
        (folder / f"{name}.py").write_text(DOUBLES)
        (folder / name).write_text("2")
    monkeypatch.setattr(against, "OURS", folder / "ours.py")
    return folder


def flags(release, *more: str) -> list[str]:
    worker = f"--worker={release / 'release.py'}"
    out = f"--out={release.parent / 'out' / 'rows.jsonl'}"
    return [f"--release={release}", worker, out, "--small", "--only=dit_b8", *more]


def test_calls_take_turns_and_finished_rows_stay(release, monkeypatch, capsys):
    set_tuple = "--set=bench.batch_sizes=(1,)"
    assert against.run(flags(release, set_tuple)) == 0
    out = release.parent / "out"
    (row,) = against.read_results(out / "rows.jsonl")
    warm = ["release", "ours"]
    turns = [*warm, *warm[::-1], *warm]
    assert (release / "calls").read_text().split() == [*warm, *turns]
    assert len(row["ours"]["cpu"]) == len(row["release"]["wall"]) == against.LEAST
    assert row["relative"] == 0
    assert "| dit_b8 (bench.batch_sizes=[1], small) |" in (out / "rows.md").read_text()
    monkeypatch.setattr(against, "measure", None)
    assert against.run(flags(release, set_tuple)) == 0
    assert "dit_b8: finished before" in capsys.readouterr().out
    # Other options make another row.
    with pytest.raises(TypeError):
        against.run(flags(release, "--set=compute.layout=rows"))


def test_a_line_that_was_cut_short_is_measured_again(release):
    against.run(flags(release))
    path = release.parent / "out" / "rows.jsonl"
    path.write_text(path.read_text()[:-20] + "\n")
    assert against.run(flags(release)) == 0
    assert len(against.read_results(path)) == 1


def test_outputs_that_differ_are_not_timed(release, capsys):
    (release / "ours").write_text("2.001")
    assert against.run(flags(release)) == 1
    assert "dit_b8: outputs differ by 5.0e-04" in capsys.readouterr().out
    assert not (release / "calls").exists()
    assert not (release.parent / "out" / "rows.jsonl").exists()


def test_a_side_that_ends_says_why(release, capsys):
    (release / "release.py").write_text("raise SystemExit('no such package')")
    assert against.run(flags(release)) == 1
    said = "dit_b8: release ended with status 1: no such package"
    assert said in capsys.readouterr().out


def test_our_side_converts_the_releases_weights(release, monkeypatch):
    monkeypatch.setattr(against, "OURS", OURS)
    (release / "release.py").write_text(COMPUTES)
    assert against.run(flags(release)) == 0
    (row,) = against.read_results(release.parent / "out" / "rows.jsonl")
    assert 0 < row["relative"] <= against.FORWARD
    assert row["about"]["torch"] == "none"
    assert min(row["ours"]["cpu"]) > 0


class Clock:
    """A side whose calls take a second each."""

    def __init__(self, name: str, log: list[str]):
        self.name = name
        self.log = log

    def time(self) -> dict[str, float]:
        self.log.append(self.name)
        return {"cpu": 2.0, "wall": 1.0}


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 2), (5.5, 3), (100, 4)])
def test_rounds_end_with_the_time(seconds, rounds):
    log = []
    sides = [Clock("a", log), Clock("b", log)]
    times = duel.time_in_turn(sides, seconds=seconds, least=2, most=4)
    assert times["a"] == {"cpu": [2.0] * rounds, "wall": [1.0] * rounds}
    assert log == list("ab" + "abbaabba"[: 2 * rounds])


def test_errors_are_the_largest_of_all_outputs():
    theirs = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
    ours = {"a": np.array([3.0, 4.5]), "b": np.array([1.2])}
    errors = against.compare(ours, theirs)
    assert errors == pytest.approx({"max_abs": 0.5, "relative": 0.2})
    zeros = {name: 0 * x for name, x in theirs.items()}
    assert np.isnan(against.compare(zeros, zeros)["relative"])
    with pytest.raises(UserError, match="outputs are"):
        against.compare({"a": ours["a"]}, theirs)


def test_the_table_shows_medians_and_their_ratios():
    row = {
        "row": "dit_b8",
        "small": False,
        "cores": 1,
        "set": {"compute.layout": "rows"},
        "command": "python benchmarks/against_release.py",
        "machine": {"cores": 2, "processor": "a processor"},
        "about": {"torch": "2.13.0", "jax": "0.10.2", "layout": "batch"},
        "max_abs": 1e-6,
        "relative": 2e-7,
        "ours": {"cpu": [1.0, 2.0, 9.0], "wall": [3.0, 3.0, 3.0]},
        "release": {"cpu": [4.0, 4.0, 4.0], "wall": [2.0, 2.0, 2.0]},
    }
    # A table for each machine, its rows in the order of ROWS.
    other = row | {"row": "clip", "set": {}, "command": "another"}
    text = against.markdown([other, row, row | {"cores": 0}])
    assert "1 of 2 cores of a processor, torch 2.13.0, jax 0.10.2, made by" in text
    assert "2 of 2 cores of a processor" in text
    cells = "| 2 | 4 | 0.50 | <= 0.95 | 3 | 2 | 1.50 | 3 | batch | 1.0e-06, 2.0e-07 |"
    first = text.index("| dit_b8 (compute.layout=rows) " + cells)
    assert first < text.index("| clip | 2 | 4 | 0.50 |  | 3 |") < text.index("2 of 2")
    assert text.count("    another\n") == 1


def test_the_kept_table_is_that_of_the_kept_rows():
    kept = ROOT / "benchmarks" / "against_release.jsonl"
    results = against.read_results(kept)
    assert against.markdown(results) == kept.with_suffix(".md").read_text()
    for result in results:
        assert result["relative"] <= against.ROWS[result["row"]].tolerance


@pytest.mark.parametrize("name", against.ROWS)
def test_every_row_has_inputs_of_its_rows(name):
    row = against.ROWS[name]
    config = against.make_config(row, True, {"compute.layout": "rows"})
    inputs = against.make_inputs(row, config)
    assert {len(x) for x in inputs.values()} == {row.rows}
    assert config.compute.dtype == row.dtype
    assert config.compute.layout == "rows"


def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no row 'paint'; expected some of dit_b8"):
        against.run([f"--release={tmp_path}", "--only=paint"])
    monkeypatch.setattr(sys, "argv", ["x", f"--release={tmp_path}/nowhere"])
    assert against.main() == 2
    assert "nowhere is no directory" in capsys.readouterr().err
