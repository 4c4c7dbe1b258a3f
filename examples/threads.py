"""to_thread: call blocking functions without stopping the loop; context variables go with them."""

import asyncio
import contextvars
import threading
import time

user = contextvars.ContextVar("user", default="nobody")


def read_slowly(name):
    time.sleep(0.05)
    if name == "missing":
        raise FileNotFoundError(name)
    return f"{name} for {user.get()}, in the main thread: {threading.current_thread() is threading.main_thread()}"


async def heartbeat(beats):
    while True:
        beats.append(1)
        await asyncio.sleep(0.005)


async def main():
    user.set("ada")
    beats = []
    heart = asyncio.create_task(heartbeat(beats))
    for line in await asyncio.gather(*(asyncio.to_thread(read_slowly, name) for name in ("one", "two"))):
        print(line)
    print("the loop went on meanwhile:", len(beats) > 1)

    try:
        await asyncio.to_thread(read_slowly, "missing")
    except FileNotFoundError as exc:
        print("raised in the thread, caught here:", exc)

    # The other way round: a thread hands a coroutine to the loop and waits for its result.
    loop = asyncio.get_running_loop()

    def in_thread():
        return asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01, "from the loop"), loop).result()

    print("in the thread:", await asyncio.to_thread(in_thread))
    heart.cancel()


asyncio.run(main())
