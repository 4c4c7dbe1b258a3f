"""Peers that do not behave: split, damaged and foreign bytes, and clients that vanish."""

import asyncio
import gc
import os
import random
import socket
import ssl
import subprocess

import pytest

import fastloop

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
GARBAGE = {
    "http": HTTP,
    "zeros": bytes(100),
    "random": random.Random(1).randbytes(5000),
    "endless record": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "unknown type": b"\x63\x03\x03\x00\x05hello",
    "sslv2": b"\x80\x2e\x01\x00\x02" + bytes(50),
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "data first": b"\x17\x03\x03\x00\x05hello",
    "empty records": b"\x16\x03\x01\x00\x00" * 40,
}


class Underneath(asyncio.Transport):
    """A transport that only keeps what is written to it."""

    def __init__(self):
        super().__init__()
        self.sent, self.closing, self.paused = bytearray(), False, False

    def write(self, data):
        self.sent += data

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    def _force_close(self, exc):
        self.closing = True

    abort = close

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def take(self):
        taken = bytes(self.sent)
        self.sent.clear()
        return taken


class Pair:
    """A fastloop TLS server, without a socket, and ssl's own client object."""

    def __init__(self, contexts, protocol):
        server_context, client_context = contexts
        loop = asyncio.get_running_loop()
        self.protocol, self.underneath = protocol, Underneath()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client_context.wrap_bio(
            self.incoming, self.outgoing, server_hostname="localhost"
        )
        self.tls = fastloop._tls.SSLProtocol(
            loop, protocol, server_context, loop.create_future(), server_side=True
        )
        self.tls.connection_made(self.underneath)

    def feed(self, data):
        """As a transport does that receives `data` at once."""
        view = self.tls.get_buffer(-1)
        view[: len(data)] = data
        self.tls.buffer_updated(len(data))

    def handshake(self, piece=None):
        while True:
            try:
                self.client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            sent = self.outgoing.read()
            for i in range(0, len(sent), piece or len(sent) or 1):
                self.feed(sent[i : i + (piece or len(sent))])
            self.incoming.write(self.underneath.take())
            if done:
                return

    def encrypt(self, data):
        self.client.write(data)
        return self.outgoing.read()

    def end(self):
        self.tls.connection_lost(None)


@pytest.fixture
def run():
    def run(coroutine):
        return fastloop.run(asyncio.wait_for(coroutine, 250))

    return run


def test_records_split_at_every_byte(run, contexts, recorder, tls_version):
    """Two pieces that meet anywhere in three records: each record arrives with its last byte."""

    async def scenario():
        pair = Pair(contexts(tls_version), recorder())
        pair.handshake()
        messages = [b"a", b"bc" * 40, b"def"]
        length = len(b"".join(pair.encrypt(m) for m in messages))
        pair.end()

        pair = Pair(contexts(tls_version), recorder())
        pair.handshake()
        for split in range(length + 1):
            del pair.protocol.data[:]
            records = [pair.encrypt(m) for m in messages]
            whole = b"".join(records)
            ends = [sum(map(len, records[: i + 1])) for i in range(3)]
            pair.feed(whole[:split]) if split else None
            arrived = sum(split >= end for end in ends)
            assert pair.protocol.data == b"".join(messages[:arrived])
            pair.feed(whole[split:]) if split < len(whole) else None
            assert pair.protocol.data == b"".join(messages)
        pair.end()

    run(scenario())


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_everything_in_small_pieces(run, contexts, recorder, tls_version, piece):
    async def scenario():
        pair = Pair(contexts(tls_version), recorder())
        pair.handshake(piece)
        assert pair.protocol.events == ["made"]
        data = pair.encrypt(b"hello") + pair.encrypt(bytes(5000))
        for i in range(0, len(data), piece):
            pair.feed(data[i : i + piece])
        assert pair.protocol.data == b"hello" + bytes(5000)
        pair.end()

    run(scenario())


@pytest.mark.parametrize("size", [1, 5, 100, 16384])
def test_buffered_protocol_with_any_room(run, contexts, tls_version, size):
    """A buffer smaller than a record, or exactly filled, leaves nothing behind in ssl."""

    class Buffered(asyncio.BufferedProtocol):
        def __init__(self):
            self.room, self.data = bytearray(size), b""

        def get_buffer(self, hint):
            return self.room

        def buffer_updated(self, count):
            self.data += self.room[:count]

    async def scenario():
        pair = Pair(contexts(tls_version), Buffered())
        pair.handshake()
        sent = b""
        for length in (size, 3 * size, size - 1 or 1, min(16384, 2 * size + 1)):
            sent += bytes([length % 251]) * length
            pair.feed(pair.encrypt(bytes([length % 251]) * length))
            while len(pair.protocol.data) < len(sent):
                await asyncio.sleep(0)
        assert pair.protocol.data == sent
        pair.end()

    run(scenario())


def test_damaged_record(run, contexts, recorder, tls_version):
    """Data in front of it in the same piece is asyncio's to lose; the connection is closed."""

    async def scenario():
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, c: reported.append(c))
        pair = Pair(contexts(tls_version), recorder())
        pair.handshake()
        pair.feed(pair.encrypt(b"good"))
        assert pair.protocol.data == b"good"
        record = bytearray(pair.encrypt(b"evil"))
        record[-1] ^= 1
        pair.feed(record)
        assert pair.protocol.data == b"good" and pair.underneath.closing
        assert not reported  # an OSError is only logged, in debug mode
        pair.end()

    run(scenario())


def test_custom_sslobject_class(run, contexts, recorder):
    """A context's own SSLObject class is asked, not what it wraps."""

    class Counted(ssl.SSLObject):
        reads = writes = 0

        def read(self, len=1024, buffer=None):
            type(self).reads += 1
            return super().read(len, buffer) if buffer is not None else super().read(len)

        def write(self, data):
            type(self).writes += 1
            return super().write(data)

    async def scenario():
        server_context, client_context = contexts()
        server_context.sslobject_class = Counted
        pair = Pair((server_context, client_context), recorder())
        pair.handshake()
        pair.feed(pair.encrypt(bytes(40_000)))
        assert pair.protocol.data == bytes(40_000)
        pair.protocol.transport.write(b"answer")
        assert Counted.reads >= 3 and Counted.writes == 1
        pair.incoming.write(pair.underneath.take())
        assert pair.client.read(100) == b"answer"
        pair.end()

    run(scenario())


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_instead_of_a_handshake(run, contexts, recorder, name):
    """The connection ends, nobody is told of one that was never made, and the server lives on."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        made = []

        def accept():
            made.append(recorder())
            return made[-1]

        server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_context)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GARBAGE[name])
        writer.write_eof()
        try:
            answer = await reader.read()
            assert HTTP not in answer
        except ConnectionError:
            pass
        writer.close()
        assert all(protocol.events == [] for protocol in made)
        _, client = await loop.create_connection(recorder, *address, ssl=client_context)
        client.transport.write(b"hello")
        while made[-1].data != b"hello":
            await asyncio.sleep(0)
        client.transport.close()
        await client.event("lost")
        server.close()

    run(scenario())


def open_files():
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


@pytest.mark.parametrize("how", ["at once", "half a hello", "after hello", "reset"])
def test_clients_that_vanish_in_the_handshake(run, contexts, how):
    """No protocol, transport or file of them is left."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        tls = client_context.wrap_bio(ssl.MemoryBIO(), out := ssl.MemoryBIO(), server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = out.read()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=server_context)
        address = server.sockets[0].getsockname()

        async def vanish():
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                if how != "at once":
                    await loop.sock_sendall(sock, hello[: 100 if how == "half a hello" else None])
                if how == "after hello":
                    await loop.sock_recv(sock, 100_000)
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        def left():
            gc.collect()
            kinds = (fastloop._tls.SSLProtocol, fastloop._tls.SSLTransport)
            return sum(isinstance(o, kinds) for o in gc.get_objects())

        await vanish()
        files = open_files()
        for _ in range(10):
            await asyncio.gather(*(vanish() for _ in range(20)))
        while left():
            await asyncio.sleep(0.01)
        assert open_files() <= files
        server.close()

    run(scenario())


@pytest.mark.parametrize("version, command", [("tls1_3", b"K"), ("tls1_3", b"k"), ("tls1_2", b"R")])
def test_key_update_and_renegotiation(run, contexts, recorder, version, command):
    """OpenSSL's own client changes keys, or negotiates anew, in mid-connection."""

    class Echo(recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.write(data)

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, _ = contexts()
        server_context.options |= 1 << 8  # OpenSSL's SSL_OP_ALLOW_CLIENT_RENEGOTIATION
        protocol = Echo()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=server_context)
        port = server.sockets[0].getsockname()[1]
        client = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-connect", f"127.0.0.1:{port}", f"-{version}", "-brief",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

        async def say(line, answer):
            """It takes a command, or a message, from what it reads at once: one at a time."""
            client.stdin.write(line)
            while (said := await client.stdout.readline()) != answer:
                assert said, "openssl s_client ended"

        for number in range(3):
            await say(b"message %d\n" % number, b"message %d\n" % number)
            await say(command + b"\n", b"RENEGOTIATING\n" if command == b"R" else b"KEYUPDATE\n")
        await say(b"end\n", b"end\n")
        client.stdin.write(b"Q\n")
        await client.communicate()
        assert b"message 0\nmessage 1\nmessage 2\n" in protocol.data
        assert (await protocol.event("lost"))[1] is type(None)
        server.close()

    run(scenario())
