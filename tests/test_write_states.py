"""Walks over the states of a writing transport (stream.h): nothing is lost, drain() returns, pause and resume alternate."""

import asyncio
import random
import socket

import pytest

LIMITS = [(0, 0), (1, 1), (1000, 1000), (1000, 0), (65536, 16384), (1 << 40, 1)]


class Flow(asyncio.Protocol):
    """A protocol that notes how it is paused and resumed."""

    paused = False

    def connection_made(self, transport):
        self.transport = transport
        self.resumed = asyncio.Event()
        self.resumed.set()
        self.lost = asyncio.get_running_loop().create_future()

    def pause_writing(self):
        assert not self.paused
        self.paused = True
        self.resumed.clear()

    def resume_writing(self):
        assert self.paused
        self.paused = False
        self.resumed.set()

    def connection_lost(self, exc):
        self.lost.set_result(exc)
        self.resumed.set()


async def pair(kind):
    """A transport with a Flow, and the non-blocking socket at its other end."""
    loop = asyncio.get_running_loop()
    if kind == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
    for sock in ours, theirs:
        sock.setblocking(False)
    if kind == "unix":
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of TCP it makes Nagle's algorithm wait
    transport, flow = await loop.create_connection(Flow, sock=ours)
    return transport, flow, theirs


class Walk:
    def __init__(self, seed, transport, flow, peer):
        self.random = random.Random(seed)
        self.transport, self.flow, self.peer = transport, flow, peer
        self.written, self.received = bytearray(), bytearray()

    def piece(self):
        data = self.random.randbytes(self.random.choice([1, 10, 700, 5000, 70_000, 300_000]))
        self.written += data
        return self.random.choice([bytes, bytearray, memoryview])(data)

    async def receive_some(self):
        try:
            data = self.peer.recv(self.random.choice([3000, 1 << 20]))
        except BlockingIOError:
            data = b""
        self.received += data
        if not data:
            await asyncio.sleep(0)

    async def drain(self):
        while not self.flow.resumed.is_set():
            await self.receive_some()

    async def step(self):
        choice = self.random.randrange(9)
        if choice <= 2:
            self.transport.write(self.piece())
        elif choice == 3:
            self.transport.writelines([self.piece() for _ in range(self.random.randrange(5))])
        elif choice == 4:
            high, low = self.random.choice(LIMITS)
            self.transport.set_write_buffer_limits(high, low)
        elif choice == 5:
            await self.drain()
        elif choice == 6:
            await asyncio.sleep(0)
        elif choice == 7:
            self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        else:
            await self.receive_some()

    async def finish(self):
        if self.random.randrange(2):
            self.transport.write_eof()
        self.transport.close()
        while not self.flow.lost.done() or len(self.received) < len(self.written):
            await self.receive_some()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("seed", range(25))
def test_random_walk(loop, kind, seed):
    async def main():
        transport, flow, peer = await pair(kind)
        with peer:
            walk = Walk(seed, transport, flow, peer)
            for _ in range(walk.random.randrange(5, 60)):
                await walk.step()
            await walk.drain()
            await walk.finish()
        assert walk.received == walk.written
        assert await flow.lost is None

    loop.run_until_complete(main())


def test_limits_behind_gathered_writes(loop):
    """Bytes that only wait for the end of the turn do not pause the protocol for good."""

    async def main():
        transport, flow, peer = await pair("tcp")
        with peer:
            transport.write(b"a")
            transport.write(b"b")
            transport.set_write_buffer_limits(0)
            transport.write(b"c")
            await flow.resumed.wait()
            transport.close()
            await flow.lost
            assert peer.recv(10) == b"abc"

    loop.run_until_complete(asyncio.wait_for(main(), 60))


def test_the_socket_is_used_after_gathered_writes(loop):
    async def main():
        transport, _, peer = await pair("tcp")
        sock = transport.get_extra_info("socket")
        with peer:
            transport.write(b"head\n")
            transport.write(b"body\n")
            sock.shutdown(socket.SHUT_WR)
            peer.setblocking(True)
            assert peer.recv(100, socket.MSG_WAITALL) == b"head\nbody\n"
            transport.abort()

    loop.run_until_complete(main())


def test_drained_bytes_are_with_the_kernel(loop):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            _, writer = await asyncio.open_connection(*server.getsockname())
            peer, _ = server.accept()
        with peer:
            writer.write(b"status\n")
            writer.write(b"headers\n")
            await writer.drain()
            peer.setblocking(True)
            peer.settimeout(30)
            assert peer.recv(15, socket.MSG_WAITALL) == b"status\nheaders\n"  # while the loop's turn goes on
            writer.close()

    loop.run_until_complete(main())


def test_a_subclass_of_bytes_whose_finalizer_touches_the_transport(loop):
    class Piece(bytes):
        def __del__(self):
            transport.write(b"again")
            transport.abort()

    async def main():
        global transport
        transport, flow, peer = await pair("unix")
        with peer:
            transport.writelines([Piece(bytes(100_000)) for _ in range(5)])
            transport.abort()
            assert await flow.lost is None

    loop.run_until_complete(main())
