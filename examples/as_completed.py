"""as_completed: take results in the order in which they become ready."""

import asyncio


async def fetch(name, delay):
    await asyncio.sleep(delay)
    return name


async def main():
    jobs = [fetch("slow", 0.06), fetch("fast", 0.01), fetch("middle", 0.03)]
    for earliest in asyncio.as_completed(jobs):
        print("ready:", await earliest)

    forever = asyncio.create_task(fetch("never", 60))
    try:
        for earliest in asyncio.as_completed([fetch("quick", 0), forever], timeout=0.05):
            print("ready:", await earliest)
    except TimeoutError:
        print("gave up on the rest")
    forever.cancel()
    await asyncio.wait([forever])


asyncio.run(main())
