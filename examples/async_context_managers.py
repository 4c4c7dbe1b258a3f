"""async with: classes, @asynccontextmanager, and AsyncExitStack for a number known only at run time."""

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager


class Connection:
    def __init__(self, name):
        self.name = name

    async def __aenter__(self):
        await asyncio.sleep(0)
        print("open", self.name)
        return self

    async def __aexit__(self, exc_type, exc, tb):
        await asyncio.sleep(0)
        print("close", self.name, "after", exc_type.__name__ if exc_type else "success")


@asynccontextmanager
async def transaction(connection):
    print("begin on", connection.name)
    try:
        yield connection
    except BaseException:
        print("roll back")
        raise
    print("commit")


async def numbers():
    try:
        for n in range(100):
            yield n
    finally:
        await asyncio.sleep(0)
        print("generator closed")


async def main():
    async with Connection("db") as db, transaction(db):
        print("work")

    try:
        async with Connection("db") as db, transaction(db):
            raise ValueError("no such row")
    except ValueError as exc:
        print("failed:", exc)

    async with AsyncExitStack() as stack:
        for name in ("one", "two"):
            await stack.enter_async_context(Connection(name))
        stack.push_async_callback(asyncio.sleep, 0)

    # aclosing: leave an async generator early and have its finally run here, not some time later.
    async with aclosing(numbers()) as stream:
        async for n in stream:
            if n == 2:
                break


asyncio.run(main())
