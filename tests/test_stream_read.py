"""StreamReader.read() straight from the socket: nothing that happens between the wakeup and the read loses a byte."""

import asyncio
import gc
import hashlib
import inspect
import random
import socket
import struct
import sys
import warnings
import weakref

import pytest
from stream_helpers import LOOPS, clients_in_threads, run

import fastloop


async def open_pair(**kwargs):
    """Streams on one end of a TCP connection, a blocking socket on the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        near = asyncio.open_connection(*listener.getsockname(), **kwargs)
        (reader, writer), (far, _) = await asyncio.gather(
            near, asyncio.get_running_loop().sock_accept(listener)
        )
    far.setblocking(True)
    return reader, writer, far


async def finish(writer, far):
    writer.close()
    far.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


class Then(asyncio.Protocol):
    """Calls a function when anything arrives."""

    def __init__(self, function):
        self.data_received = lambda data: function()


async def woken_then(function, **kwargs):
    """A read(100) that waits; b"data" arrives, and `function(task, reader, writer, far)` is called before the read goes on.

    Both sockets are readable in one poll, in this order.
    """
    loop = asyncio.get_running_loop()
    reader, writer, far = await open_pair(**kwargs)
    a, b = socket.socketpair()
    a.setblocking(False)
    called = loop.create_future()

    def other_event():
        function(task, reader, writer, far)
        called.set_result(reader._waiter is None)

    other, _ = await loop.create_connection(lambda: Then(other_event), sock=a)
    task = loop.create_task(reader.read(100))
    while reader._waiter is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    far.sendall(b"data")
    b.send(b"!")
    assert await called  # what is tried here was tried: the read was awake by then
    other.close()
    b.close()
    return task, reader, writer, far


@pytest.mark.parametrize("how", ["close", "abort", "pause_reading"])
def test_transport_is_stopped_between(run, how):
    async def scenario():
        task, reader, writer, far = await woken_then(
            lambda task, reader, writer, far: getattr(writer.transport, how)()
        )
        assert await task == b"data"
        if how == "pause_reading":
            far.sendall(b"later")
            next_read = asyncio.ensure_future(reader.read(100))
            await asyncio.sleep(0.01)
            assert not next_read.done()
            writer.transport.resume_reading()
            assert await next_read == b"later"
        else:
            assert await reader.read(100) == b""
        await finish(writer, far)

    run(scenario)


def test_task_is_cancelled_between(run):
    async def scenario():
        task, reader, writer, far = await woken_then(
            lambda task, reader, writer, far: task.cancel()
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await reader.readexactly(2) == b"da"
        assert await reader.read(100) == b"ta"
        await finish(writer, far)

    run(scenario)


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_loop_is_closed_between(new_loop, monkeypatch):
    """Destroyed after its loop was closed, the task says no more than that it was pending."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    loop = new_loop()
    loop.set_exception_handler(lambda loop, context: None)
    ended = []

    async def serve(reader, writer):
        began.set()
        try:
            await reader.read(100)
        finally:
            ended.append(True)

    began = asyncio.Event()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    with socket.create_connection(server.sockets[0].getsockname()) as far:
        loop.run_until_complete(began.wait())
        far.sendall(b"data")
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert not ended
        server.close()
        loop.close()
        del server
        gc.collect()
    assert ended and unraisable == []


def test_protocol_is_changed_between(run):
    async def scenario():
        got = []

        class Other(asyncio.Protocol):
            def data_received(self, data):
                got.append(data)

        task, reader, writer, far = await woken_then(
            lambda task, reader, writer, far: writer.transport.set_protocol(Other())
        )
        assert await task == b"data"
        far.sendall(b"to the other")
        while b"".join(got) != b"to the other":
            await asyncio.sleep(0.001)
        writer.transport.abort()
        far.close()

    run(scenario)


def test_more_arrives_between(run):
    async def scenario():
        task, reader, writer, far = await woken_then(
            lambda task, reader, writer, far: far.sendall(b"more")
        )
        assert await task + (await reader.readexactly(4) if len(task.result()) < 8 else b"") == b"datamore"
        await finish(writer, far)

    run(scenario)


@pytest.mark.parametrize("reset", [False, True])
def test_peer_ends_between(run, reset):
    def end(task, reader, writer, far):
        if reset:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()

    async def scenario():
        task, reader, writer, far = await woken_then(end)
        assert await task == b"data"
        if reset:
            with pytest.raises(ConnectionResetError):
                await reader.read(100)
        else:
            assert await reader.read(100) == b""
            assert reader.at_eof()
        await finish(writer, far)

    run(scenario)


def test_feed_data_is_replaced_between(run):
    async def scenario():
        def replace(task, reader, writer, far):
            reader.feed_data = lambda data, feed=reader.feed_data: feed(data.upper())

        task, reader, writer, far = await woken_then(replace)
        assert (await task).lower() == b"data"
        far.sendall(b"data")
        assert await reader.read(100) == b"DATA"
        await finish(writer, far)

    run(scenario)


def hear_on_the_object(monkeypatch, protocol, hear):
    protocol.data_received = hear


def hear_on_the_class(monkeypatch, protocol, hear):
    monkeypatch.setattr(asyncio.StreamReaderProtocol, "data_received", lambda self, data: hear(data))


@pytest.mark.parametrize("replace", [hear_on_the_object, hear_on_the_class])
def test_data_received_is_replaced_while_it_waits(run, monkeypatch, replace):
    """The first bytes behind it go there already; what is fed by hand is what the read gives."""

    async def scenario():
        reader, writer, far = await open_pair()
        task = asyncio.create_task(reader.read(100))
        while reader._waiter is None:
            await asyncio.sleep(0)
        heard = asyncio.get_running_loop().create_future()
        with monkeypatch.context() as patch:
            replace(patch, writer.transport.get_protocol(), heard.set_result)
            far.sendall(b"data")
            assert await heard == b"data"
            assert not task.done() and reader._waiter is not None
            reader.feed_data(b"by hand")
            assert await task == b"by hand"
        await finish(writer, far)

    run(scenario)


class Treacherous:
    """A data_received() that is asyncio's, but whoever only looks at it has ended the connection."""

    def __init__(self, end):
        self.end, self.function = end, asyncio.StreamReaderProtocol.data_received

    def __get__(self, protocol, owner):
        self.end()
        return self.function.__get__(protocol, owner)


@pytest.mark.parametrize("method", ["read", "readexactly"])
def test_a_look_at_data_received_ends_it(run, monkeypatch, method):
    async def scenario():
        loop = asyncio.get_running_loop()
        reader, writer, far = await open_pair()
        transport, lost = writer.transport, loop.create_future()
        task = asyncio.create_task(getattr(reader, method)(4))
        while reader._waiter is None:
            await asyncio.sleep(0)

        class Other(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.done() or lost.set_result(exc)

        def end():
            transport.set_protocol(Other())
            transport.abort()
            gc.collect()

        with monkeypatch.context() as patch:
            patch.setattr(asyncio.StreamReaderProtocol, "data_received", Treacherous(end))
            far.sendall(b"data")
            assert await lost is None
        task.cancel()
        await asyncio.wait([task])
        far.close()

    run(scenario)


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, fastloop.Loop])
def test_call_soon_pauses_the_transport(base):
    """The wakeup goes through a call_soon() of the loop's own; what has arrived by then is read all the same."""

    class Loop(base):
        pause = None

        def call_soon(self, *args, **kwargs):
            if self.pause:
                self.pause()
            return super().call_soon(*args, **kwargs)

    async def scenario():
        loop = asyncio.get_running_loop()
        reader, writer, far = await open_pair()
        task = asyncio.create_task(reader.read(100))
        while reader._waiter is None:
            await asyncio.sleep(0)
        far.sendall(b"data")
        loop.pause = writer.transport.pause_reading
        assert await task == b"data"
        loop.pause = None
        await finish(writer, far)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 280))


def test_protocol_is_changed_while_it_waits(run):
    """The bytes are the new protocol's reader's; the old one's read() waits on."""

    async def scenario():
        loop = asyncio.get_running_loop()
        reader, writer, far = await open_pair()
        task = asyncio.create_task(reader.read(100))
        while reader._waiter is None:
            await asyncio.sleep(0)
        second = asyncio.StreamReader(loop=loop)
        writer.transport.set_protocol(asyncio.StreamReaderProtocol(second, loop=loop))
        far.sendall(b"data")
        assert await second.read(100) == b"data"
        assert not task.done()
        reader.feed_eof()
        assert await task == b""
        writer.transport.abort()
        far.close()

    run(scenario)


def test_fed_by_hand_while_it_waits(run):
    async def scenario():
        reader, writer, far = await open_pair()
        for number in range(3):
            task = asyncio.create_task(reader.read(100))
            while reader._waiter is None:
                await asyncio.sleep(0)
            reader.feed_data(b"by hand")
            far.sendall(b"%d" % number)
            assert await task == b"by hand"
            assert await reader.read(100) == b"%d" % number
        await finish(writer, far)

    run(scenario)


def test_kept_future_stays_done(run):
    """The next read() has one of its own if somebody looks at the last one's."""

    async def scenario():
        reader, writer, far = await open_pair()
        kept, called = [], []
        for number in range(4):
            task = asyncio.create_task(reader.read(100))
            while reader._waiter is None:
                await asyncio.sleep(0)
            assert not reader._waiter.done() and reader._waiter not in kept
            if number % 2 == 0:
                kept.append(reader._waiter)
                kept[-1].add_done_callback(called.append)
            far.sendall(b"data")
            assert await task == b"data"
            assert [future.result() for future in kept] == [None] * len(kept)
        await asyncio.sleep(0)
        assert called == kept
        await finish(writer, far)

    run(scenario)


@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
def test_transport_does_not_keep_the_reader(run):
    """Neither after a read(), also while it cannot write, nor after a cancelled one."""

    async def scenario():
        for how in ("read", "read while it cannot write", "cancelled"):
            reader, writer, far = await open_pair()
            transport, forgotten = writer.transport, weakref.ref(reader)
            task = asyncio.create_task(reader.read(100))
            while reader._waiter is None:
                await asyncio.sleep(0)
            if how == "read while it cannot write":
                writer.write(bytes(20_000_000))
                assert transport.get_write_buffer_size() > 0
            if how == "cancelled":
                task.cancel()
            else:
                far.sendall(b"data")
            await asyncio.wait([task])
            del task, reader, writer
            gc.collect()
            assert forgotten() is None
            transport.abort()
            far.close()

    run(scenario)


def test_second_read_while_one_waits(run):
    async def scenario():
        reader, writer, far = await open_pair()
        first = asyncio.ensure_future(reader.read(10))
        await asyncio.sleep(0)
        for method in (reader.read, reader.readexactly):
            with pytest.raises(RuntimeError, match="called while another coroutine is already waiting"):
                await method(10)
        far.sendall(b"data")
        assert await first == b"data"
        await finish(writer, far)

    run(scenario)


@pytest.mark.parametrize("size", [1, 7, 1000, 40_000, 65_536, 2**70])
def test_sizes(run, size):
    """At most n bytes, in order, whatever waits in the kernel or the reader."""

    async def scenario():
        reader, writer, far = await open_pair()
        payload = random.Random(size).randbytes(min(size * 50, 3_000_000))
        sender = asyncio.get_running_loop().run_in_executor(None, far.sendall, payload)
        received = bytearray()
        while len(received) < len(payload):
            data = await reader.read(size)
            assert type(data) is bytes and 0 < len(data) <= size
            received += data
        assert received == payload
        await sender
        far.sendall(b"end")
        far.shutdown(socket.SHUT_WR)
        assert await reader.read(-1) == b"end"
        assert await reader.read(0) == b""
        await finish(writer, far)

    run(scenario)


def test_mixed_methods(run):
    """read() and its siblings in random order see one stream."""

    async def scenario():
        rng = random.Random(1)
        reader, writer, far = await open_pair(limit=5000)
        payload = bytes(rng.choice(b"abc\n") for _ in range(400_000))

        def send():
            for start in range(0, len(payload), 7000):
                far.sendall(payload[start : start + 7000])
            far.shutdown(socket.SHUT_WR)

        sender = asyncio.get_running_loop().run_in_executor(None, send)
        received = bytearray()
        while not reader.at_eof():
            method = rng.randrange(4)
            if method == 0:
                received += await reader.readline()
            elif method == 1:
                try:
                    received += await reader.readexactly(rng.randrange(1, 3000))
                except asyncio.IncompleteReadError as error:
                    received += error.partial
            elif method == 2:
                try:
                    received += await asyncio.wait_for(reader.read(rng.randrange(1, 9000)), rng.choice([0, 1e-5, 9]))
                except TimeoutError:
                    pass
            else:
                received += await reader.read(rng.randrange(1, 9000))
        assert received == payload
        await sender
        await finish(writer, far)

    run(scenario)


def test_exception_of_the_reader(run):
    async def scenario():
        reader, writer, far = await open_pair()
        task = asyncio.ensure_future(reader.read(10))
        await asyncio.sleep(0)
        reader.set_exception(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await task
        with pytest.raises(ZeroDivisionError):
            await reader.read(10)
        await finish(writer, far)

    run(scenario)


def test_bad_sizes(run):
    async def scenario():
        reader, writer, far = await open_pair()
        far.sendall(b"data")
        for size in ("10", None, 1.5):
            with pytest.raises(TypeError):
                await reader.read(size)
        assert await reader.read(True) == b"d"
        assert await reader.readexactly(3) == b"ata"
        await finish(writer, far)

    run(scenario)


def test_it_is_a_coroutine(run):
    async def scenario():
        reader, writer, far = await open_pair()
        assert isinstance(reader, asyncio.StreamReader)
        assert inspect.iscoroutinefunction(reader.read)
        coroutine = reader.read(1)
        assert inspect.iscoroutine(coroutine)
        coroutine.close()
        coroutine = reader.read(1)
        coroutine.send(None)  # it waits
        coroutine.close()
        far.sendall(b"x")
        assert await asyncio.create_task(reader.read(1)) == b"x"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reader.read(1)
            gc.collect()
        assert any("was never awaited" in str(warning.message) for warning in caught)
        assert repr(reader).startswith("<StreamReader transport=<")
        await finish(writer, far)

    run(scenario)


def test_patched_read_is_called(run, monkeypatch):
    """Whoever replaces asyncio.StreamReader.read() is called, also for connections that exist."""

    async def scenario():
        reader, writer, far = await open_pair()
        far.sendall(b"one")
        assert await reader.read(10) == b"one"
        original = asyncio.StreamReader.read

        async def read(self, n=-1):
            return (await original(self, n)).upper()

        monkeypatch.setattr(asyncio.StreamReader, "read", read)
        far.sendall(b"two")
        assert await reader.read(10) == b"TWO"
        task = asyncio.ensure_future(reader.read(10))
        await asyncio.sleep(0)
        far.sendall(b"three")
        assert await task == b"THREE"
        monkeypatch.undo()
        far.sendall(b"four")
        assert await reader.read(10) == b"four"
        await finish(writer, far)

    run(scenario)


def short_connections(address, seed, failures):
    """Hundreds of connections, each with a message of its own and a check of the answer; some are reset."""
    rng = random.Random(seed)
    for _ in range(400):
        payload = rng.randbytes(rng.choice([0, 1, 100, 1000, 20_000, 200_000]))
        message = len(payload).to_bytes(4, "big") + payload
        with socket.create_connection(address, 60) as sock:
            if rng.random() < 0.1:
                sock.sendall(message[: rng.randrange(5)])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                continue
            while message:
                n = rng.choice([1, 3, 1000, len(message)])
                sock.sendall(message[:n])
                message = message[n:]
            answer = b"".join(iter(lambda: sock.recv(rng.choice([1, 100])), b""))
            if answer != hashlib.sha256(payload).digest():
                failures.append((seed, len(payload), answer))


def test_thousands_of_short_connections(run):
    """Checksums of random messages read in random ways: no byte is lost, doubled or another connection's."""

    async def serve(reader, writer):
        rng = random.Random()
        try:
            left = int.from_bytes(await reader.readexactly(4), "big")
            digest = hashlib.sha256()
            while left > 0:
                size = rng.randrange(1, rng.choice([10, 5000, 500_000]))
                read = reader.readexactly(min(size, left)) if rng.random() < 0.2 else reader.read(min(size, left))
                data = await read
                if not data:
                    return
                digest.update(data)
                left -= len(data)
            writer.write(digest.digest()[:5])
            writer.write(digest.digest()[5:])
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def scenario():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        assert await clients_in_threads(short_connections, server) == []
        server.close()

    run(scenario)
