"""What programs see of the loop and its tasks beside running them: errors, logs, reprs and hooks are asyncio's."""

import asyncio
import contextvars
import functools
import gc
import io
import re
import signal
import socket
import sys
import threading
import traceback
import warnings

import pytest
from stream_helpers import LOOPS, run, same

import fastloop


def plain(text):
    """A text without what differs between two runs: addresses, numbers of tasks, places in files, the loop's class."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(text))
    text = re.sub(r'(File "|at |when=)[^\s,>]+( line \d+,)?', r"\1", text)
    text = re.sub(r"_asyncio\.|fastloop\.", "", text)
    return re.sub(r"Task-\d+", "Task", text).replace("_UnixSelectorEventLoop", "Loop")


def outcome(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were refused
        try:
            return plain(function(*args, **kwargs))
        except BaseException as error:
            return type(error), plain(error)


@pytest.fixture
def logged(caplog):
    """What asyncio has logged since it was asked last."""

    def take():
        gc.collect()
        taken = [
            (r.levelname, plain(r.getMessage()), repr(r.exc_info and r.exc_info[1])) for r in caplog.records if r.name == "asyncio"
        ]
        caplog.clear()
        return taken

    return take


# --- closed, and not to be run ---


async def nothing():
    pass


CALLS = {
    "run_until_complete": lambda loop, sock: loop.run_until_complete(nothing()),
    "run_forever": lambda loop, sock: loop.run_forever(),
    "stop": lambda loop, sock: loop.stop(),
    "create_future": lambda loop, sock: loop.create_future(),
    "create_task": lambda loop, sock: loop.create_task(nothing()),
    "add_reader": lambda loop, sock: loop.add_reader(sock, print),
    "remove_reader": lambda loop, sock: loop.remove_reader(sock),
    "remove_writer": lambda loop, sock: loop.remove_writer(sock),
    "remove_signal_handler": lambda loop, sock: loop.remove_signal_handler(signal.SIGUSR1),
    "set_debug": lambda loop, sock: loop.set_debug(True),
    "call_exception_handler": lambda loop, sock: loop.call_exception_handler({"message": "said"}),
    "repr": lambda loop, sock: repr(loop),
    "getaddrinfo": lambda loop, sock: drive(loop.getaddrinfo("127.0.0.1", 80)),
    "getaddrinfo of a name": lambda loop, sock: drive(loop.getaddrinfo("localhost", 80)),
    "getnameinfo": lambda loop, sock: drive(loop.getnameinfo(("127.0.0.1", 80))),
    "sock_recv": lambda loop, sock: drive(loop.sock_recv(sock, 1)),
    "sock_sendall": lambda loop, sock: drive(loop.sock_sendall(sock, b"x")),
    "sock_connect": lambda loop, sock: drive(loop.sock_connect(sock, ("127.0.0.1", 1))),
    "sock_accept": lambda loop, sock: drive(loop.sock_accept(sock)),
    "create_unix_server": lambda loop, sock: drive(loop.create_unix_server(asyncio.Protocol, "\0fastloop closed")),
    "create_connection": lambda loop, sock: drive(loop.create_connection(asyncio.Protocol, "127.0.0.1", 1)),
    "create_datagram_endpoint": lambda loop, sock: drive(
        loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    ),
    "connect_read_pipe": lambda loop, sock: drive(loop.connect_read_pipe(asyncio.Protocol, sock)),
    "connect_accepted_socket": lambda loop, sock: drive(loop.connect_accepted_socket(asyncio.Protocol, sock)),
    "shutdown_asyncgens": lambda loop, sock: drive(loop.shutdown_asyncgens()),
    "shutdown_default_executor": lambda loop, sock: drive(loop.shutdown_default_executor()),
}


def drive(coroutine):
    """Run it to its first suspension."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()
    return "suspended"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:unclosed")
def test_any_call_on_a_closed_loop(name, logged):
    seen = []
    for new_loop in LOOPS.values():
        loop = new_loop()
        loop.close()
        with socket.socket() as sock:
            sock.setblocking(False)
            seen.append((outcome(CALLS[name], loop, sock), logged()))
    (theirs, their_log), (ours, our_log) = seen
    assert (ours, our_log) == (theirs, their_log)


@pytest.mark.parametrize("main", [5, None, nothing, "text"], ids=str)
def test_what_run_refuses(main):
    assert outcome(fastloop.run, main) == outcome(asyncio.run, main)


def test_run_and_its_debug_mode():
    async def main():
        return asyncio.get_running_loop().get_debug()

    for debug in (None, True, False):
        assert fastloop.run(main(), debug=debug) is asyncio.run(main(), debug=debug)
    with pytest.raises(TypeError):
        fastloop.run(main, True)


# --- asynchronous generators ---


def test_asynchronous_generators_are_closed_in_the_loop(logged):
    """One that is dropped, one that lives to the end, and those whose end fails."""

    async def scenario():
        loop, log = asyncio.get_running_loop(), []

        async def generator(name, error=None):
            try:
                while True:
                    yield name
            finally:
                assert asyncio.get_running_loop() is loop
                await asyncio.sleep(0)
                log.append(name)
                if error:
                    raise error

        for number, error in enumerate([None, ValueError("at its end")]):
            dropped = generator(f"dropped {number}", error)
            await anext(dropped)
            del dropped
            gc.collect()
            while f"dropped {number}" not in log:
                await asyncio.sleep(0)
        loop.kept = [generator("kept"), generator("kept, too", ValueError("at the end"))]
        for kept in loop.kept:
            await anext(kept)
        await asyncio.sleep(0)
        assert len(loop._asyncgens) == 2
        return log

    seen = []
    for new_loop in LOOPS.values():
        before = sys.get_asyncgen_hooks()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            log = runner.run(scenario())
        assert sys.get_asyncgen_hooks() == before
        seen.append((log[:2], sorted(log[2:]), logged()))
    assert seen[0] == seen[1]
    assert seen[1][:2] == (["dropped 0", "dropped 1"], ["kept", "kept, too"])
    assert len(seen[1][2]) == 2


def test_an_asynchronous_generator_dropped_by_another_thread_ends_in_the_loops(run):
    async def scenario():
        ended = asyncio.get_running_loop().create_future()

        async def generator():
            try:
                yield 1
            finally:
                ended.set_result(threading.current_thread())

        box = [generator()]
        await anext(box[0])
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
        assert await ended is threading.current_thread()

    run(scenario)


def test_an_asynchronous_generator_that_comes_after_they_were_shut_down():
    async def scenario():
        async def generator():
            yield 1

        await asyncio.get_running_loop().shutdown_asyncgens()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            late = generator()
            await anext(late)
            await late.aclose()
        return [(warning.category, plain(warning.message)) for warning in caught]

    assert "was scheduled after loop.shutdown_asyncgens() call" in same(scenario)[0][1]


# --- debug mode ---


def test_where_coroutines_come_from_is_tracked_in_debug_mode_only():
    async def scenario():
        loop, seen = asyncio.get_running_loop(), []
        for debug in (False, True, True, False, True):
            loop.set_debug(debug)
            await asyncio.sleep(0)
            seen.append(sys.get_coroutine_origin_tracking_depth() > 0)
        return seen

    assert same(scenario) == same(scenario, debug=True) == [False, True, True, False, True]
    assert sys.get_coroutine_origin_tracking_depth() == 0


def test_a_coroutine_never_awaited_is_named_with_its_origin(run):
    async def scenario():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            nothing()
            gc.collect()
        (text,) = [str(w.message) for w in caught if "nothing" in str(w.message)]
        assert text.startswith("coroutine 'nothing' was never awaited\nCoroutine created at")
        assert text.endswith("nothing()")

    run(scenario, debug=True)


# --- exception handlers ---


def test_what_the_default_exception_handler_logs(logged):
    async def scenario():
        loop = asyncio.get_running_loop()
        for context in (
            {},
            {"message": "said"},
            {"message": None},
            {"message": "said", "exception": ValueError("wrong")},
            {"message": "said", "future": loop.create_future(), "task": asyncio.current_task()},
            {"message": "said", "handle": loop.call_soon(int), "zoo": 1, "apple": ()},
            {"message": "said", "source_traceback": traceback.extract_stack()[:1]},
            {"message": "said", "handle_traceback": traceback.extract_stack()[:1]},
        ):
            loop.default_exception_handler(context)
            loop.call_exception_handler(context)
        loop.set_exception_handler(lambda loop, context: 1 / 0)
        loop.call_exception_handler({"message": "to one that fails"})
        loop.set_exception_handler(None)
        assert loop.get_exception_handler() is None
        return logged()

    assert len(same(scenario)) == 17


@pytest.mark.parametrize("what", ["a pending task", "a failed task", "a failed future", "a failed task, looked at"])
def test_what_is_lost_is_logged(what, logged):
    async def scenario():
        async def fail():
            raise ValueError("nobody looks")

        loop = asyncio.get_running_loop()
        lost = loop.create_future() if "future" in what else loop.create_task(fail() if "failed" in what else wait())
        if "future" in what:
            lost.set_exception(ValueError("nobody looks"))
        await asyncio.sleep(0)
        if "looked" in what:
            lost.exception()
        del lost
        return logged()

    async def wait():
        await asyncio.get_running_loop().create_future()

    log = same(scenario)
    assert [text.partition("\n")[0] for _, text, _ in log] == {
        "a pending task": ["Task was destroyed but it is pending!"],
        "a failed task": ["Task exception was never retrieved"],
        "a failed future": ["Future exception was never retrieved"],
        "a failed task, looked at": [],
    }[what]


# --- handles ---


class Callable:
    def __call__(self, *args):
        pass

    method = __call__

    def __repr__(self):
        return "<Callable>"


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        (print,),
        (print, 1, "text"),
        (outcome, 1, 2, 3),
        (Callable(),),
        (Callable().method, 1),
        (functools.partial(outcome, 1, key=2), 3),
        (functools.partial(functools.partial(outcome)),),
        (lambda: 0,),
        (print, "long" * 300),
    ],
    ids=range(9),
)
def test_the_repr_of_a_handle(call, debug):
    seen = []
    for new_loop in LOOPS.values():
        loop = new_loop()
        loop.set_debug(debug)
        handles = [loop.call_soon(*call), loop.call_later(5, *call)]
        texts = [plain(repr(handle)) for handle in handles]
        for handle in handles:
            handle.cancel()
        seen.append(texts + [plain(repr(handle)) for handle in handles])
        loop.close()
    assert seen[0] == seen[1]


# --- tasks ---


def test_the_stack_of_a_task():
    async def inner(event):
        await event.wait()

    async def outer(event):
        await inner(event)
        raise ValueError("at the end")

    async def scenario():
        event = asyncio.Event()
        task = asyncio.create_task(outer(event), name="mine")
        seen = []

        def look():
            for limit in (None, 1, 0):
                file = io.StringIO()
                task.print_stack(limit=limit, file=file)
                seen.append(([frame.f_code.co_name for frame in task.get_stack(limit=limit)], plain(file.getvalue())))

        look()
        await asyncio.sleep(0)
        look()
        event.set()
        await asyncio.wait([task])
        look()
        return seen, plain(task.exception())

    stacks, _ = same(scenario)
    assert stacks[3][0] == ["outer"] and "Traceback for <Task finished name='mine'" in stacks[6][1]


def test_what_frameworks_read_of_a_task():
    names = "_state _must_cancel _fut_waiter _log_destroy_pending _callbacks _source_traceback _cancel_message".split()

    async def scenario():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(asyncio.sleep(60), name="mine")
        seen = []

        def look():
            seen.append([plain(repr(getattr(task, name))) for name in names])
            seen.append((plain(repr(task)), task.cancelling(), task.cancelled(), task.done(), task.get_loop() is loop))

        look()
        await asyncio.sleep(0)
        look()
        seen.append((task.cancel("once"), task.cancel("twice"), task.uncancel(), task.cancelling()))
        look()
        await asyncio.wait([task])
        look()
        seen.append((task.cancel(), task.uncancel(), task.uncancel(), task.set_name(5), task.get_name()))
        for call in (task.result, task.exception, asyncio.current_task().result, asyncio.current_task().exception):
            seen.append(outcome(call))
        for call in (task.set_result, task.set_exception):
            seen.append(outcome(call, ValueError()))
        early = asyncio.create_task(asyncio.sleep(0))
        early.cancel("before its first step")
        seen.append(repr((await asyncio.gather(early, return_exceptions=True))[0]))
        return seen

    same(scenario)


def test_what_is_refused_to_a_future():
    async def scenario():
        future = asyncio.get_running_loop().create_future()
        calls = [
            lambda: future.result(),
            lambda: future.exception(),
            lambda: future.set_exception(5),
            lambda: future.set_exception(int),
            lambda: future.set_exception(StopIteration),
            lambda: future.add_done_callback(),
            lambda: setattr(future, "_log_traceback", True),
            lambda: setattr(future, "_state", "x"),
            lambda: future.cancel(msg="done with it"),
            lambda: future.cancel(),
            lambda: future.set_result(1),
            lambda: future.exception(),
            lambda: repr(future),
        ]
        return [outcome(call) for call in calls]

    same(scenario)


def test_the_task_factory_is_asked_for_every_task():
    async def scenario():
        loop, asked = asyncio.get_running_loop(), []

        def factory(loop, coro, **options):
            asked.append((sorted(options), options.get("name")))
            return asyncio.Task(coro, loop=loop, **options)

        assert loop.get_task_factory() is None
        loop.set_task_factory(factory)
        assert loop.get_task_factory() is factory
        context = contextvars.copy_context()
        for task in (
            asyncio.create_task(asyncio.sleep(0), name="one"),
            asyncio.create_task(asyncio.sleep(0), context=context),
            loop.create_task(asyncio.sleep(0)),
            asyncio.ensure_future(asyncio.sleep(0)),
        ):
            await task
            asked.append(task.get_name() == "one")
        loop.set_task_factory(None)
        return asked

    same(scenario)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="create_task(eager_start=) came with 3.14")
def test_eager_start():
    async def scenario():
        async def quick():
            return 1

        loop, seen = asyncio.get_running_loop(), []
        for create in (loop.create_task, asyncio.create_task):
            for eager in (True, False, None):
                task = create(quick(), eager_start=eager, name="mine")
                seen.append((task.done(), task.get_name()))
                await task
        return seen

    assert [done for done, _ in same(scenario)] == [True, False, False] * 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_our_eager_factory_does_what_asyncios_does():
    variable = contextvars.ContextVar("variable", default=0)

    async def scenario():
        ours = isinstance(asyncio.get_running_loop(), fastloop.Loop)
        module = fastloop if ours else asyncio
        loop, seen = asyncio.get_running_loop(), []

        async def change():
            variable.set(5)
            seen.append(asyncio.current_task().get_name() == "mine")
            return variable.get()

        async def fail(error):
            raise error

        async def nested():
            return await asyncio.create_task(change())

        loop.set_task_factory(module.eager_task_factory)
        context = contextvars.copy_context()
        for coroutine, options in (
            (change(), {"name": "mine"}),
            (change(), {"context": context}),
            (fail(ValueError("wrong")), {}),
            (fail(asyncio.CancelledError()), {}),
            (nested(), {}),
        ):
            task = loop.create_task(coroutine, **options)
            assert type(task) is module.Task
            seen.append((task.done(), task.cancelled(), repr(not task.cancelled() and task.exception()), variable.get()))
        seen.append(context[variable])
        async with asyncio.TaskGroup() as group:
            seen.append(group.create_task(change()).done())
        seen.append(await asyncio.gather(change(), nested()))

        class Own(module.Task):
            pass

        loop.set_task_factory(module.create_eager_task_factory(Own))
        task = asyncio.create_task(asyncio.sleep(0, 1))
        assert type(task) is Own
        return seen, task.done(), await task

    same(scenario)
