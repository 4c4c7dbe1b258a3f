"""The loop itself: stepping tasks, callbacks, timers, futures and what asyncio builds on them."""

import asyncio
import threading

from harness import timed

TASKS = 100


async def ticker(k):
    for _ in range(k):
        await asyncio.sleep(0)


async def nothing():
    pass


def noop():
    pass


def sleep0_limit(k):
    coros = [ticker(k) for _ in range(TASKS)]
    for _ in range(k):
        for coro in coros:
            coro.send(None)
    for coro in coros:
        coro.close()


def spawn_limit(k):
    for _ in range(k):
        try:
            nothing().send(None)
        except StopIteration:
            pass


@timed("core", batch=TASKS, limit=sleep0_limit)
async def sleep0(loop, k):
    await asyncio.gather(*[ticker(k) for _ in range(TASKS)])


@timed("core", limit=spawn_limit)
async def spawn(loop, k):
    for _ in range(k):
        await loop.create_task(nothing())


@timed("core", batch=100)
async def call_soon(loop, k):
    for _ in range(k):
        for _ in range(100):
            loop.call_soon(noop)
        await asyncio.sleep(0)


@timed("core", batch=100)
async def call_soon_threadsafe(loop, k):
    for _ in range(k):
        for _ in range(100):
            loop.call_soon_threadsafe(noop)
        await asyncio.sleep(0)


@timed("core", batch=1000, cores=2)
async def call_soon_threadsafe_other_thread(loop, k):
    done = loop.create_future()

    def produce():
        for _ in range(k * 1000):
            loop.call_soon_threadsafe(noop)
        loop.call_soon_threadsafe(done.set_result, None)

    thread = threading.Thread(target=produce)
    thread.start()
    await done
    thread.join()


@timed("core", batch=100)
async def call_later_cancel(loop, k):
    for _ in range(k):
        for _ in range(100):
            loop.call_later(10, noop).cancel()
        await asyncio.sleep(0)


@timed("core", batch=100)
async def call_later_fire(loop, k):
    for _ in range(k):
        done = loop.create_future()
        for _ in range(99):
            loop.call_later(1e-7, noop)
        loop.call_later(1e-7, done.set_result, None)
        await done


@timed("core", batch=100)
async def gather_100(loop, k):
    for _ in range(k):
        await asyncio.gather(*[nothing() for _ in range(100)])


@timed("core")
async def future_await(loop, k):
    for _ in range(k):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


@timed("core")
async def queue_ping_pong(loop, k):
    there, back = asyncio.Queue(), asyncio.Queue()

    async def answer():
        for _ in range(k):
            await back.put(await there.get())

    task = loop.create_task(answer())
    for i in range(k):
        await there.put(i)
        await back.get()
    await task


@timed("core")
async def event_ping_pong(loop, k):
    there, back = asyncio.Event(), asyncio.Event()

    async def answer():
        for _ in range(k):
            await there.wait()
            there.clear()
            back.set()

    task = loop.create_task(answer())
    for _ in range(k):
        there.set()
        await back.wait()
        back.clear()
    await task


@timed("core")
async def timeout(loop, k):
    for _ in range(k):
        async with asyncio.timeout(10):
            await asyncio.sleep(0)


@timed("core")
async def wait_for(loop, k):
    for _ in range(k):
        await asyncio.wait_for(nothing(), 10)
