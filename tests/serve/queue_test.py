"""Rows become batches: joined, in order, bounded, dropped, and never mixed up."""

import asyncio
import threading

import pytest

from flowtok_jax.serve.queue import BatchQueue, QueueClosedError, QueueFullError


class SlowModel:
    """A model that squares numbers when it is let go; it remembers its batches."""

    def __init__(self, most=4):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self._most = most

    def most(self, group):
        return 1 if group == "alone" else self._most

    def compute(self, group, values):
        self.batches.append((group, list(values)))
        assert self.gate.wait(10)
        if -1 in values:
            raise ValueError("minus one")
        return [value**2 for value in values]


def run(test, model=None, **options):
    """Runs a test of a queue in a loop of its own, and closes the queue."""
    model = model or SlowModel()

    async def whole():
        queue = BatchQueue(model.compute, model.most, **options)
        queue.start()
        try:
            await test(queue, model)
        finally:
            model.gate.set()
            await queue.close()

    asyncio.run(whole())
    return model


async def busy(queue, model):
    """Has the model busy with a row that ends when the gate opens."""
    model.gate.clear()
    task = asyncio.create_task(queue.submit("busy", [100], 10.0))
    while not (model.batches and model.batches[-1][0] == "busy"):
        await asyncio.sleep(0.001)
    return task


def test_requests_that_come_together_are_one_batch():
    async def test(queue, model):
        found = await asyncio.gather(*(queue.submit("a", [i], 10.0) for i in range(4)))
        assert found == [[0], [1], [4], [9]]

    assert run(test, patience=5.0).batches == [("a", [0, 1, 2, 3])]


def test_a_row_waits_no_longer_than_it_has_patience():
    async def test(queue, model):
        async with asyncio.timeout(2):
            assert await queue.submit("a", [3], 10.0) == [9]

    assert run(test, patience=0.01).batches == [("a", [3])]


def test_a_long_request_is_split_and_joined_in_order():
    async def test(queue, model):
        assert await queue.submit("a", range(10), 10.0) == [i**2 for i in range(10)]

    lengths = [len(values) for _, values in run(test).batches]
    assert lengths == [4, 4, 2]


def test_groups_are_never_mixed_and_the_oldest_goes_first():
    async def test(queue, model):
        first = await busy(queue, model)
        wanted = [("a", 1), ("b", 2), ("a", 3), ("alone", 4), ("alone", 5), ("b", 6)]
        tasks = []
        for group, value in wanted:
            tasks.append(asyncio.create_task(queue.submit(group, [value], 10.0)))
            await asyncio.sleep(0)
        assert queue.waiting == len(wanted)
        model.gate.set()
        assert await asyncio.gather(*tasks) == [[v**2] for _, v in wanted]
        await first

    batches = run(test).batches[1:]
    assert batches == [("a", [1, 3]), ("b", [2, 6]), ("alone", [4]), ("alone", [5])]


def test_more_than_the_queue_holds_is_refused_with_a_time_to_come_again():
    async def test(queue, model):
        first = await busy(queue, model)
        waiting = asyncio.create_task(queue.submit("a", range(6), 10.0))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await queue.submit("a", range(3), 10.0)
        assert refused.value.retry_after >= 1
        assert queue.waiting == 6  # nothing of the refused request is left
        also = asyncio.create_task(queue.submit("a", [7, 8], 10.0))
        model.gate.set()
        assert await also == [49, 64]
        assert await waiting == [i**2 for i in range(6)]
        await first

    run(test, depth=8)


def test_the_time_to_come_again_is_learnt_from_batches():
    async def test(queue, model):
        queue._pace = 2.0
        first = await busy(queue, model)
        tasks = asyncio.create_task(queue.submit("a", range(8), 10.0))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await queue.submit("a", [1], 10.0)
        assert refused.value.retry_after == 16
        model.gate.set()
        await asyncio.gather(first, tasks)
        assert queue._pace < 2.0

    run(test, depth=8)


def test_cancelled_rows_are_never_computed():
    async def test(queue, model):
        first = await busy(queue, model)
        gone = asyncio.create_task(queue.submit("a", [5, 6], 10.0))
        stays = asyncio.create_task(queue.submit("a", [7], 10.0))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert queue.waiting == 1
        model.gate.set()
        assert await stays == [49]
        await first

    assert run(test).batches[1:] == [("a", [7])]


def test_a_request_cancelled_in_its_batch_harms_no_other():
    async def test(queue, model):
        model.gate.clear()
        gone = asyncio.create_task(queue.submit("a", [5], 10.0))
        stays = asyncio.create_task(queue.submit("a", [6], 10.0))
        while not model.batches:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert await stays == [36]

    assert run(test).batches == [("a", [5, 6])]


def test_time_that_is_over_frees_the_queue():
    async def test(queue, model):
        first = await busy(queue, model)
        with pytest.raises(TimeoutError):
            await queue.submit("a", [1, 2], 0.01)
        assert queue.waiting == 0
        model.gate.set()
        await first

    assert [group for group, _ in run(test).batches] == ["busy"]


def test_a_batch_that_fails_fails_its_requests_only():
    async def test(queue, model):
        wrong = queue.submit("alone", [-1, 2, 3], 10.0)
        right = queue.submit("a", [4], 10.0)
        failed, found = await asyncio.gather(wrong, right, return_exceptions=True)
        assert isinstance(failed, ValueError)
        assert found == [16]
        assert queue.waiting == 0

    groups = [group for group, _ in run(test).batches]
    assert groups.count("alone") < 3  # what a failed request had left is dropped


def test_closing_computes_what_waits_and_refuses_the_rest():
    async def whole():
        model = SlowModel()
        queue = BatchQueue(model.compute, model.most)
        queue.start()
        first = await busy(queue, model)
        waiting = asyncio.create_task(queue.submit("a", range(6), 10.0))
        await asyncio.sleep(0)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(QueueClosedError):
            await queue.submit("a", [1], 10.0)
        model.gate.set()
        await closing
        assert await waiting == [i**2 for i in range(6)]
        assert await first == [10000]

    asyncio.run(whole())


def test_many_requests_get_their_own_answers():
    async def test(queue, model):
        async def ask(i):
            await asyncio.sleep(i % 7 / 1000)
            return await queue.submit(i % 3, [i, i + 1], 10.0)

        found = await asyncio.gather(*(ask(i) for i in range(200)))
        assert found == [[i**2, (i + 1) ** 2] for i in range(200)]
        assert queue.waiting == 0

    seen = []
    model = run(test, depth=500, observe=lambda rows, seconds: seen.append(rows))
    assert sum(seen) == 400
    assert max(seen) == 4
    assert len(model.batches) < 200
