"""The server in a process of its own: hostile and slow clients, OpenAI's, its end."""

import asyncio
import base64
import contextlib
import io
import signal
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.serve.server import listen
from tests.serve.fake import SIDE, colour, error_of, served

DRAW = "/v1/images/generations"
LIMITS = {"head_seconds": 1.0, "body_seconds": 1.0, "batch_seconds": 0.05, "depth": 64}


@pytest.fixture(scope="module")
def server():
    with served(**LIMITS) as (address, process):
        yield address
        assert process.poll() is None  # it lives, whatever the tests did to it


@pytest.fixture
def address(server):
    """The address, of a service that still draws after each test."""
    yield server
    asked = {"prompt": "still there", "seed": 1}
    answer = httpx.post(server + DRAW, json=asked, timeout=30)
    assert answer.status_code == 200


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    opened = socket.create_connection((host, int(port)), timeout=10)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def head(length: int, path: str = DRAW) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def waiting(address: str) -> int:
    return httpx.get(f"{address}/health").json()["waiting"]


def number(address: str, name: str) -> float:
    """A number of /metrics; 0 where it is not there yet."""
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return 0.0


def test_openai_s_own_client_draws(address):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    own = {"seed": 5, "steps": 3}
    answer = client.images.generate(prompt="a fox", n=2, model="fake", extra_body=own)
    for k, item in enumerate(answer.data):
        picture = Image.open(io.BytesIO(base64.b64decode(item.b64_json)))
        np.testing.assert_array_equal(np.asarray(picture), colour("a fox", 5 + k, 2.0))
    assert [model.id for model in client.models.list()] == ["fake"]
    with pytest.raises(openai.BadRequestError, match="expected 8x8"):
        client.images.generate(prompt="a fox", size="1024x1024")
    with pytest.raises(openai.BadRequestError, match="b64_json"):
        client.images.generate(prompt="a fox", response_format="url")
    with pytest.raises(openai.NotFoundError, match="expected 'fake'"):
        client.images.generate(prompt="a fox", model="dall-e-3")


def test_an_upload_of_100_mb_is_refused(address):
    with connect(address) as client:
        client.sendall(head(100 * 2**20))
        answer = client.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "connection: close" in answer.lower()

    def parts():
        for _ in range(1600):
            yield b"x" * 65536

    # Without a length it is read until it is too much.
    try:
        answer = httpx.post(address + DRAW, content=parts(), timeout=30)
    except httpx.TransportError:  # the connection was closed while we sent
        return
    error_of(answer, 415)


def test_a_slow_body_is_given_up(address):
    with connect(address) as client:
        client.sendall(head(1000) + b"{")
        begun = time.monotonic()
        answer = "".join(iter(lambda: client.recv(4096).decode(), ""))
        assert answer.startswith("HTTP/1.1 408")
        assert "took more than 1 seconds" in answer
        assert 0.5 < time.monotonic() - begun < 5


def test_a_body_that_drips_is_given_up(address):
    with connect(address) as client:
        client.sendall(head(1000))
        client.settimeout(0.1)
        answer = b""
        begun = time.monotonic()
        while not answer and time.monotonic() - begun < 5:
            client.sendall(b" ")
            try:
                answer = client.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("part", [b"", b"POST / HT", head(10)[:-2]])
def test_a_head_that_does_not_end_is_given_up(address, part):
    with connect(address) as client:
        client.sendall(part)
        begun = time.monotonic()
        assert client.recv(4096) == b""
        assert time.monotonic() - begun < 5


def test_the_next_head_of_a_connection_may_not_drip_either(address):
    with connect(address) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /hea")
        begun = time.monotonic()
        while client.recv(4096):
            pass
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "junk", [b"\0\1\2\3\r\n\r\n", b"GET /\r\n\r\n", b"x" * 100_000]
)
def test_what_is_no_http_is_refused(address, junk):
    with connect(address) as client:
        client.sendall(junk)
        assert client.recv(4096).startswith(b"HTTP/1.1 400")


def test_a_client_that_goes_away_takes_its_rows_along():
    body = b'{"prompt": "a", "n": 16}'
    with served(batch_seconds=1.0) as (address, _):
        with contextlib.ExitStack() as clients:
            for _ in range(3):
                client = clients.enter_context(connect(address))
                client.sendall(head(len(body)) + body)
            end = time.monotonic() + 10
            while waiting(address) < 30:
                assert time.monotonic() < end
        while waiting(address):
            assert time.monotonic() < end
            time.sleep(0.002)
        # What was in a batch already is computed, and nothing else.
        end = time.monotonic() + 10
        while number(address, "flowtok_batch_rows_sum") == 0:
            assert time.monotonic() < end
        time.sleep(1.5)
        assert number(address, "flowtok_batch_rows_sum") <= 16
        gone = f'flowtok_requests_total{{path="{DRAW}",status="499"}}'
        assert number(address, gone) == 3


def test_a_client_that_goes_away_within_its_body_harms_nobody(address):
    with connect(address) as client:
        client.sendall(head(1000) + b"{")


def test_more_than_the_queue_holds_is_refused_and_the_rest_answered(address):
    answers = []

    def ask():
        with httpx.Client(timeout=60) as client:
            answers.append(client.post(address + DRAW, json={"prompt": "a", "n": 16}))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 4
    for answer in answers:
        if answer.status_code == 429:
            error_of(answer, 429)
            assert int(answer.headers["retry-after"]) >= 1


def test_sigterm_answers_what_waits_and_ends():
    with served(batch_seconds=0.3) as (address, process):
        found = []

        def ask():
            asked = {"prompt": "last", "n": 16, "seed": 1}
            found.append(httpx.post(address + DRAW, json=asked, timeout=30))

        thread = threading.Thread(target=ask)
        thread.start()
        end = time.monotonic() + 10
        while not waiting(address) and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert len(found[0].json()["data"]) == 16
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def test_an_address_that_is_taken_is_one_line():
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port} cannot be listened on"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="expected an address of this machine"):
        listen("192.0.2.1", 0)
    with pytest.raises(UserError, match="port"):
        listen("127.0.0.1", 70000)


def test_the_fake_draws_pictures_of_its_size():
    assert colour("a", 1, 1.0).shape == (SIDE, SIDE, 3)


def test_answers_are_sent_at_once():
    """A client that acknowledges late does not hold back what follows the headers."""

    async def accept() -> int:
        found = asyncio.get_running_loop().create_future()

        def connected(_, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            option = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            found.set_result(option)
            writer.close()

        with listen("127.0.0.1", 0) as opened:
            async with await asyncio.start_server(connected, sock=opened):
                _, writer = await asyncio.open_connection(*opened.getsockname())
                writer.close()
                return await found

    assert asyncio.run(accept()) != 0
