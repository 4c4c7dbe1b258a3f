"""Child processes: exits seen through pidfds, or by a thread where there are none."""

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
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


def test_options_are_popens(loop, tmp_path):
    async def main():
        out = tmp_path / "out"
        with out.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                "sh", "-c", 'pwd; echo "$COLOUR"; cat', stdin=DEVNULL, stdout=file, cwd=tmp_path,
                env={"COLOUR": "blue", "PATH": os.environ["PATH"]}, start_new_session=True,
            )  # fmt: skip
        assert process.stdout is None
        assert await process.wait() == 0
        assert out.read_text() == f"{tmp_path}\nblue\n"

    loop.run_until_complete(main())


def test_no_thread_and_no_sigchld_handler():
    async def main():
        process = await asyncio.create_subprocess_exec(*SLEEP)
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        assert threading.enumerate() == before
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    before = threading.enumerate()
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
        gc.collect()
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
        gc.collect()
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
    gc.collect()
    assert gone(pid)
    assert open_fds() == before


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
