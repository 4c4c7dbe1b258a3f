"""async for over a class with __aiter__ and __anext__, over lines of a stream, and aiter/anext by hand."""

import asyncio


class Ticker:
    """Counts to `limit`, one number every `interval` seconds."""

    def __init__(self, limit, interval):
        self.count, self.limit, self.interval = 0, limit, interval

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.count == self.limit:
            raise StopAsyncIteration
        await asyncio.sleep(self.interval)
        self.count += 1
        return self.count


async def talk(reader, writer):
    writer.writelines([b"first\n", b"second\n", b"no newline at the end"])
    writer.close()
    await writer.wait_closed()


async def main():
    async for n in Ticker(3, 0.005):
        print("tick", n)
    else:
        print("done")

    ticks = aiter(Ticker(1, 0))
    print("by hand:", await anext(ticks), await anext(ticks, "no more"))

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async for line in reader:
            print("line", line)
        writer.close()
        await writer.wait_closed()


asyncio.run(main())
