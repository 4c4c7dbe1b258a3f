"""Code that the engine calls may do anything: turn or close the loop, run handles, begin anew."""

import asyncio
import contextvars
import gc
import socket
import sys

import pytest

import fastloop

VARIABLE = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def loop(loop):
    loop.reports = []
    loop.set_exception_handler(lambda _, context: loop.reports.append(context))
    return loop


def fail():
    raise ValueError("of a callback")


def errors(loop):
    return [type(context["exception"]) for context in loop.reports]


def run(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


@pytest.mark.parametrize("own_context", [False, True])
@pytest.mark.parametrize("callback", [fail, lambda: VARIABLE.set("inner")])
def test_a_callback_runs_the_handle_of_another(loop, callback, own_context):
    seen = []
    context = {"context": contextvars.copy_context()} if own_context else {}

    def outer():
        other._run()
        VARIABLE.set("outer")
        seen.append(VARIABLE.get())

    loop.call_soon(outer)
    other = loop.call_soon(callback, **context)
    loop.call_soon(lambda: seen.append(VARIABLE.get()))
    run(loop)
    assert seen == ["outer", "unset"]
    assert VARIABLE.get() == "unset"
    assert errors(loop) == [ValueError] * (2 if callback is fail else 0)


def test_a_callback_runs_its_own_handle(loop):
    seen = []

    def callback():
        seen.append(len(seen))
        if len(seen) < 3:
            handles[0]._run()

    handles = [loop.call_soon(callback)]
    run(loop)
    assert seen == [0]  # its context is entered already


def test_the_context_of_a_running_handle(loop):
    seen = []

    def callback():
        VARIABLE.set("here")
        seen.append(handle._context[VARIABLE])

    handle = loop.call_soon(callback)
    run(loop)
    assert seen == ["here"]
    assert handle._context[VARIABLE] == "here"


def test_a_callback_turns_the_loop(loop):
    seen = []

    def outer():
        VARIABLE.set("outer")
        loop._run_once()
        seen.append(VARIABLE.get())

    def inner():
        seen.append(VARIABLE.get())
        VARIABLE.set("inner")

    loop.call_soon(outer)
    loop.call_soon(inner)
    loop.call_soon(fail)
    if isinstance(loop, fastloop.Loop):
        run(loop)
    else:  # asyncio's turn wants as many handles as it counted
        with pytest.raises(IndexError):
            run(loop)
    assert seen == ["unset", "outer"]
    assert VARIABLE.get() == "unset"
    assert errors(loop) == [ValueError]


def test_a_task_turns_the_loop(loop):
    async def main():
        loop.call_soon(seen.append, "callback")
        loop._run_once()
        return asyncio.current_task()

    seen = []
    task = loop.create_task(main())
    assert loop.run_until_complete(task) is task
    assert seen == ["callback"]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_closing_the_loop_while_a_call_is_checked(method):
    class Loop(fastloop.Loop):
        def _check_callback(self, callback, method):
            self.close()

    loop = Loop()
    loop.set_debug(True)
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        getattr(loop, method)(*[print] if "soon" in method else [1, print])
    assert not loop._ready


@pytest.mark.parametrize("method", ["call_later", "call_at"])
def test_closing_the_loop_while_a_time_is_read(method):
    class Time:
        def __float__(self):
            loop.close()
            return 0.0

        def __radd__(self, now):  # a delay is added to the time, as asyncio adds it
            loop.close()
            return now

    loop = fastloop.Loop()
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        getattr(loop, method)(Time(), print)


def test_closing_a_loop_that_forgot_that_it_runs():
    def callback():
        loop._thread_id = None
        loop.close()

    loop = fastloop.Loop()
    loop.call_soon(callback)
    loop.call_soon(pytest.fail, "a closed loop runs nothing")
    with pytest.raises((RuntimeError, OSError)):
        loop.run_forever()


def test_a_task_is_woken_by_what_it_no_longer_awaits(fast):
    """The second future is foreign to the task, and the first one's wakeup comes while it awaits that."""
    seen = []

    async def child():
        try:
            await first
        except asyncio.InvalidStateError:
            seen.append("woken early")
        await second
        seen.append("end")

    async def main():
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        wakeup = first._callbacks[0][0]
        wakeup(first)
        first.set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)
        if not second.done():
            second.set_result(None)
        await asyncio.wait([task])

    first, second = fast.create_future(), asyncio.Future(loop=fast)
    fast.set_exception_handler(lambda loop, context: None)
    fast.run_until_complete(main())
    assert seen[0] == "woken early"


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="3.15 refuses a second __init__")
def test_a_task_that_begins_anew_while_it_runs():
    class Debug:
        def get_debug(self):
            raise ValueError("not so")

    async def main():
        task = asyncio.current_task()
        another = main()
        with pytest.raises(ValueError):
            task.__init__(another, loop=Debug())
        another.close()
        await asyncio.sleep(0)

    loop = fastloop.Loop()
    reports = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    task = loop.create_task(main())
    for _ in range(3):
        run(loop)
    assert reports
    task._log_destroy_pending = False
    del task
    loop.close()


def test_what_is_dropped_at_the_end_uses_the_loop(loop):
    class Last:
        def __del__(self):
            seen.append(loop.is_closed())
            for call in (loop.call_soon, loop.call_soon_threadsafe):
                with pytest.raises(RuntimeError):
                    call(print)
            with pytest.raises(RuntimeError):
                loop.call_later(1, print)
            loop.stop()
            loop.close()
            gc.collect()

    seen = []
    loop.call_soon(print, Last())
    loop.call_later(1, print, Last())
    loop.close()
    gc.collect()
    assert seen == [True, True]


def test_an_equal_that_finishes_the_future(loop):
    class Equal:
        def __init__(self, action):
            self.action = action

        def __call__(self, future):
            seen.append("called")

        def __eq__(self, other):
            self.action()
            return True

        __hash__ = None

    seen = []
    for action in ("set_result", "cancel", "clear"):
        future = loop.create_future()

        def act(action=action, future=future):
            if action == "clear":
                future.remove_done_callback(print)
            elif action == "cancel":
                future.cancel()
            elif not future.done():
                future.set_result(None)

        future.add_done_callback(print)
        for _ in range(3):
            future.add_done_callback(Equal(act if action != "clear" else lambda: None))
        future.remove_done_callback(object())
        run(loop)
    gc.collect()


def test_the_repr_of_an_argument_cancels_its_handle(loop):
    class Argument:
        def __repr__(self):
            handle.cancel()
            return "Argument"

    loop.set_debug(True)
    for handle in (loop.call_soon(print, Argument()), loop.call_later(9, print, Argument())):
        handle.cancel()
        assert handle.cancelled()
        assert "cancelled" in repr(handle)


def test_a_repr_that_fails_in_debug_mode(loop):
    class Argument:
        def __repr__(self):
            raise ValueError("no repr")

    loop.set_debug(True)
    loop.slow_callback_duration = 0
    loop.call_soon(lambda *args: None, Argument())
    run(loop)
    handle = loop.call_soon(print, Argument())
    try:
        handle.cancel()
    except ValueError:
        pass
    assert handle.cancelled()
    run(loop)


class Unhashable(fastloop.Loop):
    """Its current task can be set, and while it is broken not be changed."""

    broken = False

    def __hash__(self):
        if self.broken:
            raise ZeroDivisionError
        return 1


def test_a_task_after_which_asyncio_cannot_be_told_of_the_next():
    """The error leaves run_forever(); what comes to a transport in that turn is there in the next."""
    ours, peer = socket.socketpair()
    received = []

    class Receiver(asyncio.Protocol):
        def data_received(self, data):
            received.append(data)

    async def harmful():
        loop.broken = sys.version_info < (3, 14)
        asyncio._set_running_loop(None)

    async def ends():
        while b"".join(received) != b"onetwo":
            await asyncio.sleep(0)

    with peer:
        loop = Unhashable()
        transport, _ = loop.run_until_complete(loop.create_connection(Receiver, sock=ours))
        peer.send(b"one")
        task = loop.create_task(harmful())  # runs before what the poller has to report
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            loop.run_forever()
        loop.broken = False
        assert task.done()
        peer.send(b"two")
        loop.run_until_complete(asyncio.wait_for(ends(), 30))
        transport.close()
        loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_handler_that_ends_the_program(loop, error):
    def handler(loop, context):
        raise error

    seen = []
    loop.set_exception_handler(handler)
    loop.call_soon(fail)
    loop.call_soon(seen.append, 1)
    with pytest.raises(error):
        run(loop)
    run(loop)
    assert seen == [1]


def test_a_factory_that_makes_no_task(loop):
    async def main():
        pass

    loop.set_task_factory(lambda loop, coro, **kwargs: coro)
    coroutine = main()
    try:
        assert loop.create_task(coroutine) is coroutine
    except AttributeError:  # 3.11 and 3.12 name it
        pass
    coroutine.close()


def test_a_factory_that_recurses(loop):
    def factory(loop, coro, **kwargs):
        loop.set_task_factory(None)
        return loop.create_task(coro, **kwargs)

    async def main():
        return 5

    loop.set_task_factory(factory)
    assert loop.run_until_complete(main()) == 5
