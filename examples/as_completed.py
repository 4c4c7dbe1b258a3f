"""as_completed: take results in the order in which they become ready."""

import asyncio


async def fetch(name, round_trips):
    for _ in range(round_trips):
        await asyncio.sleep(0)
    return name


async def main():
    jobs = [fetch("slow", 6), fetch("fast", 1), fetch("middle", 3)]
    for earliest in asyncio.as_completed(jobs):
        print("ready:", await earliest)

    quick, forever = asyncio.create_task(fetch("quick", 0)), asyncio.create_task(asyncio.sleep(60))
    await quick
    try:
        for earliest in asyncio.as_completed([quick, forever], timeout=0.05):
            print("ready:", await earliest)
    except TimeoutError:
        print("gave up on the rest")
    forever.cancel()
    await asyncio.wait([forever])


asyncio.run(main())
