"""Seeing inside: loop.stats(), the reports of slow callbacks, and stacks as tools show them."""

import asyncio
import faulthandler
import logging
import re
import threading
import time
import weakref

import pytest

import fastloop


@pytest.fixture
def loop():
    loop = fastloop.new_event_loop()
    yield loop
    loop.close()


def test_names_and_types(loop):
    stats = loop.stats()
    numbers = "ready timers fds transports executor_queue executor_threads turns polls steps bytes_in bytes_out".split()
    assert [*stats] == [*numbers, "slowest_turn", "slowest_callback"]
    assert all(type(stats[name]) is int for name in numbers)
    assert type(stats["slowest_turn"]) is float and stats["slowest_callback"] is None
    assert stats is not loop.stats()
    loop.close()
    assert loop.stats()["ready"] == loop.stats()["timers"] == loop.stats()["fds"] == 0


def test_queues_and_counts(loop):
    loop.call_later(600, print)
    for _ in range(3):
        loop.call_soon(int)
    before = loop.stats()
    assert (before["ready"], before["timers"]) == (3, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    after = loop.stats()
    assert (after["ready"], after["timers"]) == (0, 1)
    assert after["steps"] - before["steps"] == 4
    assert after["turns"] - before["turns"] == after["polls"] - before["polls"] == 1


def test_transports_and_bytes(loop):
    async def main():
        async def echo(reader, writer):
            writer.write(await reader.readexactly(300_000))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1")
        before = loop.stats()
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(bytes(300_000))
        assert loop.stats()["transports"] - before["transports"] in (1, 2)  # accepted already, or not
        assert await reader.read() == bytes(300_000)
        after = loop.stats()
        assert after["bytes_in"] - before["bytes_in"] == 600_000
        assert after["bytes_out"] - before["bytes_out"] == 600_000
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        while loop.stats()["transports"]:
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(main(), 280))


def test_executor(loop):
    async def main():
        loop.set_default_executor(fastloop.ThreadPoolExecutor(2))
        go, running = threading.Event(), threading.Semaphore(0)

        def work():
            running.release()
            go.wait()

        calls = [loop.run_in_executor(None, work) for _ in range(5)]
        for _ in range(2):
            running.acquire()
        stats = loop.stats()
        assert (stats["executor_queue"], stats["executor_threads"]) == (3, 2)
        go.set()
        await asyncio.gather(*calls)
        assert loop.stats()["executor_queue"] == 0

    loop.run_until_complete(main())


def test_slowest_turn(loop):
    loop.call_soon(time.sleep, 0.05)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop.stats()["slowest_turn"] >= 0.05


async def slow_coroutine(loop):
    """Its second step is the slowest so far, on a machine that stands still at times, too; what was the slowest after it."""
    await asyncio.sleep(0.01)  # after which the loop has time to look at the clock, in debug mode or not
    time.sleep(0.15 + (loop.stats()["slowest_callback"] or (0,))[0])
    await asyncio.sleep(0)  # where it is when the report is made
    return loop.stats()["slowest_callback"]


def test_slow_callbacks_are_named(loop, caplog):
    """In debug mode: the coroutine, and the line at which it is suspended."""
    loop.set_debug(True)
    first = slow_coroutine.__code__.co_firstlineno
    with caplog.at_level(logging.WARNING, "asyncio"):
        seconds, name = loop.run_until_complete(slow_coroutine(loop))
    pattern = rf"<Task pending .*coro=<slow_coroutine\(\) running at .*test_stats.py:{first + 4}>.*>"
    assert any(re.fullmatch(rf"Executing {pattern} took \d+\.\d+ seconds", r.getMessage()) for r in caplog.records)
    assert seconds >= 0.15
    assert re.fullmatch(pattern, name)


def test_slow_callbacks_are_found_without_debug_mode(loop, caplog):
    seconds, name = loop.run_until_complete(slow_coroutine(loop))
    assert seconds >= 0.15
    assert "slow_coroutine() running at" in name
    assert not caplog.records
    loop.call_later(0.01, time.sleep, seconds + 0.15)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    seconds, name = loop.stats()["slowest_callback"]
    assert seconds >= 0.3
    assert name.startswith("<TimerHandle when=") and "sleep(" in name


def test_a_task_that_is_timed_dies_where_it_ends(loop):
    """As any other: before what comes after it, and with no current task."""
    seen = []

    async def main():
        await asyncio.sleep(0.01)  # what runs after a pause is timed
        weakref.finalize(loop.create_task(asyncio.sleep(0)), lambda: seen.append(asyncio.current_task()))
        for _ in range(3):
            await asyncio.sleep(0)
        seen.append("later")

    loop.run_until_complete(main())
    assert seen == [None, "later"]


class BadRepr:
    def __call__(self):
        time.sleep(0.1)

    def __repr__(self):
        raise ValueError("no repr")


def test_a_slow_callback_without_a_name(loop, monkeypatch):
    """Its repr() fails: that is told where errors go that nobody can handle, and the loop lives."""
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", lambda error: unraisable.append(str(error.exc_value)))
    loop.call_later(0.01, BadRepr())
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert unraisable in (["no repr"], [])  # a slower one may have been found before
    assert loop.run_until_complete(asyncio.sleep(0, "alive")) == "alive"


def test_faulthandler_shows_the_coroutine(tmp_path):
    async def inner_coroutine():
        with (tmp_path / "stacks").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=False)  # other tests' threads may live on

    async def outer_coroutine():
        await inner_coroutine()

    fastloop.run(outer_coroutine())
    stacks = (tmp_path / "stacks").read_text()
    names = re.findall(r" in (\w+)", stacks)
    assert names[:3] == ["inner_coroutine", "outer_coroutine", "run_forever"]
