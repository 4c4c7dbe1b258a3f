"""Semaphore: fetch many pages, but never more than a few at once."""

import asyncio

LIMIT = 3


class Server:
    """A tiny HTTP server that remembers how many requests it had at the same time."""

    def __init__(self):
        self.active = self.peak = 0

    async def handle(self, reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        self.active += 1
        self.peak = max(self.peak, self.active)
        await asyncio.sleep(0.01)
        self.active -= 1
        body = b"page " + request.split()[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()
        await writer.wait_closed()


async def fetch(port, path, limit):
    async with limit:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
        return response.partition(b"\r\n\r\n")[2].decode()


async def main():
    site = Server()
    server = await asyncio.start_server(site.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limit = asyncio.Semaphore(LIMIT)
    async with server:
        pages = await asyncio.gather(*(fetch(port, f"/{n}", limit) for n in range(12)))
    print(pages)
    print("never more than", LIMIT, "at once:", site.peak <= LIMIT)


asyncio.run(main())
