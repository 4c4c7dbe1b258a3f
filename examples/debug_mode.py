"""Debug mode: what asyncio tells you when asked (also by PYTHONASYNCIODEBUG=1 or python -X dev)."""

import asyncio
import gc
import logging
import time

logging.basicConfig(format="%(levelname)s: %(message)s")  # to stderr


async def forgotten():
    pass


async def fails():
    raise ValueError("nobody looks")


async def main():
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = 0.05  # seconds; 0.1 unless set
    print("debug:", loop.get_debug())

    # A callback or a task's step that holds the loop too long is named, with its place.
    loop.call_soon(time.sleep, 0.06)
    await asyncio.sleep(0)

    # A coroutine that is never awaited is named, with the place where it was made.
    forgotten()

    # Touching the loop from another thread is refused.
    try:
        await asyncio.to_thread(loop.call_soon, print)
    except RuntimeError as exc:
        print("refused:", exc)

    # An exception that nobody looked at is reported when its task goes.
    loop.set_exception_handler(lambda loop, context: print("handler:", context["message"], context["exception"]))
    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    del task
    gc.collect()


asyncio.run(main(), debug=True)
