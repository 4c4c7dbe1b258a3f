"""Event: many tasks wait for one thing to happen."""

import asyncio


async def waiter(name, ready):
    print(name, "waits")
    await ready.wait()
    print(name, "goes")


async def main():
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c"):
            group.create_task(waiter(name, ready))
        await asyncio.sleep(0.01)
        print("set")
        ready.set()

    # Once set, nobody waits any more, until it is cleared.
    await waiter("late", ready)
    ready.clear()
    print("is set:", ready.is_set())


asyncio.run(main())
