"""Servers and their connections, and create_connection() to a literal address."""

import asyncio
import contextvars
import gc
import hashlib
import os
import random
import resource
import socket
import sys
import warnings
import weakref

import pytest
from stream_helpers import (
    Recorder,
    clients_in_threads,
    collect_reports,
    raises,
    reset,
    run,
    run_on,
    same,
    turns,
)

import fastloop


# --- servers -----------------------------------------------------------------


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "unix"])
def test_server(run, family, tmp_path):
    async def scenario():
        loop = asyncio.get_running_loop()
        made = []

        def factory():
            made.append(Recorder())
            return made[-1]

        if family == "unix":
            server = await loop.create_unix_server(factory, str(tmp_path / "s"))
            client, _ = await loop.create_unix_connection(Recorder, str(tmp_path / "s"))
        else:
            host = "::1" if family == "ipv6" else "127.0.0.1"
            server = await loop.create_server(factory, host, 0)
            address = server.sockets[0].getsockname()
            client, _ = await loop.create_connection(Recorder, *address[:2])
        while not (made and made[0].events):
            await asyncio.sleep(0)
        transport = made[0].transport
        assert transport.get_extra_info("peername") == client.get_extra_info("sockname")
        assert transport.get_extra_info("sockname") == client.get_extra_info("peername")
        sock = transport.get_extra_info("socket")
        assert sock.gettimeout() == 0 and not sock.get_inheritable()
        assert transport._server is server
        client.write(b"hello")
        assert await made[0].received(5) == b"hello"
        client.close()
        await made[0].lost
        assert transport._server is None
        server.close()
        await server.wait_closed()

    run(scenario)


def test_server_with_a_factory_that_raises():
    async def scenario():
        reports = collect_reports()
        loop = asyncio.get_running_loop()
        fail = True

        def factory():
            if fail:
                raise ZeroDivisionError("factory")
            return Echo()

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
        fail = False
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        server.close()
        assert [r[:3] for r in reports] == [
            ("Error on transport creation for incoming connection", ZeroDivisionError, "factory")
        ]

    run_on("fastloop", scenario, debug=True)


def test_accept_without_free_fds(run, monkeypatch):
    from asyncio import constants

    monkeypatch.setattr(constants, "ACCEPT_RETRY_DELAY", 0.05)

    async def scenario():
        reports = collect_reports()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        client = socket.socket()
        client.settimeout(100)
        gc.collect()  # no number below may become free
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        low = client.dup()
        resource.setrlimit(resource.RLIMIT_NOFILE, (low.fileno() + 1, hard))
        try:
            client.connect(server.sockets[0].getsockname())
            while not reports:
                await asyncio.sleep(0.001)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        low.close()
        client.sendall(b"patience")
        assert await loop.run_in_executor(None, client.recv, 100) == b"patience"
        client.close()
        server.close()
        message, exc, _, keys = reports[0]
        assert message == "socket.accept() out of system resource"
        assert exc is OSError and keys == ["exception", "message", "socket"]

    run(scenario)


def test_each_connection_has_a_context_of_its_own(run):
    var = contextvars.ContextVar("var", default=0)

    async def scenario():
        var.set(1)
        seen = []

        def factory():
            seen.append(var.get())
            var.set(var.get() + 1)
            return Recorder(made=lambda p: seen.append(var.get()))

        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        for _ in range(3):
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            while len(seen) % 2 or not seen:
                await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()
        server.close()
        await turns()
        assert var.get() == 1
        assert seen == [1, 2] * 3

    run(scenario)


@pytest.mark.parametrize("style", ["protocol", "buffered"])
def test_thousands_of_short_connections(style):
    """No byte lost, doubled, or delivered to another connection."""

    class Checker(asyncio.BufferedProtocol if style == "buffered" else asyncio.Protocol):
        """Answers a 4-byte length and that many bytes with their digest, in pieces."""

        def connection_made(self, transport):
            self.transport = transport
            self.data = bytearray()
            self.buffer = bytearray(3000)

        def get_buffer(self, hint):
            return self.buffer

        def buffer_updated(self, n):
            self.data_received(bytes(self.buffer[:n]))

        def data_received(self, data):
            self.data += data
            if len(self.data) < 4 or len(self.data) < 4 + int.from_bytes(self.data[:4], "big"):
                return
            digest = hashlib.sha256(self.data[4:]).digest()
            self.transport.write(digest[:7])
            self.transport.writelines([digest[7:8], digest[8:]])
            self.transport.close()

    def client(address, seed, failures):
        rnd = random.Random(seed)
        for _ in range(500):
            payload = rnd.randbytes(rnd.choice([0, 1, 100, 1000, 20_000, 300_000]))
            message = len(payload).to_bytes(4, "big") + payload
            try:
                with socket.create_connection(address, 100) as sock:
                    if rnd.random() < 0.1:
                        reset(sock)
                        continue
                    while message:
                        n = rnd.choice([1, 3, 1000, len(message)])
                        sock.sendall(message[:n])
                        message = message[n:]
                    got = b""
                    while chunk := sock.recv(rnd.choice([1, 100])):
                        got += chunk
                if got != hashlib.sha256(payload).digest():
                    failures.append((seed, len(payload), got))
            except Exception as exc:
                failures.append((seed, exc))

    async def scenario():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Checker, "127.0.0.1", 0)
        assert await clients_in_threads(client, server) == []
        server.close()

    with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
        runner.run(scenario())


def test_many_connections_leave_nothing_behind(run):
    """Transports, protocols and fds are gone once their connections are."""

    async def scenario():
        loop = asyncio.get_running_loop()
        alive = weakref.WeakSet()

        class Tracked(Echo):
            def connection_made(self, transport):
                super().connection_made(transport)
                alive.update((self, transport))

        server = await loop.create_server(Tracked, "127.0.0.1", 0)
        for i in range(200):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"x")
            await reader.readexactly(1)
            writer.transport.abort() if i % 2 else writer.close()
        del reader, writer
        server.close()
        while alive:
            gc.collect()
            await asyncio.sleep(0.001)

    run(scenario)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Server.abort_clients is of 3.13")
def test_server_aborts_its_clients(run):
    async def scenario():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        await reader.readexactly(1)
        server.close()
        server.abort_clients()
        await server.wait_closed()
        assert await reader.read() == b""
        writer.close()

    run(scenario)


# --- create_connection() to a literal address ------------------------------------


@pytest.mark.parametrize(
    "host, port",
    [
        ("127.0.0.1", None),  # None: a port that listens
        ("::1", None),
        ("127.0.0.1", 1),
        ("127.0.0.1", -1),
        ("127.0.0.1", 70_000),
        ("127.0.0.1", "x"),
        ("127.0.0.1", "0"),
        ("127.0.0.1", True),
        ("", 1),
        ("\0", 1),
        (b"127.0.0.1", 1),
        ("::1%lo", 1),
        ("255.255.255.255", 1),
    ],
)
def test_connecting_to_a_literal_address(host, port):
    async def scenario():
        loop = asyncio.get_running_loop()
        server = None
        if port is None:
            server = await loop.create_server(Echo, host, 0)
        try:
            transport, protocol = await loop.create_connection(
                Recorder, host, port if server is None else server.sockets[0].getsockname()[1]
            )
        except Exception as exc:
            return type(exc), str(exc)
        transport.write(b"hello")
        echoed = await protocol.received(5)
        peername = transport.get_extra_info("peername")
        same_peer = peername == server.sockets[0].getsockname()
        sock = transport.get_extra_info("socket")
        seen = echoed, same_peer, sock.type, sock.proto, sock.gettimeout(), protocol.events
        transport.close()
        server.close()
        return seen

    same(scenario)


@pytest.mark.parametrize("where", ["factory", "connection_made"])
def test_connecting_with_a_protocol_that_fails(where):
    async def scenario():
        reports = collect_reports()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                if where == "factory":
                    await loop.create_connection(raises(ZeroDivisionError("no")), *address)
                else:
                    transport, _ = await loop.create_connection(
                        lambda: Recorder(made=raises(ZeroDivisionError("no"))), *address
                    )
                    transport.abort()
                    return len(reports)
        except Exception as exc:
            return type(exc)
        finally:
            server.close()

    same(scenario)


def test_cancelled_create_connection(run):
    """Cancelled in any turn, it leaves no socket behind."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for after in range(8):
            task = loop.create_task(loop.create_connection(Recorder, *address))
            await turns(after)
            task.cancel()
            try:
                transport, _ = await task
                transport.abort()
            except asyncio.CancelledError:
                pass
            del task
        server.close()
        while len(os.listdir("/proc/self/fd")) > before:
            gc.collect()
            await asyncio.sleep(0.001)

    run(scenario)
