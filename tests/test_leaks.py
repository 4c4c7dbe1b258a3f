"""Nothing is left over: each scenario, repeated, leaves memory and open files where they were.

Three things are counted. References, where the interpreter is a debug build and counts them all,
else blocks of Python's allocator; bytes in malloc, which is where the core's own arrays come
from; and open files. Caches and free lists fill for a while, in rounds that grow less and less;
a leak of one object a repetition grows in every round. So a scenario is repeated until two
rounds on end are flat, and has leaked if that never comes.
"""

import asyncio
import contextvars
import ctypes
import functools
import gc
import inspect
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import weakref

import pytest

import fastloop

DEBUG_BUILD = hasattr(sys, "gettotalrefcount")
MAX_ROUNDS, REPEATS = 60, 20
SMALLEST_MALLOC = 32  # bytes that glibc takes for malloc(1), see its MINSIZE

pytestmark = pytest.mark.skipif(
    "SANITIZED" in os.environ, reason="the sanitizers' allocator has its own bookkeeping"
)


class MallocInfo(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    ]


def malloc_in_use():
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # not glibc, or one before 2.33
        return 0
    mallinfo.restype = MallocInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd


def references():
    return sys.gettotalrefcount() if DEBUG_BUILD else sys.getallocatedblocks()


def open_files():
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


COUNTS = {"references": references, "malloc": malloc_in_use, "files": open_files}
UNIT = {"references": 1, "malloc": SMALLEST_MALLOC, "files": 1}


def one_round(repeat, highest):
    """Return the counts that rose above `highest` by a unit or more for every second repetition.

    The highest so far, and not the last: threads take malloc's memory up and down by themselves.
    """
    for _ in range(REPEATS):
        repeat()
    gc.collect()
    now = dict.fromkeys(COUNTS, 0)
    for name, count in COUNTS.items():
        now[name] = count()
    grown = {name: now[name] - highest[name] for name in COUNTS}
    for name in COUNTS:
        highest[name] = max(highest[name], now[name])
    return {name: by for name, by in grown.items() if by >= UNIT[name] * REPEATS // 2}


def leaked(repeat):
    """Return what still grows after MAX_ROUNDS rounds, {} once two on end were flat."""
    flat, growth, highest = 0, {}, dict.fromkeys(COUNTS, 0)
    for _ in range(MAX_ROUNDS):
        growth = one_round(repeat, highest)
        flat = 0 if growth else flat + 1
        if flat == 2:
            return {}
    return growth


scenarios = {}


def scenario(function):
    """A plain function is repeated as it is; a coroutine function on a loop of its own."""
    name = function.__name__
    if inspect.iscoroutinefunction(function):

        def on_new_loop():
            loop = fastloop.new_event_loop()
            loop.set_exception_handler(lambda loop, context: None)
            try:
                loop.run_until_complete(function())
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
            finally:
                loop.close()

        scenarios[name] = on_new_loop
    else:
        scenarios[name] = function
    return function


@scenario
def loop_opened_and_closed():
    fastloop.new_event_loop().close()


@scenario
def loop_closed_with_work_left():
    loop = fastloop.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    left, right = socket.socketpair()
    with left, right:
        loop.add_reader(left, str, left)
        loop.add_writer(right, str, right)
        for number in range(5):
            loop.call_soon(str, number)
            loop.call_later(1000 + number, print, number)
            loop.create_future().add_done_callback(str)
        loop.create_task(asyncio.sleep(1000))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@scenario
def run_in_debug_mode():
    async def main():
        await asyncio.gather(asyncio.sleep(0), asyncio.to_thread(len, "abc"))

    fastloop.run(main(), debug=True)


@scenario
def run_ended_by_an_exception():
    async def main():
        task = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.sleep(0)
        raise KeyError(task)

    with pytest.raises(KeyError):
        fastloop.run(main())


@scenario
async def futures():
    loop = asyncio.get_running_loop()
    done, failed, cancelled, pending = (loop.create_future() for _ in range(4))
    for future in (done, failed, cancelled, pending):
        for _ in range(3):
            future.add_done_callback(lambda future: None)
        future.add_done_callback(print)
        future.remove_done_callback(print)
    done.set_result(object())
    failed.set_exception(ValueError("wrong"))
    cancelled.cancel("enough")
    pending.me = pending
    await asyncio.wait([done, failed, cancelled])
    assert isinstance(failed.exception(), ValueError)
    assert repr([done, failed, cancelled, pending])
    try:
        await cancelled
    except asyncio.CancelledError:
        pass


@scenario
async def exception_never_retrieved():
    asyncio.get_running_loop().create_future().set_exception(ValueError("nobody looks"))


@scenario
async def tasks():
    async def give(value):
        await asyncio.sleep(0)
        return value

    async def fail():
        await asyncio.sleep(0)
        raise LookupError(asyncio.current_task())

    task = asyncio.create_task(give(1), name="one", context=contextvars.copy_context())
    assert task in asyncio.all_tasks() and task.get_coro() and task.get_stack()
    assert await task == 1
    results = await asyncio.gather(give(2), fail(), return_exceptions=True)
    assert results[0] == 2 and isinstance(results[1], LookupError)


@scenario
async def tasks_cancelled():
    cancelled = [asyncio.create_task(asyncio.sleep(1000)) for _ in range(3)]
    early = asyncio.create_task(asyncio.sleep(1000))
    early.cancel()
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel("no longer needed")
    await asyncio.wait([*cancelled, early])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.sleep(1000), 0.0001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.0001):
            await asyncio.get_running_loop().create_future()


@scenario
async def task_group_with_a_failure():
    async def fail():
        raise ValueError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1000))
            group.create_task(fail())
    except* ValueError:
        pass


@scenario
async def task_destroyed_pending():
    async def wait_for_itself():
        await asyncio.get_running_loop().create_future()

    gc.disable()  # or a collection in between makes it too old for the one below
    reference = weakref.ref(asyncio.create_task(wait_for_itself()))
    await asyncio.sleep(0)
    gc.collect(0)
    gc.enable()
    assert reference() is None


@scenario
async def python_subclasses():
    class Task(fastloop.Task):
        pass

    class Future(fastloop.Future):
        pass

    loop = asyncio.get_running_loop()
    future = Future(loop=loop)
    task = Task(asyncio.wait_for(future, 1000), loop=loop)
    loop.call_soon(future.set_result, task)
    assert await task is task


@scenario
async def native_and_foreign_together():
    loop = asyncio.get_running_loop()
    future = asyncio.Future(loop=loop)
    task = asyncio.Task(asyncio.wait_for(future, 1000), loop=loop)
    ours = asyncio.create_task(asyncio.wait_for(task, 1000))
    loop.call_soon(future.set_result, 1)
    assert await ours == 1


@scenario
async def handles():
    loop = asyncio.get_running_loop()
    kept = [loop.call_soon(lambda number: None, number) for number in range(5)]
    kept[0].cancel()
    assert repr(kept)
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)


@scenario
async def timers():
    loop = asyncio.get_running_loop()
    far = [loop.call_later(1000, print, number) for number in range(200)]
    near = [loop.call_later(0.0001, lambda: None) for _ in range(20)]
    await asyncio.sleep(0.001)
    for timer in far[:190] + near:
        timer.cancel()
    assert repr(far)


@scenario
async def threads():
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,))
    thread.start()
    await called.wait()
    thread.join()
    assert await loop.run_in_executor(None, len, "abc") == 3
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 / 0)


@scenario
async def watchers():
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        readable, writable = asyncio.Event(), asyncio.Event()
        loop.add_reader(left, readable.set)
        loop.add_reader(left, readable.set)
        loop.add_writer(right, writable.set)
        right.send(b"x")
        await asyncio.gather(readable.wait(), writable.wait())
        assert loop.remove_reader(left) and loop.remove_writer(right)
        assert await loop.sock_recv(left, 10) == b"x"


@scenario
async def signals():
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, arrived.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await arrived.wait()
    assert loop.remove_signal_handler(signal.SIGUSR1)
    loop.add_signal_handler(signal.SIGUSR2, arrived.set)


@scenario
async def asynchronous_generators():
    async def numbers():
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)

    left_open = numbers()
    assert await anext(left_open) == 0
    assert [number async for number in numbers()] == list(range(10))


@scenario
async def streams():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\n")
    assert await reader.read() == b"hello\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@functools.cache
def tls_contexts():
    """An SSLContext of a server and of a client that trusts it."""
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch -days 7 "
        "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -out c.pem -keyout c.key"
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(request.split(), cwd=folder, check=True, capture_output=True)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(f"{folder}/c.pem", f"{folder}/c.key")
        return server, ssl.create_default_context(cafile=f"{folder}/c.pem")


@scenario
async def tls_streams():
    async def echo(reader, writer):
        if not writer.get_extra_info("sslcontext"):
            await writer.start_tls(server_context)
        writer.write(await reader.readexactly(100_000))
        writer.close()

    server_context, client_context = tls_contexts()
    for first, later in ((server_context, None), (None, client_context)):
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=first)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address, ssl=first and client_context)
        if later:
            await writer.start_tls(later, server_hostname="127.0.0.1")
        writer.write(bytes(100_000))
        assert await reader.read() == bytes(100_000)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()


@scenario
async def tls_handshakes_that_fail():
    loop = asyncio.get_running_loop()
    server_context, client_context = tls_contexts()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=server_context)
    address = server.sockets[0].getsockname()
    with pytest.raises(ssl.SSLCertVerificationError):
        await loop.create_connection(asyncio.Protocol, *address, ssl=True)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(data)
        writer.write_eof()
        try:
            await reader.read()
        except ConnectionError:
            pass
        writer.close()
    transport, _ = await loop.create_connection(asyncio.Protocol, *address, ssl=client_context)
    transport.write(b"lost")
    transport.abort()
    server.close()
    await asyncio.sleep(0.001)


@scenario
async def child_process():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await child.communicate(b"hello")
    assert out == b"hello" and child.returncode == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", scenarios)
def test_nothing_is_left_over(name):
    assert not leaked(scenarios[name])


@pytest.mark.parametrize("name", COUNTS)
def test_a_leak_would_be_seen(name):
    assert not leaked(lambda: None)
    kept = []
    leak = {
        "references": object,
        "malloc": lambda: bytes(4000),
        "files": lambda: os.open(os.devnull, os.O_RDONLY),
    }[name]
    try:
        assert name in leaked(lambda: kept.append(leak()))
    finally:
        if name == "files":
            for fd in kept:
                os.close(fd)
