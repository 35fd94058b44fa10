"""A queue that joins rows of requests into batches, in the order of their arrival.

It lives in one event loop; batches are computed one at a time, in a thread of their
own, so that the loop goes on answering. A batch has rows of one group: work that one
program can do at once. The oldest row decides the group, and waits a few milliseconds
at most for others to come.
"""

import asyncio
import collections
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

FIRST_PACE = 0.1  # seconds a row, before any was measured
NEWEST = 0.2  # share that the newest batch has in the pace


class QueueFullError(Exception):
    """A refusal of rows, since too many wait already.

    Attributes:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} rows are waiting already")
        self.retry_after = retry_after


class QueueClosedError(Exception):
    """A refusal of rows by a queue that was closed."""


class _Row(NamedTuple):
    group: Hashable
    value: Any
    result: asyncio.Future
    since: float  # seconds of the loop's clock


class BatchQueue:
    """Rows that wait, and the task that computes them.

    Args:
        compute: makes as many results of a group and up to `most(group)` values; called
            in one thread.
        most: rows that a batch of a group may have.
        depth: rows that may wait; more are refused.
        patience: seconds that a row waits for company.
        observe: is told the rows and the seconds of every batch.
    """

    def __init__(
        self,
        compute: Callable[[Any, Sequence[Any]], Sequence[Any]],
        most: Callable[[Any], int],
        *,
        depth: int = 256,
        patience: float = 0.004,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ):
        self.depth = depth
        self._compute = compute
        self._most = most
        self._patience = patience
        self._observe = observe
        self._rows: collections.deque[_Row] = collections.deque()
        self._changed = asyncio.Event()  # rows came, or the queue was closed
        self._pace = FIRST_PACE
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._task: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        """Rows that wait for their batch."""
        return len(self._rows)

    def start(self) -> None:
        """Starts the task that computes; called in the loop that the queue lives in."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Refuses further rows, and returns once those that wait are computed."""
        self._is_closed = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def submit(
        self, group: Hashable, values: Sequence[Any], seconds: float
    ) -> list[Any]:
        """Returns the results of values, in their order.

        Where the caller is cancelled, or the time is over, rows that still wait are
        dropped.

        Args:
            seconds: time that it may take.

        Raises:
            QueueFullError: where there is no room for all the values.
            QueueClosedError: where the queue was closed.
            TimeoutError: where it takes longer.
        """
        if self._is_closed:
            raise QueueClosedError
        # All rows of a request or none: half an answer is of no use.
        if len(self._rows) + len(values) > self.depth:
            raise QueueFullError(len(self._rows), self._seconds_of_waiting())
        loop = asyncio.get_running_loop()
        now = loop.time()
        rows = [_Row(group, value, loop.create_future(), now) for value in values]
        self._rows.extend(rows)
        self._changed.set()
        try:
            async with asyncio.timeout(seconds):
                return list(await asyncio.gather(*(row.result for row in rows)))
        finally:
            if not all(row.result.done() for row in rows):
                self._drop(rows)
            elif self._rows:
                # Of several rows one may have failed, and left the others behind.
                self._forget_done()

    def _drop(self, rows: Sequence[_Row]) -> None:
        for row in rows:
            row.result.cancel()
        self._forget_done()

    def _forget_done(self) -> None:
        # At once, and not when their turn comes: they would count as waiting.
        self._rows = collections.deque(r for r in self._rows if not r.result.done())

    def _seconds_of_waiting(self) -> int:
        return max(1, math.ceil(self._pace * len(self._rows)))

    async def _work(self) -> None:
        """Computes batch after batch, until the queue is closed and empty."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._rows:
                if self._is_closed:
                    return
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._wait_for_company(self._rows[0])
            if not (batch := self._take()):
                continue  # all of them were dropped meanwhile
            group = batch[0].group
            values = [row.value for row in batch]
            begun = time.perf_counter()
            try:
                found = await loop.run_in_executor(
                    self._thread, self._compute, group, values
                )
            except Exception as error:  # of these rows; the queue goes on
                self._fail(batch, error)
                continue
            # Rows whose caller went away meanwhile have a result that is done.
            self._measure(len(batch), time.perf_counter() - begun)
            for row, result in zip(batch, found, strict=True):
                if not row.result.done():
                    row.result.set_result(result)

    def _fail(self, batch: Sequence[_Row], error: Exception) -> None:
        for row in batch:
            if not row.result.done():
                row.result.set_exception(error)

    def _measure(self, rows: int, seconds: float) -> None:
        self._pace += NEWEST * (seconds / rows - self._pace)
        self._observe(rows, seconds)

    async def _wait_for_company(self, oldest: _Row) -> None:
        """Waits until a batch is full, or the oldest row has waited long enough."""
        loop = asyncio.get_running_loop()
        end = oldest.since + self._patience
        most = self._most(oldest.group)
        while loop.time() < end and not self._is_closed:
            if sum(row.group == oldest.group for row in self._rows) >= most:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Row]:
        """Takes the oldest rows of the oldest row's group, as many as one batch has."""
        self._forget_done()
        if not self._rows:
            return []
        group = self._rows[0].group
        most = self._most(group)
        batch: list[_Row] = []
        left: collections.deque[_Row] = collections.deque()
        for row in self._rows:
            # Younger rows of the group pass older ones of other groups.
            fits = row.group == group and len(batch) < most
            (batch if fits else left).append(row)
        self._rows = left
        return batch
