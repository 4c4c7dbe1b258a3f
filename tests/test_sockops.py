"""loop.sock_recv() and its kin: the awaitable objects, the waiting, the errors."""

import asyncio
import collections.abc
import contextlib
import errno
import gc
import inspect
import os
import socket
import ssl
import threading
import warnings
import weakref

import pytest
from stream_helpers import take_number_of

import fastloop


@pytest.fixture
def pair():
    """Two connected non-blocking TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        b, _ = server.accept()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


class Subclass(socket.socket):
    """Not an exact socket.socket: its methods are used."""


@pytest.fixture(params=[socket.socket, Subclass])
def unix_pair(request):
    with contextlib.ExitStack() as stack:
        a, b = socket.socketpair()
        a = stack.enter_context(request.param(fileno=a.detach()))
        b = stack.enter_context(request.param(fileno=b.detach()))
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


def udp(*address, family=socket.AF_INET):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(address or ("127.0.0.1", 0))
    return sock


async def until_waiting(task):
    """Let the task run until it is suspended on its socket."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()


def test_receive_what_is_there_and_what_comes(loop, unix_pair):
    a, b = unix_pair

    async def main():
        b.send(b"now")
        assert await loop.sock_recv(a, 100) == b"now"
        task = loop.create_task(loop.sock_recv(a, 3))
        await until_waiting(task)
        b.send(b"later")
        assert await task == b"lat"
        buffer = bytearray(10)
        assert await loop.sock_recv_into(a, buffer) == 2
        assert buffer[:3] == b"er\0"
        task = loop.create_task(loop.sock_recv_into(a, memoryview(buffer)[4:]))
        await until_waiting(task)
        b.send(b"x" * 20)
        assert await task == 6
        assert bytes(buffer) == b"er\0\0xxxxxx"
        b.close()
        assert await loop.sock_recv(a, 100) == b"x" * 14
        assert await loop.sock_recv(a, 100) == b""
        assert await loop.sock_recv(a, 100) == b""

    loop.run_until_complete(main())


@pytest.mark.parametrize("size", [1000, 1 << 16, 1 << 20])
def test_much_data_both_ways(loop, pair, size):
    a, b = pair
    payload = os.urandom(3_000_000)

    async def check(sock):
        got = bytearray()
        while len(got) < len(payload):
            got += await loop.sock_recv(sock, size)
        assert got == payload

    async def main():
        await asyncio.gather(
            loop.sock_sendall(a, payload), loop.sock_sendall(b, memoryview(payload)),
            check(a), check(b),
        )  # fmt: skip

    loop.run_until_complete(main())


def test_sendall_takes_any_buffer_and_waits(loop, unix_pair):
    a, b = unix_pair

    async def main():
        await loop.sock_sendall(a, b"")
        await loop.sock_sendall(a, bytearray(b"ab"))
        await loop.sock_sendall(a, memoryview(b"cd"))
        assert await loop.sock_recv(b, 100) == b"abcd"
        data = bytes(range(256)) * 8000
        task = loop.create_task(loop.sock_sendall(a, data))
        await until_waiting(task)
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(b, 100_000)
        assert await task is None
        assert got == data

    loop.run_until_complete(main())


def test_eof_that_came_with_the_data(loop, pair):
    """A short read is no reason to wait when the end is there as well."""
    a, b = pair

    async def main():
        task = loop.create_task(loop.sock_recv(a, 100))
        await until_waiting(task)
        b.send(b"last")
        b.close()
        assert await task == b"last"
        assert await loop.sock_recv(a, 100) == b""

    loop.run_until_complete(main())


def test_reads_shorter_than_what_is_there(loop, pair):
    a, b = pair

    async def main():
        task = loop.create_task(loop.sock_recv(a, 2))
        await until_waiting(task)
        b.send(b"abcdefg")
        got = await task
        while len(got) < 7:
            got += await loop.sock_recv(a, 2)
        assert got == b"abcdefg"

    loop.run_until_complete(main())


def test_urgent_data_ends_a_read_but_not_the_data(loop, pair):
    a, b = pair

    async def main():
        task = loop.create_task(loop.sock_recv(a, 100))
        await until_waiting(task)
        b.send(b"before")
        b.send(b"!", socket.MSG_OOB)
        b.send(b"after")
        got = await task
        while got != b"beforeafter":
            got += await loop.sock_recv(a, 100)

    loop.run_until_complete(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("host, family", [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_datagrams(loop, host, family):
    async def main():
        with udp(host, 0, family=family) as a, udp(host, 0, family=family) as b:
            assert await loop.sock_sendto(a, b"one", b.getsockname()) == 3
            data, address = await loop.sock_recvfrom(b, 100)
            assert (data, address) == (b"one", a.getsockname())
            buffer = bytearray(10)
            task = loop.create_task(loop.sock_recvfrom_into(b, buffer))
            await until_waiting(task)
            await loop.sock_sendto(a, b"two", b.getsockname()[:2])
            assert await task == (3, a.getsockname())
            await loop.sock_sendto(a, b"three", b.getsockname())
            assert await loop.sock_recvfrom_into(b, buffer, 2) == (2, a.getsockname())
            assert buffer[:4] == b"tho\0"
            await loop.sock_sendto(a, b"", b.getsockname())
            assert await loop.sock_recvfrom(b, 100) == (b"", a.getsockname())
            with pytest.raises(OSError) as caught:
                await loop.sock_sendto(a, bytes(70_000), b.getsockname())
            assert caught.value.errno == errno.EMSGSIZE
            # what is no plain literal is left to the socket itself
            name = "localhost" if family == socket.AF_INET else host
            await loop.sock_sendto(a, b"named", (name, b.getsockname()[1]))
            assert (await loop.sock_recvfrom(b, 1 << 20))[0] == b"named"

    loop.run_until_complete(main())


def test_unix_datagrams(loop, tmp_path):
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]

    async def main():
        with (
            udp_unix(paths[0]) as a, udp_unix(paths[1]) as b, udp_unix("\0" + paths[0]) as abstract,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed,
        ):  # fmt: skip
            unnamed.setblocking(False)
            for sender, name in [(a, paths[0]), (abstract, abstract.getsockname()), (unnamed, None)]:
                assert await loop.sock_sendto(sender, b"x", paths[1]) == 1
                assert await loop.sock_recvfrom(b, 10) == (b"x", name)

    def udp_unix(path):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(path)
        return sock

    loop.run_until_complete(main())


def test_connect_and_accept(loop):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            port = server.getsockname()[1]
            for address in [("127.0.0.1", port), ("localhost", port)]:
                with socket.socket() as client:
                    client.setblocking(False)
                    task = loop.create_task(loop.sock_accept(server))
                    assert await loop.sock_connect(client, address) is None
                    conn, peer = await task
                    with conn:
                        assert type(conn) is socket.socket
                        assert peer == client.getsockname() == conn.getpeername()
                        assert conn.gettimeout() == 0
                        assert not conn.get_inheritable()
                        assert (conn.family, conn.type, conn.proto) == (
                            server.family, server.type, server.proto
                        )  # fmt: skip
                        await loop.sock_sendall(client, b"hi")
                        assert await loop.sock_recv(conn, 10) == b"hi"

    loop.run_until_complete(main())


def test_connect_and_accept_unix(loop, tmp_path):
    async def main():
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(tmp_path / "s"))
            server.listen()
            server.setblocking(False)
            client.setblocking(False)
            await loop.sock_connect(client, str(tmp_path / "s"))
            conn, peer = await loop.sock_accept(server)
            conn.close()
            assert peer == ""
            with pytest.raises(FileNotFoundError):
                await loop.sock_connect(client, str(tmp_path / "none"))

    loop.run_until_complete(main())


@pytest.mark.parametrize("cls", [socket.socket, Subclass])
def test_connection_refused(loop, cls):
    async def main():
        with cls() as sock, socket.socket() as holder:
            sock.setblocking(False)
            holder.bind(("127.0.0.1", 0))  # and does not listen: the port is ours, and refuses
            address = holder.getsockname()
            with pytest.raises(ConnectionRefusedError) as caught:
                await loop.sock_connect(sock, address)
            assert caught.value.errno == errno.ECONNREFUSED
            assert caught.value.strerror == f"Connect call failed {address}"

    loop.run_until_complete(main())


def test_name_that_does_not_resolve(loop):
    async def main():
        with socket.socket() as sock:
            sock.setblocking(False)
            with pytest.raises(socket.gaierror):
                await loop.sock_connect(sock, ("no-such-name.invalid", 1))

    loop.run_until_complete(main())


def test_bad_arguments(loop, pair):
    a, _ = pair

    async def main():
        with pytest.raises(TypeError):
            loop.sock_recv(a)
        with pytest.raises(TypeError):
            loop.sock_recv(a, 1, 2)
        with pytest.raises(TypeError):
            loop.sock_recv(a, m=1)
        with pytest.raises(TypeError):
            loop.sock_recv(a, 1, n=1)
        for coro, error, text in [
            (loop.sock_recv(a, "1"), TypeError, "cannot be interpreted as an integer"),
            (loop.sock_recv(a, -1), ValueError, "negative buffersize in recv"),
            (loop.sock_recv(a, 1 << 70), OverflowError, "too large"),
            (loop.sock_recv_into(a, b"constant"), TypeError, "read-write bytes-like object"),
            (loop.sock_recvfrom(a, -1), ValueError, "negative buffersize in recvfrom"),
            (loop.sock_recvfrom_into(a, bytearray(2), 5), ValueError, "nbytes is greater"),
            (loop.sock_sendall(a, "text"), TypeError, "bytes-like object is required, not 'str'"),
            (loop.sock_sendto(a, b"x", 5), TypeError, "AF_INET address must be tuple"),
        ]:
            with pytest.raises(error, match=text):
                await coro
        assert await loop.sock_recv(a, 0) == b""

    loop.run_until_complete(main())


def test_keywords_as_in_asyncio(loop, pair):
    a, b = pair

    async def main():
        await loop.sock_sendall(sock=a, data=b"abc")
        assert await loop.sock_recv(sock=b, n=1) == b"a"
        assert await loop.sock_recvfrom_into(b, buf=bytearray(5), nbytes=1) == (1, None)

    loop.run_until_complete(main())


def test_closed_socket(loop, pair):
    a, _ = pair
    a.close()

    async def main():
        for coro in [
            loop.sock_recv(a, 1), loop.sock_sendall(a, b"x"), loop.sock_accept(a),
            loop.sock_recvfrom(a, 1), loop.sock_connect(a, ("127.0.0.1", 1)),
        ]:  # fmt: skip
            with pytest.raises(OSError) as caught:
                await coro
            assert caught.value.errno == errno.EBADF

    loop.run_until_complete(main())


def test_blocking_socket_in_debug_mode(loop):
    loop.set_debug(True)

    async def main():
        with socket.socket() as sock:
            for coro in [
                loop.sock_recv(sock, 1), loop.sock_recv_into(sock, bytearray(1)),
                loop.sock_recvfrom(sock, 1), loop.sock_recvfrom_into(sock, bytearray(1)),
                loop.sock_sendall(sock, b"x"), loop.sock_sendto(sock, b"x", ("127.0.0.1", 1)),
                loop.sock_connect(sock, ("127.0.0.1", 1)), loop.sock_accept(sock),
            ]:  # fmt: skip
                with pytest.raises(ValueError, match="the socket must be non-blocking"):
                    await coro

    loop.run_until_complete(main())


def test_blocking_socket_does_not_block_fastloop(fast, pair):
    a, b = pair
    a.setblocking(True)

    async def main():
        task = fast.create_task(fast.sock_recv(a, 10))
        await until_waiting(task)
        b.send(b"x")
        assert await task == b"x"

    fast.run_until_complete(main())


def test_ssl_socket_is_refused(loop):
    async def main():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with context.wrap_socket(socket.socket()) as sock:
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await loop.sock_recv(sock, 1)

    loop.run_until_complete(main())


def test_fd_of_a_transport_is_refused(loop, pair):
    a, _ = pair

    async def main():
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=a)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(a, 1)
        transport.abort()

    loop.run_until_complete(main())


def test_a_transport_takes_the_socket_over(loop, pair):
    a, b = pair

    class Received(asyncio.Protocol):
        def __init__(self):
            self.data = loop.create_future()

        def data_received(self, data):
            self.data.set_result(data)

    async def main():
        task = loop.create_task(loop.sock_recv(a, 1))
        await until_waiting(task)
        b.send(b"1")
        assert await task == b"1"
        transport, protocol = await loop.create_connection(Received, sock=a)
        b.send(b"to the transport")
        assert await protocol.data == b"to the transport"
        transport.write(b"back")
        assert await loop.sock_recv(b, 10) == b"back"
        transport.close()

    loop.run_until_complete(main())


def test_cancel(loop, unix_pair):
    a, b = unix_pair

    async def main():
        for _ in range(3):
            task = loop.create_task(loop.sock_recv(a, 10))
            await until_waiting(task)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_recv(a, 10), 0.001)
        assert not loop.remove_reader(a.fileno())
        b.send(b"kept")
        assert await loop.sock_recv(a, 10) == b"kept"
        task = loop.create_task(loop.sock_sendall(a, bytes(5_000_000)))
        await until_waiting(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not loop.remove_writer(a.fileno())

    loop.run_until_complete(main())


def test_data_is_not_lost_to_a_cancellation(fast, pair):
    """asyncio takes the bytes from the socket before the task may be cancelled."""
    a, b = pair

    async def main():
        task = fast.create_task(fast.sock_recv(a, 10))
        await until_waiting(task)
        b.send(b"precious")
        fut = fast.create_future()
        fast.call_later(0.001, fut.set_result, None)
        waiter = task._fut_waiter
        while not waiter.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await fast.sock_recv(a, 10) == b"precious"
        await fut

    fast.run_until_complete(main())


def test_reader_and_writer_of_one_socket(loop, pair):
    a, b = pair

    async def main():
        reader = loop.create_task(loop.sock_recv(a, 10))
        writer = loop.create_task(loop.sock_sendall(a, bytes(5_000_000)))
        await until_waiting(reader)
        await until_waiting(writer)
        b.send(b"in")
        assert await reader == b"in"
        left = 5_000_000
        while left:
            left -= len(await loop.sock_recv(b, 1 << 20))
        await writer

    loop.run_until_complete(main())


def test_second_reader_takes_the_place_of_the_first(loop, pair):
    a, b = pair

    async def main():
        first = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(first)
        second = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(second)
        b.send(b"x")
        assert await second == b"x"
        b.send(b"y")
        await until_waiting(first)
        first.cancel()
        await asyncio.wait([first])
        assert await loop.sock_recv(a, 10) == b"y"

    loop.run_until_complete(main())


def test_cancelling_the_replaced_reader_leaves_the_other(loop, unix_pair):
    a, b = unix_pair

    async def main():
        first = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(first)
        second = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(second)
        first.cancel()
        await asyncio.wait([first])
        b.send(b"x")
        assert await second == b"x"

    loop.run_until_complete(main())


def test_add_reader_beside_and_instead(loop, pair):
    a, b = pair

    async def main():
        # a writer that waits goes on waiting when the reading side is watched
        writer = loop.create_task(loop.sock_sendall(a, bytes(5_000_000)))
        await until_waiting(writer)
        called = asyncio.Event()
        loop.add_reader(a, called.set)
        b.send(b"x")
        await called.wait()
        left = 5_000_000
        while left:
            left -= len(await loop.sock_recv(b, 1 << 20))
        await writer
        # and an operation takes the place of the reader
        reader = loop.create_task(loop.sock_recv(a, 10))
        assert await reader == b"x"
        assert loop.remove_reader(a)
        reader = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(reader)
        b.send(b"y")
        assert await reader == b"y"
        reader = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(reader)
        called.clear()
        loop.add_reader(a, called.set)
        b.send(b"z")
        await called.wait()
        assert not reader.done()
        loop.remove_reader(a)
        reader.cancel()
        await asyncio.wait([reader])

    loop.run_until_complete(main())


def test_remove_reader_ends_the_wait_for_good(loop, unix_pair):
    a, b = unix_pair

    async def main():
        task = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(task)
        b.send(b"x")
        assert await task == b"x"
        assert not loop.remove_reader(a)

    loop.run_until_complete(main())


def test_fd_number_used_again_at_once(fast):
    """An operation of a closed socket never acts on the fd's next owner."""

    async def main():
        for _ in range(20):
            a, b = socket.socketpair()
            a.setblocking(False)
            b.setblocking(False)
            old = fast.create_task(fast.sock_recv(a, 10))
            sender = fast.create_task(fast.sock_sendall(a, bytes(1_000_000)))
            await until_waiting(old)
            c, d = take_number_of(a)
            c.setblocking(False)
            task = fast.create_task(fast.sock_recv(c, 10))
            await until_waiting(task)
            d.send(b"new")
            assert await task == b"new"
            d.setblocking(False)
            called = asyncio.Event()
            fast.add_writer(c, called.set)
            await called.wait()
            fast.remove_writer(c)
            with pytest.raises(BlockingIOError):
                d.recv(10)
            for task in (old, sender):
                assert not task.done()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            for sock in (b, c, d):
                sock.close()

    fast.run_until_complete(main())


def test_many_short_connections(loop):
    """Each gets its own bytes, though fd numbers are used again all the time."""

    async def serve(server):
        while True:
            conn, _ = await loop.sock_accept(server)
            tasks.add(task := loop.create_task(echo(conn)))
            task.add_done_callback(tasks.discard)

    async def echo(conn):
        with conn:
            while data := await loop.sock_recv(conn, 1000):
                await loop.sock_sendall(conn, data)

    async def client(number, address):
        payload = b"%d," % number * (number % 300 + 1)
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, payload)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while data := await loop.sock_recv(sock, 777):
                got += data
            assert got == payload

    async def main():
        with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
            server.setblocking(False)
            serving = loop.create_task(serve(server))
            for start in range(0, 600, 60):
                await asyncio.gather(
                    *(client(n, server.getsockname()) for n in range(start, start + 60))
                )
            serving.cancel()
            await asyncio.wait([serving])

    tasks = set()
    loop.run_until_complete(main())


def test_a_suspended_task_is_kept_alive(loop, unix_pair):
    a, b = unix_pair
    got = []

    async def wait():
        got.append(await loop.sock_recv(a, 10))

    async def main():
        ref = weakref.ref(task := loop.create_task(wait()))
        await until_waiting(task)
        del task
        gc.collect()
        assert ref() is not None
        b.send(b"x")
        while not got:
            await asyncio.sleep(0)

    loop.run_until_complete(main())


def test_loop_closed_while_operations_wait(fast, pair):
    a, b = pair

    async def wait():
        await fast.sock_recv(a, 10)

    async def main():
        tasks = [fast.create_task(wait()), fast.create_task(fast.sock_sendall(b, bytes(9_000_000)))]
        await asyncio.sleep(0.01)
        return [weakref.ref(task) for task in tasks]

    fast.set_exception_handler(lambda loop, context: None)  # destroyed, but pending
    refs = fast.run_until_complete(main())
    fast.close()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_loop_that_is_never_closed_is_collected():
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        sockets.append((a, b))
        a.setblocking(False)
        task = loop.create_task(loop.sock_recv(a, 10))
        await until_waiting(task)

    sockets = []
    loop = fastloop.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(main())
    ref = weakref.ref(loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del loop
        gc.collect()
    assert ref() is None
    for pair in sockets:
        for sock in pair:
            sock.close()


# --- the awaitable object ---


def test_it_is_a_coroutine(fast, pair):
    op = fast.sock_recv(pair[0], 1)
    assert asyncio.iscoroutine(op)
    assert isinstance(op, collections.abc.Coroutine)
    assert inspect.isawaitable(op)
    assert op.__name__ == "sock_recv"
    assert op.__qualname__ == "Loop.sock_recv"
    assert not op.cr_running and not op.cr_suspended
    assert op.cr_frame is op.cr_code is op.cr_origin is None
    op.close()
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        op.send(None)


def test_driven_by_hand(fast, pair):
    a, b = pair
    op = fast.sock_recv(a, 10)
    with pytest.raises(TypeError, match="can't send non-None value"):
        op.send(1)
    future = op.send(None)
    assert asyncio.isfuture(future) and future._asyncio_future_blocking
    assert op.cr_suspended
    with pytest.raises(RuntimeError, match="already awaited"):
        op.__await__()
    b.send(b"x")
    fast.run_until_complete(asyncio.wait([future]))
    with pytest.raises(StopIteration) as caught:
        op.send(None)
    assert caught.value.value == b"x"


def test_sent_to_before_the_future_is_done(fast, pair):
    op = fast.sock_recv(pair[0], 10)
    op.send(None)
    with pytest.raises(RuntimeError, match="await wasn't used with future"):
        op.send(None)


def test_thrown_into(fast, pair):
    for first in (False, True):
        op = fast.sock_recv(pair[0], 10)
        if first:
            op.send(None)
        with pytest.raises(ZeroDivisionError):
            op.throw(ZeroDivisionError("x"))
        with pytest.raises(RuntimeError):
            op.throw(ZeroDivisionError)
    op = fast.sock_recv(pair[0], 10)
    with pytest.raises(TypeError, match="must be classes or instances deriving"):
        op.throw(5)


def test_a_tuple_is_given_whole(fast):
    with udp() as a:
        a.sendto(b"x", a.getsockname())
        op = fast.sock_recvfrom(a, 10)
        with pytest.raises(StopIteration) as caught:
            op.send(None)
            fast.run_until_complete(asyncio.sleep(0))
            op.send(None)
        assert caught.value.value == (b"x", a.getsockname())


def test_cancelled_while_it_resolves_a_name(loop, monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*args, **kwargs):
        asked.set()
        answer.wait()
        return []

    async def main():
        with socket.socket() as sock:
            sock.setblocking(False)
            task = loop.create_task(loop.sock_connect(sock, ("localhost", 1)))
            while not asked.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        answer.set()
        await loop.shutdown_default_executor()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    loop.run_until_complete(main())


async def use_sock_connect(loop, address):
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)


async def use_create_connection(loop, address):
    transport, _ = await loop.create_connection(asyncio.Protocol, *address)
    transport.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("use", [use_sock_connect, use_create_connection])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_method_replaced_on_the_class_is_used(loop, use, host, monkeypatch):
    """pytest-socket keeps a suite off the network so."""

    class Refused(Exception):
        pass

    def refuse(sock, address):
        raise Refused

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = host, listener.getsockname()[1]
        for _ in range(2):
            loop.run_until_complete(use(loop, address))
            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, "connect", refuse)
                with pytest.raises(Refused):
                    loop.run_until_complete(use(loop, address))
        loop.run_until_complete(use(loop, address))


def test_transports_use_methods_replaced_on_the_class(loop, monkeypatch):
    sent = []

    def send(sock, data):
        sent.append(bytes(data))
        return len(data)

    async def main():
        ours, peer = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        writer.write(b"x")
        writer.close()
        await writer.wait_closed()
        assert peer.recv(1) == b""
        peer.close()

    monkeypatch.setattr(socket.socket, "send", send)
    loop.run_until_complete(main())
    assert b"x" in sent  # and what wakes asyncio's loop


def test_never_awaited(fast, pair):
    with pytest.warns(RuntimeWarning, match=r"coroutine '.*sock_recv' was never awaited"):
        fast.sock_recv(pair[0], 1)
        gc.collect()


def test_reentered(fast):
    class Odd(socket.socket):
        def recv(self, n):
            op.send(None)

    with Odd() as sock:
        op = fast.sock_recv(sock, 1)
        with pytest.raises(ValueError, match="coroutine already executing"):
            op.send(None)


def test_after_the_loop_is_closed(pair):
    loop = fastloop.new_event_loop()
    op = loop.sock_recv(pair[0], 1)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        op.send(None)


def test_many_threads_many_loops():
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            b.setblocking(False)
            for i in range(200):
                task = loop.create_task(loop.sock_recv(a, 10))
                await asyncio.sleep(0)
                await loop.sock_sendall(b, b"%d" % i)
                assert await task == b"%d" % i
        done.append(1)

    done = []
    threads = [threading.Thread(target=fastloop.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
