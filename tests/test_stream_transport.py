"""SocketTransport: data, flow control and ends are on fastloop what they are on asyncio."""

import asyncio
import gc
import hashlib
import random
import socket
import sys

import pytest
from stream_helpers import (
    BufferedRecorder,
    LOOPS,
    Recorder,
    collect_reports,
    connect,
    raises,
    receive_all,
    reset,
    run,
    run_on,
    same,
    socket_pair,
    turns,
)


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
