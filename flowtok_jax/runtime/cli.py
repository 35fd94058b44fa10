"""How messages look: one line each, a level only where something is wrong."""

import logging
import os
import warnings


class _OneLine(logging.Formatter):
    """Messages as a person reads them."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        plain = record.levelno < logging.WARNING
        return text if plain else f"{record.levelname.lower()}: {text}"


def set_up() -> None:
    """Our own messages from INFO on, libraries' from WARNING on; all to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("jax", "grain", "httpx", "huggingface_hub", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What these log as an error they raise as well, and we report.
    for name in ("absl", "orbax", "asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Of transformers, which advises everyone to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(orbax|tensorboardX|google)\b")
