"""loop.run_in_executor() and run_coroutine_threadsafe(), beside asyncio's."""

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
import weakref

import pytest
from executor_helpers import LOOPS, POOLS, fast, one_worker, run_script, runner

import fastloop


# --- run_in_executor(): results, errors, contexts ---


def test_results_and_arguments(runner):
    async def main():
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, divmod, 17, 5) == (3, 2)
        assert await loop.run_in_executor(None, lambda *args: args) == ()
        assert await loop.run_in_executor(None, max, *range(100)) == 99
        assert await asyncio.to_thread(dict, a=1, b=2) == {"a": 1, "b": 2}
        assert await asyncio.gather(
            *(loop.run_in_executor(None, pow, 2, n) for n in range(200))
        ) == [2**n for n in range(200)]

    runner.run(main())


def test_the_default_executor_of_a_fastloop_loop(fast):
    async def main():
        loop = asyncio.get_running_loop()
        assert loop._default_executor is None
        thread = await loop.run_in_executor(None, threading.current_thread)
        executor = loop._default_executor
        assert type(executor) is fastloop.ThreadPoolExecutor
        assert isinstance(executor, concurrent.futures.ThreadPoolExecutor)
        assert thread.name == "asyncio_0"
        assert thread in threading.enumerate()
        assert thread is not threading.current_thread()
        assert not thread.daemon
        assert executor._threads == {thread}
        assert isinstance(loop.run_in_executor(None, int), fastloop.Future)
        return thread

    assert not fast.run(main()).is_alive() or fast.close() is None


def test_ordinary_call_does_not_run_in_the_callers_context_but_to_thread_does(runner):
    variable = contextvars.ContextVar("variable", default="none")

    async def main():
        variable.set("mine")
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, variable.get) == "none"
        assert await asyncio.to_thread(variable.get) == "mine"

    runner.run(main())


def test_stop_iteration_is_never_raised_into_a_future(fast):
    """3.11 and 3.12.1 report a TypeError and leave the future pending; later ones give an error."""
    problems = []

    def stop():
        raise StopIteration(5)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: problems.append(context["exception"]))
        future = loop.run_in_executor(None, stop)
        while not future.done() and not problems:
            await asyncio.sleep(0.001)
        return future

    future = fast.run(main())
    error = problems[0] if problems else future.exception()
    assert type(error) is (TypeError if problems else RuntimeError)
    assert "StopIteration interacts badly with generators" in str(error)


@pytest.mark.parametrize(
    "exception",
    [
        ValueError("x"),
        KeyboardInterrupt("x"),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError("x"),
        concurrent.futures.CancelledError("x"),
        concurrent.futures.InvalidStateError("x"),
        concurrent.futures.TimeoutError("x"),
        asyncio.InvalidStateError("x"),
        StopAsyncIteration(5),
    ],
    ids=lambda e: f"{type(e).__module__}.{type(e).__name__}",
)
def test_an_exception_arrives_as_under_asyncio(exception):
    """What the awaiter, the future and the exception handler see is the same."""

    def fail():
        raise exception

    def observe(new_loop):
        seen = []
        loop = new_loop()
        loop.set_exception_handler(
            lambda loop, context: seen.append(repr(context.get("exception")))
        )
        try:

            async def main():
                future = loop.run_in_executor(None, fail)
                await asyncio.wait([future])
                if future.cancelled():
                    seen.append("cancelled")
                else:
                    error = future.exception()
                    seen.append((type(error), repr(error), repr(error.__cause__)))

            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
        return seen

    assert observe(fastloop.new_event_loop) == observe(asyncio.new_event_loop)


def test_the_awaiter_gets_a_base_exception(runner):
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(SystemExit):
            await loop.run_in_executor(None, sys.exit)
        with pytest.raises(asyncio.CancelledError):
            await loop.run_in_executor(None, raise_it, asyncio.CancelledError())
        with pytest.raises(ZeroDivisionError) as caught:
            await loop.run_in_executor(None, lambda: 1 / 0)
        assert "<lambda>" in [entry.name for entry in caught.traceback]
        return await loop.run_in_executor(None, int)

    assert runner.run(main()) == 0


def raise_it(exception):
    raise exception


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_wrong_calls_raise_what_asyncio_raises(new_loop):
    async def coroutine():
        pass

    with pytest.raises(TypeError, match=r"missing 2 required positional arguments"):
        loop = new_loop()
        loop.run_in_executor()
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'func'"):
        loop.run_in_executor(None)
    for wrong in (5, object(), "x", ThreadPoolLike()):
        with pytest.raises(AttributeError, match="submit"):
            loop.run_in_executor(wrong, int)
    with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
        loop.set_default_executor(ThreadPoolLike())
    with pytest.raises(TypeError, match="not callable"):
        loop.run_until_complete(loop.run_in_executor(None, 5))
    with pytest.raises(TypeError, match="unexpected keyword argument 'what'"):
        loop.run_in_executor(None, what=int)
    with pytest.raises(TypeError, match="multiple values for argument 'executor'"):
        loop.run_in_executor(None, executor=None)
    assert loop.run_until_complete(loop.run_in_executor(None, func=int)) == 0
    assert loop.run_until_complete(loop.run_in_executor(func=int, executor=None)) == 0
    loop.set_debug(True)
    with pytest.raises(TypeError, match=r"coroutines cannot be used with run_in_executor\(\)"):
        loop.run_in_executor(None, coroutine)
    with pytest.raises(TypeError, match=r"a callable object was expected by run_in_executor"):
        loop.run_in_executor(None, 5)
    loop.run_until_complete(loop.shutdown_default_executor())
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, int)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_in_executor(None, int)


class ThreadPoolLike:
    """Not an executor."""


def test_a_call_runs_while_its_caller_blocks_the_loop(fast):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(5):
            event = threading.Event()
            future = loop.run_in_executor(None, event.set)
            assert event.wait(30)
            await future

    fast.run(main())


def test_no_warning_of_ours(fast):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.run(asyncio.to_thread(int))


# --- executors: ours, the stdlib's, anybody's ---


def test_explicit_executors_of_every_kind(runner):
    class Inline(concurrent.futures.Executor):
        def submit(self, fn, /, *args, **kwargs):
            future = concurrent.futures.Future()
            future.set_result(("inline", fn(*args, **kwargs)))
            return future

    class Counting(fastloop.ThreadPoolExecutor):
        count = 0

        def submit(self, fn, /, *args, **kwargs):
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    async def main():
        loop = asyncio.get_running_loop()
        for new in POOLS.values():
            with new(2, thread_name_prefix="mine") as pool:
                thread = await loop.run_in_executor(pool, threading.current_thread)
                assert thread.name == "mine_0"
        assert await loop.run_in_executor(Inline(), abs, -1) == ("inline", 1)
        with Counting() as pool:
            assert await loop.run_in_executor(pool, abs, -1) == 1
            assert pool.count == 1
        with fastloop.ThreadPoolExecutor() as pool:
            pool.submit = lambda fn, *args: concurrent.futures.Future()
            future = loop.run_in_executor(pool, int)
            await asyncio.sleep(0.01)
            assert not future.done()
            future.cancel()

    runner.run(main())


def test_process_pool(runner):
    async def main():
        loop = asyncio.get_running_loop()
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, os.getpid) != os.getpid()

    runner.run(main())


@pytest.mark.parametrize("new_pool", POOLS.values(), ids=POOLS)
def test_set_default_executor(runner, new_pool):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(new_pool(1, thread_name_prefix="chosen"))
        assert await asyncio.to_thread(lambda: threading.current_thread().name) == "chosen_0"

    runner.run(main())


def test_a_pool_that_is_shut_down_or_broken(runner, caplog):
    async def main():
        loop = asyncio.get_running_loop()
        for new in POOLS.values():
            pool = new()
            pool.shutdown()
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                loop.run_in_executor(pool, int)
            pool = new(initializer=lambda: 1 / 0)
            with pytest.raises(concurrent.futures.thread.BrokenThreadPool, match="initializer"):
                await loop.run_in_executor(pool, int)
            with pytest.raises(concurrent.futures.thread.BrokenThreadPool, match="initializer"):
                loop.run_in_executor(pool, int)
            pool.shutdown()

    runner.run(main())
    assert caplog.text.count("Exception in initializer") == 2


# --- cancelling ---


def test_a_call_cancelled_before_it_begins_never_runs(one_worker):
    runner, busy, release = one_worker
    ran = []

    async def main():
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(None, ran.append, 1)
        second = loop.run_in_executor(None, ran.append, 2)
        first.cancel()
        await asyncio.sleep(0)  # asyncio tells the executor one turn later
        release.set()
        await second
        await busy
        with pytest.raises(asyncio.CancelledError):
            await first

    runner.run(main())
    assert ran == [2]


def test_a_call_cancelled_after_it_began_goes_on(one_worker):
    runner, busy, release = one_worker
    ran = []

    async def main():
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy
        after = asyncio.get_running_loop().run_in_executor(None, ran.append, 1)
        release.set()
        await after

    runner.run(main())
    assert ran == [1]


def test_shutdown_cancels_the_calls_of_a_loop(one_worker):
    runner, busy, release = one_worker
    ran = []

    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(None, ran.append, n) for n in range(10)]
        loop._default_executor.shutdown(wait=False, cancel_futures=True)
        release.set()
        await busy
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}

    runner.run(main())
    assert ran == []


# --- the end: of the executor, of the loop, of what was passed ---


def test_shutdown_default_executor_joins_the_threads(runner):
    async def main():
        loop = asyncio.get_running_loop()
        threads = set(
            await asyncio.gather(*(asyncio.to_thread(threading.current_thread) for _ in range(20)))
        )
        await loop.shutdown_default_executor()
        assert not any(thread.is_alive() for thread in threads)

    runner.run(main())


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="3.12 added the timeout, but 3.12.1 still joins for ever"
)
def test_shutdown_default_executor_gives_up_after_its_timeout(runner):
    release = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        busy = loop.run_in_executor(None, release.wait)
        with pytest.warns(RuntimeWarning, match="did not finish"):
            await loop.shutdown_default_executor(0.01)
        release.set()
        assert await busy is True

    runner.run(main())


def test_the_loop_is_closed_while_calls_wait_and_run(runner):
    """They run, as the stdlib's would; what they give is dropped without a word."""
    loop = runner.get_loop()
    release, done, ran = threading.Event(), threading.Event(), []
    pool = fastloop.ThreadPoolExecutor(1)

    def last():
        done.set()

    loop.run_in_executor(pool, release.wait)
    for n in range(50):
        loop.run_in_executor(pool, ran.append, n)
    loop.run_in_executor(pool, last)
    runner.close()
    release.set()
    assert done.wait(30)
    pool.shutdown()
    assert ran == list(range(50))
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_in_executor(pool, int)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon_threadsafe(int)


def test_a_loop_with_calls_in_its_queue_is_collected():
    loop = fastloop.new_event_loop()
    pool = fastloop.ThreadPoolExecutor(1)
    futures = [loop.run_in_executor(pool, bytearray, 10) for _ in range(10)]
    pool.shutdown()
    ref = weakref.ref(futures[0])
    loop.leak = futures
    loop.close()
    del loop, futures
    gc.collect()
    assert ref() is None


def test_a_thread_that_outlives_the_loop():
    out = run_script(
        """
        import asyncio, fastloop, threading
        ready, release = threading.Event(), threading.Event()
        async def main():
            loop = asyncio.get_running_loop()
            loop.run_in_executor(pool, lambda: (ready.set(), release.wait(), bytearray(10**7)))
            ready.wait()
            return loop
        pool = fastloop.ThreadPoolExecutor(1)
        loop = fastloop.run(main())
        def late():
            for call in (
                lambda: loop.call_soon_threadsafe(print),
                lambda: loop.run_in_executor(None, print),
                lambda: loop.run_in_executor(pool, print),
                lambda: asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop),
            ):
                try:
                    call()
                except RuntimeError as error:
                    print(error)
        thread = threading.Thread(target=late)
        thread.start()
        thread.join()
        release.set()
        pool.shutdown()
        """,
        args=("-W", "ignore"),
    )
    assert out.splitlines() == ["Event loop is closed"] * 4


def test_nothing_keeps_the_arguments_or_the_result_alive(fast):
    class Huge(bytearray):
        pass

    async def main():
        loop = asyncio.get_running_loop()
        argument = Huge(50_000_000)
        ref = weakref.ref(argument)
        future = loop.run_in_executor(None, lambda x: None, argument)
        del argument
        await future
        assert ref() is None  # though the worker has no next call
        result = await loop.run_in_executor(None, Huge, 50_000_000)
        ref = weakref.ref(result)
        del result
        assert ref() is None

        def fail(argument):
            raise ValueError

        argument = Huge(10)
        ref = weakref.ref(argument)
        try:
            await loop.run_in_executor(None, fail, argument)
        except ValueError:
            pass
        del argument, future
        await asyncio.sleep(0)  # until here the exception is on its way into this task
        assert ref() is None

    fast.run(main())


def test_a_hundred_thousand_calls_run_in_order_in_bounded_memory(one_worker):
    runner, busy, release = one_worker
    order = []
    count = 100_000

    async def main():
        loop = asyncio.get_running_loop()
        if not isinstance(loop, fastloop.Loop):
            return count * [None]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        calls = [loop.run_in_executor(None, order.append, n) for n in range(count)]
        assert loop._default_executor._work_queue.qsize() == count
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * 1024 / count < 1500  # bytes a call, its future included
        release.set()
        await asyncio.gather(*calls)
        assert order == list(range(count))

    runner.run(main())


# --- many threads, signals ---


def test_many_threads_at_once(fast):
    """Everything that may be called from a foreign thread, from eight of them."""

    async def double(n):
        await asyncio.sleep(0)
        return 2 * n

    async def main():
        loop = asyncio.get_running_loop()
        pool = fastloop.ThreadPoolExecutor(3)
        seen, problems = [], []

        def hammer(k):
            try:
                for n in range(100):
                    number = 1000 * k + n
                    loop.call_soon_threadsafe(seen.append, number)
                    assert pool.submit(abs, -number).result(30) == number
                    coroutine = asyncio.run_coroutine_threadsafe(double(number), loop)
                    assert coroutine.result(30) == 2 * number
                    asyncio.run_coroutine_threadsafe(
                        call_and_check(loop, pool, number), loop
                    ).result(30)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=hammer, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.to_thread(time.sleep, 0.01)
        assert not problems
        assert sorted(seen) == [1000 * k + n for k in range(8) for n in range(100)]
        pool.shutdown()

    async def call_and_check(loop, pool, number):
        assert await loop.run_in_executor(pool, abs, -number) == number
        assert await asyncio.wrap_future(pool.submit(abs, -number)) == number

    fast.run(main())


def test_run_in_executor_from_foreign_threads(fast):
    """It is not promised to work from there, but must not harm anything."""

    async def main():
        loop = asyncio.get_running_loop()
        results = []

        def abuse():
            for n in range(200):
                loop.run_in_executor(None, results.append, n)
                try:
                    loop.run_in_executor(None)
                except TypeError:
                    pass

        await asyncio.gather(*(asyncio.to_thread(abuse) for _ in range(4)))
        await loop.shutdown_default_executor()
        assert sorted(results) == sorted(list(range(200)) * 4)

    fast.run(main())


def test_from_a_signal_handler(fast):
    async def main():
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        results = []

        def handler(signum, frame):
            loop.run_in_executor(None, results.append, len(results))
            loop.call_soon_threadsafe(done.set)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            for _ in range(200):
                done.clear()
                os.kill(os.getpid(), signal.SIGUSR1)
                await loop.run_in_executor(None, int)
                await done.wait()
        finally:
            signal.signal(signal.SIGUSR1, before)
        await loop.shutdown_default_executor()
        assert len(results) == 200

    fast.run(main())


# --- threads that look out for each other before they sleep ---


def test_a_loop_that_waits_for_answers_still_reads(fast):
    """Quick calls one after the other keep nobody's socket waiting."""

    async def main():
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            got = []
            loop.add_reader(one, lambda: got.append(one.recv(1)))
            for n in range(300):
                other.send(b"x")
                for _ in range(2000):
                    await loop.run_in_executor(None, int)
                    if len(got) > n:
                        break
                else:
                    pytest.fail("nothing was read in 2000 turns")
            loop.remove_reader(one)

    fast.run(main())


def test_loops_come_and_go_under_their_workers():
    """A worker tells a loop of its answer without the GIL: the loop is there until it has."""
    with fastloop.ThreadPoolExecutor(2) as pool:
        for n in range(300):
            loop = fastloop.new_event_loop()
            loop.run_until_complete(loop.run_in_executor(pool, int))
            late = [loop.run_in_executor(pool, abs, -n) for _ in range(3)]
            loop.close()
            del loop, late
        assert pool.submit(abs, -1).result(30) == 1


@pytest.fixture
def served():
    """A fastloop loop that runs in a thread of its own."""
    loop = fastloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_run_coroutine_threadsafe_that_is_quick_slow_and_failing(served):
    async def answer(n):
        if n % 5 == 1:
            await asyncio.sleep(0.001)
        if n % 5 == 2:
            raise ValueError(n)
        return n

    for n in range(500):
        future = asyncio.run_coroutine_threadsafe(answer(n), served)
        assert type(future) is concurrent.futures.Future
        if n % 5 == 2:
            with pytest.raises(ValueError, match=str(n)):
                future.result(30)
        else:
            assert future.result(30) == n


def test_run_coroutine_threadsafe_of_a_coroutine_that_needs_its_callers_lock(served):
    """The caller looks out for the answer for a moment only."""
    lock = threading.Lock()

    async def needs_lock():
        with lock:
            return 1

    for _ in range(50):
        with lock:
            future = asyncio.run_coroutine_threadsafe(needs_lock(), served)
        assert future.result(30) == 1


def test_run_coroutine_threadsafe_from_many_threads_and_cancelled(served):
    cancelled = threading.Semaphore(0)

    async def for_ever():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.release()
            raise

    def call(k):
        for n in range(50):
            slow = asyncio.run_coroutine_threadsafe(for_ever(), served)
            quick = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, (k, n)), served)
            assert quick.result(30) == (k, n)
            assert slow.cancel()
        return k

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(call, range(6))) == list(range(6))
    for _ in range(300):
        assert cancelled.acquire(timeout=30)
