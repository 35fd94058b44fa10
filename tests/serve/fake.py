"""A model that draws flat colours at once or when it is let go, for tests.

    python -m tests.serve.fake LIMITS

serves it in a process of its own, and says its address.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import types
import zlib

import httpx
import numpy as np
from starlette.testclient import TestClient

from flowtok_jax.pipeline import SampleOptions
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.serve.edits import EDITS, EditedPicture
from flowtok_jax.serve.engine import DESCRIBE, DRAW, Engine, RowGroup
from flowtok_jax.serve.limits import Limits
from flowtok_jax.serve.server import listen, run_service
from flowtok_jax.serve.service import Service
from tests.run import ROOT

SIDE = 8
JSON = {"content-type": "application/json"}


def colour(prompt: str, seed: int, scale: float) -> np.ndarray:
    """What is drawn of a prompt: one colour, another one of any other row."""
    digest = zlib.crc32(f"{prompt}/{seed}/{scale}".encode())
    bytes_ = np.frombuffer(digest.to_bytes(4, "big"), np.uint8)[:3]
    return np.broadcast_to(bytes_, (SIDE, SIDE, 3)).copy()


class FakeEngine(Engine):
    """An engine without a model; it remembers its batches."""

    def __init__(self):
        self.image_size = SIDE
        self.draws = True
        self.describes = True
        self.solvers = self.guided = ("euler",)
        self.edits = tuple(EDITS)
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        self.seconds = 0.0  # that a batch takes
        self.warm_gate = threading.Event()
        self.warm_gate.set()
        self.warm_fails = False
        options = SampleOptions()
        self.flowtok = types.SimpleNamespace(sample=options, caption=options)

    def warm(self):
        assert self.warm_gate.wait(30)
        if self.warm_fails:
            raise UserError("no memory")

    def unknown_words(self, prompts):
        words = " ".join(prompts).split()
        return sorted({word for word in words if word.startswith("xyz")})

    def drawing(self, **options):
        chosen = SampleOptions().changed(options)
        if chosen.solver != "euler":
            raise UserError(f"solver is {chosen.solver!r}; expected euler")
        return RowGroup(DRAW, chosen)

    def describing(self, **options):
        return RowGroup(DESCRIBE, SampleOptions().changed(options))

    def record(self, pixels, prompt, seed, work):
        return {"recipe": prompt.encode("ascii", "replace").decode()}

    def most(self, work):
        return 1 if work.kind in EDITS else 4

    def compute(self, work, values):
        self.batches.append((work, len(values)))
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        if self.fails:
            raise RuntimeError("a bug with\nlines")
        if work.kind in EDITS:
            ((arguments, seed),) = values
            told = {k: v for k, v in arguments.items() if k != "image"}
            return [[EditedPicture(colour("", seed, 1.0), str(told), seed)]]
        if work.kind == DRAW:
            scale = work.options.scale
            return [colour(prompt, seed, scale) for prompt, seed in values]
        return [f"mean {image.mean():.2f} seed {seed}" for image, seed in values]


def make_service(engine=None, **limits) -> Service:
    return Service(engine or FakeEngine(), "fake", Limits()._replace(**limits))


@contextlib.contextmanager
def client_of(service: Service, waits: bool = True):
    """A client of a service that is ready, unless it shall not wait for that."""
    with TestClient(service.app(), raise_server_exceptions=False) as client:
        end = time.monotonic() + 30
        while waits and client.get("/health").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.005)
        yield client


def error_of(answer, status: int) -> str:
    """The message of an answer that has to be an error of OpenAI's form, on a line."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 300
    return error["message"]


@contextlib.contextmanager
def served(**limits):
    """Address and process of a fake model's server, with other limits."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.serve.fake", json.dumps(limits)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            address = process.stdout.readline().strip()
            assert address, process.stderr.read()
            wait_until_ready(address)
            yield address, process
        finally:
            process.kill()


def wait_until_ready(address: str, seconds: float = 60.0) -> None:
    """Returns when the service of an address answers that it is ready."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/health").status_code == 200:
                return
        assert time.monotonic() < end
        time.sleep(0.01)


def main() -> None:
    limits = json.loads(sys.argv[1])
    engine = FakeEngine()
    engine.seconds = limits.pop("batch_seconds", 0.0)
    logging.basicConfig(level=logging.INFO)
    opened = listen("127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{opened.getsockname()[1]}\n")
    sys.stdout.flush()
    run_service(engine, "fake", opened, Limits()._replace(**limits))


if __name__ == "__main__":
    main()
