"""The HTTP service: pictures in OpenAI's form, captions, health, numbers, the page.

Handlers check a request, hand its rows to the queue, and wait for the answer or for the
client to go away. A request reaches no file: the page is read once, at the start.
"""

import asyncio
import base64
import contextlib
import io
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import flowtok_jax
from flowtok_jax.serve import page
from flowtok_jax.serve.edits import EditedPicture
from flowtok_jax.serve.engine import Engine, RowGroup
from flowtok_jax.serve.faults import KINDS_OF_ERRORS, RequestError, answer_error
from flowtok_jax.serve.limits import Limits, hold_bodies
from flowtok_jax.serve.meters import NO_ANSWER, Meters
from flowtok_jax.serve.openapi import describe_api
from flowtok_jax.serve.queue import BatchQueue
from flowtok_jax.serve.requests import (
    EDIT_BODIES,
    LIMITS,
    CaptionRequest,
    ImageRequest,
)
from flowtok_jax.serve.uploads import decode_base64, read_form, read_upload

B = TypeVar("B", bound=BaseModel)
WARMING = "warming up"
READY = "ready"
SOFTWARE = f"flowtok_jax {flowtok_jax.__version__}"


class GoneError(Exception):
    """The end of a request whose client went away."""


class Service:
    """A model, its queue, and the handlers of its requests.

    Args:
        engine: the model.
        name: of the model, in requests and in pictures.
        on_failure: is called where the model cannot be warmed up.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: Limits = LIMITS,
        on_failure: Callable[[Exception], None] | None = None,
    ):
        self.engine = engine
        self.name = name
        self.limits = limits
        self.state = WARMING
        self._on_failure = on_failure
        self._queue: BatchQueue | None = None
        self._decoding = asyncio.Semaphore(2)  # 50 megapixels are 150 MB each
        self.meters = Meters(lambda: self._queue.waiting if self._queue else 0)

    def app(self) -> ASGIApp:
        """Makes the application."""
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route("/v1/images/generations", self.generate, methods=["POST"]),
            Route("/v1/captions", self.describe, methods=["POST"]),
            *(
                Route(f"/v1/images/{kind}", self.edit, methods=["POST"])
                for kind in EDIT_BODIES
            ),
            *page.routes(),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={
                GoneError: _no_answer,
                ClientDisconnect: _no_answer,
                **dict.fromkeys((*KINDS_OF_ERRORS, Exception), answer_error),
            },
        )
        # Counted from outside, with those that the limits refuse.
        paths = {route.path for route in routes}
        return self.meters.count_requests(hold_bodies(app, self.limits), paths)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._queue = BatchQueue(
            self.engine.compute,
            self.engine.most,
            depth=self.limits.depth,
            observe=self.meters.observe_batch,
        )
        self._queue.start()
        warming = asyncio.create_task(self._warm())
        try:
            yield
        finally:
            # Requests that wait are answered: uvicorn ends this after the last one.
            await self._queue.close()
            warming.cancel()

    async def _warm(self) -> None:
        begun = time.monotonic()
        try:
            # In a thread: /health answers and the page loads meanwhile.
            await asyncio.to_thread(self.engine.warm)
        except Exception as error:
            self.state = f"cannot warm up: {error}"
            if self._on_failure is None:
                raise
            self._on_failure(error)
            return
        self.state = READY
        logging.info("ready after %.1f s of warming up", time.monotonic() - begun)

    async def health(self, request: Request) -> Response:
        """Answers 200 once the programs are compiled, and 503 before."""
        is_ready = self.state == READY
        # Before the start of the loop there is no queue.
        waiting = self._queue.waiting if self._queue else 0
        told = {"status": self.state, "model": self.name, "waiting": waiting}
        return JSONResponse(told, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Answers the numbers for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.meters.text(), media_type=kind)

    async def openapi(self, request: Request) -> Response:
        """Answers the description of the interface."""
        return JSONResponse(describe_api(self.name, self.engine.image_size))

    async def models(self, request: Request) -> Response:
        """Answers OpenAI's list of models, with what the page has to know of ours."""
        engine = self.engine
        own = {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "flowtok_jax",
            "status": self.state,
            "image_size": engine.image_size,
            "draws": engine.draws,
            "describes": engine.describes,
            "edits": list(engine.edits),
            "solvers": list(engine.solvers),
            "guided": list(engine.guided),
            "sample": engine.flowtok.sample._asdict(),
            "caption": engine.flowtok.caption._asdict(),
        }
        return JSONResponse({"object": "list", "data": [own]})

    async def generate(self, request: Request) -> Response:
        """Draws pictures of prompts, each with a seed of its own."""
        begun = time.monotonic()
        asked = await self._read_json(request, ImageRequest)
        self._check_model(asked.model)
        self._check_size(asked.size)
        rows = len(asked.prompts) * asked.n
        if rows > self.limits.rows:
            raise RequestError(
                400,
                f"{len(asked.prompts)} prompts of n={asked.n} are {rows} pictures; "
                f"expected {self.limits.rows} at most",
                "n",
            )
        work = self.engine.drawing(**asked.options())
        seeds = _seeds(asked.seed, asked.n)
        values = [(prompt, seed) for prompt in asked.prompts for seed in seeds]
        drawn = await self._compute(request, work, values)
        told = _told_options(work)
        # Compressing PNGs would hold up the loop.
        pictures = [
            EditedPicture(pixels, *value)
            for pixels, value in zip(drawn, values, strict=True)
        ]
        data = await asyncio.to_thread(self._encode, pictures, told, work)
        more = self._unknown_words(asked.prompts)
        return _answer(data, begun, options=told, **more)

    async def describe(self, request: Request) -> Response:
        """Describes a picture."""
        begun = time.monotonic()
        asked, data = await self._read_image(request, CaptionRequest)
        self._check_model(asked.model)
        work = self.engine.describing(**asked.options())
        image = await self._decode(data)
        (seed,) = _seeds(asked.seed, 1)
        (caption,) = await self._compute(request, work, [(image, seed)])
        return _answer([{"caption": caption, "seed": seed}], begun)

    async def edit(self, request: Request) -> Response:
        """Interpolates, varies or edits, as the path says."""
        begun = time.monotonic()
        kind = request.url.path.rpartition("/")[2]
        body = EDIT_BODIES[kind]
        work = self.engine.editing(kind)
        if "image" in body.model_fields:
            asked, data = await self._read_image(request, body)
            self._check_model(asked.model)
            self._check_size(asked.size)
            arguments = asked.arguments() | {"image": await self._decode(data)}
        else:
            asked = await self._read_json(request, body)
            arguments = asked.arguments()
        (seed,) = _seeds(asked.seed, 1)
        (pictures,) = await self._compute(request, work, [(arguments, seed)])
        told = {k: v for k, v in asked.arguments().items() if v is not None}
        about = {"edit": kind} | told
        data = await asyncio.to_thread(self._encode, pictures, about)
        texts = [told[key] for key in ("before", "prompt") if key in told]
        more = self._unknown_words([*texts, *told.get("prompts", ())])
        return _answer(data, begun, **more)

    def _unknown_words(self, prompts: Sequence[str]) -> dict[str, list[str]]:
        """Returns what an answer says of words that the model cannot know, if any."""
        found = self.engine.unknown_words(prompts)
        return {"unknown_words": found} if found else {}

    async def _read_json(self, request: Request, kind: type[B]) -> B:
        """Reads a body of JSON; its mistakes become answers."""
        told = request.headers.get("content-type", "").partition(";")[0].strip()
        if told != "application/json":
            # A form of another site may send any other kind without asking first.
            raise RequestError(
                415, f"the body is {told or 'of no kind'}; expected application/json"
            )
        return kind.model_validate_json(await request.body())

    async def _read_image(self, request: Request, kind: type[B]) -> tuple[B, bytes]:
        """Reads a body with an image: a multipart form, or JSON with base64."""
        content = request.headers.get("content-type", "")
        if not content.startswith("multipart/form-data"):
            asked = await self._read_json(request, kind)
            return asked, decode_base64(asked.image, self.limits)
        fields, data = await read_form(request, self.limits)
        # Fields of forms are texts, whatever they stand for; the file is apart.
        return kind.model_validate({**fields, "image": "form"}, strict=False), data

    async def _decode(self, data: bytes) -> np.ndarray:
        async with self._decoding:
            side = self.engine.image_size
            return await asyncio.to_thread(read_upload, data, side, self.limits)

    async def _compute(
        self, request: Request, work: RowGroup, values: Sequence[tuple[Any, int]]
    ) -> list[Any]:
        """Has the queue compute, and drops the rows where the client goes away."""
        if self.state != READY:
            raise RequestError(503, self.state, headers={"Retry-After": "5"})
        seconds = self.limits.seconds
        return await _unless_gone(request, self._queue.submit(work, values, seconds))

    def _check_model(self, name: str | None) -> None:
        if name not in (None, "", self.name):
            raise RequestError(
                404, f"model is {name[:60]!r}; expected {self.name!r}", "model"
            )

    def _check_size(self, size: str | None) -> None:
        own = f"{self.engine.image_size}x{self.engine.image_size}"
        if size not in (None, "auto", own):
            raise RequestError(
                400, f"size is {size!r}; expected {own}, the model's own", "size"
            )

    def _encode(
        self,
        pictures: Sequence[EditedPicture],
        about: dict[str, Any],
        work: RowGroup | None = None,
    ) -> list[dict[str, Any]]:
        """Encodes pictures as PNG in base64; each says how it was made.

        Args:
            work: of drawing, by which `--from_image` draws the picture again.
        """
        found = []
        for pixels, prompt, seed in pictures:
            how = {"prompt": prompt, "seed": seed, "model": self.name, **about}
            chunks = PngImagePlugin.PngInfo()
            # Keywords of the PNG standard, which viewers show; only iTXt has Unicode.
            chunks.add_text("Software", SOFTWARE)
            chunks.add_itxt("Description", prompt)
            chunks.add_text("Comment", json.dumps(how))
            recipe = self.engine.record(pixels, prompt, seed, work) if work else {}
            for keyword, text in recipe.items():
                chunks.add_text(keyword, text)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png", pnginfo=chunks)
            png = base64.b64encode(file.getvalue()).decode()
            found.append({"b64_json": png, "seed": seed, "prompt": prompt})
        return found


def _seeds(seed: int | None, count: int) -> list[int]:
    """Returns the seeds of pictures of a prompt, from the one asked for or any."""
    # Small enough that spreadsheets and JavaScript keep every digit.
    first = secrets.randbelow(2**31) if seed is None else seed
    return [(first + k) % 2**32 for k in range(count)]


def _told_options(work: RowGroup) -> dict[str, Any]:
    chosen = work.options
    return {
        "steps": chosen.num_steps,
        "scale": chosen.scale,
        "solver": chosen.solver,
        "source": chosen.source,
    }


def _answer(data: list[dict[str, Any]], begun: float, **more: Any) -> JSONResponse:
    seconds = round(time.monotonic() - begun, 3)
    content = {"created": int(time.time()), "data": data, **more, "seconds": seconds}
    return JSONResponse(content)


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """Waits for an answer, and cancels it where the client goes away before.

    Raises:
        GoneError: where the client went away.
    """
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():  # also where the client went away at the same moment
            return task.result()
        raise GoneError
    finally:
        gone.cancel()
        task.cancel()


async def _wait_until_gone(request: Request) -> None:
    # The body was read: what comes now is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _no_answer(request: Request, error: Exception) -> Response:
    return Response(status_code=NO_ANSWER)
