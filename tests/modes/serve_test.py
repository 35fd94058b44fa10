"""--mode=serve on the tiny demo: from a command to a picture, and its end."""

import base64
import io
import signal
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from flowtok_jax.pipeline import FlowTok
from tests.run import start
from tests.serve.fake import wait_until_ready


@pytest.fixture(scope="module")
def served(demo):
    """Address and process of the demo's service."""
    arguments = ["--mode=serve", f"--checkpoint={demo.workdir}", "--port=0"]
    process = start(arguments)
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:"), process.stderr.read()
    yield address, process
    process.kill()
    process.communicate()


def test_the_command_serves_until_it_is_told_to_end(demo, served, tmp_path):
    address, process = served
    # The page is there while programs are compiled.
    assert httpx.get(address).status_code == 200
    wait_until_ready(address, 300)
    asked = {"prompt": "a red circle", "seed": 3, "source": "sample"}
    answer = httpx.post(f"{address}/v1/images/generations", json=asked, timeout=60)
    (item,) = answer.json()["data"]
    png = base64.b64decode(item["b64_json"])
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    (tmp_path / "a.png").write_bytes(png)
    flowtok = FlowTok.from_pretrained(demo.workdir)
    wanted = 255 * flowtok.text_to_image(["a red circle"], 3, source="sample")[0]
    assert np.abs(pixels - wanted).max() < 0.6
    # What the file says is enough to draw it again.
    assert (
        np.abs(np.asarray(flowtok.redraw(str(tmp_path / "a.png"))) - pixels).max() == 0
    )
    files = {"image": png}
    caption = httpx.post(f"{address}/v1/captions", files=files, timeout=60).json()
    assert isinstance(caption["data"][0]["caption"], str)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()


def test_a_port_that_is_none_is_one_line(demo, cli):
    flags = ("--mode=serve", f"--checkpoint={demo.workdir}")
    outcome = cli(*flags, "--host=192.0.2.1")
    assert outcome.status == 2
    assert "--host=192.0.2.1 --port=8000 cannot be listened on" in outcome.complaint


def test_weights_that_are_none_are_one_line(cli, tmp_path):
    outcome = cli("--mode=serve", f"--checkpoint={tmp_path / 'none'}", "--port=0")
    assert outcome.status == 2
    assert "none" in outcome.complaint


def test_without_the_extra_the_cure_is_said(demo, cli, monkeypatch):
    monkeypatch.delitem(sys.modules, "flowtok_jax.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    outcome = cli("--mode=serve", f"--checkpoint={demo.workdir}")
    assert outcome.status == 2
    assert "expected pip install -r requirements-serve.txt" in outcome.complaint
