"""Datagram endpoints, on asyncio and on fastloop alike."""

import asyncio
import errno
import gc
import os
import re
import socket
import subprocess
import sys
import warnings
import weakref

import pytest
from stream_helpers import take_number_of

import fastloop


class Recorder(asyncio.DatagramProtocol):
    def __init__(self):
        self.calls = []
        self.happened = asyncio.Event()

    def note(self, *call):
        self.calls.append(call)
        self.happened.set()

    def connection_made(self, transport):
        self.transport = transport
        self.note("connection_made")

    def datagram_received(self, data, addr):
        self.note("datagram", data, addr)

    def error_received(self, exc):
        self.note("error", type(exc), exc.errno)

    def connection_lost(self, exc):
        self.note("connection_lost", exc)

    def pause_writing(self):
        self.note("pause_writing")

    def resume_writing(self):
        self.note("resume_writing")

    async def until(self, count):
        """Wait for `count` calls altogether and give the last."""
        while len(self.calls) < count:
            self.happened.clear()
            await asyncio.wait_for(self.happened.wait(), 30)
        return self.calls[count - 1]


async def endpoint(loop, **options):
    options.setdefault("local_addr", ("127.0.0.1", 0))
    return await loop.create_datagram_endpoint(Recorder, **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_unconnected(loop, host):
    async def main():
        a, got_a = await endpoint(loop, local_addr=(host, 0))
        b, got_b = await endpoint(loop, local_addr=(host, 0))
        address_a, address_b = a.get_extra_info("sockname"), b.get_extra_info("sockname")
        assert a.get_extra_info("peername") is None
        if sys.version_info >= (3, 12) or isinstance(loop, fastloop.Loop):
            assert isinstance(a, asyncio.DatagramTransport)
        assert a.sendto(b"one", address_b) is None
        a.sendto(bytearray(b"two"), address_b[:2])
        a.sendto(memoryview(b"three"), addr=address_b)
        a.sendto(data=b"four", addr=address_b)
        await got_b.until(5)
        assert got_b.calls == [("connection_made",)] + [
            ("datagram", data, address_a) for data in (b"one", b"two", b"three", b"four")
        ]
        b.sendto(b"answer", got_b.calls[1][2])
        assert await got_a.until(2) == ("datagram", b"answer", address_b)
        for transport in (a, b):
            transport.close()
            assert transport.is_closing()
        assert await got_a.until(3) == ("connection_lost", None)
        a.close()

    loop.run_until_complete(main())


def test_names_are_resolved_by_the_socket(loop):
    async def main():
        a, _ = await endpoint(loop)
        b, got = await endpoint(loop)
        a.sendto(b"x", ("localhost", b.get_extra_info("sockname")[1]))
        assert (await got.until(2))[1] == b"x"
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_connected(loop):
    async def main():
        b, got_b = await endpoint(loop)
        address = b.get_extra_info("sockname")
        a, got_a = await endpoint(loop, local_addr=None, remote_addr=address)
        c, _ = await endpoint(loop)
        assert a.get_extra_info("peername") == address
        a.sendto(b"none")
        a.sendto(b"same", address)
        a.sendto(b"equal", tuple(list(address)))
        with pytest.raises(ValueError, match="Invalid address: must be None or"):
            a.sendto(b"other", ("127.0.0.1", 1))
        await got_b.until(4)
        assert [call[1] for call in got_b.calls[1:]] == [b"none", b"same", b"equal"]
        c.sendto(b"stranger", a.get_extra_info("sockname"))
        b.sendto(b"peer", a.get_extra_info("sockname"))
        assert await got_a.until(2) == ("datagram", b"peer", address)
        for transport in (a, b, c):
            transport.close()

    loop.run_until_complete(main())


def test_empty_datagrams(loop):
    async def main():
        a, _ = await endpoint(loop)
        b, got = await endpoint(loop)
        a.get_extra_info("socket")._sock.sendto(b"", b.get_extra_info("sockname"))
        assert (await got.until(2))[1] == b""
        a.sendto(b"", b.get_extra_info("sockname"))  # sent since 3.13, dropped before
        a.sendto(b"end", b.get_extra_info("sockname"))
        expected = [b"", b"", b"end"] if sys.version_info >= (3, 13) else [b"", b"end"]
        await got.until(1 + len(expected))
        assert [call[1] for call in got.calls[1:]] == expected
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_error_received(loop):
    async def main():
        nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
        nobody.connect(address)  # the port is ours, and what comes from others is refused
        a, got = await endpoint(loop, local_addr=None, remote_addr=address)
        a.sendto(b"x")
        assert await got.until(2) == ("error", ConnectionRefusedError, errno.ECONNREFUSED)
        a.sendto(bytes(70_000))
        assert await got.until(3) == ("error", OSError, errno.EMSGSIZE)
        # a refusal that is told by the next send
        a.get_extra_info("socket")._sock.send(b"x")
        a.sendto(b"y")
        assert (await got.until(4))[1] is ConnectionRefusedError
        a.close()
        nobody.close()
        assert not got.calls[-1][0] == "connection_lost"

    loop.run_until_complete(main())


def test_wrong_types(loop):
    async def main():
        a, _ = await endpoint(loop)
        for data in ("text", 5, None, [1]):
            with pytest.raises(TypeError, match="data argument must be a bytes"):
                a.sendto(data, ("127.0.0.1", 1))
        for args, keywords, text in [
            ((), {}, "sendto() missing 1 required positional argument: 'data'"),
            ((b"x", None, 3), {}, "sendto() takes from 2 to 3 positional arguments but 4 were given"),
            ((b"x",), {"address": None}, "sendto() got an unexpected keyword argument 'address'"),
            ((b"x",), {"data": b"y"}, "sendto() got multiple values for argument 'data'"),
            ((b"x", None), {"addr": None}, "sendto() got multiple values for argument 'addr'"),
        ]:
            with pytest.raises(TypeError, match=re.escape(text)):
                a.sendto(*args, **keywords)
        a.close()

    loop.run_until_complete(main())


@pytest.mark.parametrize("address", [None, 5, ("127.0.0.1",), ("127.0.0.1", 70_000)])
def test_bad_addresses_are_fatal(loop, address):
    """asyncio takes what is no OSError for the end of the transport."""
    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context))

    async def main():
        a, got = await endpoint(loop)
        a.sendto(b"x", address)
        assert reported[0]["message"] == "Fatal write error on datagram transport"
        assert isinstance(reported[0]["exception"], (TypeError, OverflowError))
        assert (await got.until(2))[0] == "connection_lost"

    loop.run_until_complete(main())


def test_closed_within_datagram_received(loop):
    class Closes(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.close()

    async def main():
        a, _ = await endpoint(loop)
        b, got = await loop.create_datagram_endpoint(Closes, local_addr=("127.0.0.1", 0))
        for _ in range(20):
            a.sendto(b"x", b.get_extra_info("sockname"))
        assert await got.until(3) == ("connection_lost", None)
        assert got.calls[1][0] == "datagram"
        await asyncio.sleep(0)
        assert len(got.calls) == 3
        a.close()

    loop.run_until_complete(main())


def test_paused_between_datagrams(loop):
    class Pauses(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data in (b"3", b"30"):
                self.transport.pause_reading()

    async def main():
        a, _ = await endpoint(loop)
        b, got = await loop.create_datagram_endpoint(Pauses, local_addr=("127.0.0.1", 0))
        for i in range(100):
            a.sendto(b"%d" % i, b.get_extra_info("sockname"))
        for last in (3, 30, 99):
            await got.until(last + 2)
            for _ in range(3):
                await asyncio.sleep(0)
            assert [call[1] for call in got.calls[1:]] == [b"%d" % i for i in range(last + 1)]
            if last != 99:
                assert not b.is_reading()
                b.resume_reading()
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_datagram_received_raises(loop):
    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    class Raises(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            raise ZeroDivisionError

    async def main():
        a, _ = await endpoint(loop)
        b, got = await loop.create_datagram_endpoint(Raises, local_addr=("127.0.0.1", 0))
        for _ in range(3):
            a.sendto(b"x", b.get_extra_info("sockname"))
        await got.until(4)
        a.close()
        b.close()

    loop.run_until_complete(main())
    assert [type(exc) for exc in reported] == [ZeroDivisionError] * 3


def test_flow_control(loop, tmp_path):
    """A Unix datagram socket whose peer does not read makes sendto() wait."""

    async def main():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.bind(str(tmp_path / "peer"))
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.connect(str(tmp_path / "peer"))
            a, got = await loop.create_datagram_endpoint(Recorder, sock=sock)
            a.set_write_buffer_limits(high=4000)
            count = 0
            while ("pause_writing",) not in got.calls:
                a.sendto(b"%d" % count + bytes(1000))
                count += 1
            assert a.get_write_buffer_size() > 4000
            received = []
            peer.setblocking(False)
            while len(received) < count:
                received.append(int((await loop.sock_recv(peer, 2000)).rstrip(b"\0")))
            assert received == list(range(count))
            assert await got.until(3) == ("resume_writing",)
            left = a.get_write_buffer_size()  # not 0 in asyncio up to 3.13
            while a.get_write_buffer_size() == left:
                a.sendto(b"last" * 500)
            a.close()  # what waits is sent first
            assert ("connection_lost", None) not in got.calls
            while ("connection_lost", None) not in got.calls:
                await loop.sock_recv(peer, 4000)

    loop.run_until_complete(main())


def test_unix_datagrams(loop, tmp_path):
    async def main():
        paths = [str(tmp_path / name) for name in "ab"]
        a, got_a = await loop.create_datagram_endpoint(
            Recorder, local_addr=paths[0], family=socket.AF_UNIX
        )
        b, got_b = await loop.create_datagram_endpoint(
            Recorder, local_addr=paths[1], family=socket.AF_UNIX
        )
        a.sendto(b"x", paths[1])
        assert await got_b.until(2) == ("datagram", b"x", paths[0])
        b.sendto(b"y", got_b.calls[1][2])
        assert await got_a.until(2) == ("datagram", b"y", paths[1])
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
            unnamed.sendto(b"z", paths[0])
        assert await got_a.until(3) == ("datagram", b"z", None)
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_abort_drops_what_waits(loop, tmp_path):
    async def main():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.bind(str(tmp_path / "peer"))
            a, got = await loop.create_datagram_endpoint(
                Recorder, remote_addr=str(tmp_path / "peer"), family=socket.AF_UNIX
            )
            while a.get_write_buffer_size() == 0:
                a.sendto(bytes(1000))
            a.abort()
            assert await got.until(2) == ("connection_lost", None)

    loop.run_until_complete(main())


def test_sent_after_the_end(loop):
    async def main():
        a, got_a = await endpoint(loop)
        b, got_b = await endpoint(loop)
        to = b.get_extra_info("sockname")
        kept = a.sendto
        a.close()
        a.sendto(b"the socket is open until the next turn", to)
        await got_b.until(2)
        await got_a.until(2)
        for send in (a.sendto, kept):
            with pytest.raises(TypeError, match="data argument must be"):
                send("text", to)
            with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'call_exception_handler'"):
                send(b"x", to)  # asyncio's, which has neither socket nor loop by then
        b.close()
        assert got_a.calls == [("connection_made",), ("connection_lost", None)]

    loop.run_until_complete(main())


def test_error_received_is_called_in_an_except_clause(loop):
    """So a protocol can log the traceback, and what it raises has the error as its context."""

    class Raises(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            assert sys.exc_info()[1] is exc
            raise ZeroDivisionError

    async def main():
        nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
        nobody.connect(address)
        a, got = await loop.create_datagram_endpoint(Raises, remote_addr=address)
        with pytest.raises(ZeroDivisionError) as raised:
            a.sendto(bytes(70_000))
        assert raised.value.__context__.errno == errno.EMSGSIZE
        assert sys.exc_info()[1] is None
        a.sendto(b"x")
        assert await got.until(3) == ("error", ConnectionRefusedError, errno.ECONNREFUSED)
        await asyncio.sleep(0)
        a.close()
        nobody.close()

    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    loop.run_until_complete(main())
    (exc,) = reported
    assert isinstance(exc, ZeroDivisionError) and isinstance(exc.__context__, ConnectionRefusedError)


@pytest.mark.parametrize("max_size", [0, 5, -1, "5", None, 2**70])
def test_max_size(loop, max_size):
    """A negative or impossible one ends the transport, as it does in asyncio."""
    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context["message"]))

    async def main():
        a, got = await endpoint(loop)
        b, _ = await endpoint(loop)
        a.max_size = max_size
        b.sendto(b"0123456789", a.get_extra_info("sockname"))
        if max_size in (0, 5):
            assert (await got.until(2))[1] == b"0123456789"[:max_size]
        else:
            assert (await got.until(2))[0] == "connection_lost"
            assert reported == ["Fatal read error on datagram transport"]
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_max_size_past_256_kib(loop, tmp_path):
    async def main():
        paths = [str(tmp_path / name) for name in "ab"]
        a, _ = await loop.create_datagram_endpoint(Recorder, local_addr=paths[0], family=socket.AF_UNIX)
        b, got = await loop.create_datagram_endpoint(Recorder, local_addr=paths[1], family=socket.AF_UNIX)
        a.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
        if a.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 320_000:
            pytest.skip("needs a send buffer for 300 KB")
        payload = os.urandom(300_000)
        b.max_size = 1 << 20
        a.sendto(payload, paths[1])
        assert await got.until(2) == ("datagram", payload, paths[0])
        b.max_size = 256 * 1024
        a.sendto(payload, paths[1])
        assert await got.until(3) == ("datagram", payload[: 256 * 1024], paths[0])
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_unix_peer_that_goes_away(loop, tmp_path):
    async def main():
        path = str(tmp_path / "peer")
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        peer.bind(path)
        a, got_a = await loop.create_datagram_endpoint(Recorder, remote_addr=path, family=socket.AF_UNIX)
        b, got_b = await loop.create_datagram_endpoint(
            Recorder, local_addr=str(tmp_path / "b"), family=socket.AF_UNIX
        )
        while a.get_write_buffer_size() == 0:
            a.sendto(bytes(1000))
        peer.close()  # and what waits for it is refused, as what comes after
        assert (await got_a.until(2))[1] in (ConnectionResetError, ConnectionRefusedError)
        b.sendto(b"x", path)
        assert got_b.calls[1:] == [("error", ConnectionRefusedError, errno.ECONNREFUSED)]
        os.unlink(path)
        b.sendto(b"x", path)
        assert got_b.calls[2:] == [("error", FileNotFoundError, errno.ENOENT)]
        a.abort()
        b.close()
        await got_b.until(4)

    loop.run_until_complete(main())


# --- sockets whose methods somebody replaced: those who keep tests off the network ---


async def exchange(a, b, got):
    """One datagram from a to b."""
    count = len(got.calls)
    a.sendto(b"x", None if a.get_extra_info("peername") else b.get_extra_info("sockname"))
    assert (await got.until(count + 1))[1] == b"x"


@pytest.mark.parametrize("name", ["sendto", "send", "recvfrom"])
def test_replaced_methods_are_called(loop, monkeypatch, name):
    """Those of socket.socket, whether replaced before the transport is made or after."""
    called = []
    original = getattr(socket.socket, name)

    def replaced(sock, *args):
        called.append(sock.getsockname())
        return original(sock, *args)

    async def main():
        b, got = await endpoint(loop)
        to = b.get_extra_info("sockname")
        options = {"remote_addr": to} if name == "send" else {}
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, name, replaced)
            a, _ = await endpoint(loop, **options)
            await exchange(a, b, got)
            assert len(called) == 1
        await exchange(a, b, got)
        assert len(called) == 1
        monkeypatch.setattr(socket.socket, name, replaced)
        await exchange(a, b, got)
        await exchange(a, b, got)
        assert called == [(b if name == "recvfrom" else a).get_extra_info("sockname")] * 3
        a.close()
        b.close()

    loop.run_until_complete(main())


@pytest.mark.parametrize("name, which", [("sendto", "write"), ("recvfrom", "read")])
def test_replaced_methods_that_raise(loop, monkeypatch, name, which):
    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append((context["message"], sys.exc_info()[1])))
    refusal = RuntimeError("no network in tests")

    def refuse(*args):
        raise refusal

    async def main():
        a, got_a = await endpoint(loop)
        b, got_b = await endpoint(loop)
        monkeypatch.setattr(socket.socket, name, refuse)
        a.sendto(b"x", b.get_extra_info("sockname"))
        assert await (got_a if name == "sendto" else got_b).until(2) == ("connection_lost", refusal)
        assert reported == [(f"Fatal {which} error on datagram transport", refusal)]
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_class_put_in_place_of_socket(loop, monkeypatch):
    called = []

    class Guarded(socket.socket):
        def sendto(self, *args):
            called.append("sendto")
            return super().sendto(*args)

        def recvfrom(self, *args):
            called.append("recvfrom")
            return super().recvfrom(*args)

    async def main():
        monkeypatch.setattr(socket, "socket", Guarded)
        a, _ = await endpoint(loop)
        b, got = await endpoint(loop)
        await exchange(a, b, got)
        assert called == ["sendto", "recvfrom"]
        a.close()
        b.close()

    loop.run_until_complete(main())


# What a hook can do about a datagram to b. It cannot be removed, so this is a program.
AUDITED = """
import asyncio, sys, fastloop

def refuse(sock): raise ZeroDivisionError
def deny(sock): raise PermissionError
def close(sock): sock.close()

class Protocol(asyncio.DatagramProtocol):
    def datagram_received(self, data, addr): queue.put_nowait(data)
    def error_received(self, exc): queue.put_nowait(type(exc).__name__)

async def endpoint():
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    return transport

def hook(event, args):
    global action
    if event == "socket.sendto" and action:
        do, action = action, None
        do(args[0])

def report(loop, context):
    queue.put_nowait(context["message"] + ": " + type(context["exception"]).__name__)

async def main():
    global action, queue
    asyncio.get_running_loop().set_exception_handler(report)
    queue = asyncio.Queue()
    b, c = await endpoint(), await endpoint()
    for do in (refuse, deny, close, lambda sock: a.sendto(b"to c", c.get_extra_info("sockname"))):
        a, action = await endpoint(), do
        a.sendto(b"to b", b.get_extra_info("sockname"))
        print(await queue.get(), a.is_closing())
        a.abort()
    print(await queue.get())
    b.close()
    c.close()

action = None
sys.addaudithook(hook)
new_loop = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}[sys.argv[1]]
with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("kind", ["asyncio", "fastloop"])
def test_audit_hooks(kind):
    command = [sys.executable, "-c", AUDITED, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    *lines, last, after = done.stdout.splitlines()
    assert lines == [
        "Fatal write error on datagram transport: ZeroDivisionError True",
        "PermissionError False",
        "OSError False",
    ]
    assert {last, after + " False"} == {"b'to b' False", "b'to c' False"}


def test_socket_closed_under_the_transport(loop):
    async def main():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        a, got = await loop.create_datagram_endpoint(Recorder, sock=sock)
        other, peer = take_number_of(sock)  # and the loop is not told
        with other, peer:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.bind(("127.0.0.1", 0))
                stranger.setblocking(False)
                a.sendto(b"not by the other's fd", stranger.getsockname())
                assert await got.until(2) == ("error", OSError, errno.EBADF)
                with pytest.raises(BlockingIOError):
                    stranger.recv(100)
            a.abort()
            await got.until(3)

    loop.run_until_complete(main())


def test_bursts_in_order_and_whole(loop):
    payloads = [os.urandom(i % 1400 + 1) for i in range(2000)]

    async def main():
        a, _ = await endpoint(loop)
        b, got = await endpoint(loop)
        b.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sent = 0
        for size in [1, 2, 3, 50, 1, 1, 40] * 10 + [10] * 100:
            for payload in payloads[sent : sent + size]:
                a.sendto(payload, b.get_extra_info("sockname"))
            sent = min(sent + size, len(payloads))
            await got.until(sent + 1)
        assert [call[1] for call in got.calls[1:]] == payloads[:sent]
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_largest_datagram(loop):
    async def main():
        a, _ = await endpoint(loop)
        b, got = await endpoint(loop)
        payload = os.urandom(65_507)
        a.sendto(payload, b.get_extra_info("sockname"))
        assert (await got.until(2))[1] == payload
        a.close()
        b.close()

    loop.run_until_complete(main())


def test_same_socket_twice():
    """asyncio refuses it since 3.12."""
    loop = fastloop.new_event_loop()

    async def main():
        a, _ = await endpoint(loop)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_datagram_endpoint(Recorder, sock=a.get_extra_info("socket")._sock)
        a.close()

    loop.run_until_complete(main())
    loop.close()


def test_unclosed_transport_warns_and_nothing_is_kept():
    async def main():
        loop = asyncio.get_running_loop()
        a, got = await endpoint(loop)
        refs.append(weakref.ref(a))
        a.close()
        await got.until(2)
        b, _ = await endpoint(loop)
        refs.append(weakref.ref(b))

    refs = []
    loop = fastloop.new_event_loop()
    loop.run_until_complete(main())
    gc.collect()
    assert refs[0]() is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        gc.collect()
    assert any("unclosed transport" in str(w.message) for w in caught)
    caught.clear()  # they refer to the transport
    gc.collect()
    assert refs[1]() is None


def test_it_is_fastloops():
    async def main():
        a, _ = await endpoint(asyncio.get_running_loop())
        assert type(a).__module__.startswith("fastloop")
        assert "fd=" in repr(a) and "read=" in repr(a)
        a.close()

    fastloop.run(main())
