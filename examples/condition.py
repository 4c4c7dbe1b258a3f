"""Condition: wait until shared state is as you need it."""

import asyncio


class Pool:
    """At most `size` things out at a time; whoever wants several waits until there are enough."""

    def __init__(self, size):
        self.free = size
        self.changed = asyncio.Condition()

    async def take(self, count):
        async with self.changed:
            await self.changed.wait_for(lambda: self.free >= count)
            self.free -= count

    async def give_back(self, count):
        async with self.changed:
            self.free += count
            self.changed.notify_all()


async def user(name, count, pool):
    await pool.take(count)
    print(name, "took", count)
    await asyncio.sleep(0.01)
    await pool.give_back(count)


async def main():
    pool = Pool(4)
    async with asyncio.TaskGroup() as group:
        for name, count in [("a", 3), ("b", 2), ("c", 1), ("d", 4)]:
            group.create_task(user(name, count, pool))
    print("all back:", pool.free)


asyncio.run(main())
