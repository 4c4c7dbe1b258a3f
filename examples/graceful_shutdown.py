"""Graceful shutdown: a service to copy, which ends on SIGTERM without losing a request it has accepted.

    python graceful_shutdown.py PORT [GRACE]   serve until SIGTERM or SIGINT; port 0 takes a free one and prints it
    python graceful_shutdown.py                show it: serve, send requests, send SIGTERM to itself

A request is a line, an answer is a line: "TEXT" is answered by its SHA-256, made in a thread pool and recorded
by a queue worker afterwards; "sleep SECONDS" is answered that much later.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor


class Service:
    """Everything that has to be ended is held here: listener, connections, queue, workers, pool."""

    def __init__(self, grace=10.0, workers=4):
        self.grace = grace  # seconds from the signal until whatever still runs is cancelled
        self.stopping = asyncio.Event()
        self.clients = set()  # the task of every connection
        self.idle = set()  # those of them that wait for a request
        self.queue = asyncio.Queue(maxsize=100)
        self.workers = [asyncio.create_task(self.work()) for _ in range(workers)]
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="digest")
        self.accepted = self.answered = self.recorded = self.cancelled = 0

    async def run(self, port, on_listening):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        server = await asyncio.start_server(self.serve_client, "127.0.0.1", port)
        on_listening(server.sockets[0].getsockname()[1])
        await self.stopping.wait()
        await self.shut_down(server)

    async def shut_down(self, server):
        server.close()  # accept no more
        for task in self.idle:
            task.cancel()  # close connections that have no request under way
        try:
            async with asyncio.timeout(self.grace):
                if self.clients:
                    await asyncio.wait(self.clients)  # answer what was accepted
                await self.queue.join()  # and finish the work that followed from it
        except TimeoutError:
            pass
        self.cancelled = self.accepted - self.answered
        rest = [*self.clients, *self.workers]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        self.pool.shutdown(cancel_futures=True)  # waits for calls that run: threads cannot be cancelled

    def summary(self):
        return f"accepted {self.accepted} answered {self.answered} recorded {self.recorded} cancelled {self.cancelled}"

    async def serve_client(self, reader, writer):
        task = asyncio.current_task()
        self.clients.add(task)
        try:
            while not self.stopping.is_set() and (line := await self.next_request(reader, task)):
                self.accepted += 1
                writer.write(await self.answer(line) + b"\n")
                await writer.drain()
                self.answered += 1
            writer.close()
            await writer.wait_closed()  # until the last answer is with the kernel
        except asyncio.CancelledError:
            writer.transport.abort()  # after the deadline: a client that does not read must not hold us up
        except ConnectionError:
            writer.close()  # the client has gone
        finally:
            self.clients.discard(task)

    async def next_request(self, reader, task):
        """The client's next line; b"" when there will be none, or none is wanted any more."""
        self.idle.add(task)
        try:
            return await reader.readline()
        except asyncio.CancelledError:
            if not self.stopping.is_set():
                raise
            return b""
        finally:
            self.idle.discard(task)

    async def answer(self, line):
        match line.split():
            case [b"sleep", seconds]:
                await asyncio.sleep(float(seconds))
                return b"slept"
        loop = asyncio.get_running_loop()
        digest = await loop.run_in_executor(self.pool, self.digest, line.strip())
        await self.queue.put(digest)
        return digest

    @staticmethod
    def digest(text):
        time.sleep(0.005)  # stands for a blocking driver
        return hashlib.sha256(text).hexdigest().encode()

    async def work(self):
        while True:
            await self.queue.get()
            try:
                await asyncio.sleep(0.001)  # stands for writing it somewhere
                self.recorded += 1
            finally:
                self.queue.task_done()


async def serve(port, grace=10.0):
    service = Service(grace)
    await service.run(port, lambda port: print("listening on port", port, flush=True))
    print(service.summary())


async def show():
    service = Service(grace=0.1)
    listening = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(service.run(0, listening.set_result))
    port = await listening

    requests = [b"one", b"two", b"three", b"sleep 60", b""]
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in requests]
    for request, (_, writer) in zip(requests, clients):
        writer.write(request and request + b"\n")
    while service.accepted < 4 or service.recorded < 3:
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
    await service.stopping.wait()
    for request, (reader, writer) in zip(requests, clients):
        print(request, "->", (await reader.readline())[:16])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await running
    print(service.summary())
    try:
        await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        print("and no more connections")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(int(sys.argv[1]), *map(float, sys.argv[2:])))
    else:
        asyncio.run(show())
