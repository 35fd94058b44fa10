"""Limits of the service, and the wrapper that holds a request's body to them."""

import asyncio
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowtok_jax.serve.faults import RequestError, error_answer

MIB = 2**20


class Limits(NamedTuple):
    """Limits of one request, and of all of them together.

    Attributes:
        prompt: characters of a prompt.
        rows: pictures of a request: prompts times n.
        upload: bytes of an image file.
        pixels: width times height of an image file.
        body_seconds: time in which a body has to arrive.
        head_seconds: time in which the head of a request has to arrive.
        seconds: time in which a request has to be done.
        depth: rows that may wait in the queue.
        connections: connections at once.
        drain_seconds: time that requests have to end in, at SIGTERM.
    """

    prompt: int = 1000
    rows: int = 16
    upload: int = 10 * MIB
    pixels: int = 50_000_000
    body_seconds: float = 20.0
    head_seconds: float = 10.0
    seconds: float = 120.0
    depth: int = 256
    connections: int = 512
    drain_seconds: float = 30.0

    @property
    def body(self) -> int:
        """Bytes of a request's body: an upload in base64, and what stands around it."""
        return self.upload * 4 // 3 + MIB


def hold_bodies(app: ASGIApp, limits: Limits) -> ASGIApp:
    """Wraps an application: larger bodies and slower ones end in 413 and 408.

    Nothing of a body that says beforehand that it is too large is read.
    """
    close = {"Connection": "close"}  # what is left of the body is no next request
    large = RequestError(
        413,
        f"the body is larger than {limits.body} bytes; expected an image file of "
        f"{limits.upload} bytes at most",
        headers=close,
    )
    slow = RequestError(
        408, f"the body took more than {limits.body_seconds:g} seconds", headers=close
    )

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        # Header names are in small letters; a length that is no number is h11's fault.
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told[:20]) > limits.body:
            return await error_answer(large)(scope, receive, send)
        end = asyncio.get_running_loop().time() + limits.body_seconds
        count = 0
        is_whole = False

        async def receive_in_limits() -> Message:
            nonlocal count, is_whole
            if is_whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                raise slow from error
            # Without a length, or with a wrong one, it is counted as it comes.
            count += len(message.get("body", b""))
            if count > limits.body:
                raise large
            is_whole = not message.get("more_body", False)
            return message

        return await app(scope, receive_in_limits, send)

    return wrapped
