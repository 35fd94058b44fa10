"""Rows through one program: batches of one size, the last one filled up, split over a
mesh, the next one loaded and started before the results of the last are read.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowtok_jax.array_types import ROW_AXES, ROWS
from flowtok_jax.runtime.mesh import in_mesh, put, replicated

# A service is asked for options of all kinds; what was not used for longest is dropped.
MOST_PROGRAMS = 64

T = TypeVar("T")
U = TypeVar("U")


def row_parts(mesh: Mesh | None) -> int:
    """Counts the parts into which a mesh splits the rows of a batch."""
    return 1 if mesh is None else int(np.prod([mesh.shape[a] for a in ROW_AXES]))


def put_rows(mesh: Mesh | None, rows: np.ndarray) -> jax.Array:
    """Puts an input on the device, or splits its rows over the mesh if they divide."""
    if mesh is None:
        return jnp.asarray(rows)
    # Every device computes the whole of a batch that does not divide.
    splits = len(rows) % row_parts(mesh) == 0
    return put(rows, NamedSharding(mesh, ROWS if splits else PartitionSpec()))


def program_rows(count: int, most: int, parts: int = 1) -> int:
    """Returns the rows of the program that `count` rows are run by.

    Of 1, 2, 3, 4, 6, 8, 12, 16, ... the next one, up to `most`, for each part: another
    count seldom needs another program, and fewer than a third of the rows are filled.

    Args:
        parts: number of parts that the rows are split into, equally.
    """
    needed = -(-min(count, most) // parts)  # rounded up
    most = -(-most // parts)
    power = 1 << max(needed - 1, 0).bit_length()  # the next power of two
    between = 3 * power // 4
    size = between if power > 3 and needed <= between else power
    return min(size, most) * parts


def filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Appends rows of zeros, so that every batch goes through one program."""
    return np.pad(rows, ((0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)))


def long_slices(count: int, size: int) -> Iterator[slice]:
    """Splits rows into slices of `size`; the last one may be nearly twice as long.

    A short one at the end would need a program of its own.
    """
    starts = range(0, max(count - size, 0) + 1, size)
    for start in starts:
        yield slice(start, count if start == starts[-1] else start + size)


def one_ahead(started: Iterable[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
    """Yields what programs computed, as NumPy arrays, in order.

    Args:
        started: pairs of anything and of arrays that a program computes meanwhile; the
            next pair is taken before the arrays of the last one are waited for.
    """
    # Dispatch is asynchronous: while one batch runs, the next one is loaded.
    running: tuple[T, Any] | None = None
    for pair in started:
        if running is not None:
            yield running[0], jax.device_get(running[1])
        running = pair
    if running is not None:
        yield running[0], jax.device_get(running[1])


def compile_rows(
    mesh: Mesh, function: Callable, params: Any, empty: np.ndarray
) -> Callable[[np.ndarray], jax.Array]:
    """Compiles a function of parameters and a batch, whose rows lie split over a mesh.

    A device always gets the same number of rows, and which ones depends on their place
    in the batch only: the same bits on one device and on eight.

    Args:
        empty: a batch, for its shape and type.

    Returns:
        A function of up to so many rows that starts the program, and returns as many
        as a whole batch has.
    """
    on_devices = put(params, replicated(mesh))
    rows = NamedSharding(mesh, ROWS)
    batch = jax.ShapeDtypeStruct(empty.shape, empty.dtype, sharding=rows)
    program = jax.jit(in_mesh(mesh, function), out_shardings=rows)
    # Compiled here and now, so that speed can be measured without it.
    compiled = program.lower(on_devices, batch).compile()

    def start(values: np.ndarray) -> jax.Array:
        return compiled(on_devices, put_rows(mesh, filled(values, len(empty))))

    return start


def run_rows(start: Callable[[np.ndarray], Any], count: int, size: int) -> Any:
    """Runs `count` rows, 1 at least, through a program, and joins the results.

    Args:
        start: starts the program on the rows of `size` numbers; numbers from `count` on
            fill the last batch, and their results are dropped.
    """
    # Rounded up to whole batches: [batches, size].
    batches = np.arange(-(-count // size) * size).reshape(-1, size)
    found = [result for _, result in one_ahead((None, start(b)) for b in batches)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)


def map_ahead(
    pool: Executor, function: Callable[[T], U], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, U]]:
    """Yields each item with the function's value, in order.

    Args:
        ahead: number of values that the pool computes before they are asked for.
    """
    waiting: collections.deque = collections.deque()
    for item in items:
        # In order, however long each one takes.
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for item, future in waiting:
        yield item, future.result()


class RowPrograms:
    """Programs of rows, compiled once for each of their shapes and options.

    Their functions take parameters, inputs of as many rows each, a key and the rows'
    numbers, which with the key decide a row's noise; and options by name. With a mesh
    the rows are split over its devices, and the results are copied to all.
    """

    def __init__(self, mesh: Mesh | None = None):
        self._mesh = mesh
        self._compiled: dict[tuple, Callable] = {}

    def rows_of(self, count: int, most: int) -> int:
        """Returns the rows of the program that `run` takes for so many rows."""
        return program_rows(count, most, row_parts(self._mesh))

    def get(
        self, function: Callable, params: Any, inputs: Sequence, **static: Any
    ) -> Callable:
        """Returns a function compiled for values as these, and static arguments."""
        # A compiled program takes the shapes that it was compiled for and no others.
        leaves, tree = jax.tree.flatten((params, inputs))
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        key = (function.__name__, tree, shapes, *static.values())
        program = self._compiled.pop(key, None)
        if program is None:
            function = functools.partial(function, **static)
            if self._mesh is None:
                jitted = jax.jit(function)
            else:
                whole = replicated(self._mesh)
                jitted = jax.jit(in_mesh(self._mesh, function), out_shardings=whole)
            program = jitted.lower(params, *inputs).compile()
        self._compiled[key] = program  # as the one used last
        if len(self._compiled) > MOST_PROGRAMS:
            del self._compiled[next(iter(self._compiled))]
        return program

    def run(
        self,
        function: Callable,
        params: Any,
        inputs: Sequence[np.ndarray],
        key: np.ndarray,
        first_row: int,
        *,
        most: int,
        **static: Any,
    ) -> Any:
        """Runs all rows of the inputs through one program, the last batch filled up.

        Args:
            key: of all rows, [2]; or one a row, [b 2], all of which have one number.
            first_row: number of the first row.
            most: rows of a program at most.
        """
        count = len(inputs[0])
        has_own = key.ndim > 1
        size = self.rows_of(count, most)
        program = None

        def start(rows: np.ndarray) -> Any:
            nonlocal program
            # The last row is repeated; its noise is that of a row of its own.
            taken = np.minimum(rows, count - 1)
            keys = key[taken] if has_own else key
            numbers = first_row + (0 * rows if has_own else rows)
            arrays = self._put([x[taken] for x in inputs], keys, numbers)
            # One program for all batches: finding it goes through every parameter.
            program = program or self.get(function, params, arrays, **static)
            return program(params, *arrays)

        return run_rows(start, count, size)

    def compile(
        self,
        function: Callable,
        params: Any,
        row: Sequence[np.ndarray],
        key: np.ndarray,
        count: int,
        *,
        most: int,
        **static: Any,
    ) -> None:
        """Compiles the program that `run` takes for so many rows as this one."""
        rows = np.arange(self.rows_of(count, most))
        inputs = self._put([x[0 * rows] for x in row], key, rows)
        self.get(function, params, inputs, **static)

    def _put(
        self, inputs: Sequence[np.ndarray], key: np.ndarray, rows: np.ndarray
    ) -> list:
        """Puts what a program takes on the devices."""
        arrays = [put_rows(self._mesh, x) for x in inputs]
        return [*arrays, key, put_rows(self._mesh, rows)]
