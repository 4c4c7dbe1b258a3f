"""Says "stuck" when a coroutine blocks the loop, and a function in the loop's executor one of its threads.

python stuck.py asyncio|fastloop
"""

import asyncio
import ctypes
import sys
import time

import fastloop


def block_thread(loop, started):
    loop.call_soon_threadsafe(started.set)
    time.sleep(3600)


async def block_loop(started):
    await started.wait()
    print("stuck", flush=True)
    time.sleep(3600)


async def handle(started):
    await block_loop(started)


async def main():
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    working = loop.run_in_executor(None, block_thread, loop, started)
    await asyncio.create_task(handle(started))
    await working


if sys.platform == "linux":  # PR_SET_PTRACER: anybody may look, not only root
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
asyncio.Runner(loop_factory=fastloop.new_event_loop if sys.argv[1] == "fastloop" else None).run(main())
