"""timeout: a time limit on a block, nested, moved while it runs, and told apart from other errors."""

import asyncio


async def main():
    loop = asyncio.get_running_loop()

    try:
        async with asyncio.timeout(0.01) as limit:
            await asyncio.sleep(60)
    except TimeoutError:
        print("block cut off:", limit.expired())

    # Only the limit that ran out raises; the one around it goes on.
    async with asyncio.timeout(60) as outer:
        try:
            async with asyncio.timeout_at(loop.time() + 0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            print("inner expired, outer expired:", outer.expired())

    # A limit may be moved: here, more time for every sign of life.
    async with asyncio.timeout(30) as idle:
        for beat in range(3):
            await asyncio.sleep(0.005)
            idle.reschedule(loop.time() + 30)
    print("alive after", beat + 1, "beats:", not idle.expired())

    # A TimeoutError of the body's own is not the limit's.
    try:
        async with asyncio.timeout(60) as limit:
            raise TimeoutError("from a library")
    except TimeoutError as exc:
        print("limit expired:", limit.expired(), "error:", exc)


asyncio.run(main())
