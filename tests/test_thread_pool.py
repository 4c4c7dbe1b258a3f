"""fastloop.ThreadPoolExecutor by itself, beside the stdlib's: its threads, their errors, their end."""

import asyncio
import concurrent.futures
import gc
import importlib.util
import os
import sys
import textwrap
import threading
import time
import weakref

import pytest
from executor_helpers import POOLS, fast, pool_type, run_script

import fastloop


# --- the executor by itself ---


def test_what_people_read_of_a_pool(pool_type):
    initialized = []
    with pool_type(3, "name", initialized.append, (7,)) as pool:
        assert pool._max_workers == 3
        assert pool._thread_name_prefix == "name"
        assert pool._threads == set()
        assert pool._shutdown is False
        assert not pool._broken
        barrier = threading.Barrier(4)
        futures = [pool.submit(barrier.wait) for _ in range(3)]
        waiting = [pool.submit(int) for _ in range(10)]
        while not all(future.running() for future in futures):
            time.sleep(0.001)
        assert pool._work_queue.qsize() == 10
        assert {thread.name for thread in pool._threads} == {"name_0", "name_1", "name_2"}
        barrier.wait(60)
        concurrent.futures.wait(futures + waiting)
        assert initialized == [7, 7, 7]
    assert pool._shutdown is True
    assert not any(thread.is_alive() for thread in pool._threads)
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        pool_type(0)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        pool_type(initializer=5)
    with pytest.raises(TypeError):
        pool.submit()


def test_submit_gives_a_real_future(pool_type):
    with pool_type(1) as pool:
        release, called = threading.Event(), []
        busy = pool.submit(release.wait)
        waiting = pool.submit(pow, 2, exp=5)
        dropped = pool.submit(called.append, 1)
        assert type(waiting) is concurrent.futures.Future
        assert not waiting.running()
        assert dropped.cancel()
        waiting.add_done_callback(lambda future: called.append(future.result()))
        release.set()
        assert waiting.result(30) == 32
        assert busy.result() is True
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        assert called == [32]
        assert list(pool.map(pow, [2, 3], [2, 2])) == [4, 9]


def test_a_future_that_was_tampered_with_harms_no_worker(pool_type, caplog):
    with pool_type(2) as pool:
        release = threading.Event()
        future = pool.submit(release.wait)
        while not future.running():
            time.sleep(0.001)
        future.set_result("mine")
        release.set()
        assert future.result() == "mine"
        assert pool.submit(abs, -1).result(30) == 1
    assert "Exception in worker" in caplog.text


def test_nested_use_of_a_pool(fast):
    """A call that submits to its own pool, and one that runs a loop of its own."""

    def outer(pool):
        return pool.submit(abs, -2).result(30)

    def own_loop():
        with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
            return runner.run(asyncio.to_thread(abs, -3))

    async def main():
        loop = asyncio.get_running_loop()
        with fastloop.ThreadPoolExecutor(2) as pool:
            assert await loop.run_in_executor(pool, outer, pool) == 2
        assert await loop.run_in_executor(None, own_loop) == 3

    fast.run(main())


def test_errors_of_the_queue_type():
    from fastloop import _core

    with pytest.raises(TypeError):
        _core.WorkQueue()
    with pytest.raises(TypeError):
        _core.WorkQueue("x")
    with pytest.raises(TypeError):
        _core.Work()
    queue = _core.WorkQueue(1)
    with pytest.raises(TypeError):
        queue.put(1)
    with pytest.raises(TypeError):
        queue.submit(1, 2)


@pytest.mark.skipif(
    not hasattr(concurrent.futures.ThreadPoolExecutor, "prepare_context"), reason="new in 3.14"
)
def test_a_prepare_context_of_ones_own(fast):
    """What surrounds the calls of each worker, and may replace them."""
    finalized = []

    def classes(base):
        class Context:
            def initialize(self):
                self.thread = threading.current_thread().name

            def finalize(self):
                finalized.append(self.thread)

            def run(self, task):
                fn, args, kwargs = task
                return self.thread, threading.current_thread().name, fn(*args, **kwargs)

        class Pool(base):
            @classmethod
            def prepare_context(cls, initializer, initargs, *, factor):
                def resolve(fn, args, kwargs):
                    return fn, [factor * arg for arg in args], kwargs

                return Context, resolve

        return Pool

    for base in POOLS.values():
        finalized.clear()
        with classes(base)(1, "own", factor=3) as pool:
            assert pool.submit(abs, -2).result(30) == ("own_0", "own_0", 6)
            expected = ("own_0", "own_0", 9)
            assert fast.run(in_pool(pool, abs, -3)) == expected
        assert finalized == ["own_0"]
        with pytest.raises(TypeError, match="factor"):
            classes(base)(1)


async def in_pool(pool, function, *args):
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


def test_unknown_keywords_are_refused(pool_type):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        pool_type(what=1)


# --- its threads ---


def test_growth_is_by_need(pool_type):
    with pool_type(5) as pool:
        for _ in range(20):
            pool.submit(int).result()
            while isinstance(pool, fastloop.ThreadPoolExecutor) and not pool._work_queue.idle:
                time.sleep(0)
        if pool_type is fastloop.ThreadPoolExecutor:
            assert len(pool._threads) == 1
        barrier = threading.Barrier(5)
        for future in [pool.submit(barrier.wait) for _ in range(5)]:
            future.result(30)
        assert len(pool._threads) == 5


def test_blocking_calls_run_side_by_side_even_if_queued_in_one_burst(fast):
    """A worker that takes a call and leaves others wakes the next before it blocks."""

    async def main():
        loop = asyncio.get_running_loop()
        pool = fastloop.ThreadPoolExecutor(6)
        for _ in range(20):
            barrier = threading.Barrier(6)
            await asyncio.wait_for(
                asyncio.gather(*(loop.run_in_executor(pool, barrier.wait) for _ in range(6))), 30
            )
        pool.shutdown()

    fast.run(main())


def test_a_slow_initializer_does_not_hold_up_idle_workers():
    gate, first = threading.Event(), threading.Event()

    def initializer():
        if first.is_set():
            gate.wait()
        first.set()

    with fastloop.ThreadPoolExecutor(2, initializer=initializer) as pool:
        release = threading.Event()
        one = pool.submit(release.wait)
        assert first.wait(30)
        two = pool.submit(int)  # starts the second thread, which is held up
        release.set()
        one.result(30)
        two.result(30)
        assert pool.submit(abs, -3).result(30) == 3
        gate.set()


@pytest.mark.skipif(os.geteuid() == 0, reason="RLIMIT_NPROC does not bind root")
def test_no_thread_to_be_had_by_the_limit():
    run_script(NO_THREADS.format("resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))"))


NO_THREADS = """
import asyncio, fastloop, resource, threading
{}
async def main():
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, print, "never")
    except RuntimeError as error:
        assert "can't start new thread" in str(error)
        assert loop._default_executor._work_queue.qsize() <= 1
    else:
        raise AssertionError
    threading.Thread.start = start
    assert await asyncio.to_thread(abs, -5) == 5
fastloop.run(main())
"""


def test_no_thread_to_be_had():
    """The caller is told, the call does not run later, and the pool works again after it."""
    out = run_script(
        NO_THREADS.format(
            textwrap.dedent(
                """
                start = threading.Thread.start
                def fail(self):
                    raise RuntimeError("can't start new thread")
                threading.Thread.start = fail
                """
            )
        )
    )
    assert "never" not in out


def test_an_interrupt_while_a_thread_is_started(monkeypatch):
    """It comes out, and the pool works on."""
    start = threading.Thread.start

    def interrupted(self):
        start(self)
        raise KeyboardInterrupt

    with fastloop.ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(int)
        monkeypatch.undo()
        for n in range(20):
            assert pool.submit(abs, -n).result(30) == n


def test_an_interrupt_before_the_thread_has_come(monkeypatch):
    """It is a worker all the same, and is counted and joined as one."""
    gate = threading.Event()
    start = threading.Thread.start

    def interrupted(self):
        start(self)
        raise KeyboardInterrupt

    with fastloop.ThreadPoolExecutor(1, initializer=gate.wait) as pool:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(int)
        monkeypatch.undo()
        gate.set()
        first = [pool.submit(threading.get_ident) for _ in range(100)]
        assert {future.result(30) for future in first} <= {
            thread.ident for thread in threading.enumerate()
        }


def test_the_first_thread_cannot_be_started_while_others_submit(monkeypatch):
    """A failing start fails its own caller; who comes meanwhile is served by the next thread."""
    start = threading.Thread.start
    inside, others = threading.Event(), threading.Event()
    worker_names = set()

    def fail_once(self):
        if not self.name.startswith("mine"):
            return start(self)
        if not inside.is_set():
            inside.set()
            others.wait(30)
            raise RuntimeError("can't start new thread")
        worker_names.add(self.name)
        start(self)

    with fastloop.ThreadPoolExecutor(3, "mine") as pool:
        monkeypatch.setattr(threading.Thread, "start", fail_once)
        outcome = []

        def first():
            try:
                pool.submit(outcome.append, "ran")
            except RuntimeError as error:
                outcome.append(str(error))

        thread = threading.Thread(target=first)
        thread.start()
        assert inside.wait(30)
        waiting = [pool.submit(abs, -n) for n in range(5)]
        others.set()
        thread.join(30)
        assert outcome == ["can't start new thread"]
        waiting.append(pool.submit(abs, -5))
        assert [future.result(30) for future in waiting] == [0, 1, 2, 3, 4, 5]
        assert worker_names
        monkeypatch.undo()


# --- without memory ---


@pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None, reason="needs _testcapi.set_nomemory()"
)
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="it has its own allocator")
@pytest.mark.parametrize(
    "call",
    ["pool.submit(abs, -3).result(30)", "await loop.run_in_executor(pool, abs, -3)"],
    ids=["submit", "run_in_executor"],
)
def test_any_allocation_may_fail(call):
    """The n-th allocation of a call fails, in whichever thread: MemoryError, and the pool lives."""
    before, _, rest = call.partition("pool.submit" if "submit" in call else "loop.run_in_executor")
    submit = call[len(before) :].removesuffix(".result(30)")
    out = run_script(
        f"""
        import asyncio, _testcapi, fastloop, logging
        logging.disable()
        refused = 0
        async def main():
            global refused
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: None)
            pool = fastloop.ThreadPoolExecutor(2)
            for n in range(60):
                await loop.run_in_executor(pool, int)
                future = None
                _testcapi.set_nomemory(n, n + 1)
                try:
                    future = {submit}
                except (MemoryError, RuntimeError):  # "can't allocate lock"
                    refused += 1
                finally:
                    _testcapi.remove_mem_hooks()
                if isinstance(future, asyncio.Future):
                    await asyncio.wait([future], timeout=30)
                    assert future.done()
                elif future is not None:
                    try:
                        assert future.result(30) == 3
                    except (MemoryError, RuntimeError):
                        refused += 1
                assert {call} == 3
        fastloop.run(main())
        print(refused)
        """,
        args=(),
    )
    assert int(out) > 0


# --- the end: of the pool, in a forked child, of the interpreter ---


def test_an_executor_that_is_dropped_finishes_its_calls_and_ends_its_threads(pool_type):
    release, ran = threading.Event(), []
    pool = pool_type(1)
    futures = [pool.submit(release.wait), *(pool.submit(ran.append, n) for n in range(5))]
    (thread,) = pool._threads
    ref = weakref.ref(pool)
    del pool
    gc.collect()
    assert ref() is None
    release.set()
    for future in futures:
        future.result(30)
    thread.join(30)
    assert not thread.is_alive()
    assert ran == list(range(5))


def test_garbage_that_shuts_the_pool_down_while_a_call_is_submitted():
    """The call is refused or runs, whichever allocation of submit() has the garbage collected."""

    class Owner:
        def __init__(self, pool):
            self.pool, self.cycle = pool, self

        def __del__(self):
            self.pool.shutdown(wait=False)
            for thread in self.pool._threads - {threading.current_thread()}:
                thread.join(0.1)  # not for ever: it can need a lock that submit() holds here

    ran = refused = 0
    before = gc.get_threshold()
    for n in range(40):
        pool = fastloop.ThreadPoolExecutor(1)
        pool.submit(int).result(30)
        gc.collect()
        gc.disable()
        Owner(pool)
        gc.set_threshold(gc.get_count()[0] + n)
        gc.enable()
        try:
            future = pool.submit(int)
        except RuntimeError:
            refused += 1
        else:
            assert future.result(30) == 0
            ran += 1
        finally:
            gc.set_threshold(*before)
            gc.enable()
        pool.shutdown()
    assert ran and refused


def test_a_cycle_through_a_pool_is_collected():
    class Owner:
        def __init__(self):
            self.pool = fastloop.ThreadPoolExecutor(2)
            self.future = self.pool.submit(self.method)

        def method(self):
            return self

    owner = Owner()
    owner.future.result()
    threads = list(owner.pool._threads)
    ref = weakref.ref(owner)
    del owner
    while ref() is not None:  # the worker may still be inside set_result(owner)
        gc.collect()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("where", ["main", "worker"])
def test_a_forked_child_starts_clean(where):
    out = run_script(
        f"""
        import asyncio, fastloop, os, threading
        pool = fastloop.ThreadPoolExecutor(2)
        release = threading.Event()

        def child():
            async def main():
                loop = asyncio.get_running_loop()
                assert await asyncio.to_thread(abs, -5) == 5
                assert await loop.run_in_executor(pool, abs, -6) == 6
            assert pool._work_queue.qsize() == 0
            asyncio.set_event_loop(None)
            with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
                runner.run(main())
            assert pool.submit(abs, -7).result(30) == 7

        def fork():
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    thread = threading.Thread(target=child)
                    thread.start()
                    thread.join()
                    code = 0 if pool._threads else 2
                finally:
                    os._exit(code)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        async def main():
            loop = asyncio.get_running_loop()
            calls = [loop.run_in_executor(pool, release.wait) for _ in range(2)]
            calls += [loop.run_in_executor(pool, print, "the call of the parent")]
            await asyncio.to_thread(abs, 1)
            if {where!r} == "main":
                code = fork()
            else:
                code = await asyncio.to_thread(fork)
            release.set()
            await asyncio.gather(*calls)
            print("child", code)
        fastloop.run(main())
        """,
        args=("-W", "ignore"),
    )
    assert out.splitlines() == ["the call of the parent", "child 0"]


def test_a_forked_child_that_leaves_by_the_ordinary_exit_does_not_hang():
    out = run_script(
        """
        import asyncio, fastloop, os
        async def main():
            await asyncio.gather(*(asyncio.to_thread(abs, -1) for _ in range(10)))
        loop = fastloop.new_event_loop()
        loop.run_until_complete(main())
        pid = os.fork()
        if pid != 0:
            print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        args=("-W", "ignore"),
    )
    assert out == "child 0\n"


@pytest.mark.parametrize(
    "body",
    {
        "idle": "await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.001) for _ in range(8)))",
        "busy": "[loop.run_in_executor(pool, time.sleep, 0.05) for _ in range(8)]",
        "queued": "[loop.run_in_executor(pool, abs, 1) for _ in range(500)]",
        "submitted": "[pool.submit(time.sleep, 0.001) for _ in range(30)]",
    }.values(),
    ids=["idle", "busy", "queued", "submitted"],
)
def test_interpreter_exit(body):
    source = f"""
        import asyncio, fastloop, time
        pool = fastloop.ThreadPoolExecutor(4)
        async def main():
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 60
            {body}
        loop = fastloop.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    """
    for _ in range(5):
        assert run_script(source) == ""


def test_interpreter_exit_with_daemon_workers_that_never_return():
    """Threads started by a daemon thread are daemons and are left behind, as the stdlib's."""
    source = """
        import fastloop, threading, time
        pool = fastloop.ThreadPoolExecutor(3)
        started = threading.Barrier(3)
        def use():
            pool.submit(lambda: (started.wait(), threading.Event().wait()))
            pool.submit(lambda: (started.wait(), all(n == 0 for n in iter(int, 1))))
            started.wait()
            pool.submit(int).result()
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join()
        assert all(t.daemon for t in pool._threads)
        # what concurrent.futures' exit function would wait for, without end
        import concurrent.futures.thread
        concurrent.futures.thread._threads_queues.clear()
    """
    for _ in range(5):
        run_script(source)


def test_exit_waits_for_running_calls():
    out = run_script(
        """
        import fastloop, time
        pool = fastloop.ThreadPoolExecutor(1)
        pool.submit(lambda: (time.sleep(0.1), print("done")))
        pool.submit(print, "and the next")
        """
    )
    assert out == "done\nand the next\n"


def test_no_calls_after_interpreter_shutdown():
    out = run_script(
        """
        import fastloop, threading
        pool = fastloop.ThreadPoolExecutor(1)
        pool.submit(int).result()
        def late():
            threading.main_thread().join()
            try:
                pool.submit(int)
            except RuntimeError as error:
                print(error)
        threading.Thread(target=late).start()
        """
    )
    assert "cannot schedule new futures after" in out


@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12 added per-interpreter state")
def test_subinterpreters_do_not_share_pools():
    run_script(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import fastloop
        fastloop.ThreadPoolExecutor(1).submit(int).result()
        source = '''
        try:
            import fastloop
        except ImportError as error:
            print(error)  # _asyncio or another module refuses: as good
        else:
            async def main():
                import asyncio
                assert await asyncio.to_thread(abs, -5) == 5
            fastloop.run(main())
        '''
        import textwrap
        interpreter = interpreters.create()
        problem = getattr(interpreters, "exec", interpreters.run_string)(
            interpreter, textwrap.dedent(source)
        )
        assert problem is None, problem
        interpreters.destroy(interpreter)
        """,
        args=("-W", "ignore"),
    )
