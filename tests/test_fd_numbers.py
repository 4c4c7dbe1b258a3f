"""What an fd number leaves behind when its file is closed does not touch the file that gets the number next."""

import asyncio
import os
import socket
import tempfile

import pytest


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def echoes(address):
    """A connection to an Echo server at address is served."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"ping")
    answer = await reader.readexactly(4)
    writer.close()
    await writer.wait_closed()
    return answer == b"ping"


def leave_behind(loop, kind):
    """Close a file that `kind` watches without telling the loop; return its number and what was called."""
    called = []
    a, b = socket.socketpair()
    a.setblocking(False)
    number = a.fileno()
    if kind == "reader":
        loop.add_reader(number, called.append, "reader")
    else:
        loop.add_writer(number, called.append, "writer")
    os.close(a.detach())
    b.close()
    return number, called


@pytest.mark.parametrize("kind", ["reader", "writer"])
def test_a_callback_left_behind_by_a_closed_file(fast, kind):
    async def main():
        server = await fast.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        number, called = leave_behind(fast, kind)
        held = []
        while len(held) < 200:  # until the number has been given to a connection of the server or to its client
            assert await echoes(address)
            held.append(os.open(os.devnull, os.O_RDONLY))
            if max(held) > number + 4:
                break
        for fd in held:
            os.close(fd)
        assert called == []
        server.close()

    fast.run_until_complete(asyncio.wait_for(main(), 60))


def test_a_new_reader_of_the_number_ends_the_old_writer(fast):
    async def main():
        number, called = leave_behind(fast, "writer")
        a, b = socket.socketpair()
        with a, b:
            again = a.fileno() != number
            if again:
                os.dup2(a.fileno(), number)
            got = fast.create_future()
            fast.add_reader(number, got.set_result, "new")
            b.send(b"x")
            assert await got == "new"
            fast.remove_reader(number)
            if again:
                os.close(number)
        assert called == []

    fast.run_until_complete(asyncio.wait_for(main(), 60))


async def busy_sendfile(loop, file):
    """A task in loop.sendfile() to a peer that does not read; its transport, and a server that still accepts."""
    started = loop.create_future()

    class First(Echo):
        def connection_made(self, transport):
            super().connection_made(transport)
            if not started.done():
                started.set_result(transport)

    server = await loop.create_server(First, "127.0.0.1", 0)
    slow = socket.create_connection(server.sockets[0].getsockname())
    transport = await started
    task = loop.create_task(loop.sendfile(transport, file))
    while not transport._sock or transport.is_reading():
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    return server, slow, transport, task


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_transport_that_is_closed_during_sendfile(fast, how):
    async def main():
        with tempfile.TemporaryFile() as file:
            file.truncate(50_000_000)
            server, slow, transport, task = await busy_sendfile(fast, file)
            getattr(transport, how)()
            with pytest.raises(ConnectionError):
                await task
            slow.close()
            for _ in range(4):
                assert await echoes(server.sockets[0].getsockname())
            server.close()

    fast.run_until_complete(asyncio.wait_for(main(), 60))


def test_a_transport_is_usable_after_a_cancelled_sendfile(fast):
    async def main():
        with tempfile.TemporaryFile() as file:
            file.truncate(50_000_000)
            server, slow, transport, task = await busy_sendfile(fast, file)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert transport.is_reading()
            transport.write(b"the end")
            slow.settimeout(30)
            transport.close()
            received = b""
            while data := await fast.run_in_executor(None, slow.recv, 1 << 20):
                received = received[-100:] + data
            assert received.endswith(b"\0the end")
            slow.close()
            server.close()

    fast.run_until_complete(asyncio.wait_for(main(), 60))


def test_an_error_of_accepting_is_reported(fast):
    def factory():
        raise ZeroDivisionError

    async def main():
        reported = fast.create_future()
        fast.set_exception_handler(lambda loop, context: reported.set_result(context))
        server = await fast.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            context = await reported
        assert isinstance(context["exception"], ZeroDivisionError)
        assert context["message"] == "Error on transport creation for incoming connection"
        server.close()

    fast.run_until_complete(asyncio.wait_for(main(), 60))
