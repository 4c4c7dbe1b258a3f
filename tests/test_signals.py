"""Signal handlers of the loop, with real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import fastloop


def run_script(source, *args):
    """Run a program of its own; give its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *args],
        capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fastloop.__file__))},
    )  # fmt: skip
    assert result.stderr == ""
    assert result.returncode == 0
    return result.stdout


def test_handlers_of_several_signals(loop):
    async def main():
        got = asyncio.Queue()
        for sig in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            loop.add_signal_handler(sig, got.put_nowait, sig)
        for sig in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), sig)
            assert await asyncio.wait_for(got.get(), 60) == sig
        assert got.empty()
        loop.add_signal_handler(signal.SIGUSR1, got.put_nowait, "replaced")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await asyncio.wait_for(got.get(), 60) == "replaced"
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

    loop.run_until_complete(main())


def test_ends_a_blocking_poll(loop):
    async def main():
        event = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, event.set)
        thread = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        thread.start()
        await asyncio.wait_for(event.wait(), 60)
        thread.join()
        # and one that another thread takes
        event.clear()
        thread = threading.Thread(
            target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        )
        thread.start()
        await asyncio.wait_for(event.wait(), 60)
        thread.join()

    loop.run_until_complete(main())


def test_each_of_a_few_is_told(loop):
    async def main():
        count = 0

        def handler():
            nonlocal count
            count += 1

        loop.add_signal_handler(signal.SIGUSR1, handler)
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR1)
        while count < 50:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert count == 50

    loop.run_until_complete(main())


def test_a_storm_loses_no_kind_of_signal(fast, capfd):
    """The wakeup socket is long full when the one signal of another kind comes."""

    async def main():
        got = {sig: 0 for sig in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)}

        def handler(sig):
            got[sig] += 1

        for sig in got:
            fast.add_signal_handler(sig, handler, sig)
        for i in range(10_000):
            os.kill(os.getpid(), signal.SIGUSR1)
            if i == 9_000:
                os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGHUP)
        while not all(got.values()):
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert got[signal.SIGUSR2] == got[signal.SIGHUP] == 1
        # and it works as before
        got[signal.SIGUSR1] = 0
        os.kill(os.getpid(), signal.SIGUSR1)
        while not got[signal.SIGUSR1]:
            await asyncio.sleep(0)

    fast.run_until_complete(asyncio.wait_for(main(), 200))
    assert capfd.readouterr().err == ""


def test_a_storm_from_outside(fast):
    """The same from another process, while the loop sleeps and works."""
    source = """
        import os, signal, sys
        for i in range(10_000):
            os.kill(int(sys.argv[1]), signal.SIGUSR1)
        os.kill(int(sys.argv[1]), signal.SIGUSR2)
    """

    async def main():
        done, other = asyncio.Event(), []
        fast.add_signal_handler(signal.SIGUSR1, other.append, 1)
        fast.add_signal_handler(signal.SIGUSR2, done.set)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(source), str(os.getpid())
        )
        await asyncio.wait_for(done.wait(), 200)
        assert await process.wait() == 0
        assert other

    fast.run_until_complete(main())


def test_handlers_are_restored_on_close(loop):
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def test_beside_handlers_of_the_signal_module(loop):
    plain = []
    before = signal.signal(signal.SIGUSR2, lambda sig, frame: plain.append(sig))
    try:

        async def main():
            event = asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, event.set)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert plain == [signal.SIGUSR2]
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(event.wait(), 60)
            assert plain == [signal.SIGUSR2]

        loop.run_until_complete(main())
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_errors(loop):
    async def coroutine():
        pass

    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine)
    with pytest.raises(TypeError, match="sig must be an int"):
        loop.add_signal_handler("SIGUSR1", print)
    with pytest.raises(ValueError, match="invalid signal number 9999"):
        loop.add_signal_handler(9999, print)
    with pytest.raises(ValueError, match="invalid signal number 9999"):
        loop.remove_signal_handler(9999)
    with pytest.raises(RuntimeError, match=f"sig {int(signal.SIGKILL)} cannot be caught"):
        loop.add_signal_handler(int(signal.SIGKILL), print)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.add_signal_handler(signal.SIGUSR1, print)


def test_only_in_the_main_thread(loop):
    raised = []

    def add():
        with pytest.raises(RuntimeError, match="main thread") as caught:
            loop.add_signal_handler(signal.SIGUSR1, print)
        raised.append(caught.value)

    thread = threading.Thread(target=add)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_handler_that_raises_is_reported(loop):
    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, lambda: 1 / 0)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not reported:
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(main(), 60))
    assert [type(exc) for exc in reported] == [ZeroDivisionError]


def test_handler_removed_before_it_ran(loop):
    called = []

    async def main():
        loop.add_signal_handler(signal.SIGUSR1, called.append, 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert loop.remove_signal_handler(signal.SIGUSR1)
        for _ in range(5):
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert called == []


@pytest.mark.parametrize("name", ["asyncio", "fastloop"])
def test_keyboard_interrupt_under_run(name):
    """Ctrl-C cancels the main task, which may clean up; then run() raises."""
    out = run_script(
        """
        import asyncio, os, signal, sys, threading, fastloop
        new_loop = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}

        async def main():
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                print("cancelled")
                raise
        try:
            with asyncio.Runner(loop_factory=new_loop[sys.argv[1]]) as runner:
                runner.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
        name,
    )
    assert out == "cancelled\ninterrupted\n"


def test_fork_in_a_running_program():
    """The child makes its own loop; signals to one are no concern of the other."""
    out = run_script(
        """
        import asyncio, os, signal, sys, warnings, fastloop
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, 3.12+

        async def child():
            event = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, event.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(event.wait(), 60)
            process = await asyncio.create_subprocess_exec("true")
            return await process.wait()

        async def main():
            event = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, event.set)
            pid = os.fork()
            if pid == 0:
                asyncio._set_running_loop(None)
                os._exit(fastloop.run(child()))
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0, status
            assert not event.is_set()
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(event.wait(), 60)
            print("both")

        fastloop.run(main())
        """
    )
    assert out == "both\n"
