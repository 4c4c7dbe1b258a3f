"""SocketTransport: each scenario gives on fastloop what it gives on asyncio.

A scenario is a coroutine that returns what it saw; where asyncio is the measure the test runs it
on both loops and compares, otherwise it runs on each and checks for itself.
"""

import asyncio
import contextvars
import gc
import hashlib
import logging
import os
import random
import resource
import socket
import struct
import sys
import threading
import warnings
import weakref

import pytest

import fastloop

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}


def run_on(loop_name, scenario, *args, debug=False):
    with asyncio.Runner(loop_factory=LOOPS[loop_name], debug=debug) as runner:
        return runner.run(asyncio.wait_for(scenario(*args), 30))


def same(scenario, *args, debug=False):
    """What `scenario` returns on both loops, which must be the same."""
    expected = run_on("asyncio", scenario, *args, debug=debug)
    got = run_on("fastloop", scenario, *args, debug=debug)
    assert got == expected
    return got


@pytest.fixture(params=LOOPS)
def run(request):
    return lambda scenario, *args, **kw: run_on(request.param, scenario, *args, **kw)


class Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self, **answers):
        self.events = []
        self.data = bytearray()
        self.answers = answers  # name of a callback: what it does, called with the protocol
        self.lost = asyncio.get_running_loop().create_future()
        self.got_eof = asyncio.get_running_loop().create_future()
        self.arrived = asyncio.Event()

    def note(self, name, *args):
        self.events.append((name, *args))
        if name in self.answers:
            return self.answers[name](self)

    def connection_made(self, transport):
        self.transport = transport
        self.note("made")

    def data_received(self, data):
        assert type(data) is bytes and data
        self.data += data
        self.arrived.set()
        if "data" in self.answers:
            self.note("data")

    def eof_received(self):
        if not self.got_eof.done():
            self.got_eof.set_result(None)
        return self.note("eof")

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    def connection_lost(self, exc):
        try:
            self.note("lost", type(exc), str(exc))
        finally:
            if not self.lost.done():
                self.lost.set_result(exc)

    async def received(self, n):
        while len(self.data) < n:
            self.arrived.clear()
            await self.arrived.wait()
        return bytes(self.data)


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    def __init__(self, size=4096, **answers):
        super().__init__(**answers)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        assert sizehint == -1
        if "get_buffer" in self.answers:
            return self.note("get_buffer")
        return self.buffer

    def buffer_updated(self, n):
        self.data += self.buffer[:n]
        self.arrived.set()
        if "buffer_updated" in self.answers:
            self.note("buffer_updated")


def raises(exc):
    def answer(protocol):
        raise exc

    return answer


def socket_pair(kind="tcp"):
    """A non-blocking socket for a transport and a blocking one for its peer."""
    if kind == "unix":
        ours, peer = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            peer = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
    ours.setblocking(False)
    peer.settimeout(10)
    return ours, peer


async def connect(protocol, kind="tcp"):
    """A transport with `protocol`, and the blocking socket at its other end."""
    ours, peer = socket_pair(kind)
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: protocol, sock=ours
    )
    return transport, peer


def receive_all(peer):
    """Receive in a thread until the end: a future of the bytes."""

    def work():
        chunks = []
        while chunk := peer.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)

    return asyncio.get_running_loop().run_in_executor(None, work)


async def turns(n=3):
    for _ in range(n):
        await asyncio.sleep(0)


def collect_reports():
    """What goes to the exception handler, as comparable tuples."""
    reports = []

    def handler(loop, context):
        exc = context.get("exception")
        reports.append((context["message"], type(exc), str(exc), sorted(context)))

    asyncio.get_running_loop().set_exception_handler(handler)
    return reports


# --- data ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("size", [1, 1000, 100_000, 5_000_000])
@pytest.mark.parametrize("buffered", [False, True])
def test_echo(run, kind, size, buffered):
    async def scenario():
        protocol = BufferedRecorder(65536) if buffered else Recorder()
        transport, peer = await connect(protocol, kind)
        payload = random.Random(size).randbytes(size)
        loop = asyncio.get_running_loop()
        sending = loop.run_in_executor(None, peer.sendall, payload)
        assert await protocol.received(size) == payload
        await sending
        echoed = receive_all(peer)
        transport.write(payload)
        transport.write_eof()
        assert await echoed == payload
        peer.close()
        assert await protocol.lost is None
        assert [e[0] for e in protocol.events if e[0] not in ("pause", "resume")] == [
            "made", "eof", "lost",
        ]

    run(scenario)


def test_peer_that_trickles_and_ends_at_once(run):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        for i in range(50):
            peer.send(bytes([i]))
            await protocol.received(i + 1)
        transport.pause_reading()
        peer.sendall(b"last words")
        peer.close()  # data and the end are one event for the poller
        await turns()
        assert len(protocol.data) == 50
        transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.data == bytes(range(50)) + b"last words"

    run(scenario)


DATA = [
    b"bytes",
    bytearray(b"bytearray"),
    memoryview(b"memoryview"),
    memoryview(b"0123456789")[3:7],
    memoryview(bytearray(b"writable view")),
    memoryview(b"12345678").cast("I"),
    memoryview(b"123456").cast("B", (2, 3)),
    b"",
    bytearray(),
    memoryview(b""),
    type("Bytes", (bytes,), {})(b"subclass"),
]


@pytest.mark.parametrize("times", [1, 3])
def test_what_can_be_written(run, times):
    async def scenario():
        transport, peer = await connect(Recorder())
        received = receive_all(peer)
        for data in DATA:
            for _ in range(times):
                transport.write(data)
            await asyncio.sleep(0)
        transport.close()
        assert await received == b"".join(bytes(d) * times for d in DATA)
        peer.close()

    run(scenario)


@pytest.mark.parametrize("data", ["text", None, 5, [b"list"], object])
@pytest.mark.parametrize("method", ["write", "writelines"])
def test_what_cannot_be_written(data, method):
    async def scenario():
        transport, peer = await connect(Recorder())
        received = receive_all(peer)
        transport.write(b"before ")
        try:
            transport.write(data) if method == "write" else transport.writelines([data])
            seen = None
        except TypeError as exc:
            seen = str(exc)
        transport.write(b"after")
        transport.close()
        assert await received == b"before after"
        peer.close()
        return seen

    seen = same(scenario)
    skips_false = sys.version_info >= (3, 14) and method == "writelines"
    assert (seen is None) == (skips_false and not data)


def test_writelines_with_a_bad_item_writes_nothing():
    async def scenario():
        transport, peer = await connect(Recorder())
        received = receive_all(peer)
        with pytest.raises(TypeError):
            transport.writelines([b"lost", "text"])
        transport.close()
        assert await received == b""
        peer.close()

    run_on("fastloop", scenario)


def test_writelines(run):
    async def scenario():
        transport, peer = await connect(Recorder())
        received = receive_all(peer)
        transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
        transport.writelines(bytes([c]) for c in b"generator")
        transport.writelines([])
        transport.writelines([b"x" * 100_000] * 100)
        transport.writelines([b"."] * 5000)
        transport.close()
        assert await received == b"abcgenerator" + b"x" * 10_000_000 + b"." * 5000
        peer.close()

    run(scenario)


def test_a_buffer_may_be_reused_after_write():
    """asyncio keeps a view of what the kernel did not take; fastloop keeps a copy."""

    async def scenario():
        transport, peer = await connect(Recorder())
        size = 8_000_000
        data = bytearray(b"a" * size)
        transport.write(data)
        data[:] = b"b" * size
        transport.write(data[:1])
        data.clear()
        transport.close()
        assert await receive_all(peer) == b"a" * size + b"b"
        peer.close()

    run_on("fastloop", scenario)


def test_not_contiguous():
    async def scenario():
        reports = collect_reports()
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.write(memoryview(b"0123456789")[::2])
        await protocol.lost
        peer.close()
        return protocol.events, reports

    same(scenario)


def test_nothing_is_reordered_by_gathering(run):
    """Writes of every size, one or many a turn, with closes of every kind of turn."""

    async def scenario():
        rnd = random.Random(5)
        protocol = Recorder()
        transport, peer = await connect(protocol)
        received = receive_all(peer)
        digest = hashlib.sha256()
        for _ in range(2000):
            for _ in range(rnd.choice([1, 1, 1, 2, 3, 10])):
                data = rnd.randbytes(rnd.choice([1, 10, 100, 5000, 70_000]) // 7 + 1)
                digest.update(data)
                rnd.choice([
                    transport.write,
                    lambda d: transport.write(bytearray(d)),
                    lambda d: transport.writelines([d[:1], d[1:]]),
                ])(data)
            if rnd.random() < 0.7:
                await asyncio.sleep(0)
        transport.close()
        assert hashlib.sha256(await received).digest() == digest.digest()
        peer.close()

    run(scenario)


def test_a_single_write_is_sent_before_the_turn_ends(run):
    async def scenario():
        transport, peer = await connect(Recorder())
        for i in range(5):
            transport.write(b"%d" % i)
            assert peer.recv(10) == b"%d" % i  # blocks the loop's thread
            await asyncio.sleep(0)
        transport.close()
        peer.close()

    run(scenario)


def test_writes_in_pieces_are_sent_by_the_end_of_the_turn():
    async def scenario():
        transport, peer = await connect(Recorder())
        for _ in range(20):
            transport.write(b"head")
            transport.write(b"body")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            got = b""
            while len(got) < 8:
                got += peer.recv(100)
            assert got == b"headbody"
        transport.write(b"a")
        transport.write(b"b")
        assert transport.get_write_buffer_size() == 2  # it has learnt: both wait
        for _ in range(10):  # and learns again
            await asyncio.sleep(0)
            transport.write(b"c")
        assert transport.get_write_buffer_size() == 0
        transport.abort()  # gives the kernel what asyncio would have given it
        assert await receive_all(peer) == b"abcccccccccc"
        peer.close()

    run_on("fastloop", scenario)


def test_write_when_the_loop_does_not_run(run):
    for name in LOOPS:
        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:

            async def start():
                transport, peer = await connect(Recorder())
                for _ in range(3):
                    transport.write(b"1")
                    transport.write(b"2")
                    await asyncio.sleep(0)
                return transport, peer

            transport, peer = runner.run(start())
            transport.write(b"3")
            transport.write(b"4")
            got = b""
            while len(got) < 8:
                got += peer.recv(100)
            assert got == b"12121234"
            transport.close()
            peer.close()
            runner.run(asyncio.sleep(0))


# --- flow control ------------------------------------------------------------


def test_write_buffer_limits():
    def tries():
        yield {}
        yield {"high": 1000}
        yield {"low": 1000}
        yield {"high": 10, "low": 10}
        yield {"high": 0}
        yield {"high": 10.5}
        yield {"high": float("inf")}
        yield {"high": 10**30}
        yield {"high": 5, "low": 6}
        yield {"high": -1}
        yield {"low": -1}
        yield {"high": "x"}
        yield {"low": "x"}

    async def scenario():
        transport, peer = await connect(Recorder())
        seen = [transport.get_write_buffer_limits()]
        for kwargs in tries():
            try:
                transport.set_write_buffer_limits(**kwargs)
                seen.append(transport.get_write_buffer_limits())
            except Exception as exc:
                seen.append((type(exc), str(exc)))
        transport.set_write_buffer_limits(20, 10)
        seen.append((transport._low_water, transport._high_water))
        transport.close()
        peer.close()
        return seen

    same(scenario)


@pytest.mark.parametrize("failing", [(), ("pause",), ("resume",), ("pause", "resume")])
def test_pause_and_resume_writing(failing):
    async def scenario():
        reports = collect_reports()
        protocol = Recorder(**{name: raises(ZeroDivisionError(name)) for name in failing})
        transport, peer = await connect(protocol)
        transport.set_write_buffer_limits(high=100_000)
        for _ in range(200):
            transport.write(b"x" * 100_000)
        assert transport.get_write_buffer_size() > 100_000
        assert protocol.events == [("made",), ("pause",)]
        received = receive_all(peer)
        while ("resume",) not in protocol.events:
            await asyncio.sleep(0.001)
        assert transport.get_write_buffer_size() <= 25_000
        transport.close()
        assert len(await received) == 20_000_000
        await protocol.lost
        peer.close()
        return protocol.events, reports

    same(scenario)


def test_limit_zero_waits_for_every_byte(run):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.set_write_buffer_limits(high=0)
        for _ in range(5):
            transport.write(b"small")
            transport.write(b"small")
        assert protocol.events == [("made",)]
        transport.write(b"x" * 20_000_000)
        assert protocol.events == [("made",), ("pause",)]
        received = receive_all(peer)
        while transport.get_write_buffer_size():
            await asyncio.sleep(0.001)
        assert protocol.events == [("made",), ("pause",), ("resume",)]
        transport.close()
        assert len(await received) == 20_000_050
        peer.close()

    run(scenario)


def test_pause_reading(run):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        peer.sendall(b"x" * 100_000)
        await turns(5)
        assert not protocol.data
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        await protocol.received(100_000)
        transport.close()
        assert not transport.is_reading()
        transport.pause_reading()
        transport.resume_reading()
        peer.close()

    run(scenario)


def test_pause_reading_in_data_received(run):
    async def scenario():
        protocol = Recorder(data=lambda p: p.transport.pause_reading())
        transport, peer = await connect(protocol)
        loop = asyncio.get_running_loop()
        sending = loop.run_in_executor(None, peer.sendall, b"x" * 3_000_000)
        seen = 0
        while len(protocol.data) < 3_000_000:
            protocol.arrived.clear()
            transport.resume_reading()
            await protocol.arrived.wait()
            assert seen < len(protocol.data)
            seen = len(protocol.data)
            await turns()
            assert seen == len(protocol.data)
        await sending
        transport.close()
        peer.close()

    run(scenario)


def test_pause_reading_in_connection_made(run):
    async def scenario():
        protocol = Recorder(made=lambda p: p.transport.pause_reading())
        ours, peer = socket_pair()
        peer.sendall(b"early")
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: protocol, sock=ours
        )
        await turns(5)
        assert not protocol.data
        transport.resume_reading()
        assert await protocol.received(5) == b"early"
        transport.close()
        peer.close()

    run(scenario)


# --- ends --------------------------------------------------------------------


@pytest.mark.parametrize("keep_open", [True, False, 1, None])
def test_half_close(keep_open):
    async def scenario():
        protocol = Recorder(eof=lambda p: keep_open)
        transport, peer = await connect(protocol)
        peer.sendall(b"request")
        peer.shutdown(socket.SHUT_WR)
        await protocol.got_eof
        transport.write(b"answer")
        seen = [transport.is_closing(), transport.is_reading()]
        transport.close()
        seen.append(await receive_all(peer))
        await protocol.lost
        peer.close()
        return seen, protocol.events, bytes(protocol.data)

    same(scenario)


def test_write_eof():
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        seen = [transport.can_write_eof()]
        received = receive_all(peer)
        transport.write(b"x" * 5_000_000)
        transport.write_eof()
        transport.write_eof()
        for method, data in [("write", b"y"), ("writelines", [b"y"]), ("write", "y")]:
            try:
                getattr(transport, method)(data)
            except Exception as exc:
                seen.append((type(exc), str(exc)))
        seen.append(len(await received))
        peer.sendall(b"still open")
        seen.append(await protocol.received(10))
        transport.close()
        transport.write_eof()
        await protocol.lost
        peer.close()
        return seen

    same(scenario)


def test_close_sends_what_waits(run):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.write(b"x" * 10_000_000)
        transport.close()
        transport.close()
        assert transport.is_closing()
        await turns()
        assert not protocol.lost.done()
        assert len(await receive_all(peer)) == 10_000_000
        assert await protocol.lost is None
        assert protocol.events[-1] == ("lost", type(None), "None")
        peer.close()

    run(scenario)


def test_abort_drops_what_waits(run):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.write(b"x" * 50_000_000)
        transport.abort()
        transport.abort()
        transport.close()
        assert transport.get_write_buffer_size() == 0
        assert not protocol.lost.done()  # not before the next turn
        assert await protocol.lost is None
        assert len(await receive_all(peer)) < 50_000_000
        await turns()
        assert [e[0] for e in protocol.events].count("lost") == 1
        peer.close()

    run(scenario)


def test_force_close_and_fatal_error():
    async def scenario(method):
        reports = collect_reports()
        protocol = Recorder()
        transport, peer = await connect(protocol)
        if method == "force":
            transport._force_close(ValueError("forced"))
        elif method == "os":
            transport._fatal_error(ConnectionResetError(104, "reset"), "message")
        else:
            transport._fatal_error(ValueError("bad"))
        await protocol.lost
        peer.close()
        return protocol.events, reports

    for method in ("force", "os", "other"):
        same(scenario, method)


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def test_reset_by_peer():
    async def scenario():
        reports = collect_reports()
        protocol = Recorder()
        transport, peer = await connect(protocol)
        reset(peer)
        await protocol.lost
        return protocol.events, reports

    assert same(scenario)[0][-1][1] is ConnectionResetError


@pytest.mark.parametrize("size", [1, 10_000_000])
def test_reset_while_writing(size):
    async def scenario():
        reports = collect_reports()
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.pause_reading()
        transport.write(b"x" * size)
        reset(peer)
        while not protocol.lost.done():
            transport.write(b"y")
            transport.write(b"z")
            await asyncio.sleep(0)
        exc = await protocol.lost
        return isinstance(exc, ConnectionError), reports

    assert same(scenario) == (True, [])


def test_writes_to_a_lost_connection_are_logged(caplog):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.abort()
        caplog.clear()
        for _ in range(7):
            transport.write(b"x")
        await protocol.lost
        transport.write(b"x")
        peer.close()
        return [r.getMessage() for r in caplog.records], transport._conn_lost

    messages, _ = same(scenario)
    assert messages == ["socket.send() raised exception."] * 4


@pytest.mark.parametrize(
    "name, protocol_class",
    [
        ("made", Recorder),
        ("data", Recorder),
        ("eof", Recorder),
        ("lost", Recorder),
        ("get_buffer", BufferedRecorder),
        ("buffer_updated", BufferedRecorder),
    ],
)
def test_callbacks_that_raise(name, protocol_class):
    async def scenario(exc):
        reports = collect_reports()
        protocol = protocol_class(**{name: raises(exc)})
        transport, peer = await connect(protocol)
        peer.sendall(b"data")
        peer.shutdown(socket.SHUT_WR)
        await protocol.lost
        await turns()
        peer.close()
        # how a callback shows in "Exception in callback ..." is the loop's affair
        reports = [(m.split("in callback ")[0], *rest) for m, *rest in reports]
        return protocol.events, reports

    for exc in (ZeroDivisionError("oops"), OSError("os"), asyncio.CancelledError()):
        events, reports = same(scenario, exc)
        assert bool(reports) == (not isinstance(exc, OSError) or name in ("made", "lost"))


@pytest.mark.parametrize("answer", [b"", b"read-only", None, 5, bytearray()])
def test_bad_buffers(answer):
    async def scenario():
        reports = collect_reports()
        protocol = BufferedRecorder(get_buffer=lambda p: answer)
        transport, peer = await connect(protocol)
        peer.sendall(b"data")
        await protocol.lost
        peer.close()
        return protocol.events, reports

    same(scenario)


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize(
    "name", ["made", "data", "get_buffer", "buffer_updated", "eof", "lost", "pause", "resume"]
)
@pytest.mark.parametrize("action", ["close", "abort", "pause_reading", "write_eof", "write"])
def test_callbacks_that_turn_on_their_transport(buffered, name, action):
    """connection_lost() comes once, whatever is done to the transport from inside."""

    def act(protocol):
        args = (b"more",) if action == "write" else ()
        try:
            getattr(protocol.transport, action)(*args)
        except RuntimeError as exc:
            assert "write_eof" in str(exc)
        gc.collect()
        return protocol.buffer if name == "get_buffer" else None

    async def scenario():
        cls = BufferedRecorder if buffered else Recorder
        protocol = cls(**{name: act})
        _, peer = await connect(protocol)
        try:
            protocol.transport.write(b"x" * 8_000_000)
        except RuntimeError as exc:
            assert "write_eof" in str(exc)
        received = receive_all(peer)
        try:
            peer.sendall(b"data")
            peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # aborted already
        await turns(10)
        if action != "write_eof" and name != "resume":
            protocol.transport.abort()
        else:
            while protocol.transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
            protocol.transport.close()
        await protocol.lost
        await asyncio.gather(received, return_exceptions=True)
        peer.close()
        assert [e[0] for e in protocol.events].count("lost") == 1

    run_on("fastloop", scenario)


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["data", "eof", "buffer_updated", "get_buffer"])
def test_exits_leave_run_forever(exc, name):
    for loop_name in LOOPS:
        loop = LOOPS[loop_name]()

        async def scenario():
            cls = BufferedRecorder if name in ("buffer_updated", "get_buffer") else Recorder
            protocol = cls(**{name: raises(exc())})
            transport, peer = await connect(protocol)
            made.append((transport, peer))
            peer.sendall(b"data")
            peer.shutdown(socket.SHUT_WR)
            await asyncio.Event().wait()

        made = []
        task = loop.create_task(scenario())
        with pytest.raises(exc):
            loop.run_forever()
        task.cancel()
        for transport, peer in made:
            transport.abort()
            peer.close()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(turns())
        loop.close()


# --- protocols ---------------------------------------------------------------


def test_set_protocol(run):
    async def scenario():
        first, second, third = Recorder(), BufferedRecorder(), Recorder()
        transport, peer = await connect(first)
        assert transport.get_protocol() is first
        peer.sendall(b"one")
        await first.received(3)
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        peer.sendall(b"two")
        await second.received(3)
        transport.set_protocol(third)
        peer.sendall(b"three")
        await third.received(5)
        peer.close()
        assert await third.lost is None
        assert (first.data, second.data, third.data) == (b"one", b"two", b"three")
        assert first.events == [("made",)] and second.events == []
        assert transport.get_protocol() is None

    run(scenario)


def test_a_callback_rebound_on_the_instance_is_used(run):
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        got = asyncio.get_running_loop().create_future()
        protocol.data_received = got.set_result
        peer.sendall(b"x")
        assert await got == b"x"
        transport.close()
        peer.close()

    run(scenario)


def test_protocol_runs_in_the_context_of_its_maker(run):
    var = contextvars.ContextVar("var", default="none")

    async def scenario():
        var.set("maker")
        protocol = Recorder(
            made=lambda p: p.events.append(var.get()),
            data=lambda p: p.events.append(var.get()),
            eof=lambda p: p.events.append(var.get()),
        )
        transport, peer = await connect(protocol)
        var.set("later")
        peer.sendall(b"x")
        peer.close()
        await protocol.lost
        assert [e for e in protocol.events if isinstance(e, str)] == ["maker"] * 3

    run(scenario)


def test_order_of_the_first_callbacks():
    async def scenario():
        loop = asyncio.get_running_loop()
        order = []
        ours, peer = socket_pair()
        peer.sendall(b"early")
        protocol = Recorder(
            made=lambda p: (order.append("made"), loop.call_soon(order.append, "soon")),
            data=lambda p: order.append("data"),
        )
        await loop.create_connection(lambda: protocol, sock=ours)
        order.append("connected")
        await protocol.received(5)
        protocol.transport.close()
        peer.close()
        await protocol.lost
        return order

    assert same(scenario)[0] == "made"


# --- what else Python code sees ------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_extra_info(kind):
    async def scenario():
        transport, peer = await connect(Recorder(), kind)
        sock = transport.get_extra_info("socket")
        seen = [
            type(sock),
            sock.fileno() == transport._sock_fd,
            transport.get_extra_info("sockname") == peer.getpeername(),
            transport.get_extra_info("peername") == peer.getsockname(),
            transport.get_extra_info("nothing"),
            transport.get_extra_info("nothing", default=3),
            sorted(transport._extra),
            transport._loop is asyncio.get_running_loop(),
            isinstance(transport, asyncio.Transport),
        ]
        if kind == "tcp":
            seen.append(bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        transport.close()
        await turns()
        seen += [
            transport.get_extra_info("peername") is not None,
            transport._sock, transport._loop, transport._protocol, transport._server,
        ]
        peer.close()
        return seen

    same(scenario)


def test_repr():
    async def scenario():
        transport, peer = await connect(Recorder())
        fd = transport._sock_fd
        yield repr(transport)
        transport.pause_reading()
        yield repr(transport)
        transport.write(b"x" * 20_000_000)
        size = transport.get_write_buffer_size()
        assert size
        yield repr(transport).replace(str(size), "N")
        transport.close()
        yield repr(transport).replace(str(size), "N")
        transport.abort()
        await turns()
        peer.close()
        yield repr(transport)
        yield fd

    async def collect():
        *reprs, fd = [r async for r in scenario()]
        return [
            r.replace(f"fd={fd}", "fd=F").replace("_SelectorSocketTransport", "SocketTransport")
            for r in reprs
        ]

    assert same(collect)[-1] == "<SocketTransport closed fd=F>"


def test_attributes_and_weak_references(run):
    async def scenario():
        transport, peer = await connect(Recorder())
        transport.note = "mine"
        assert transport.note == "mine"
        assert weakref.ref(transport)() is transport
        transport.abort()
        await turns()
        peer.close()

    run(scenario)


def test_not_made_by_hand():
    with pytest.raises(TypeError):
        fastloop._core.SocketTransport()


def test_readers_on_a_transports_fd_are_refused():
    async def scenario():
        loop = asyncio.get_running_loop()
        ours, peer = socket_pair()
        transport, _ = await loop.create_connection(Recorder, sock=ours)
        seen = []
        for what in (ours, ours.fileno()):
            for call in (
                lambda: loop.add_reader(what, print),
                lambda: loop.add_writer(what, print),
                lambda: loop.remove_reader(what),
                lambda: loop.remove_writer(what),
            ):
                with pytest.raises(RuntimeError) as caught:
                    call()
                text = str(caught.value).replace("_SelectorSocket", "Socket")
                assert text.startswith(f"File descriptor {what!r} is used by transport <Socket")
                seen.append(text.split(" is used")[1].split(" fd=")[0])
        if sys.version_info >= (3, 12):  # 3.11's asyncio does not look
            with pytest.raises(RuntimeError):
                await loop.create_connection(Recorder, sock=ours)
        with pytest.raises(ValueError) as caught:
            loop.add_reader(object(), print)
        transport.close()
        await turns()
        peer.close()
        return seen

    same(scenario)


def test_unclosed_transport_warns():
    async def scenario():
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.pause_reading()  # nobody but us refers to it now
        protocol.transport = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport
            gc.collect()
        received = peer.recv(10)
        peer.close()
        messages = [str(w.message).split(" fd=")[0] for w in caught]
        return [m[-15:] for m in messages if "transport" in m], received

    assert same(scenario) == (["SocketTransport"], b"")


def test_the_loop_keeps_a_reading_transport_alive(run):
    async def scenario():
        received = []

        class Protocol(asyncio.Protocol):
            def data_received(self, data):
                received.append(data)

        transport, peer = await connect(Protocol())
        transport = None
        gc.collect()
        peer.sendall(b"x")
        while not received:
            await asyncio.sleep(0)
        peer.close()
        await turns(5)

    run(scenario)


def test_loop_closed_before_its_transports():
    for name in LOOPS:
        loop = LOOPS[name]()
        transport, peer = loop.run_until_complete(connect(asyncio.Protocol()))
        kept, other = loop.run_until_complete(connect(asyncio.Protocol()))
        kept.pause_reading()
        ref = weakref.ref(transport)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del transport
            loop.close()
            gc.collect()
            assert ref() is None
            assert peer.recv(1) == b""
            kept.resume_reading() if name == "fastloop" else None
            kept.write(b"sent")
            assert other.recv(10) == b"sent"
            with pytest.raises(RuntimeError, match="Event loop is closed"):
                kept.close()
            assert "fd=" in repr(kept)
            del kept
            gc.collect()
        peer.close()
        other.close()


def test_debug_log(caplog):
    async def scenario():
        caplog.clear()
        protocol = Recorder()
        transport, peer = await connect(protocol)
        transport.pause_reading()
        transport.resume_reading()
        reset(peer)
        await protocol.lost
        transport, peer = await connect(protocol := Recorder())
        peer.close()
        await protocol.lost
        return [
            r.msg
            for r in caplog.records
            if "SocketTransport" in r.getMessage() and "connected" not in r.msg
        ]

    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        messages = same(scenario, debug=True)
    assert messages == [
        "%r pauses reading", "%r resumes reading", "%r: %s", "%r received EOF",
    ]


# --- sockets that others have their hands on ------------------------------------


def test_socket_closed_under_the_transport(run):
    """The fd number is used again at once: the transport must not touch its new owner."""

    async def scenario():
        ours, peer = socket_pair()
        protocol = Recorder()
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: protocol, sock=ours
        )
        fd = ours.fileno()
        ours.close()
        stranger, other = socket.socketpair()
        assert fd in (stranger.fileno(), other.fileno())
        near, far = (stranger, other) if stranger.fileno() == fd else (other, stranger)
        near.setblocking(False)
        far.sendall(b"not for the transport")
        await turns(5)
        transport.write(b"not for the stranger")
        exc = await protocol.lost
        assert isinstance(exc, OSError)
        assert not protocol.data
        far.settimeout(0.05)
        with pytest.raises(TimeoutError):
            far.recv(1)
        assert near.recv(100) == b"not for the transport"
        for sock in (near, far, peer):
            sock.close()

    run(scenario)


def test_socket_like_objects_get_asyncios_transport(run):
    class Wrapped:
        def __init__(self, sock):
            self.sock = sock

        def __getattr__(self, name):
            return getattr(self.sock, name)

    async def scenario():
        ours, peer = socket_pair()
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        waiter = loop.create_future()
        transport = loop._make_socket_transport(Wrapped(ours), protocol, waiter)
        await waiter
        assert "Selector" in type(transport).__name__
        peer.sendall(b"x")
        await protocol.received(1)
        transport.close()
        await protocol.lost
        peer.close()

    run(scenario)


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
        client.settimeout(10)
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
                with socket.create_connection(address, 20) as sock:
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
        failures = []
        threads = [
            threading.Thread(target=client,
                             args=(server.sockets[0].getsockname(), seed, failures))
            for seed in range(6)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        server.close()
        assert failures == []

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
        await asyncio.sleep(0.05)
        gc.collect()
        assert len(alive) == 0

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
        await asyncio.sleep(0.05)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before

    run(scenario)
