"""Calling blocking code: the default pool, a pool of one's own size, and what cancelling can do."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor


def query(n):
    """Stands for a database driver that is not async."""
    time.sleep(0.01)
    return n * 10


async def bounded_pool():
    """A pool with as many threads as the database allows connections."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="db") as pool:
        calls = [loop.run_in_executor(pool, query, n) for n in range(8)]
        print("rows:", await asyncio.gather(*calls))


async def cancel_waiting_call():
    """A call that still waits for a thread is cancelled for good: it never runs."""
    loop = asyncio.get_running_loop()
    release, ran = threading.Event(), []
    with ThreadPoolExecutor(max_workers=1) as pool:
        busy = loop.run_in_executor(pool, release.wait)
        waiting = loop.run_in_executor(pool, ran.append, "ran")
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        release.set()
        await busy
    print("cancelled before it started, ran:", ran)


async def cancel_running_call():
    """A call that has started cannot be stopped from outside: only the waiting for it ends."""
    started, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def poll_until_told():
        started.set()
        stop.wait()  # a long call has to look at such a flag itself
        ended.set()

    call = asyncio.create_task(asyncio.to_thread(poll_until_told))
    await asyncio.to_thread(started.wait)
    call.cancel()
    await asyncio.wait([call])
    print("cancelled:", call.cancelled(), "but ended:", ended.is_set())
    stop.set()
    await asyncio.to_thread(ended.wait)
    print("told to stop, ended:", ended.is_set())


async def main():
    print("default pool:", await asyncio.gather(*(asyncio.to_thread(query, n) for n in range(4))))
    await bounded_pool()
    await cancel_waiting_call()
    await cancel_running_call()


asyncio.run(main())
