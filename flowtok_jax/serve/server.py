"""The web server under the service: one process, loopback unless told otherwise."""

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.serve.engine import Engine
from flowtok_jax.serve.limits import Limits
from flowtok_jax.serve.requests import LIMITS
from flowtok_jax.serve.service import Service


class _PatientProtocol(H11Protocol):
    """HTTP whose connections have to say within some seconds what they want."""

    head_seconds = LIMITS.head_seconds
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # which may begin a request
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """Starts the clock at a head's first bytes, and stops it at its end."""
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if is_busy or self.transport.is_closing():
            self._stop_watch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.head_seconds, self.transport.close
            )

    def _stop_watch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_response_complete(self) -> None:
        self._stop_watch()  # from here on uvicorn's own clock of idle connections
        super().on_response_complete()


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket that the service listens on; port 0 is any that is free.

    Raises:
        UserError: where the port is taken, or the address is not of this machine.
    """
    opened = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Of a socket that does not say it is TCP's asyncio holds small answers back
        # until the client has acknowledged their headers, which takes 40 ms.
        opened = socket.socket(*found[0][:3])
        # A server that was killed leaves connections behind, which would block it.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(1024)
    except (OSError, OverflowError) as error:
        if opened is not None:
            opened.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host={host} --port={port} cannot be listened on ({reason}); expected "
            "an address of this machine, and a port that is free"
        ) from error
    return opened


def run_service(
    engine: Engine, name: str, opened: socket.socket, limits: Limits = LIMITS
) -> None:
    """Serves until SIGTERM or Ctrl-C; requests that came before are answered.

    Raises:
        Exception: of the warming up, where that fails.
    """
    failed: list[Exception] = []

    # A service that cannot warm up ends, and its command says why.
    def fail(error: Exception) -> None:
        failed.append(error)
        server.should_exit = True

    service = Service(engine, name, limits, fail)
    patience = limits.head_seconds
    server = uvicorn.Server(
        uvicorn.Config(
            service.app(),
            http=type("Protocol", (_PatientProtocol,), {"head_seconds": patience}),
            ws="none",  # nothing here talks in both directions
            loop="asyncio",
            lifespan="on",
            access_log=False,  # prompts are nobody's business, and /metrics counts
            log_config=None,  # the command's own logging
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=round(limits.drain_seconds),
        )
    )
    # uvicorn raises the signal that ended it once more: that is no second wish.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        server.run(sockets=[opened])
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        raise failed[0]
