"""Load on --mode=serve: throughput, latency, answers not mixed up, memory, restarts.

    python benchmarks/serving.py --checkpoint=emoji --requests=500 --clients=32

starts the service in a process of its own, and prints a line of JSON a measurement. The
clients run on the same cores: `taskset -c 0` holds both on one.
"""

import argparse
import base64
import concurrent.futures
import hashlib
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import cli
from flowtok_jax.serve.engine import SIZES

PATH = "/v1/images/generations"
PROMPTS = (
    "duck",
    "pizza",
    "octopus",
    "ghost",
    "crescent moon",
    "woman farmer dark skin tone",
    "thumbs up medium skin tone",
    "fire",
    "cat face",
    "red heart",
)
LEVELS = 32  # pictures that are drawn by the library too


class Server:
    """The service in a process of its own."""

    def __init__(self, checkpoint: str):
        self._command = [sys.executable, "-m", "flowtok_jax.main", "--mode=serve"]
        self._command += [f"--checkpoint={checkpoint}", "--port=0"]
        self.seconds = 0.0  # from the start to /health 200
        self.start()

    def start(self) -> None:
        """Starts the process, and waits until it is ready."""
        begun = time.monotonic()
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        address = self.process.stdout.readline().strip()
        self.port = int(address.rpartition(":")[2])
        while self.get("/health")[0] != 200:
            assert self.process.poll() is None
            time.sleep(0.05)
        self.seconds = time.monotonic() - begun

    def get(self, path: str) -> tuple[int, bytes]:
        """Returns the status and the body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def number(self, name: str) -> float:
        """Returns a number of /metrics."""
        text = self.get("/metrics")[1].decode()
        lines = (line.rpartition(" ") for line in text.splitlines())
        return next(float(value) for key, _, value in lines if key == name)

    def end(self, how: signal.Signals) -> None:
        """Ends the process."""
        self.process.send_signal(how)
        self.process.wait()


def body_of(i: int) -> dict[str, Any]:
    """Returns request number i: prompts go round, no seed comes twice."""
    return {"prompt": PROMPTS[i % len(PROMPTS)], "seed": i, "source": "sample"}


class Answers:
    """Answers of requests: their statuses, seconds and pictures, by number."""

    def __init__(self):
        self.statuses: dict[int, int] = {}
        self.seconds: dict[int, float] = {}
        self.pictures: dict[int, str] = {}  # digests
        self.wall = 0.0

    def summary(self) -> dict[str, Any]:
        """Returns figures of all answers."""
        found = sorted(self.seconds[i] for i, s in self.statuses.items() if s == 200)
        cuts = statistics.quantiles(found, n=20)
        return {
            "requests": len(self.statuses),
            "answered": len(found),
            "seconds": round(self.wall, 2),
            "per_second": round(len(found) / self.wall, 2),
            "p50": round(cuts[9], 3),
            "p95": round(cuts[18], 3),
        }


def ask_all(port: int, numbers: range, clients: int, **more: Any) -> Answers:
    """Sends requests by so many clients at once, each with one connection."""
    answers = Answers()
    local = threading.local()
    opened = []

    def ask(i: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port)
            opened.append(local.connection)
        begun = time.monotonic()
        body = json.dumps(body_of(i) | more)
        headers = {"Content-Type": "application/json"}
        local.connection.request("POST", PATH, body, headers)
        answer = local.connection.getresponse()
        content = answer.read()
        answers.seconds[i] = time.monotonic() - begun
        answers.statuses[i] = answer.status
        if answer.status == 200:
            pixels = png_of(content).tobytes()
            answers.pictures[i] = hashlib.sha256(pixels).hexdigest()
        elif answer.status == 429:
            assert int(answer.headers["retry-after"]) >= 1

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, numbers))
    answers.wall = time.monotonic() - begun
    for connection in opened:
        connection.close()
    return answers


def png_of(content: bytes) -> np.ndarray:
    """Returns the first picture of an answer."""
    item = json.loads(content)["data"][0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))))


def measure_load(server: Server, requests: int, clients: int) -> Iterator[dict]:
    """Yields figures of requests one by one, at once, and of their equality."""
    for rows in SIZES:  # compiled, before time is taken
        ask_all(server.port, range(1), 1, n=rows)
    numbers = range(requests)
    alone = ask_all(server.port, numbers, 1)
    yield {"what": "one by one"} | alone.summary()
    together = ask_all(server.port, numbers, clients)
    yield {"what": f"{clients} clients"} | together.summary()
    same = sum(together.pictures[i] == alone.pictures[i] for i in numbers)
    yield {
        "what": "answers",
        "lost": requests - len(together.pictures),
        "equal_bit_for_bit": same,
        "different_pictures": len(set(alone.pictures.values())),
        "times_as_many": round(alone.wall / together.wall, 2),
    }


def measure_library(server: Server, checkpoint: str) -> dict:
    """Returns the speed of single calls from Python, and how far answers are off."""
    flowtok = FlowTok.from_pretrained(checkpoint)
    draws = [body_of(i) for i in range(LEVELS)]

    def draw(asked: dict[str, Any]) -> np.ndarray:
        prompts = [asked["prompt"]]
        drawn = flowtok.text_to_image(prompts, asked["seed"], source=asked["source"])
        return np.round(drawn[0] * 255)

    draw(draws[0])
    begun = time.monotonic()
    drawn = [draw(asked) for asked in draws]
    seconds = (time.monotonic() - begun) / LEVELS
    away = []
    for asked, pixels in zip(draws, drawn, strict=True):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", PATH, json.dumps(asked), headers)
        away.append(np.abs(png_of(connection.getresponse().read()) - pixels))
        connection.close()
    return {
        "what": "text_to_image of one prompt in Python",
        "per_second": round(1 / seconds, 2),
        "levels_of_255_from_it": int(np.max(away)),
        "values_that_differ": round(float(np.mean(np.array(away) > 0)), 7),
    }


def measure_refusals(server: Server) -> dict:
    """Returns how many of a burst beyond the queue are refused with 429."""
    burst = ask_all(server.port, range(64), 64, n=max(SIZES))
    statuses = list(burst.statuses.values())
    found = {str(s): statuses.count(s) for s in sorted(set(statuses))}
    return {"what": "64 requests of 16 pictures at once", "statuses": found}


def measure_memory(server: Server, requests: int, clients: int) -> dict:
    """Returns the megabytes of the process after each fifth of many requests."""
    found = []
    for part in range(5):
        numbers = range(part * requests // 5, (part + 1) * requests // 5)
        ask_all(server.port, numbers, clients)
        megabytes = server.number("process_resident_memory_bytes") / 1e6
        found.append(round(megabytes))
    return {"what": f"MB after each fifth of {requests} requests", "megabytes": found}


def measure_restart(server: Server) -> dict:
    """Kills the process, and returns the seconds until it is ready again."""
    server.end(signal.SIGKILL)
    server.start()
    begun = time.monotonic()
    ask_all(server.port, range(1), 1)
    first = time.monotonic() - begun
    return {
        "what": "killed and started again",
        "seconds_to_ready": round(server.seconds, 1),
        "seconds_to_the_first_picture_then": round(first, 2),
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, and prints a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="emoji")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--many", type=int, default=5000, help="requests for memory")
    flags = parser.parse_args(argv)

    def show(row: dict) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    server = Server(flags.checkpoint)
    cores = len(os.sched_getaffinity(0))
    show({"what": "start", "seconds_to_ready": round(server.seconds, 1)})
    show({"what": "machine", "cores": cores, "load": os.getloadavg()[0]})
    try:
        for row in measure_load(server, flags.requests, flags.clients):
            show(row)
        show(measure_library(server, flags.checkpoint))
        show(measure_refusals(server))
        if flags.many:
            show(measure_memory(server, flags.many, flags.clients))
        show(measure_restart(server))
    finally:
        server.end(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, "interrupted"))
