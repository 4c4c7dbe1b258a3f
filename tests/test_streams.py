"""asyncio's streams over SocketTransport: the short way into StreamReader and the ordinary one."""

import asyncio
import gc
import hashlib
import random
import sys
import warnings

import pytest
from stream_helpers import run, same


async def pair(**kwargs):
    """Reader and writer of a client, and of the server's side of the connection."""
    served = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(
        lambda r, w: served.set_result((r, w)), "127.0.0.1", 0, **kwargs
    )
    client = await asyncio.open_connection(*server.sockets[0].getsockname(), **kwargs)
    ends = await served
    server.close()
    return *client, *ends


async def close(*writers):
    for writer in writers:
        writer.close()
    for writer in writers:
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


@pytest.mark.parametrize("size", [1, 1000, 70_000, 3_000_000])
@pytest.mark.parametrize("method", ["read", "readexactly", "readuntil", "readline"])
def test_reading(run, size, method):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair(limit=4_000_000)
        payload = random.Random(size).randbytes(size).replace(b"\n", b".")
        far_writer.write(payload + b"\nrest")
        far_writer.write_eof()
        if method == "read":
            data = b""
            while len(data) <= size:
                data += await reader.read(size + 1 - len(data))
        elif method == "readexactly":
            data = await reader.readexactly(size + 1)
        else:
            data = await getattr(reader, method)()
        assert data == payload + b"\n"
        assert await reader.read() == b"rest"
        assert reader.at_eof() and await reader.read() == b""
        await close(writer, far_writer)

    run(scenario)


def test_flow_control_of_the_reader(run):
    """A reader that nobody reads takes at most twice its limit (and one read) in."""

    async def scenario():
        reader, writer, far_reader, far_writer = await pair(limit=1000)
        payload = random.Random(1).randbytes(20_000_000)

        async def send():
            for i in range(0, len(payload), 10_000):
                far_writer.write(payload[i : i + 10_000])
                await far_writer.drain()
            far_writer.write_eof()

        sending = asyncio.ensure_future(send())
        while not reader._paused:
            await asyncio.sleep(0.001)
        assert not writer.transport.is_reading()
        assert 2000 < len(reader._buffer) <= 2000 + 256 * 1024
        await asyncio.sleep(0.01)
        held = len(reader._buffer)
        await asyncio.sleep(0.01)
        assert len(reader._buffer) == held and not sending.done()
        digest = hashlib.sha256()
        while data := await reader.read(3000):
            digest.update(data)
        assert digest.digest() == hashlib.sha256(payload).digest()
        await sending
        await close(writer, far_writer)

    run(scenario)


async def answers(seed):
    """What a random sequence of reads gives or raises, all data being in the buffer when it begins."""
    rnd = random.Random(seed)
    data = bytes(rnd.choices(b"ab\n", [9, 2, 1], k=1000))
    reads = {
        "readline": [()],
        "readuntil": [(), (b"b",), (b"ab",), (b"",), ("b",), (bytearray(b"ba"),), ((b"b", b"\n"),), (b"c",)],
        "readexactly": [(1,), (7,), (True,), (0,), (-1,), (2.0,), ("1",), (70,)],
        "read": [(1,), (9,)],
    }
    reader, writer, far_reader, far_writer = await pair(limit=rnd.choice([5, 20, 800]))
    far_writer.write(data)
    far_writer.write_eof()
    while len(reader._buffer) < len(data):
        await asyncio.sleep(0)
    found = []
    for _ in range(200):
        method = rnd.choice(list(reads))
        arguments = rnd.choice(reads[method])
        try:
            result = await getattr(reader, method)(*arguments)
            assert type(result) is bytes
        except Exception as error:
            result = type(error), str(error), vars(error)
        found.append((method, arguments, result, len(reader._buffer)))
    found.append(await reader.read())
    await close(writer, far_writer)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_what_the_buffer_holds_is_read_as_asyncio_reads_it(seed):
    same(answers, seed)


def test_replaced_methods_of_a_reader_are_called(run, monkeypatch):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair()
        far_writer.write(b"a\nb\nc\nd\ne\n")
        assert await reader.readline() == b"a\n"
        original = reader.readuntil

        async def upper(separator):
            return (await original(separator)).upper()

        reader.readuntil = upper
        assert await reader.readline() == b"B\n"
        del reader.readuntil

        class_original = asyncio.StreamReader.readuntil

        async def twice(self, separator=b"\n"):
            return 2 * await class_original(self, separator)

        with monkeypatch.context() as patch:
            patch.setattr(asyncio.StreamReader, "readuntil", twice)
            assert await reader.readuntil() == b"c\nc\n"
            assert await reader.readline() == b"d\nd\n"
        assert await reader.readline() == b"e\n"
        far_writer.write(b"f\ng")
        while len(reader._buffer) < 3:
            await asyncio.sleep(0)
        with memoryview(reader._buffer), pytest.raises(BufferError):
            await reader.readline()
        assert [await reader.readexactly(1) for _ in range(3)] == [b"f", b"\n", b"g"]
        await close(writer, far_writer)

    run(scenario)


def test_many_lines_both_ways(run):
    async def scenario():
        async def serve(reader, writer):
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)

        async def client(seed):
            rnd = random.Random(seed)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for _ in range(50):
                lines = [b"x" * rnd.randrange(300) + b"\n" for _ in range(rnd.choice([1, 50]))]
                for line in lines:
                    writer.write(line)
                await writer.drain()
                for line in lines:
                    assert await reader.readline() == line.upper()
            writer.write_eof()
            assert await reader.read() == b""
            await close(writer)

        await asyncio.gather(*map(client, range(20)))
        server.close()

    run(scenario)


def test_a_cancelled_read_loses_nothing(run):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair()
        for i in range(50):
            reading = asyncio.ensure_future(reader.readexactly(3))
            await asyncio.sleep(0)
            far_writer.write(b"%03d" % i)
            if i % 2:
                await asyncio.sleep(0)
            reading.cancel()
            try:
                assert await reading == b"%03d" % i
            except asyncio.CancelledError:
                assert await reader.readexactly(3) == b"%03d" % i
        await close(writer, far_writer)

    run(scenario)


def test_reset_reaches_the_reader(run):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair()
        writer.write(b"unread, so the far end resets")
        await asyncio.sleep(0.01)
        reading = asyncio.ensure_future(reader.read())
        await asyncio.sleep(0)
        far_writer.transport.pause_reading()
        far_writer.transport.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        far_writer.transport.abort()
        with pytest.raises(ConnectionResetError):
            await reading
        assert isinstance(reader.exception(), ConnectionResetError)
        with pytest.raises(ConnectionResetError):
            await writer.drain()
        await close(writer)

    run(scenario)


def test_subclasses_and_patches_take_the_ordinary_way(run):
    """Whoever overrides feed_data() or data_received() is called, in whatever way he did it."""

    class Reader(asyncio.StreamReader):
        def feed_data(self, data):
            super().feed_data(data.upper())

    async def connected(reader_class):
        loop = asyncio.get_running_loop()
        reader = reader_class(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        return reader, protocol

    async def scenario():
        loop = asyncio.get_running_loop()
        echo = await loop.create_server(Echo, "127.0.0.1", 0)
        address = echo.sockets[0].getsockname()

        async def check(reader, protocol, expected):
            transport, _ = await loop.create_connection(lambda: protocol, *address)
            transport.write(b"abc\n")
            assert await reader.readline() == expected
            transport.close()

        await check(*await connected(asyncio.StreamReader), b"abc\n")
        await check(*await connected(Reader), b"ABC\n")

        reader, protocol = await connected(asyncio.StreamReader)
        feed = reader.feed_data
        reader.feed_data = lambda data: feed(data * 2)
        await check(reader, protocol, b"abc\n")
        assert await reader.readline() == b"abc\n"

        reader, protocol = await connected(asyncio.StreamReader)
        received = protocol.data_received
        protocol.data_received = lambda data: received(data[::-1])
        await check(reader, protocol, b"\n")
        assert await reader.readexactly(3) == b"cba"

        original = asyncio.StreamReader.feed_data
        asyncio.StreamReader.feed_data = lambda self, data: original(self, data.title())
        try:
            await check(*await connected(asyncio.StreamReader), b"Abc\n")
        finally:
            asyncio.StreamReader.feed_data = original
        echo.close()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    run(scenario)


def test_a_view_of_the_buffer_is_in_the_way(run):
    """bytearray.extend() raises BufferError then; the connection ends with it, as asyncio's."""

    async def scenario():
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: reports.append(c))
        reader, writer, far_reader, far_writer = await pair()
        far_writer.write(b"first")
        while len(reader._buffer) < 5:
            await asyncio.sleep(0)
        with memoryview(reader._buffer):
            far_writer.write(b"second")
            while reader.exception() is None:
                await asyncio.sleep(0)
        assert isinstance(reader.exception(), BufferError)
        assert reports[0]["message"] == "Fatal error: protocol.data_received() call failed."
        with pytest.raises(BufferError):
            await writer.wait_closed()
        await close(far_writer)

    run(scenario)


def test_reader_that_nobody_keeps(run):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair()
        del reader
        writer._reader = None
        gc.collect()
        far_writer.write(b"for nobody" * 1000)
        far_writer.write_eof()
        await close(far_writer)
        await close(writer)

    run(scenario)


def test_unclosed_writer(run):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del writer, reader
            gc.collect()
        if sys.version_info >= (3, 12):  # StreamWriter.__del__ closes
            assert await far_reader.read() == b""
        await close(far_writer)

    run(scenario)


def test_drain_waits_for_a_slow_peer(run):
    async def scenario():
        reader, writer, far_reader, far_writer = await pair()
        far_reader._transport.pause_reading()
        writer.write(b"x" * 20_000_000)
        draining = asyncio.ensure_future(writer.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        far_reader._transport.resume_reading()
        total = 0
        while total < 20_000_000:
            total += len(await far_reader.read(1_000_000))
        await draining
        await close(writer, far_writer)

    run(scenario)


@pytest.mark.parametrize("debug, clients", [(False, 1000), (True, 200)])
def test_many_clients(run, debug, clients):
    async def scenario():
        async def serve(reader, writer):
            data = await reader.read()
            writer.writelines([hashlib.sha256(data).digest(), b"."])
            writer.close()

        async def client(i):
            payload = random.Random(i).randbytes(i * 37 % 5000)
            reader, writer = await asyncio.open_connection(*address)
            writer.write(payload)
            writer.write_eof()
            assert await reader.read() == hashlib.sha256(payload).digest() + b"."
            await close(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
        address = server.sockets[0].getsockname()
        for batch in range(0, clients, 100):
            await asyncio.gather(*map(client, range(batch, batch + 100)))
        server.close()

    run(scenario, debug=debug)
