"""SocketTransport as Python code sees it: protocols, attributes, logs, and sockets that others have their hands on."""

import asyncio
import contextvars
import gc
import logging
import socket
import sys
import warnings
import weakref

import pytest
from stream_helpers import (
    BufferedRecorder,
    LOOPS,
    Recorder,
    connect,
    raises,
    reset,
    run,
    same,
    socket_pair,
    take_number_of,
    turns,
)

import fastloop


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
            isinstance(sock, asyncio.trsock.TransportSocket),
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
        gc.collect()  # what other tests left
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
        asyncio.get_running_loop().slow_callback_duration = 600
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
        near, far = take_number_of(ours)
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


def test_methods_of_a_socket_subclass_are_used(run):
    """What a subclass of socket.socket does to the bytes, it does to a transport's, at both ends."""

    def veil(data):
        return bytes(byte ^ 0x55 for byte in data)

    class Veiled(socket.socket):
        def recv(self, size):
            return veil(super().recv(size))

        def send(self, data):
            return super().send(veil(data))

        def accept(self):
            accepted, address = super().accept()
            return Veiled(fileno=accepted.detach()), address

    async def answer(reader, writer):
        writer.write(b"got " + await reader.readline())
        await writer.drain()
        writer.close()

    async def scenario():
        listener = Veiled()
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(answer, sock=listener)
        client = Veiled()
        client.connect(listener.getsockname())
        client.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(b"word\n")
        assert await reader.read() == b"got word\n"
        writer.close()
        with socket.create_connection(listener.getsockname()) as plain:
            plain.sendall(veil(b"plain\n"))
            plain.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(plain, 100) == veil(b"got plain\n")
        server.close()
        await server.wait_closed()

    run(scenario)


# --- keywords ------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, name, value",
    [
        ("write", "data", b"x"),
        ("writelines", "list_of_data", [b"x", b"y"]),
        ("set_protocol", "protocol", asyncio.Protocol()),
        ("get_extra_info", "name", "no such"),
        ("set_write_buffer_limits", "high", 5),
        ("_force_close", "exc", None),
        ("_fatal_error", "exc", OSError()),
    ],
)
def test_arguments_have_asyncios_names(method, name, value):
    async def scenario():
        transport, peer = await connect(asyncio.Protocol())
        function = getattr(transport, method)
        seen = [function(**{name: value})]
        for args, kwargs in [((value,), {name: value}), ((), {"wrong": value}), ((1, 2, 3, 4), {})]:
            with pytest.raises(TypeError):
                function(*args, **kwargs)
        transport.abort()
        peer.close()
        return seen

    same(scenario)
