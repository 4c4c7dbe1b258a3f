"""Poller, wakeup and table of fds under stress, and asyncio's errors for fds that are none."""

import asyncio
import errno
import gc
import os
import resource
import socket
import subprocess
import sys
import threading
import weakref

import pytest
from stream_helpers import take_number_of

import fastloop

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.Loop}


@pytest.fixture
def loop():
    loop = fastloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    yield one, other
    one.close()
    other.close()


def turn(loop):
    """Run one turn that polls."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def open_fds():
    return len(os.listdir("/proc/self/fd"))


# ---- wakeups ---------------------------------------------------------------------------------


def test_no_wakeup_is_lost(loop):
    """The loop goes to sleep before each of 30,000 calls from another thread."""
    count, calls = 0, 30_000
    done = threading.Semaphore(0)

    def arrived():
        nonlocal count
        count += 1
        done.release()
        if count == calls:
            loop.stop()

    def caller():
        for _ in range(calls):
            loop.call_soon_threadsafe(arrived)
            done.acquire()

    thread = threading.Thread(target=caller)
    thread.start()
    loop.run_forever()
    thread.join()
    assert count == calls


def test_many_threads_keep_their_order(loop):
    seen = {n: [] for n in range(8)}
    left = 8

    def end():
        nonlocal left
        left -= 1
        if left == 0:
            loop.stop()

    def caller(n):
        for i in range(5_000):
            loop.call_soon_threadsafe(seen[n].append, i)
        loop.call_soon_threadsafe(end)

    threads = [threading.Thread(target=caller, args=(n,)) for n in seen]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert all(got == list(range(5_000)) for got in seen.values())


def test_close_while_threads_call():
    """They get RuntimeError, and nothing else."""
    loop = fastloop.new_event_loop()
    errors, started = [], threading.Barrier(5)

    def caller():
        started.wait()
        try:
            while True:
                loop.call_soon_threadsafe(int)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    loop.close()
    for thread in threads:
        thread.join()
    assert [(type(e), str(e)) for e in errors] == [(RuntimeError, "Event loop is closed")] * 4


def test_pending_wakeup_does_not_outlive_its_run(loop):
    for _ in range(100):
        loop.call_soon_threadsafe(loop.stop)
        loop.run_forever()
    polls = loop.stats()["polls"]
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert loop.stats()["polls"] - polls < 10


# ---- fds -------------------------------------------------------------------------------------


def test_number_reused_at_once(loop):
    """A closed fd's number names the next socket: its reader gets that one's events only."""
    one, other = socket.socketpair()
    fd = one.fileno()
    for i in range(300):
        got = []
        loop.add_reader(fd, got.append, i)
        other.send(b"x")
        turn(loop)
        assert got == [i]
        other.close()
        one, other = take_number_of(one)  # without remove_reader(): the handle is replaced in the next round
    one.close()
    other.close()
    assert loop.stats()["fds"] == 1
    assert loop.remove_reader(fd) is True


def test_closed_fd_does_not_speak_for_its_successor(loop):
    one, other = socket.socketpair()
    fd = one.fileno()
    stale = []
    loop.add_reader(fd, stale.append, "stale")
    other.close()
    again, peer = take_number_of(one)
    with again, peer:
        peer.send(b"x")
        turn(loop)
        assert stale == []
        assert loop.remove_reader(fd) is True
        fresh = []
        loop.add_reader(fd, fresh.append, "fresh")
        turn(loop)
        assert fresh == ["fresh"]
        assert loop.remove_reader(fd) is True


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_removed_in_the_same_batch(make_loop):
    """Of two readers that are ready together the first removes the second, which stays silent."""
    loop = make_loop()
    pairs = [socket.socketpair() for _ in range(2)]
    ran = []

    def ready(mine, others):
        ran.append(mine)
        assert loop.remove_reader(mine)
        loop.remove_reader(others)

    (a, a_peer), (b, b_peer) = pairs
    loop.add_reader(a, ready, a, b)
    loop.add_reader(b, ready, b, a)
    a_peer.send(b"x")
    b_peer.send(b"x")
    turn(loop)
    turn(loop)
    assert len(ran) == 1
    loop.close()
    for sock in (a, a_peer, b, b_peer):
        sock.close()


def test_replaced_in_the_same_batch(loop, pair):
    """A reader that closes another fd and opens its successor: no event goes to the wrong one."""
    one, other = pair
    victim, peer = socket.socketpair()
    wrong, fresh = [], []

    def swap():
        loop.remove_reader(one)
        if loop.remove_reader(victim):
            again = os.dup2(one.fileno(), victim.detach())
            fresh.append(again)
            loop.add_reader(again, wrong.append, 1)
            loop.remove_reader(again)

    loop.add_reader(one, swap)
    loop.add_reader(victim, wrong.append, 0)
    other.send(b"x")
    turn(loop)
    turn(loop)
    assert wrong == []
    peer.close()
    for fd in fresh:
        os.close(fd)


def outcome(function, *args):
    try:
        return function(*args)
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None), str(exc)


class BadFileno:
    def __init__(self, number):
        self.number = number

    def fileno(self):
        return self.number

    def __repr__(self):
        return f"BadFileno({self.number!r})"


def closed_socket():
    sock = socket.socket()
    sock.close()
    return sock


BAD_FDS = [
    -1,
    -(2**70),
    2**31 - 1,
    2**31,
    2**70,
    50_000,
    None,
    "1",
    1.5,
    object,
    BadFileno("1"),
    BadFileno(-5),
    BadFileno(2**31 - 1),
]
METHODS = ["add_reader", "add_writer", "remove_reader", "remove_writer"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fd", BAD_FDS, ids=repr)
def test_bad_fds_get_asyncios_errors(name, fd):
    got = {}
    for kind, make_loop in LOOPS.items():
        loop = make_loop()
        args = (fd, print) if name.startswith("add") else (fd,)
        result = outcome(getattr(loop, name), *args)
        if name.startswith("add") and not isinstance(result, tuple):
            getattr(loop, name.replace("add", "remove"))(fd)
        got[kind] = result
        loop.close()
    assert got["fastloop"] == got["asyncio"]


@pytest.mark.parametrize("name", METHODS)
def test_closed_socket_gets_asyncios_error(name):
    got = []
    for make_loop in LOOPS.values():
        loop = make_loop()
        args = (print,) if name.startswith("add") else ()
        got.append(outcome(getattr(loop, name), closed_socket(), *args))
        loop.close()
    assert got[0] == got[1]


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_a_closed_socket_is_found_again_by_what_was_added(make_loop):
    """A reader or writer can be removed after its socket was closed, by the socket."""
    loop = make_loop()
    one, other = socket.socketpair()
    gone = []
    for sock, name in ((one, "reader"), (other, "writer")):
        getattr(loop, f"add_{name}")(sock, gone.append, sock)
    loop.add_reader(other.fileno(), gone.append, other)
    loop.remove_reader(other)
    one.close()
    other.close()
    assert loop.remove_writer(one) is False and loop.remove_reader(one) is True
    assert loop.remove_reader(other) is False and loop.remove_writer(other) is True
    for remove in (loop.remove_reader, loop.remove_writer):
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            remove(one)
    turn(loop)
    assert gone == []
    loop.close()


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_what_is_watched_stays_open(make_loop):
    """Who adds a socket need not keep it: the loop does, until it is removed."""
    loop = make_loop()
    socks = list(socket.socketpair())
    peer, fd, kept = socks[1], socks[0].fileno(), weakref.ref(socks[0])
    loop.add_reader(socks.pop(0), loop.stop)
    gc.collect()
    peer.send(b"x")
    loop.run_forever()
    assert kept().recv(1) == b"x"
    kept().close()
    assert loop.remove_reader(kept()) is True
    gc.collect()
    assert kept() is None
    other, again = socket.socketpair()
    kept = weakref.ref(other)
    loop.add_writer(other, print)
    del other
    loop.close()
    gc.collect()
    assert kept() is None
    peer.close()
    again.close()


def test_number_that_is_no_fd_costs_no_memory(loop):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError) as info:
        loop.add_reader(2**31 - 1, print)
    assert info.value.errno == errno.EBADF
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kilobytes
    assert loop.stats()["fds"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="epoll refuses regular files, kqueue does not")
def test_regular_file_is_refused(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        got = []
        for make_loop in LOOPS.values():
            loop = make_loop()
            got.append(outcome(loop.add_reader, file, print))
            got.append(loop.remove_reader(file))
            loop.close()
    assert got[:2] == got[2:]
    assert got[0][0] is PermissionError


def test_large_fd_numbers(loop):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 60_000 if hard == resource.RLIM_INFINITY else min(60_000, hard - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1, hard))
    one, other = socket.socketpair()
    try:
        large = os.dup2(one.fileno(), number)
        got = []
        loop.add_reader(large, got.append, "ready")
        other.send(b"x")
        turn(loop)
        assert got == ["ready"]
        assert loop.remove_reader(large) is True
        os.close(large)
    finally:
        one.close()
        other.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- making and forking loops ----------------------------------------------------------------


def test_no_fd_left_for_a_loop():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fastloop.new_event_loop().close()
    gc.collect()  # what other tests left
    before = open_fds()
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, hard))
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for free in range(3):
            got = outcome(lambda: fastloop.new_event_loop().close())
            if got is not None:
                assert got[:2] == (OSError, errno.EMFILE), free
            if taken:
                os.close(taken.pop())
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before


FORK = """
import os, sys, warnings
import fastloop

warnings.simplefilter("ignore")
parent = fastloop.new_event_loop()
parent.call_soon(parent.stop)
parent.run_forever()
pid = os.fork()
if pid == 0:
    child = fastloop.new_event_loop()
    child.call_later(0.01, child.stop)
    child.run_forever()
    child.close()
    parent.close()
    os._exit(7)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
got = []
a, b = os.pipe()
parent.add_reader(a, lambda: (got.append(os.read(a, 10)), parent.stop()))
os.write(b, b"x")
parent.run_forever()
parent.call_soon_threadsafe(parent.stop)
parent.run_forever()
parent.close()
print(got)
"""


def test_fork_with_a_loop():
    """The child makes its own, and closing the parent's there leaves that alone."""
    out = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60
    )
    assert (out.returncode, out.stdout) == (0, "[b'x']\n"), out.stderr
