"""Workers: one process per core on one listening socket, replaced without losing a connection.

    python workers.py PORT [COUNT]   serve until SIGTERM or SIGINT; SIGHUP replaces the processes
    python workers.py                show it

The first process only listens and starts the others. They inherit the socket: a connection that one of them no longer
takes is taken by another. The server says which process it is, reads a line and says it again.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE

GRACE = 10.0  # seconds that a worker may go on when it is told to end

# How this program was started, `python -m fastloop` and the interpreter's options included.
COMMAND = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]]


async def serve_client(reader, writer):
    try:
        writer.write(b"%d\n" % os.getpid())
        writer.write(await reader.readline())
        await writer.drain()
    finally:
        writer.close()
    await writer.wait_closed()


async def work(listening):
    """Serve until a signal or the end of stdin, which is the end of the first process; then answer what was accepted."""
    loop, stopping, clients = asyncio.get_running_loop(), asyncio.Event(), set()
    for number in (signal.SIGTERM, signal.SIGINT):  # both can come to the whole process group
        loop.add_signal_handler(number, stopping.set)
    loop.add_reader(sys.stdin, stopping.set)

    async def accepted(reader, writer):
        clients.add(asyncio.current_task())
        try:
            await serve_client(reader, writer)
        except ConnectionError:
            pass  # the client has gone
        finally:
            clients.discard(asyncio.current_task())

    server = await asyncio.start_server(accepted, sock=listening, backlog=1024)
    print("ready", flush=True)
    await stopping.wait()
    loop.remove_reader(sys.stdin)
    server.close()
    for _ in range(10):
        await asyncio.sleep(0)  # the loop's turns from accepting a connection to its task
    if clients:
        await asyncio.wait(clients, timeout=GRACE)


class Workers:
    """`count` processes that serve on `listening`. As an async context manager: they end with the block."""

    def __init__(self, listening, count):
        self.listening, self.count, self.running = listening, count, []

    async def __aenter__(self):
        await self.replace()
        return self

    async def __aexit__(self, *exc):
        await self.end(self.running)

    async def start(self):
        fd = self.listening.fileno()
        arguments = [*COMMAND, "--worker", str(fd)]
        worker = await asyncio.create_subprocess_exec(*arguments, pass_fds=[fd], stdin=PIPE, stdout=PIPE)
        if await worker.stdout.readline() != b"ready\n":
            raise RuntimeError("a worker did not start")
        return worker

    async def replace(self):
        """Have new processes serve; the old ones."""
        old, self.running = self.running, [await self.start() for _ in range(self.count)]
        return old

    async def end(self, workers):
        for worker in workers:
            worker.stdin.close()
        for worker in workers:
            await worker.stdout.read()  # to its end, or the pipe would still be open when we leave
            await worker.wait()


async def serve(port, count):
    loop, signals = asyncio.get_running_loop(), asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, number)
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
        async with Workers(listening, count) as workers:
            print("listening on port", listening.getsockname()[1], flush=True)
            while await signals.get() == signal.SIGHUP:
                await workers.end(await workers.replace())
                print("replaced", flush=True)


class Client:
    """A connection: `pid` of the process at its other end."""

    async def connect(self, port):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.pid = int(await self.reader.readline())
        return self

    async def ask(self, line):
        self.writer.write(line)
        answer = await self.reader.read()
        self.writer.close()
        await self.writer.wait_closed()
        return answer


async def processes(port, count):
    """Connect until `count` processes have answered: which of them does is the kernel's choice."""
    seen = set()
    while len(seen) < count:
        clients = await asyncio.gather(*(Client().connect(port) for _ in range(20)))
        await asyncio.gather(*(client.ask(b"hello\n") for client in clients))
        seen.update(client.pid for client in clients)
    return seen


async def show():
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        async with Workers(listening, 2) as workers:
            first = await processes(port, 2)
            print(len(first), "processes on one port")

            client = await Client().connect(port)
            old = await workers.replace()
            ending = asyncio.create_task(workers.end(old))
            await asyncio.sleep(0)  # they are told to end
            print("one of them still answers:", client.pid in first, await client.ask(b"hello\n"))
            await ending
            print("ended:", [worker.returncode for worker in old])

            second = await processes(port, 2)
            print("replaced by", len(second - first))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", fd]:
            asyncio.run(work(socket.socket(fileno=int(fd))))
        case [port, *count]:
            asyncio.run(serve(int(port), *map(int, count or [os.cpu_count()])))
        case _:
            asyncio.run(show())
