"""--mode=serve: a page to draw and describe on, and a service in OpenAI's form.

    python -m flowtok_jax.main --mode=serve --checkpoint=emoji --port=8000

GET /health answers 200 once the programs are compiled. SIGTERM and Ctrl-C end the
service after the requests that came before. docs/serving.md has the rest.
"""

import logging

from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError


def run(arguments: Arguments) -> int:
    """Serves the weights until it is told to end."""
    flags = arguments.flags
    try:
        # The extra is needed by this mode alone.
        from flowtok_jax.serve.engine import Engine  # noqa: PLC0415
        from flowtok_jax.serve.server import listen, run_service  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            f"--mode=serve needs {error.name}; expected pip install -r "
            "requirements-serve.txt"
        ) from error
    config = arguments.weights_config()
    # Before the weights are read: the port may be taken.
    with listen(flags.host, flags.port) as opened:
        engine = Engine(FlowTok.from_weights(arguments.weights, config))
        weights = arguments.weights
        name = weights.place.name
        host, port, *_ = opened.getsockname()
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{port}")
        logging.info("the page is there at once; it can be used once it says ready")
        run_service(engine, name, opened)
    return 0
