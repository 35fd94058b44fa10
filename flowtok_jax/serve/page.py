"""The page: a few static files, read once, and sent with headers that keep it safe."""

import importlib.resources
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("api.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    # Nothing from elsewhere: no script, no font, no frame.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """Returns a route a file."""
    folder = importlib.resources.files("flowtok_jax.serve") / "static"
    return [
        Route(path, _sender((folder / name).read_bytes(), kind))
        for path, (name, kind) in FILES.items()
    ]


def _sender(content: bytes, kind: str) -> Callable:
    async def send(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return send
