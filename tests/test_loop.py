"""The loop itself: running, closing, handles, errors, debug mode; compared with asyncio's."""

import asyncio
import contextvars
import gc
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from unittest import mock

import pytest

import fastloop


def turn(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def collect_reports(loop):
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))
    return reports


# --- running and closing ---


def test_stop_ends_the_turn_that_it_is_called_in(loop):
    ran = []
    loop.call_soon(ran.append, 1)
    loop.call_soon(loop.stop)
    loop.call_soon(ran.append, 2)
    loop.call_soon(loop.call_soon, ran.append, 3)
    loop.run_forever()
    assert ran == [1, 2]
    turn(loop)
    assert ran == [1, 2, 3]


def test_stop_before_run_lets_one_turn_pass(loop):
    ran = []
    loop.call_soon(ran.append, 1)
    loop.stop()
    loop.run_forever()
    assert ran == [1] and not loop.is_running()


def test_running_twice_and_closing_while_running_are_refused(fast):
    errors = []

    def nested():
        for call in (fast.run_forever, fast.close, other.run_forever):
            try:
                call()
            except RuntimeError as exc:
                errors.append(str(exc))

    other = fastloop.new_event_loop()
    fast.call_soon(nested)
    turn(fast)
    other.close()
    assert errors == [
        "This event loop is already running",
        "Cannot close a running event loop",
        "Cannot run the event loop while another loop is running",
    ]


CLOSED_CALLS = [
    lambda loop: loop.call_soon(print),
    lambda loop: loop.call_later(1, print),
    lambda loop: loop.call_at(1, print),
    lambda loop: loop.call_soon_threadsafe(print),
    lambda loop: loop.run_forever(),
    lambda loop: loop.add_reader(0, print),
    lambda loop: loop.add_writer(0, print),
    lambda loop: loop.run_in_executor(None, print),
    lambda loop: loop.add_signal_handler(signal.SIGUSR1, print),
]


@pytest.mark.parametrize("call", CLOSED_CALLS)
def test_a_closed_loop_refuses(loop, call):
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        call(loop)


def test_create_task_on_a_closed_loop_is_refused(loop):
    loop.close()
    coro = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        loop.create_task(coro)
    coro.close()


def test_closing_drops_what_waits(fast):
    class Token:
        pass

    tokens = [Token() for _ in range(4)]
    refs = [weakref.ref(t) for t in tokens]
    reading, writing = socket.socketpair()
    fast.call_soon(print, tokens[0])
    fast.call_later(60, print, tokens[1])
    fast.add_reader(reading, print, tokens[2])
    fast.add_writer(writing, print, tokens[3])
    tokens.clear()
    fast.close()
    reading.close()
    writing.close()
    assert [r() for r in refs] == [None] * 4


def test_a_dropped_loop_with_everything_in_it_is_collected():
    def make():
        loop = fastloop.new_event_loop()

        async def forever():
            await loop.create_future()

        task = loop.create_task(forever())
        task._log_destroy_pending = False
        loop.call_later(60, loop.stop)
        turn(loop)
        loop.call_soon(loop.stop)
        return weakref.ref(loop), weakref.ref(task)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        refs = make()
        gc.collect()
        gc.collect()
    assert [r() for r in refs] == [None, None]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_two_that_end_programs_come_out_and_the_rest_still_runs(loop, error):
    ran = []

    def raising():
        raise error

    async def task():
        raise error

    loop.call_soon(raising)
    loop.call_soon(ran.append, 1)
    with pytest.raises(error):
        loop.run_forever()
    turn(loop)
    assert ran == [1]
    with pytest.raises(error):
        loop.run_until_complete(task())
    turn(loop)


def test_a_second_initialisation_is_refused(fast):
    with pytest.raises(RuntimeError):
        fast.__init__()
    turn(fast)


def test_a_loop_whose_init_never_ran_is_closed():
    loop = fastloop.Loop.__new__(fastloop.Loop)
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon(print)


# --- wrong arguments ---

WRONG_ARGUMENTS = [
    lambda loop: loop.call_soon(),
    lambda loop: loop.call_later(1),
    lambda loop: loop.call_later(None, print),
    lambda loop: loop.call_later("x", print),
    lambda loop: loop.call_at(None, print),
    lambda loop: loop.call_soon(print, wrong=1),
    lambda loop: loop.create_task(),
    lambda loop: loop.create_task(5),
    lambda loop: loop.add_reader("x", print),
    lambda loop: loop.add_reader(-1, print),
    lambda loop: loop.add_reader(None, print),
    lambda loop: loop.remove_reader("x"),
    lambda loop: loop.set_task_factory(5),
    lambda loop: loop.set_exception_handler(5),
    lambda loop: loop.run_until_complete(5),
    lambda loop: loop.set_default_executor(5),
]


@pytest.mark.parametrize("call", WRONG_ARGUMENTS)
def test_wrong_arguments_raise_what_asyncio_raises(call):
    raised = []
    for factory in (asyncio.SelectorEventLoop, fastloop.new_event_loop):
        loop = factory()
        with pytest.raises(Exception) as info:
            call(loop)
        raised.append(info.type)
        turn(loop)
        loop.close()
    assert raised[0] is raised[1]


# --- handles ---


def test_handles_are_asyncios(fast):
    handle, timer = fast.call_soon(print), fast.call_later(1, print, 1)
    assert isinstance(handle, asyncio.Handle) and isinstance(timer, asyncio.TimerHandle)
    assert isinstance(handle, fastloop.Handle) and isinstance(timer, fastloop.TimerHandle)
    assert weakref.ref(handle)() is handle
    assert timer in fast._scheduled and handle in fast._ready
    assert repr(handle).startswith("<Handle print(")
    assert repr(timer).startswith(f"<TimerHandle when={timer.when()} print(")


def test_cancel_frees_callback_and_arguments_at_once(fast):
    class Token:
        def __call__(self):
            raise AssertionError("it was cancelled")

    for schedule in (fast.call_soon, lambda cb, *a: fast.call_later(0, cb, *a)):
        for n in range(6):
            tokens = [Token() for _ in range(n + 1)]
            refs = [weakref.ref(t) for t in tokens]
            handle = schedule(*tokens)
            tokens.clear()
            assert not handle.cancelled()
            handle.cancel()
            assert handle.cancelled() and [r() for r in refs] == [None] * (n + 1)
            assert "cancelled" in repr(handle)
    turn(fast)


def test_timer_handles_compare_and_hash_as_asyncios(fast):
    early, late = fast.call_at(1, print), fast.call_at(2, print)
    assert early < late and late > early and early <= late and early != late
    assert hash(early) == hash(1.0)
    assert early.when() == 1.0


def test_a_handle_may_cancel_itself_and_others_while_it_runs(fast):
    ran = []

    def callback(*args):
        for handle in handles:
            handle.cancel()
        ran.append(args)

    handles = [fast.call_soon(callback, i, object()) for i in range(3)]
    handles.append(fast.call_later(0, callback, 9))
    turn(fast)
    turn(fast)
    assert len(ran) == 1 and ran[0][0] == 0


def test_a_callback_with_many_arguments(loop):
    seen = []
    loop.call_soon(lambda *args: seen.append(args), *range(50))
    turn(loop)
    assert seen == [tuple(range(50))]


def test_the_end_of_a_sleep_cancelled_or_done_before():
    async def main():
        loop = asyncio.get_running_loop()
        reports = collect_reports(loop)
        for finish in (lambda f: f.cancel(), lambda f: f.set_result(1)):
            future = loop.create_future()
            loop.call_later(0, asyncio.futures._set_result_unless_cancelled, future, 2)
            finish(future)
            await asyncio.sleep(0.001)
        return [type(r["exception"]) for r in reports]

    assert fastloop.run(main()) == asyncio.run(main()) == [asyncio.InvalidStateError]


# --- contexts ---

VAR = contextvars.ContextVar("VAR", default="unset")


def test_callbacks_do_not_see_each_others_variables(loop):
    seen = []

    def callback(value):
        seen.append(VAR.get())
        if value is not None:
            VAR.set(value)

    for value in (None, "a", None, "b", None):
        loop.call_soon(callback, value)
    turn(loop)
    loop.call_soon(callback, None)
    turn(loop)
    assert seen == ["unset"] * 6 and VAR.get() == "unset"


def test_a_callback_inherits_from_the_one_that_scheduled_it(loop):
    seen = []

    def outer(value):
        VAR.set(value)
        loop.call_soon(lambda: seen.append(VAR.get()))
        loop.call_later(0, lambda: seen.append(VAR.get()))

    loop.call_soon(outer, "a")
    loop.call_soon(outer, "b")
    for _ in range(4):
        turn(loop)
    assert sorted(seen) == ["a", "a", "b", "b"]


def test_a_token_kept_by_a_callback_belongs_to_it_alone(loop):
    tokens, errors = [], []

    def use(token):
        try:
            VAR.reset(token)
        except ValueError as exc:
            errors.append("different Context" in str(exc))

    loop.call_soon(lambda: tokens.append(VAR.set("x")))
    loop.call_soon(lambda: use(tokens[0]))
    turn(loop)
    assert errors == [True]


def test_get_context_is_what_the_callback_runs_in(fast):
    handle = fast.call_soon(lambda: VAR.set("mine"))
    context = handle.get_context()
    assert VAR not in context
    turn(fast)
    assert context[VAR] == "mine" and handle.get_context() is context


def test_an_explicit_context_is_used(loop):
    context = contextvars.copy_context()
    loop.call_soon(VAR.set, "there", context=context)
    turn(loop)
    assert context[VAR] == "there"
    loop.call_later(0, VAR.set, "later", context=context)
    loop.call_at(loop.time() + 0.001, loop.stop)
    loop.run_forever()
    assert context[VAR] == "later" and VAR.get() == "unset"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.11 calls the handler outside it")
def test_the_exception_handler_sees_the_callbacks_variables(loop):
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(VAR.get()))

    def failing():
        VAR.set("failed")
        raise ValueError

    loop.call_soon(failing)
    loop.call_soon(lambda: seen.append(VAR.get()))
    turn(loop)
    assert seen == ["failed", "unset"]


# --- time() ---


async def pass_by(clock, seconds):
    clock[0] += seconds
    for _ in range(3):
        await asyncio.sleep(0)


def assert_goes_by_its_clock(loop, clock):
    """Timers of a loop whose time() is clock[0]: due when it says so, however long that takes."""
    fired = []

    async def main():
        loop.call_later(3600, fired.append, "later")
        loop.call_at(clock[0] + 7200, fired.append, "at")
        sleeper = loop.create_task(asyncio.sleep(3600, "slept"))
        await pass_by(clock, 0)
        await pass_by(clock, 3599)
        assert fired == [] and not sleeper.done()
        await pass_by(clock, 1)
        assert fired == ["later"] and await sleeper == "slept"
        await pass_by(clock, 3600)
        assert fired == ["later", "at"]

    loop.run_until_complete(main())


def test_a_clock_set_on_a_loop_says_when_timers_are_due(loop):
    clock = [1000]
    with mock.patch.object(loop, "time", lambda: clock[0]):
        assert_goes_by_its_clock(loop, clock)
    loop.run_until_complete(asyncio.sleep(0.001))


@pytest.mark.parametrize("base", (asyncio.SelectorEventLoop, fastloop.Loop))
def test_a_subclass_has_a_clock_of_its_own(base):
    class Clocked(base):
        clock = [0.0]

        def time(self):
            return self.clock[0]

    loop = Clocked()
    assert_goes_by_its_clock(loop, loop.clock)
    loop.close()


def test_a_clock_that_fails_ends_the_run(loop):
    loop.call_later(3600, print)
    with mock.patch.object(loop, "time", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
        loop.run_forever()
    turn(loop)


@pytest.mark.parametrize("start", [-1e6, -3600.25, -0.5, 1e-300, 1e12, 2.0**60, -(2.0**60)])
def test_a_clock_may_start_anywhere(loop, start):
    """Below zero, fractional, or where the next float is minutes away."""
    clock = [start]
    step = 3600.0 if abs(start) < 1e15 else 2.0**20
    loop.time = lambda: clock[0]
    fired = []

    async def main():
        loop.call_at(start + 3 * step, fired.append, "third")
        loop.call_later(step, fired.append, "first")
        sleeper = loop.create_task(asyncio.sleep(step * 2, "slept"))
        await pass_by(clock, 0)
        await pass_by(clock, step / 2)  # not to the very float, which asyncio before 3.15 does not call due
        assert fired == []
        await pass_by(clock, step)
        assert fired == ["first"] and not sleeper.done()
        await pass_by(clock, step)
        assert fired == ["first"] and await sleeper == "slept"
        await pass_by(clock, step)
        assert fired == ["first", "third"]

    loop.run_until_complete(main())


def test_timers_of_any_float_run_in_order(loop):
    clock = [-1.7e308]
    loop.time = lambda: clock[0]
    times = [5.5, -1e300, 1e300, 0.0, -5e-324, 5e-324, -2.0, -2.0000000000000004, 1.0, math.inf, -1e-9, 9.3e9, -9.3e9]
    ran = []
    for when in times:
        loop.call_at(when, ran.append, when)
    turn(loop)
    assert ran == []
    for now in (-1e250, -3.0, -1.0, 0.0):
        clock[0] = now
        turn(loop)
        assert ran == sorted(when for when in times if when < now + loop._clock_resolution)
    clock[0] = 1.7e308
    turn(loop)
    assert ran == sorted(times)[:-1]  # inf is never


def test_a_tick_of_rounding_does_not_delay_a_timer(loop):
    """0.1 + 0.2 is more than 0.3: asyncio forgives as much as the clock's resolution."""
    clock = [0.2]
    loop.time = lambda: clock[0]
    fired = []
    loop.call_later(0.1, fired.append, 1)
    turn(loop)
    clock[0] = 0.3
    turn(loop)
    assert fired == [1]


def test_timers_made_before_the_clock_was_set(loop):
    now, fired = loop.time(), []
    for delay in (9000, 3000, 6000, 1000):
        loop.call_at(now + delay, fired.append, delay)
    turn(loop)
    for delay in (7000, 2000):
        loop.call_at(now + delay, fired.append, delay)
    clock = [now]
    loop.time = lambda: clock[0]
    turn(loop)
    assert fired == []
    for clock[0] in (now + 2500, now + 6500, now + 9500):
        turn(loop)
    assert fired == [1000, 2000, 3000, 6000, 7000, 9000]


def test_not_a_number_is_due_at_once(loop):
    ran = []
    loop.call_later(math.nan, ran.append, "timer")
    turn(loop)
    assert ran == ["timer"]
    loop.call_later(3600, ran.append, "clock")
    loop.time = lambda: math.nan
    turn(loop)
    assert ran == ["timer", "clock"]


def test_a_timer_wakes_a_loop_with_a_clock_below_zero(loop):
    offset = loop.time() + 1000
    loop.time = lambda: time.monotonic() - offset
    assert loop.time() < 0
    loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0.01), 60))


def test_a_timer_remembers_whether_its_time_is_an_int(loop):
    for when in (5, 5.0, 5.5):
        timer = loop.call_at(when, print)
        assert repr(timer.when()) == repr(when) and repr(timer._when) == repr(when)
        timer.cancel()


# --- exception handlers ---


def test_an_exception_in_a_callback_is_reported_and_the_rest_runs(loop):
    reports, ran = collect_reports(loop), []

    def failing(*args):
        raise ValueError("x")

    handle = loop.call_soon(failing, 1, 2)
    loop.call_soon(ran.append, 1)
    turn(loop)
    assert ran == [1]
    (report,) = reports
    assert report["message"].startswith("Exception in callback ") and "failing" in report["message"]
    assert report["handle"] is handle and str(report["exception"]) == "x"


def test_an_exception_handler_is_called_in_an_except_clause(loop):
    """So logging.exception() in it shows the traceback, and raising in it tells what led there."""
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(sys.exc_info()[1] is context["exception"]))
    loop.call_soon(lambda: 1 / 0)
    turn(loop)
    assert seen == [True] and sys.exc_info()[1] is None


def test_an_exception_handler_that_fails_is_logged(loop, caplog):
    loop.set_exception_handler(lambda loop, context: 1 / 0)
    loop.call_soon(lambda: [][1])
    turn(loop)
    assert "Unhandled error in exception handler" in caplog.text


def test_a_repr_that_fails_does_not_hide_the_exception(fast):
    reports = collect_reports(fast)

    class Rude:
        def __call__(self):
            raise ValueError("the real one")

        def __repr__(self):
            raise RuntimeError("no repr")

    fast.call_soon(Rude())
    turn(fast)
    assert [str(r["exception"]) for r in reports] == ["the real one"]


# --- threads ---


def test_call_soon_threadsafe_wakes_a_sleeping_loop(loop):
    received = []

    def producer():
        for i in range(1000):
            loop.call_soon_threadsafe(received.append, i)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=producer)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert received == list(range(1000))


def test_current_task_and_all_tasks_seen_from_another_thread(loop):
    seen, between_steps = [], threading.Event()

    def look():
        between_steps.wait()
        seen.append(asyncio.current_task(loop))
        seen.append(asyncio.all_tasks(loop))

    async def main():
        looking = loop.run_in_executor(None, look)
        loop.call_soon(between_steps.set)
        await looking
        assert asyncio.current_task() is task
        sleeper.set_result(None)
        await other

    sleeper = loop.create_future()
    other = loop.create_task(asyncio.wait_for(sleeper, 60))
    task = loop.create_task(main())
    loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_default_executor())
    assert seen == [None, {task, other}]


# --- debug mode ---


def test_debug_mode_refuses_a_foreign_thread(loop):
    loop.set_debug(True)
    errors = []

    def foreign():
        for call in (loop.call_soon, lambda cb: loop.call_later(1, cb), lambda cb: loop.call_at(1, cb)):
            with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
                call(print)
            errors.append(1)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=foreign)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert errors == [1, 1, 1]


def test_debug_mode_refuses_coroutines_and_what_cannot_be_called(loop):
    loop.set_debug(True)

    async def coroutine():
        pass

    for call in (loop.call_soon, loop.call_soon_threadsafe, lambda cb: loop.call_later(1, cb)):
        with pytest.raises(TypeError, match="coroutines cannot be used with"):
            call(coroutine)
        with pytest.raises(TypeError, match="a callable object was expected by"):
            call(5)


def test_debug_mode_logs_what_is_slow(loop, caplog):
    loop.set_debug(True)
    loop.slow_callback_duration = 0.01

    def slow_callback():
        deadline = loop.time() + 0.02
        while loop.time() < deadline:
            pass

    async def slow_task():
        slow_callback()

    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.call_soon(slow_callback)
        loop.run_until_complete(slow_task())
    slow = [r.getMessage() for r in caplog.records]
    assert any("slow_callback()" in m and " took " in m for m in slow), slow
    assert any("<Task " in m and "slow_task()" in m for m in slow), slow


def test_debug_mode_logs_a_slow_data_received(loop, caplog):
    class Slow(asyncio.Protocol):
        def data_received(self, data):
            deadline = loop.time() + 0.02
            while loop.time() < deadline:
                pass
            received.set_result(data)

    async def main():
        transport, _ = await loop.create_connection(Slow, sock=ours)
        theirs.send(b"x")
        assert await received == b"x"
        await asyncio.sleep(0)
        transport.close()

    ours, theirs = socket.socketpair()
    with ours, theirs, caplog.at_level(logging.WARNING, "asyncio"):
        received = loop.create_future()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.01
        loop.run_until_complete(main())
    assert any("Transport" in r.getMessage() and " took " in r.getMessage() for r in caplog.records)


def test_debug_mode_remembers_where_things_were_made(fast):
    loop = fast
    loop.set_debug(True)
    handle, timer = loop.call_soon(print), loop.call_later(1, print)
    future, task = loop.create_future(), loop.create_task(asyncio.sleep(0))
    for made in (handle, timer, future, task):
        assert made._source_traceback[-1].filename == __file__
        assert f"created at {__file__}" in repr(made)
    loop.run_until_complete(task)


def test_debug_mode_by_environment():
    code = "import fastloop; loop = fastloop.new_event_loop(); print(loop.get_debug()); loop.close()"
    env = {**os.environ, "PYTHONASYNCIODEBUG": "1"}
    for command, environment in (([], env), (["-X", "dev"], None)):
        out = subprocess.run(
            [sys.executable, *command, "-c", code], env=environment, capture_output=True, text=True
        )
        assert out.stdout == "True\n" and out.stderr == ""


# --- whole programs ---


def run_program(code, *args):
    return subprocess.run(
        [sys.executable, *args, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["asyncio", "fastloop"])
def test_ctrl_c_cancels_the_main_task(name):
    out = run_program(
        f"""
        import asyncio, os, signal, {name}
        async def main():
            try:
                asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("cancelled")
                raise
        try:
            {name}.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert out.stdout == "cancelled\ninterrupted\n" and out.stderr == ""


@pytest.mark.parametrize("how", ["policy", "install", "factory"])
def test_every_way_in_gives_our_loop_without_a_warning_of_ours(how):
    lines = {
        "policy": "asyncio.set_event_loop_policy(fastloop.EventLoopPolicy()); run = asyncio.run",
        "install": "fastloop.install(); run = asyncio.run",
        "factory": "run = lambda c: asyncio.Runner(loop_factory=fastloop.new_event_loop).run(c)",
    }
    out = run_program(
        f"""
        import asyncio, warnings
        import fastloop
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "'asyncio.set_event_loop_policy' is deprecated")
        {lines[how]}
        async def main():
            print(type(asyncio.get_running_loop()).__name__, type(asyncio.current_task()).__module__)
        run(main())
        """
    )
    assert out.stdout == "Loop fastloop\n" and "Deprecat" not in out.stderr


def test_importing_changes_no_public_name_of_asyncio():
    out = run_program(
        """
        import asyncio, asyncio.tasks, asyncio.futures, asyncio.events, asyncio.base_events
        modules = [asyncio, asyncio.tasks, asyncio.futures, asyncio.events, asyncio.base_events]
        before = [dict(vars(m)) for m in modules]
        classes = [dict(vars(asyncio.Task)), dict(vars(asyncio.BaseEventLoop))]
        import fastloop
        assert before == [dict(vars(m)) for m in modules]
        assert classes == [dict(vars(asyncio.Task)), dict(vars(asyncio.BaseEventLoop))]
        async def main():
            assert type(asyncio.current_task()) is asyncio.Task
            assert type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop
        asyncio.run(main())
        print("same")
        """
    )
    assert out.stdout == "same\n", out.stderr


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12),
    reason="3.12.1 crashes at exit after a sub-interpreter that imported asyncio alone",
)
def test_sub_interpreters_have_loops_of_their_own():
    out = run_program(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import asyncio, fastloop
        code = '''
        import asyncio, fastloop
        async def main():
            await asyncio.sleep(0.001)
            assert asyncio.all_tasks() == {asyncio.current_task()}
        fastloop.run(main())
        '''
        import textwrap
        for _ in range(3):
            sub = interpreters.create()
            failed = interpreters.run_string(sub, textwrap.dedent(code))
            assert failed is None, failed
            interpreters.destroy(sub)
        fastloop.run(asyncio.sleep(0))
        print("ok")
        """
    )
    assert out.stdout == "ok\n", out.stderr


def test_module_command_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, sys\n"
        "async def main():\n"
        "    print(type(asyncio.get_running_loop()).__module__, sys.argv[1:], __name__)\n"
        "asyncio.run(main())\n"
        "sys.exit(3)\n"
    )
    run = lambda *args: subprocess.run(
        [sys.executable, "-m", "fastloop", *args], capture_output=True, text=True, cwd=tmp_path
    )
    out = run(str(script), "a", "-m")
    assert (out.returncode, out.stdout) == (3, "fastloop.loop ['a', '-m'] __main__\n"), out.stderr
    env_free = run("-m", "json.tool", "--help")
    assert env_free.returncode == 0 and "json.tool" in env_free.stdout
    assert run("--version").stdout == f"fastloop {fastloop.__version__}\n"
    assert run().returncode == 2 and run("-x").returncode == 2
    assert run("missing.py").returncode == 1


# --- handles and the garbage collector ---


class Callback:
    """A callback that can be referred to weakly, and refer to its own handle."""

    handle = None

    def __call__(self, *args):
        pass


def is_collected(reference):
    gc.collect()
    return reference() is None


def test_a_handle_that_its_own_callback_keeps_is_collected_after_it_ran(loop):
    alive = []

    def schedule():
        callback = Callback()
        callback.handle = loop.call_soon(callback)
        alive.append(weakref.ref(callback))

    loop.call_soon(schedule)
    turn(loop)
    turn(loop)
    assert is_collected(alive[0])


def test_a_loop_left_with_a_cycle_in_its_queue_is_collected():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop = fastloop.new_event_loop()

        def schedule():
            callback = Callback()
            callback.handle = loop.call_soon(callback)
            callback.loop = loop
            loop.stop()
            return weakref.ref(callback)

        alive = []
        loop.call_soon(lambda: alive.append(schedule()))
        loop.run_forever()
        assert alive[0]() is not None
        del loop, schedule
        assert is_collected(alive[0])


def test_a_handle_known_only_weakly_keeps_its_callback_while_it_runs(loop):
    """The weak reference gives the handle back in the middle of the call, and cancel() empties it."""
    seen = []

    def callback(*args):
        handle = known()
        handle.cancel()
        gc.collect()
        seen.append((handle.cancelled(), args))

    argument = Callback()
    known = weakref.ref(loop.call_soon(callback, argument, 2))
    turn(loop)
    assert seen == [(True, (argument, 2))]
    assert known() is None


def test_many_handles_at_once_are_reused_with_nothing_left_in_them(loop):
    arguments = [Callback() for _ in range(10_000)]
    alive = [weakref.ref(argument) for argument in arguments]
    for _ in range(2):
        for argument in arguments:
            loop.call_soon(argument, argument, argument, argument)
        turn(loop)
        assert loop.call_soon(len, "x")._args == ("x",)
    turn(loop)
    del arguments, argument
    assert not any(reference() for reference in alive)


@pytest.mark.parametrize("new_loop", ["asyncio.SelectorEventLoop", "fastloop.new_event_loop"])
def test_loop_that_is_set_and_never_closed(new_loop):
    """The end of the program is silent."""
    source = f"""
        import asyncio, fastloop

        async def main():
            process = await asyncio.create_subprocess_exec("true")
            return await process.wait()

        loop = {new_loop}()
        asyncio.set_event_loop(loop)
        print(loop.run_until_complete(main()))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(source)],
        capture_output=True, text=True, timeout=250,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(fastloop.__file__))},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
