"""Measurement of one row of a suite, on one device."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.perf import work
from flowtok_jax.perf.machine import peak_memory_gib, room_gib
from flowtok_jax.perf.suite_table import MATMUL, PROFILE, SAMPLE, TRAIN, Suite, SuiteRow
from flowtok_jax.sampling import DIRECTIONS

PART = "text_to_image"
FLOW = DIRECTIONS[PART].flow

# Batches that training tried, and the GiB of each; None where it was too large.
Tried = dict[int, float | None]


class OutOfTimeError(Exception):
    """The budget's end before a row had its figures."""


def time_matmul(
    dtype: str, sides: tuple[int, ...], flops: float, repeats: int
) -> dict[str, Any]:
    """Times products of square matrices at JAX's default precision.

    Args:
        sides: one after another.
        flops: work of one timed call, which multiplies that often in a row: a call of
            a single product would be mostly its start.
    """
    found = []
    for side in sides:
        count = max(1, round(flops / (2 * side**3)))
        keys = jax.random.split(jax.random.key(work.SEED))
        x, kernel = (jax.random.normal(k, (side, side), dtype) for k in keys)
        kernel *= side**-0.5  # products stay of one size

        @jax.jit
        def multiply(x, kernel, count=count):
            return jax.lax.fori_loop(0, count, lambda _, x: x @ kernel, x)

        seconds = []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            jax.block_until_ready(multiply(x, kernel))
            seconds.append(time.perf_counter() - begun)
        median = float(np.median(seconds[1:]))  # without the call that compiles
        rate = 2 * side**3 * count / median / 1e12
        one = {"side": side, "products": count, "seconds": median}
        found.append(one | {"tflops_per_sec": rate})
    return {
        "sides": found,
        "tflops_per_sec": max(one["tflops_per_sec"] for one in found),
    }


def find_batch(
    gib_of: Callable[[int], float | None],
    room: float,
    tried: Tried,
    first: int,
    most: int,
) -> int:
    """Finds the largest batch that fits: `first`, doubled or halved again and again.

    Args:
        gib_of: compiles at a batch; None where that is too large.
        room: GiB of the device.
        tried: what is known already; takes up what is tried.
        most: the largest batch to try.

    Raises:
        TooLargeError: where not even one row fits.
    """
    batch = min(first, most)
    while True:
        if batch not in tried:
            tried[batch] = gib_of(batch)
        refused = min((b for b, gib in tried.items() if gib is None), default=most + 1)
        if refused == 1:
            raise work.TooLargeError(f"a batch of 1 does not fit into {room:.1f} GiB")
        fitting = {b: gib for b, gib in tried.items() if gib is not None}
        batch = _next_batch(fitting, refused, room) if fitting else refused // 2
        if batch in fitting:
            return batch


def _next_batch(fitting: Mapping[int, float], refused: int, room: float) -> int:
    """Returns the batch to try next; the largest that fits where none is worth it.

    Memory is nearly a straight line of the rows. From two batches on, those that the
    line says fit are jumped over, and what it says does not fit is not tried.
    """
    best = max(fitting)
    doubled = [best << n for n in range(1, 32) if best << n < refused]
    if len(fitting) < 2 or not doubled:
        return (doubled or [best])[0]
    before = max(b for b in fitting if b < best)
    slope = (fitting[best] - fitting[before]) / (best - before)
    if slope <= 0:  # too small to be seen
        return doubled[0]
    most = best + (room - fitting[best]) / slope
    return max((b for b in doubled if b <= most), default=best)


class RowTimer:
    """Measures rows on the first device.

    Args:
        config: what the rows and sizes of the suite do not say.
        repeats: timed calls.
        warmup: calls before them.
    """

    def __init__(self, config: ConfigDict, suite: Suite, repeats: int, warmup: int):
        self._config = config
        self._suite = suite
        self._calls = {"repeats": repeats, "warmup": warmup}
        self._devices = jax.devices()[:1]
        self._size = ""
        self._weights = work.WeightMaker(None)

    def measure(
        self, row: SuiteRow, tried: Tried, check_time: Callable[[], None]
    ) -> dict[str, Any]:
        """Measures one row.

        Args:
            tried: batches that training tried before; takes up those tried now.
            check_time: called before each try; may raise OutOfTimeError.
        """
        if row.kind == MATMUL:
            suite = self._suite
            sizes = suite.matmul_sides, suite.matmul_flops
            return time_matmul(row.dtype, *sizes, self._calls["repeats"])
        if row.kind == TRAIN or row.size != self._size:
            # Weights of one size only, and none beside a training: memory.
            self._weights = work.WeightMaker(None)
            self._size = row.size if row.kind != TRAIN else ""
        gc.collect()  # arrays that only a cycle holds take memory too
        before = peak_memory_gib(self._devices)
        if row.kind == TRAIN:
            result = self._train(row, tried, check_time)
        else:
            result = self._sample(row)
        # The peak is the process's: a row that did not raise it used no more.
        rose = peak_memory_gib(self._devices) != before
        result["memory"]["peak_is_of_this_row"] = rose
        return result

    def _row_config(self, row: SuiteRow) -> ConfigDict:
        config = self._config.copy_and_resolve_references()
        config.stages = (FLOW,)
        config.per_stage = ConfigDict()
        compute = {"dtype": row.dtype, "attention": row.attention}
        own: Mapping[str, Any] = self._suite.sizes[row.size]
        for sections in (self._suite.shared, own, {"compute": compute}):
            config.update(sections)
        config[DIRECTIONS[PART].section].solver = row.solver
        return config

    def _sample(self, row: SuiteRow) -> dict[str, Any]:
        config = self._row_config(row)
        what = config, PART, row.batch, row.num_steps, self._devices, self._weights

        def make() -> work.Work:
            return work.sampling_work(*what)

        if row.kind == SAMPLE:
            return self._time(make, make().compile_seconds)
        once = {"repeats": 1, "warmup": 1, "devices": 1}
        assert row.kind == PROFILE
        result = work.time_work(make(), **once, profiles=True)
        # Cold or warm, as the row before left the cache.
        del result["compile_seconds"]
        return result

    def _train(
        self, row: SuiteRow, tried: Tried, check_time: Callable[[], None]
    ) -> dict[str, Any]:
        config = self._row_config(row)
        cold: dict[int, float] = {}

        def make(batch: int) -> work.Work:
            made = work.training_work(config, batch, self._devices, self._weights)
            cold.setdefault(batch, made.compile_seconds)
            return made

        def gib_of(batch: int) -> float | None:
            check_time()
            try:
                return make(batch).program_gib
            except work.TooLargeError:
                return None

        room = room_gib(self._devices)
        while True:
            batch = find_batch(gib_of, room, tried, row.batch, self._suite.most_batch)
            try:
                if batch not in cold:  # tried by an earlier command
                    make(batch)
                result = self._time(lambda at=batch: make(at), cold[batch])
            except work.TooLargeError:  # it compiled, but does not run
                tried[batch] = None
            else:
                return result | {"tried": [[b, tried[b]] for b in sorted(tried)]}

    def _time(self, make: Callable[[], work.Work], cold: float) -> dict[str, Any]:
        """Times a program that was compiled already, and its second compilation.

        Args:
            make: compiles it, now from the cache on disk.
            cold: seconds that the first compilation took.
        """
        jax.clear_caches()  # as in a new process
        made = make()
        result = work.time_work(made, **self._calls, devices=1, profiles=False)
        warm = round(made.compile_seconds, 3)
        times = {"compile_seconds": round(cold, 3), "warm_compile_seconds": warm}
        return result | times
