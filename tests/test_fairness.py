"""However busy a loop or a worker thread is, other threads get the GIL.

The rounds of the other thread would take minutes if each had to win a race for it.
"""

import asyncio
import functools
import subprocess
import sys
import threading
import time

import pytest

import fastloop

ROUNDS = 500  # each lets go of the GIL, and needs it again
LIMIT = 120  # seconds; a round that waits the interpreter's switch interval takes 5 ms


@pytest.fixture
def other():
    """A thread that is done after its rounds, or when the test ends."""
    ended = threading.Event()

    def rounds():
        for _ in range(ROUNDS):
            if ended.is_set():
                break
            time.sleep(0.0001)

    thread = threading.Thread(target=rounds)
    yield thread
    ended.set()
    thread.join()


def calling_itself(call):
    """A callable of C alone that passes itself to call, and a function that makes it stop."""
    again = functools.partial(call)
    again.__setstate__((call, (again,), {}, {}))
    return again, lambda: again.__setstate__((len, ((),), {}, {}))


async def step(loop):
    await asyncio.sleep(0)


async def call_in_pool(loop):
    await loop.run_in_executor(None, len, ())


@pytest.mark.parametrize("busy", [step, call_in_pool])
def test_a_thread_beside_a_loop_with_tasks(other, busy):
    async def main():
        loop = asyncio.get_running_loop()
        end = loop.time() + LIMIT
        other.start()
        while other.is_alive() and loop.time() < end:
            await busy(loop)
        assert not other.is_alive()

    fastloop.run(main())


def test_a_thread_beside_a_loop_with_callbacks_of_c(other):
    async def main():
        loop = asyncio.get_running_loop()
        again, stop = calling_itself(loop.call_soon)
        loop.call_soon(again)
        other.start()
        await asyncio.to_thread(other.join, LIMIT)
        stop()
        assert not other.is_alive()

    fastloop.run(main())


@pytest.mark.parametrize("language", ["C", "Python"])
def test_a_thread_beside_a_pool_that_feeds_itself(other, language):
    """test_hang_global_shutdown_lock of CPython, whose pool calls a function of Python."""

    def feed(pool):
        if not stopped:
            pool.submit(feed, pool)

    stopped = []
    with fastloop.ThreadPoolExecutor(1) as pool:
        if language == "C":
            again, stop = calling_itself(pool.submit)
            pool.submit(again)
        else:
            stop = functools.partial(stopped.append, True)
            pool.submit(feed, pool)
        try:
            other.start()
            other.join(LIMIT)
            assert not other.is_alive()
        finally:
            stop()


ALONE = """
import asyncio, time, fastloop

async def main():
    stats = asyncio.get_running_loop().stats
    await asyncio.sleep(0)
    time.sleep(0.001)  # the next poll is late
    await asyncio.sleep(0)
    before = stats()
    for _ in range(200):
        await asyncio.sleep(0)
    after = stats()
    print(after["turns"] - before["turns"], after["polls"] - before["polls"])

fastloop.run(main())
"""


def test_a_loop_without_other_threads_does_not_let_go_of_the_gil_every_turn():
    """Its polls are as rare after a slow callback as before."""
    program = [sys.executable, "-c", ALONE]
    turns, polls = map(int, subprocess.run(program, check=True, capture_output=True, text=True, timeout=LIMIT).stdout.split())
    assert turns == 200
    assert polls < turns
