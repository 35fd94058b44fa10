"""What a long evaluation has computed so far, so that a killed one goes on.

FOLDER/protocol.json        what the numbers depend on; another one is refused
FOLDER/00000-01000.npz      arrays of the samples from 0 to 999, written whole
"""

import io
import logging
import zipfile
from typing import Any

import numpy as np

from flowtok_jax.runtime.files import Place, claim, write_bytes

PROTOCOL = "protocol.json"

Arrays = dict[str, np.ndarray]


class Chunks:
    """The parts of `count` samples, `size` at a time."""

    def __init__(self, folder: Place, count: int, size: int):
        self.folder = folder
        starts = range(0, count, size)
        self.ranges = [range(start, min(start + size, count)) for start in starts]

    def claim(self, protocol: dict[str, Any]) -> None:
        """Makes the folder that of a protocol.

        Raises:
            UserError: where it is another one's, naming what differs.
        """
        claim(self.folder / PROTOCOL, protocol, cure="move it away")

    def _path(self, number: int) -> Place:
        rows = self.ranges[number]
        return self.folder / f"{rows.start:05d}-{rows.stop:05d}.npz"

    def missing(self) -> np.ndarray:
        """For each chunk whether it has to be computed."""
        return np.array([self.read(i) is None for i in range(len(self.ranges))])

    def write(self, number: int, arrays: Arrays) -> None:
        """Stores a chunk, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(self._path(number), buffer.getvalue())

    def read(self, number: int) -> Arrays | None:
        """A chunk; None where it is not there, or damaged, which is said."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                return dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            logging.warning("%s is damaged (%s) and made again", path, error)
            return None

    def read_all(self) -> Arrays:
        """The arrays of all the chunks, one after the other."""
        parts = [self.read(i) for i in range(len(self.ranges))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
