"""States in which an engine stands still, fails or misdelivers though asyncio does not."""

import array
import asyncio
import os
import signal
import socket
import sys
import threading

import pytest

import fastloop


def test_a_wakeup_while_the_programs_own_clock_runs():
    class Loop(fastloop.Loop):
        armed = False

        def time(self):
            if self.armed:
                self.armed = False
                thread = threading.Thread(target=self.call_soon_threadsafe, args=(self.stop,))
                thread.start()
                thread.join()
            return super().time()

    def arm():
        loop.armed = True

    loop = Loop()
    timer = loop.call_later(3600, loop.stop)
    loop.call_soon(arm)
    loop.run_forever()
    assert timer.when() - loop.time() > 1800
    loop.close()


def test_starting_a_thread_fails_for_one_call_of_two(monkeypatch):
    entered, go = threading.Event(), threading.Event()
    start = threading.Thread.start
    outcomes = {}

    def failing(thread):
        if thread.name.startswith("pool_") and not entered.is_set():
            entered.set()
            go.wait(60)
            raise RuntimeError("can't start new thread")
        start(thread)

    def call(name):
        try:
            outcomes[name] = executor.submit(str, name).result(60)
        except RuntimeError as error:
            outcomes[name] = str(error)

    executor = fastloop.ThreadPoolExecutor(4, "pool")
    monkeypatch.setattr(threading.Thread, "start", failing)
    first = threading.Thread(target=call, args=("first",))
    first.start()
    entered.wait(60)
    second = threading.Thread(target=call, args=("second",))
    second.start()
    while executor._work_queue.qsize() < 2:
        pass
    go.set()
    first.join()
    second.join()
    executor.shutdown()
    assert outcomes == {"first": "can't start new thread", "second": "second"}


def test_shutdown_waits_for_a_thread_that_is_being_started(monkeypatch):
    started, go = threading.Event(), threading.Event()
    start = threading.Thread.start
    done = []

    def slow_start(thread):
        start(thread)
        if thread.name.startswith("pool_"):
            started.set()
            go.wait(60)

    executor = fastloop.ThreadPoolExecutor(4, "pool")
    monkeypatch.setattr(threading.Thread, "start", slow_start)
    submitting = threading.Thread(target=executor.submit, args=(done.append, 1))
    submitting.start()
    started.wait(60)
    ended = threading.Thread(target=executor.shutdown)
    ended.start()
    ended.join(0.2)
    assert ended.is_alive()
    go.set()
    ended.join(60)
    assert done == [1]
    submitting.join()


def send_with_descriptor(sock, data):
    with open(os.devnull, "rb") as file:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])


def test_bytes_behind_descriptors_on_a_unix_stream(loop):
    async def main():
        a, b = socket.socketpair()
        with b:
            send_with_descriptor(b, b"hello")
            b.sendall(b" world\n")
            reader, writer = await asyncio.open_unix_connection(sock=a)
            assert await reader.readline() == b"hello world\n"
            writer.close()

    loop.run_until_complete(asyncio.wait_for(main(), 60))


def test_an_old_reader_does_not_take_the_new_ones_bytes(loop):
    async def main():
        a, b = socket.socketpair()
        with b:
            old, writer = await asyncio.open_unix_connection(sock=a)
            new = asyncio.StreamReader(loop=loop)
            writer.transport.set_protocol(asyncio.StreamReaderProtocol(new, loop=loop))
            waiting = asyncio.ensure_future(old.read(100))
            await asyncio.sleep(0)
            b.sendall(b"for the new one")
            assert await new.read(100) == b"for the new one"
            assert not waiting.done()
            waiting.cancel()
            writer.transport.abort()

    loop.run_until_complete(asyncio.wait_for(main(), 60))


def test_a_full_buffer_is_not_asked_for_room_in_vain(loop):
    class Buffered(asyncio.BufferedProtocol):
        buffer, asked = bytearray(10), 0

        def connection_made(self, transport):
            self.full = loop.create_future()

        def get_buffer(self, hint):
            self.asked += 1
            return self.buffer

        def buffer_updated(self, n):
            self.buffer = b""
            self.full.set_result(n)

    async def main():
        a, b = socket.socketpair()
        with b:
            transport, protocol = await loop.create_connection(Buffered, sock=a)
            b.sendall(b"0123456789")
            assert await protocol.full == 10
            for _ in range(5):
                await asyncio.sleep(0)
            assert protocol.asked == 1 and not transport.is_closing()
            transport.abort()

    loop.run_until_complete(asyncio.wait_for(main(), 60))


def test_private_methods_in_an_odd_order(fast):
    class Plain(asyncio.Protocol):
        pass

    async def main():
        for last in ("close", "abort", "write", "writelines", "write_eof", "pause_reading", "resume_reading", "_flush",
                     "_make_empty_waiter", "_reset_empty_waiter", "_lend_fd", "_take_fd_back", "get_write_buffer_size"):
            a, b = socket.socketpair()
            with b:
                transport, _ = await fast.create_connection(Plain, sock=a)
                with pytest.raises(TypeError, match="exc must be an exception, not str"):
                    transport._fatal_error("text")
                transport._call_connection_lost(None)
                arguments = {"write": (b"x",), "writelines": ([b"x"],)}.get(last, ())
                try:
                    getattr(transport, last)(*arguments)
                except (AttributeError, ConnectionError):
                    pass
                transport.set_protocol(Plain())
                transport.set_write_buffer_limits(0)
                assert transport.is_closing() and "closed" in repr(transport)

    fast.run_until_complete(main())


def test_a_pipe_closed_in_resume_writing(fast):
    class Writer(asyncio.BaseProtocol):
        lost = ()

        def connection_made(self, transport):
            self.transport = transport

        def resume_writing(self):
            self.transport.close()

        def connection_lost(self, exc):
            self.lost += (exc,)

    async def main():
        reports = []
        fast.set_exception_handler(lambda loop, context: reports.append(context))
        out, into = os.pipe()
        os.set_blocking(out, False)
        transport, protocol = await fast.connect_write_pipe(Writer, os.fdopen(into, "wb", 0))
        transport.set_write_buffer_limits(1000, 0)
        transport.write(b"x" * 3_000_000)
        while not protocol.lost:
            try:
                os.read(out, 1 << 20)
            except BlockingIOError:
                pass
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        os.close(out)
        assert protocol.lost == (None,) and reports == []

    fast.run_until_complete(asyncio.wait_for(main(), 60))


def test_a_memoryview_of_any_shape_goes_through_a_pipe(fast):
    async def main():
        out, into = os.pipe()
        os.set_blocking(out, False)
        transport, _ = await fast.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(into, "wb", 0))
        shaped = memoryview(bytes(range(240)) * 1000).cast("B", (1000, 240))
        strided = memoryview(bytes(range(250)) * 1000)[::2]
        expected = shaped.tobytes() + strided.tobytes()
        transport.write(shaped)
        transport.write(strided)
        transport.close()
        received = b""
        while len(received) < len(expected):
            try:
                received += os.read(out, 1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
        os.close(out)
        assert received == expected

    fast.run_until_complete(asyncio.wait_for(main(), 60))


def test_the_account_of_datagrams_comes_down(fast, tmp_path):
    class Sender(asyncio.DatagramProtocol):
        paused = False

        def pause_writing(self):
            self.paused = True

        def resume_writing(self):
            self.paused = False

    async def main():
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(path)
            receiver.setblocking(False)
            transport, protocol = await fast.create_datagram_endpoint(Sender, remote_addr=path, family=socket.AF_UNIX)
            sent = received = 0
            while received < 4000:
                while not protocol.paused and sent < min(4000, received + 200):
                    transport.sendto(b"x" * 100)
                    sent += 1
                try:
                    receiver.recv(200)
                    received += 1
                except BlockingIOError:
                    await asyncio.sleep(0)
            assert transport.get_write_buffer_size() == 0 and not protocol.paused
            transport.close()

    fast.run_until_complete(asyncio.wait_for(main(), 60))


class Alarm(Exception):
    pass


def test_an_interrupt_as_create_connection_made_its_transport(loop):
    """The socket stays the transport's: its number is nobody else's trouble."""

    def on_alarm(*args):
        raise Alarm

    def profile(frame, event, arg):
        name = getattr(arg, "__name__", "") if event == "c_return" else frame.f_code.co_name if event == "return" else ""
        if name == "_make_socket_transport":
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGALRM)

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            sys.setprofile(profile)
            try:
                with pytest.raises(Alarm):
                    await loop.create_connection(asyncio.Protocol, *server.getsockname())
            finally:
                sys.setprofile(None)
            peer, _ = server.accept()
            peer.close()
        a, b = socket.socketpair()
        with b:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=a)
            transport.abort()

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        loop.run_until_complete(main())
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancelled_create_connection_has_come_as_far_as_asyncios(turns):
    def how_far(factory):
        log = []

        class Recorder(asyncio.Protocol):
            def connection_made(self, transport):
                log.append("made")

            def connection_lost(self, exc):
                log.append("lost")

        async def main():
            with socket.create_server(("127.0.0.1", 0)) as server:
                task = asyncio.ensure_future(
                    asyncio.get_running_loop().create_connection(Recorder, *server.getsockname())
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                log.append(task.cancel())
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                log.append(type(outcome).__name__)
                if isinstance(outcome, tuple):
                    outcome[0].abort()
                for _ in range(5):
                    await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        return log

    assert how_far(fastloop.new_event_loop) == how_far(asyncio.SelectorEventLoop)


def test_patched_base_classes_are_seen(fast, monkeypatch):
    async def main():
        a, b = socket.socketpair()
        with b:
            transport, _ = await fast.create_connection(asyncio.Protocol, sock=a)
            monkeypatch.setattr(asyncio.BaseTransport, "get_extra_info", lambda self, name, default=None: "fake")
            assert transport.get_extra_info("peername") == "fake"
            monkeypatch.undo()
            transport.abort()

    fast.run_until_complete(main())


def test_a_class_of_the_programs_own_as_socket_socket(fast, monkeypatch):
    kinds = []

    class Socket(socket.socket):
        def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
            kinds.append(type)
            super().__init__(family, type, proto, fileno)

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            monkeypatch.setattr(socket, "socket", Socket)
            transport, _ = await fast.create_connection(asyncio.Protocol, *address)
            transport.abort()

    fast.run_until_complete(main())
    assert kinds and all(kind == socket.SOCK_STREAM for kind in kinds)
