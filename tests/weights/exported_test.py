"""Exported programs do what FlowTok does, where there is no FlowTok."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.sampling import Programs
from tests import tiny
from tests.docs_test import blocks
from tests.pipeline.flowtok_test import PROMPTS
from tests.run import ROOT

COUNTS = (3, 5)
# What the page's script goes on with.
MORE = f"""
import sys

for count in {COUNTS}:
    ids = encode({PROMPTS}[:count])
    rows = 7 + np.arange(count, dtype=np.int32)
    images = np.asarray(text_to_image(ids, np.uint32(2**32 - 1), rows))
    said = image_to_text(images, np.uint32(1), rows)
    captions = decode(np.asarray(said))
    np.savez(f"{{count}}.npz", ids=ids, images=images, captions=captions)
assert not [name for name in sys.modules if name.startswith(("flowtok", "flax"))]
"""


@pytest.fixture(scope="module")
def moving(flowtok):
    """With noise for velocities: those of so short a training are nearly zero."""
    params = dict(flowtok.params)
    for group in ("t2i", "i2t"):
        params[group] = params[group] | {"dit": tiny.random_like(params[group]["dit"])}
    return FlowTok(flowtok.nets, params, flowtok.vocabulary)


def read_manifest(directory) -> dict:
    return json.loads((directory / "exported.json").read_text())


def test_the_script_of_the_page_draws_and_captions_without_the_package(
    moving, tmp_path
):
    moving.export(tmp_path / "exported", platforms=["cpu"], num_steps=3)
    page = ROOT / "docs" / "export.md"
    (script,) = (x for x in blocks(page, "python") if "export.deserialize" in x)
    (tmp_path / "script.py").write_text(script + MORE)
    environ = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for count in COUNTS:
        found = np.load(tmp_path / f"{count}.npz")
        prompts = PROMPTS[:count]
        np.testing.assert_array_equal(found["ids"], moving.vocabulary.encode(prompts))
        images = moving.text_to_image(prompts, 2**32 - 1, 7, num_steps=3)
        np.testing.assert_allclose(found["images"], images, atol=1e-5)
        captions = moving.image_to_text(found["images"], 1, 7, num_steps=3)
        assert found["captions"].tolist() == captions
    assert np.ptp(images, axis=0).max() > 1e-3


def test_options_are_those_of_the_call_and_the_folder_says_so(moving, tmp_path):
    options = dict(num_steps=2, scale=3.0, solver="heun", source="mean")
    moving.export(tmp_path / "a", **options)
    manifest = read_manifest(tmp_path / "a")
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    entry = manifest["programs"]["text_to_image"]
    assert entry["groups"] == ["clip", "t2i", "tokenizer"]
    assert entry["options"] == options | {"times": "release"}
    assert entry["arguments"]["inputs"] == "int32[b,16]"
    assert entry["result"] == "float32[b,32,32,3]"
    data = (tmp_path / "a" / "text_to_image.exported").read_bytes()
    weights = FlowTok.from_pretrained(tmp_path / "a" / "weights")
    params = {
        group: flatten_dict(weights.params[group], sep="/") for group in entry["groups"]
    }
    assert len(data) < 10**6  # the parameters are not in it
    rows = np.arange(2, dtype=np.int32)
    ids = moving.vocabulary.encode(PROMPTS[:2])
    images = export.deserialize(bytearray(data)).call(params, ids, np.uint32(0), rows)
    expected = moving.text_to_image(PROMPTS[:2], **options)
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_a_direction_without_weights_is_left_out(moving, tmp_path):
    params = {name: p for name, p in moving.params.items() if name != "i2t"}
    half = FlowTok(moving.nets, params, moving.vocabulary)
    half.export(tmp_path / "half", platforms=["cpu"])
    assert list(read_manifest(tmp_path / "half")["programs"]) == ["text_to_image"]
    names = {path.name for path in (tmp_path / "half").iterdir()}
    assert names == {"exported.json", "text_to_image.exported", "weights"}
    del params["t2i"]
    none = FlowTok(moving.nets, params, moving.vocabulary)
    with pytest.raises(UserError, match="^nothing to export .* train stage t2i or i2t"):
        none.export(tmp_path / "none")


@pytest.mark.parametrize(
    ("platforms", "options", "message"),
    [
        (["cpu"], {"num_steps": 0}, "^num_steps is 0; expected at least 1"),
        (["gpu"], {}, "^text_to_image cannot be exported .* on gpu: "),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    moving, tmp_path, platforms, options, message
):
    with pytest.raises(UserError, match=message):
        moving.export(tmp_path / "a" / "b", platforms=platforms, **options)
    assert not list(tmp_path.iterdir())


def test_a_program_of_some_numbers_of_rows_only_is_refused(
    moving, tmp_path, monkeypatch
):
    draw = Programs.text_to_image

    def text_to_image(self, params, ids, *rest, **options):
        assert ids.shape[0] < 9
        return draw(self, params, ids, *rest, **options)

    monkeypatch.setattr(Programs, "text_to_image", text_to_image)
    with pytest.raises(UserError, match="for any number of rows on cpu: .*'b' < '9'"):
        moving.export(tmp_path / "a", platforms=["cpu"])


def test_a_folder_with_something_in_it_is_refused(moving, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="exists already and is not empty"):
        moving.export(tmp_path)


def test_a_missing_package_is_named_with_its_command(moving, tmp_path, monkeypatch):
    def serialize(self):
        raise ImportError("flatbuffers")

    monkeypatch.setattr(jax.export.Exported, "serialize", serialize)
    with pytest.raises(UserError, match=r"pip install 'flowtok_jax\[export\]'"):
        moving.export(tmp_path / "a", platforms=["cpu"])
