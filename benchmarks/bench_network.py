"""Sockets: echo servers of every kind under the C load generator, connecting, and the memory of idle connections."""

import asyncio
import contextlib
import os
import pathlib
import resource
import socket

import harness
from harness import Benchmark, compile_c, new_loop, register
from servers import CLIENT_CORE, c_server, loadgen, make_socket, serve


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = memoryview(bytearray(256 * 1024))

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, size):
        self.transport.write(bytes(self.buffer[:size]))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


def protocol_server(protocol):
    async def start(loop, sock):
        if sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(protocol, sock=sock, backlog=4096)
        return await loop.create_server(protocol, sock=sock, backlog=4096)

    return start


def stream_server(handler):
    async def start(loop, sock):
        return await asyncio.start_server(handler, sock=sock, backlog=4096)

    return start


async def datagram_server(loop, sock):
    return await loop.create_datagram_endpoint(DatagramEcho, sock=sock)


async def echo_stream(reader, writer):
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):  # the load generator ends with a reset
        while data := await reader.read(128 * 1024):
            writer.write(data)


async def echo_lines(reader, writer):
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()


async def socket_server(loop, listener):
    async def echo(sock):
        with sock, contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, 128 * 1024):
                await loop.sock_sendall(sock, data)

    async def accept():
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tasks.add(loop.create_task(echo(sock)))

    tasks = set()
    tasks.add(loop.create_task(accept()))
    return tasks


def echo_limit(fd):
    return [compile_c("echo_limit.c"), str(fd)]


def echo(name, kind, server, arguments, *, scale=1, unit="messages/s"):
    def open_server(loop_name, options):
        return serve(loop_name, options, kind, server, loadgen(arguments, scale=scale), echo_limit)

    register(Benchmark("network", name, unit, open_server, has_limit=True))


protocol = protocol_server(Echo)
stream = stream_server(echo_stream)

for size, text in ((1024, "1k"), (100 * 1024, "100k")):
    for connections in (10, 500):
        echo(f"protocol_{text}_{connections}", "tcp", protocol, f"-m {size} -c {connections}")
    echo(f"buffered_{text}_10", "tcp", protocol_server(BufferedEcho), f"-m {size} -c 10")
    echo(f"stream_{text}_10", "tcp", stream, f"-m {size} -c 10")
    echo(f"sock_{text}_10", "tcp", socket_server, f"-m {size} -c 10")
    echo(f"unix_{text}_10", "unix", protocol, f"-m {size} -c 10")
echo("lines_50_10", "tcp", stream_server(echo_lines), f"-m {50 * 64} -l 64 -c 10", scale=50, unit="lines/s")
echo("udp_1k_10", "udp", datagram_server, "-m 1024 -c 10")
echo("accept", "tcp", protocol, "-m 64 -c 10 -r", unit="connections/s")


@contextlib.contextmanager
def connect(loop_name, options):
    """create_connection and abort, one after the other, to a C server on the other core."""
    sock, address = make_socket("tcp")
    host, port = address.removeprefix("tcp:").split(":")

    async def connections(loop, k):
        for _ in range(k):
            transport, _ = await loop.create_connection(asyncio.Protocol, host, int(port))
            transport.abort()

    with c_server(echo_limit, sock) as server:
        os.sched_setaffinity(server.pid, CLIENT_CORE)
        loop = new_loop(loop_name)
        yield harness.rate(lambda k: loop.run_until_complete(connections(loop, k)), 1, options)


register(Benchmark("network", "connect_abort", "connections/s", connect))
IDLE = 10_000


def status_kb(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])


@contextlib.contextmanager
def idle_memory(loop_name, options):
    """Peak memory for each of 10,000 idle connections, with ten active ones beside them (p99 of those in the figures)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 100:
        raise RuntimeError(f"{IDLE} connections need more open files than the hard limit of {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = status_kb("VmRSS:")
    with serve(loop_name, options, "tcp", protocol, loadgen(f"-m 64 -c 10 -i {IDLE}")) as put_load:

        def measure():
            figures = put_load()
            used = (status_kb("VmHWM:") - before) * 1024 / IDLE
            return {**figures, "value": used, "active_messages_per_second": figures["value"]}

        yield measure


# The peak of a process is its peak also when the load is gone.
register(Benchmark("network", "idle_10k", "bytes/connection", idle_memory, lower_is_better=True, repeatable=False))
