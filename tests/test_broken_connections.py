"""A connection that breaks is never read as a clean end: the error reaches who reads, whichever call meets it first."""

import asyncio
import socket
import struct

import pytest

LARGE = bytes(8_000_000)  # more than the kernel takes of a peer that does not read


async def read(reader):
    while data := await reader.read(1000):
        assert data == b"half of the answer\n"


async def read_all(reader):
    await reader.read()


async def lines(reader):
    while await reader.readline():
        pass


async def until(reader):
    while True:
        await reader.readuntil(b"\n")


async def exactly(reader):
    await reader.readexactly(1000)


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def close_with_unread_bytes(peer):
    peer.close()


async def connect():
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader, writer = await asyncio.open_connection(*server.getsockname())
        peer, _ = server.accept()
    return reader, writer, peer


@pytest.mark.parametrize("breaks", [reset, close_with_unread_bytes], ids=lambda f: f.__name__)
@pytest.mark.parametrize("waiting", [False, True], ids=["idle", "writes wait"])
@pytest.mark.parametrize("way", [read, read_all, lines, until, exactly], ids=lambda f: f.__name__)
def test_a_reader_gets_the_error(loop, way, waiting, breaks):
    async def main():
        reader, writer, peer = await connect()
        task = asyncio.ensure_future(way(reader))
        peer.sendall(b"half of the answer\n")
        writer.write(LARGE if waiting else b"unread")
        for _ in range(20):
            await asyncio.sleep(0)
        breaks(peer)
        with pytest.raises(ConnectionError):
            await task
        writer.transport.abort()

    loop.run_until_complete(main())


@pytest.mark.parametrize("waiting", [False, True], ids=["idle", "writes wait"])
@pytest.mark.parametrize("buffered", [False, True], ids=["data", "buffer"])
def test_a_protocol_gets_the_error(loop, buffered, waiting):
    class Recorder(asyncio.BufferedProtocol if buffered else asyncio.Protocol):
        events = ()

        def __init__(self):
            self.lost = asyncio.get_running_loop().create_future()

        def get_buffer(self, hint):
            return bytearray(1000)

        def eof_received(self):
            self.events += ("eof",)

        def connection_lost(self, exc):
            self.lost.set_result(exc)

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            transport, protocol = await asyncio.get_running_loop().create_connection(Recorder, *server.getsockname())
            peer, _ = server.accept()
        transport.write(LARGE if waiting else b"unread")
        reset(peer)
        assert isinstance(await protocol.lost, ConnectionError)
        assert protocol.events == ()

    loop.run_until_complete(main())


def test_sock_recv_gets_the_error(loop):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock = socket.create_connection(server.getsockname())
            sock.setblocking(False)
            peer, _ = server.accept()
        with sock:
            receiving = asyncio.ensure_future(loop.sock_recv(sock, 100))
            await asyncio.sleep(0)
            reset(peer)
            with pytest.raises(ConnectionResetError):
                await receiving

    loop.run_until_complete(main())
