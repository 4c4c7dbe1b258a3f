"""What the tests of streams share: running a scenario on both loops, protocols that write down what they are told, pairs of sockets.

A scenario is a coroutine that returns what it saw; where asyncio is the measure the test runs it
on both loops and compares, otherwise it runs on each and checks for itself.
"""

import asyncio
import os
import socket
import struct
import threading

import pytest

import fastloop

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}


def run_on(loop_name, scenario, *args, debug=False):
    with asyncio.Runner(loop_factory=LOOPS[loop_name], debug=debug) as runner:
        return runner.run(asyncio.wait_for(scenario(*args), 280))


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
    peer.settimeout(100)
    return ours, peer


def take_number_of(sock):
    """Close the socket; a pair of connected ones, the first of which has its fd number now."""
    number = sock.fileno()
    successor, peer = socket.socketpair()
    os.dup2(successor.fileno(), number, inheritable=False)  # closes what was there
    sock.detach()
    successor.close()
    return socket.socket(fileno=number), peer


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


async def clients_in_threads(client, server):
    """`client(address, seed, failures)` in six threads at once: what they have put into `failures`."""
    failures = []
    address = server.sockets[0].getsockname()

    def work(seed):
        try:
            client(address, seed, failures)
        except Exception as error:
            failures.append((seed, error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        await asyncio.sleep(0.01)
    return failures


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


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
