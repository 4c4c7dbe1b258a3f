"""Child processes: exits seen through pidfds, or by a thread where there are none."""

import asyncio
import errno
import gc
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

import pytest

import fastloop

NEW_LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}
CAT = (sys.executable, "-c", "import shutil, sys; "
       "shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")  # fmt: skip
SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture(params=NEW_LOOPS)
def any_loop(request):
    """A loop of each kind, for what they must do alike."""
    loop = NEW_LOOPS[request.param]()
    yield loop
    loop.close()


@pytest.fixture(params=["pidfd", "ENOSYS", "EPERM", "EMFILE", "missing"])
def exit_seen_by(request, monkeypatch):
    """How the loop learns of an exit: by pidfd, or by a thread as the call fails."""

    def refuse(pid, flags=0):
        raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

    if request.param == "missing":
        monkeypatch.delattr(os, "pidfd_open")
    elif request.param != "pidfd":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    return request.param


@pytest.fixture
def loop(exit_seen_by):
    loop = fastloop.new_event_loop()
    yield loop
    loop.close()


def zombie():
    """A child that exited and was not reaped, or None. Others, such as multiprocessing's helpers, may live."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def open_fds():
    gc.collect()  # what earlier tests left behind closes its own now, and not between two looks
    return set(os.listdir("/proc/self/fd"))


def gone(pid):
    """True if the process is neither running nor a zombie of ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def exits_without_reaping(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


class Recorder(asyncio.SubprocessProtocol):
    """Notes every callback, and a future done by connection_lost."""

    def __init__(self, loop):
        self.lost = loop.create_future()
        self.calls = []
        self.data = {1: b"", 2: b""}

    def connection_made(self, transport):
        self.calls.append("connection_made")

    def pipe_data_received(self, fd, data):
        self.data[fd] += data

    def pipe_connection_lost(self, fd, exc):
        self.calls.append(("pipe_connection_lost", fd, exc))

    def process_exited(self):
        self.calls.append("process_exited")

    def connection_lost(self, exc):
        self.calls.append(("connection_lost", exc))
        self.lost.set_result(None)


def test_output_input_and_status(loop):
    async def main():
        process = await asyncio.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
        out, err = await process.communicate(b"x" * 300_000)
        assert (out, err) == (b"x" * 300_000, None)
        assert process.returncode == await process.wait() == 0

        process = await asyncio.create_subprocess_shell(
            "echo out; echo err >&2; exit 7", stdout=PIPE, stderr=STDOUT
        )
        assert await process.communicate() == (b"out\nerr\n", None)
        assert process.returncode == 7

    loop.run_until_complete(main())


# What a child finds true, given these options; `{fd}` is a pipe that is open in the parent.
OPTIONS = [
    ({"cwd": "/usr"}, "os.getcwd() == '/usr'"),
    ({"cwd": pathlib.Path("/usr")}, "os.getcwd() == '/usr'"),
    ({"env": {**os.environ, "COLOUR": "blue"}}, "os.environ['COLOUR'] == 'blue'"),
    ({"preexec_fn": os.setsid}, "os.getsid(0) == os.getpid()"),
    ({"start_new_session": True}, "os.getsid(0) == os.getpid()"),
    ({"process_group": 0}, "os.getpgrp() == os.getpid()"),
    ({"umask": 0o71}, "os.umask(0) == 0o71"),
    ({"user": os.getuid()}, f"os.getuid() == {os.getuid()}"),
    ({"group": os.getgid()}, f"os.getgid() == {os.getgid()}"),
    ({"pipesize": 8192}, "fcntl.fcntl(1, fcntl.F_GETPIPE_SZ) == 8192"),
    ({}, "not os.path.exists('/proc/self/fd/{fd}')"),
    ({"close_fds": True}, "not os.path.exists('/proc/self/fd/{fd}')"),
    ({"close_fds": False}, "os.path.exists('/proc/self/fd/{fd}')"),
    ({"pass_fds": "{fd}"}, "os.path.exists('/proc/self/fd/{fd}')"),
    ({"bufsize": 0, "shell": False, "universal_newlines": False, "text": None}, "True"),
]
if os.getuid() == 0:
    OPTIONS.append(({"extra_groups": [7, 8]}, "{7, 8} <= set(os.getgroups())"))


@pytest.mark.parametrize("options, claim", OPTIONS, ids=str)
def test_options_are_popens(any_loop, options, claim):
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    if "pass_fds" in options:
        options = {"pass_fds": [reading]}
    claim = claim.replace("{fd}", str(reading))

    async def main():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"import fcntl, os; print(bool({claim}))", stdout=PIPE, **options
        )
        assert await process.communicate() == (b"True\n", None)
        assert process.returncode == 0

    try:
        any_loop.run_until_complete(main())
    finally:
        os.close(reading)
        os.close(writing)


def test_executable(any_loop):
    async def main():
        process = await asyncio.create_subprocess_exec(
            "its name", "-c", "echo $0", executable="/bin/sh", stdout=PIPE
        )
        assert await process.communicate() == (b"its name\n", None)
        process = await asyncio.create_subprocess_shell(
            "echo $BASH", executable="/bin/bash", stdout=PIPE
        )
        assert await process.communicate() == (b"/bin/bash\n", None)

    any_loop.run_until_complete(main())


@pytest.mark.parametrize("restore, status", [(True, -signal.SIGPIPE), (False, 0)])
def test_restore_signals(any_loop, restore, status):
    async def main():  # Python itself ignores SIGPIPE
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "kill -PIPE $$", restore_signals=restore
        )
        assert await process.wait() == status

    any_loop.run_until_complete(main())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf-8"}, "encoding must be None"),
        ({"errors": "strict"}, "errors must be None"),
        ({"bufsize": 1}, "bufsize must be 0"),
        ({"shell": "wrong"}, "shell must be "),
    ],
)
def test_options_that_are_refused(any_loop, options, message):
    async def main():
        for call in (any_loop.subprocess_exec, any_loop.subprocess_shell):
            given = dict(options)
            if "shell" in given:
                given["shell"] = call == any_loop.subprocess_exec
            with pytest.raises(ValueError, match=message):
                await call(asyncio.SubprocessProtocol, "true", **given)
        with pytest.raises(ValueError, match="cmd must be a string"):
            await any_loop.subprocess_shell(asyncio.SubprocessProtocol, 5)
        with pytest.raises(TypeError):
            await any_loop.subprocess_exec(asyncio.SubprocessProtocol, "true", no_such_option=1)
        assert zombie() is None

    any_loop.run_until_complete(main())


def test_streams_are_files_pipes_or_nothing(loop, tmp_path):
    async def main():
        out = tmp_path / "out"
        (tmp_path / "in").write_bytes(b"from a file")
        with out.open("wb") as file, (tmp_path / "in").open("rb") as source:
            process = await asyncio.create_subprocess_exec(
                "sh", "-c", "cat; echo err >&2", stdin=source, stdout=file, stderr=STDOUT
            )
        assert process.stdin is process.stdout is process.stderr is None
        assert await process.wait() == 0
        assert out.read_bytes() == b"from a fileerr\n"
        process = await asyncio.create_subprocess_shell("cat >&2", stdin=DEVNULL, stderr=PIPE)
        assert await process.communicate() == (None, b"")

    loop.run_until_complete(main())


def test_no_thread_and_no_sigchld_handler():
    async def main():
        process = await asyncio.create_subprocess_exec(*SLEEP)
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        assert set(threading.enumerate()) <= before  # the last test's may end
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    before = set(threading.enumerate())
    fastloop.run(main())


@pytest.mark.parametrize("call", ["kill", "terminate", "send_signal"])
def test_signals_and_the_rule_of_process_lookup_error(loop, call):
    async def main():
        process = await asyncio.create_subprocess_exec(*SLEEP)
        args = (signal.SIGINT,) if call == "send_signal" else ()
        getattr(process, call)(*args)
        expected = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
        status = await process.wait()
        # Python's own SIGINT handler ends the child by a traceback and SIGINT,
        # or by plain SIGINT if it came before that handler was there
        assert status in (-expected.get(call, signal.SIGINT), 1)
        while process._transport._proc is not None:  # connection_lost() clears it
            await asyncio.sleep(0)
        with pytest.raises(ProcessLookupError):
            getattr(process, call)(*args)

    loop.run_until_complete(main())


def test_order_of_callbacks(any_loop):
    async def main():
        transport, protocol = await any_loop.subprocess_exec(
            lambda: Recorder(any_loop), "sh", "-c", "echo out; echo err >&2; exit 3", stdin=None
        )
        assert transport.get_pid() > 0
        assert transport.get_returncode() is None or transport.get_returncode() == 3
        await protocol.lost
        assert protocol.data == {1: b"out\n", 2: b"err\n"}
        assert protocol.calls[0] == "connection_made"
        assert protocol.calls[-1] == ("connection_lost", None)
        assert set(protocol.calls[1:-1]) == {
            "process_exited", ("pipe_connection_lost", 1, None), ("pipe_connection_lost", 2, None)
        }  # fmt: skip
        assert transport.get_returncode() == 3
        transport.close()

    any_loop.run_until_complete(main())


def test_exit_after_the_pipes_and_before(any_loop):
    """process_exited() comes when it happens: before or after the pipes end."""

    async def main():
        # the grandchild keeps stdout after the child has exited, until told
        transport, protocol = await any_loop.subprocess_exec(
            lambda: Recorder(any_loop), "sh", "-c", "cat & exit 0", stderr=None
        )
        # sh gives background commands /dev/null for stdin: cat ends at once
        await protocol.lost
        transport.close()
        assert protocol.calls.count("process_exited") == 1

        transport, protocol = await any_loop.subprocess_exec(
            lambda: Recorder(any_loop),
            sys.executable, "-c",
            "import os, sys; os.close(1); sys.stdin.read()", stderr=None,
        )  # fmt: skip
        while ("pipe_connection_lost", 1, None) not in protocol.calls:
            await asyncio.sleep(0.001)
        assert "process_exited" not in protocol.calls
        transport.get_pipe_transport(0).close()
        await protocol.lost
        transport.close()
        assert protocol.calls[-2:] == ["process_exited", ("connection_lost", None)]

    any_loop.run_until_complete(main())


def test_program_that_does_not_exist(loop):
    async def main():
        before = open_fds()
        for _ in range(5):
            with pytest.raises(FileNotFoundError):
                await asyncio.create_subprocess_exec(
                    "/no/such/program", stdin=PIPE, stdout=PIPE, stderr=PIPE
                )
            with pytest.raises(PermissionError):
                await asyncio.create_subprocess_exec("/etc/passwd", stdin=PIPE)
        assert open_fds() == before
        assert zombie() is None

    loop.run_until_complete(main())


def test_many_children_leak_nothing(loop):
    async def one(n):
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"cat; exit {n}", stdin=PIPE, stdout=PIPE
        )
        out, _ = await process.communicate(b"%d" % n)
        return out, process.returncode

    async def main():
        await one(0)
        before = open_fds()
        results = await asyncio.gather(*map(one, range(40)))
        assert results == [(b"%d" % n, n) for n in range(40)]
        assert open_fds() == before
        assert zombie() is None

    loop.run_until_complete(main())


def test_loop_outside_the_main_thread(exit_seen_by):
    async def main():
        process = await asyncio.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
        out, _ = await process.communicate(b"hello")
        return out, process.returncode

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=lambda: results.append(fastloop.run(main())))
        thread.start()
        thread.join()
    assert results == [(b"hello", 0)]


def test_child_reaped_by_someone_else(loop, caplog):
    async def main():
        process = await asyncio.create_subprocess_exec(*SLEEP)
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        assert await process.wait() == 255

    loop.run_until_complete(main())
    assert "exit status already read:  will report returncode 255" in caplog.text


def test_forbidden_by_seccomp():
    """In a sandbox whose filter refuses pidfd_open(), as some containers' do."""
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("the filter below is for Linux on x86-64 and AArch64")
    source = """
        import asyncio, ctypes, os, signal, struct, sys, threading
        import fastloop

        PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
        PIDFD_OPEN, ALLOW, ERRNO_EPERM = 434, 0x7FFF0000, 0x00050001
        LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
        code = b"".join(struct.pack("HBBI", *line) for line in [
            (LOAD, 0, 0, 0), (JUMP_EQUAL, 0, 1, PIDFD_OPEN), (RETURN, 0, 0, ERRNO_EPERM), (RETURN, 0, 0, ALLOW)
        ])
        lines = ctypes.create_string_buffer(code)
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(lines)))
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        assert prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0
        try:
            os.pidfd_open(os.getpid())
        except PermissionError:
            pass
        else:
            raise AssertionError("the filter is not in force")

        async def main():
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
            assert await process.communicate(b"through") == (b"through", None)
            assert await process.wait() == 0
            process = await asyncio.create_subprocess_exec("sleep", "600")
            process.terminate()
            assert await process.wait() == -signal.SIGTERM
            for thread in threading.enumerate():
                if thread.name.startswith("fastloop-waitpid"):
                    thread.join()

        fastloop.run(main())
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child is left")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=250,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fastloop.__file__))},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "no child is left\n", "")


def test_child_reaped_by_the_kernel(loop, caplog):
    """With SIGCHLD ignored there is never a status to read."""

    async def main():
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 255

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        loop.run_until_complete(main())
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "will report returncode 255" in caplog.text


def test_child_reaped_by_its_own_popen(loop, caplog):
    """Popen.poll() takes the status away, but keeps it where we find it."""

    async def main():
        process = await asyncio.create_subprocess_exec("sh", "-c", "read x; exit 9", stdin=PIPE)
        process.stdin.write(b"\n")
        exits_without_reaping(process.pid)
        assert process._transport.get_extra_info("subprocess").poll() == 9
        assert await process.wait() == 9

    loop.run_until_complete(main())
    assert not caplog.records


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="child watchers are gone since 3.14")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_watcher_that_reaps_all_children():
    """A FastChildWatcher takes every status away: the program that set one gets it from there."""
    loop = fastloop.new_event_loop()
    watcher = asyncio.FastChildWatcher()
    policy = asyncio.get_event_loop_policy()
    before = policy.__dict__.get("_watcher")

    async def status(number):
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}")
        return await process.wait()

    async def main():
        policy.set_child_watcher(watcher)
        assert await status(1) == 1  # not attached, so it reaps nothing
        watcher.attach_loop(loop)
        assert await asyncio.gather(*map(status, range(20))) == [*range(20)]

    try:
        loop.run_until_complete(main())
    finally:
        watcher.attach_loop(None)
        policy._watcher = before
        loop.close()


def test_close_kills_a_running_child(loop):
    async def main():
        transport, protocol = await loop.subprocess_exec(lambda: Recorder(loop), *SLEEP)
        pid = transport.get_pid()
        transport.close()
        assert transport.is_closing()
        await protocol.lost
        assert transport.get_returncode() == -signal.SIGKILL
        assert gone(pid)

    loop.run_until_complete(main())


def test_cancelled_while_being_made(loop):
    async def main():
        before = open_fds()
        for turns in range(6):
            task = loop.create_task(
                asyncio.create_subprocess_exec(*SLEEP, stdin=PIPE, stdout=PIPE, stderr=PIPE)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():  # it was made before it could be cancelled
                process = task.result()
                process._transport.close()
                await process.wait()
                continue
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        del task
        gc.collect()
        await asyncio.sleep(0)
        assert open_fds() == before
        assert zombie() is None

    loop.run_until_complete(main())


def test_child_that_outlives_the_loop(exit_seen_by, caplog):
    before = open_fds()
    loop = fastloop.new_event_loop()
    process = loop.run_until_complete(asyncio.create_subprocess_exec(*SLEEP, stdin=DEVNULL))
    pid, popen = process.pid, process._transport.get_extra_info("subprocess")
    loop.close()
    assert popen.poll() is None
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)
    if exit_seen_by == "pidfd":
        assert popen.wait() == -signal.SIGKILL
        process._transport.close()
    else:  # the thread reaps it
        for thread in threading.enumerate():
            if thread.name == f"fastloop-waitpid-{pid}":
                thread.join()
        assert "is closed" in caplog.text
        popen.returncode = -signal.SIGKILL
        process._transport.close()
    del loop, process, popen
    assert open_fds() == before
    assert gone(pid)


def test_forgotten_transport_warns_and_kills():
    """As in asyncio, when nothing holds the transport any more: once the loop is closed."""
    loop = fastloop.new_event_loop()
    process = loop.run_until_complete(asyncio.create_subprocess_exec(*SLEEP))
    pid = process.pid
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del process
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    subprocess.run(["true"], check=True)  # Popen reaps the children of lost Popens
    deadline = time.monotonic() + 30
    while not gone(pid) and time.monotonic() < deadline:
        subprocess._cleanup()
    assert gone(pid)


def test_large_data_both_ways(any_loop):
    payload = os.urandom(1 << 20) * 8

    async def main():
        process = await asyncio.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
        out, _ = await process.communicate(payload)
        assert out == payload

    any_loop.run_until_complete(main())


def test_every_way_of_reading(any_loop):
    """Pieces of all sizes on stdout and stderr at once, read by one method after the other."""
    child = """if True:
        import random, sys
        order = random.Random(5)
        for _ in range(400):
            size = order.choice([1, 10, 1000, 70_000])
            for stream in (sys.stdout.buffer, sys.stderr.buffer):
                stream.write(order.randbytes(size).replace(b"\\n", b"") + b"\\n")
                stream.flush()
    """

    async def read_in_turn(stream):
        parts = []
        while not stream.at_eof():
            for read in (
                stream.readline(),
                stream.readuntil(b"\n"),
                stream.read(1),
                stream.read(100_000),
                stream.readexactly(5_000),
            ):
                try:
                    parts.append(await read)
                except asyncio.IncompleteReadError as exc:
                    parts.append(exc.partial)
        return b"".join(parts)

    async def main():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", child, stdout=PIPE, stderr=PIPE, limit=80_000
        )
        read = await asyncio.gather(read_in_turn(process.stdout), read_in_turn(process.stderr))
        assert await process.wait() == 0
        return read

    expected = subprocess.run([sys.executable, "-c", child], capture_output=True, check=True)
    assert any_loop.run_until_complete(main()) == [expected.stdout, expected.stderr]


def test_who_replaces_feed_data_sees_all(any_loop):
    async def main():
        process = await asyncio.create_subprocess_exec(*CAT, stdin=PIPE, stdout=PIPE)
        seen, feed_data = [], process.stdout.feed_data
        process.stdout.feed_data = lambda data: (seen.append(data), feed_data(data))
        out, _ = await process.communicate(bytes(1 << 20))
        assert b"".join(seen) == out == bytes(1 << 20)

    any_loop.run_until_complete(main())


def test_slow_reader_stops_the_child(any_loop):
    """No more is taken from the pipe than twice the limit and one read."""

    async def main():
        process = await asyncio.create_subprocess_exec("cat", "/dev/zero", stdout=PIPE, limit=100_000)
        while not process.stdout._paused:
            await asyncio.sleep(0)
        held = len(process.stdout._buffer)
        assert 200_000 < held <= 200_000 + 262_144
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(process.stdout._buffer) == held
        for _ in range(100):
            await process.stdout.readexactly(100_000)
        process.kill()
        await process.communicate()

    any_loop.run_until_complete(main())
