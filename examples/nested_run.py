"""Nested run: a running loop cannot be run again; await, or hand over to another thread."""

import asyncio


async def answer():
    await asyncio.sleep(0)
    return 42


def refused(call):
    coro = answer()
    try:
        call(coro)
    except RuntimeError as exc:
        print("refused:", exc)
    finally:
        coro.close()


async def main():
    loop = asyncio.get_running_loop()
    refused(asyncio.run)
    refused(loop.run_until_complete)

    other = asyncio.new_event_loop()
    refused(other.run_until_complete)
    other.close()

    try:
        loop.close()
    except RuntimeError as exc:
        print("refused:", exc)

    # What to do instead:
    print("await:", await answer())
    print("in a thread:", await asyncio.to_thread(asyncio.run, answer()))


asyncio.run(main())
