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


NOBODY_WAITS = """
import asyncio, sys, time, fastloop

async def window():
    "Whether the loop left out a poll in 200 turns after a slow callback, which makes a poll late."
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    await asyncio.sleep(0)
    before = loop.stats()
    for _ in range(200):
        await asyncio.sleep(0)
    after = loop.stats()
    assert after["turns"] - before["turns"] == 200
    return after["polls"] - before["polls"] < 200

async def main():
    if "idle" in sys.argv:
        await asyncio.to_thread(int)
    for _ in range(100):
        if await window():
            return
    sys.exit("it polls in every turn")

fastloop.run(main())
"""


@pytest.mark.parametrize("threads", ["none", "idle"])
def test_a_loop_whose_gil_nobody_wants_does_not_let_go_of_it_every_turn(threads):
    subprocess.run([sys.executable, "-c", NOBODY_WAITS, threads], check=True, timeout=LIMIT)
