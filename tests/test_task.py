"""Future and Task: what CPython's own suites do not ask of a subtype in C."""

import _asyncio
import asyncio
import gc
import sys
import weakref

import pytest

import fastloop


def run(coro):
    return fastloop.run(coro)


def test_create_task_by_keyword():
    async def main():
        task = asyncio.get_running_loop().create_task(coro=asyncio.sleep(0, 5), name="five")
        assert type(task) is fastloop.Task and task.get_name() == "five"
        return await task

    assert run(main()) == 5


# --- the types ---

# What is right for ours as it is in the base: it reads nothing that ours keeps elsewhere.
INHERITED = {
    "__class_getitem__",
    "__doc__",
    "__getattribute__",
    "__hash__",
    "__new__",
    "_asyncio_awaited_by",  # 3.14: kept by asyncio's own functions, which we call
    "__del__",
}


@pytest.mark.parametrize(
    "ours, base", [(fastloop.Future, _asyncio.Future), (fastloop.Task, _asyncio.Task)]
)
def test_nothing_of_the_base_that_reads_its_fields_shows_through(ours, base):
    names = set(dir(base)) - set(dir(object)) - INHERITED
    shown = {n for n in names if not any(n in vars(t) for t in ours.__mro__[: ours.__mro__.index(base)])}
    assert shown == set()


def test_isinstance_and_generics():
    assert issubclass(fastloop.Future, asyncio.Future)
    assert issubclass(fastloop.Task, asyncio.Task)
    assert fastloop.Future[int].__origin__ is fastloop.Future
    assert fastloop.Task[int].__args__ == (int,)


def test_loop_makes_ours_and_they_take_attributes_and_weak_references():
    async def main():
        loop = asyncio.get_running_loop()
        future, task = loop.create_future(), loop.create_task(asyncio.sleep(0))
        assert type(future) is fastloop.Future and type(task) is fastloop.Task
        for made in (future, task):
            made.note = "x"
            assert made.note == "x" and weakref.ref(made)() is made
        await task

    run(main())


def test_python_subclasses():
    calls = []

    class MyTask(fastloop.Task):
        def cancel(self, msg=None):
            calls.append(("cancel", msg))
            return super().cancel(msg)

    class MyFuture(fastloop.Future):
        def __init__(self, tag, **kwargs):
            super().__init__(**kwargs)
            self.tag = tag

        def set_result(self, result):
            calls.append(("set_result", result))
            super().set_result(result)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **kw: MyTask(coro, loop=loop, **kw))
        future = MyFuture("tag", loop=loop)

        async def wait():
            return await future

        task = asyncio.create_task(wait(), name="mine")
        assert type(task) is MyTask and task.get_name() == "mine"
        await asyncio.sleep(0)
        future.set_result(5)
        assert await task == 5 and future.tag == "tag"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(MyTask(asyncio.sleep(60), loop=loop), 0.001)

    run(main())
    assert ("set_result", 5) in calls and any(c[0] == "cancel" for c in calls)


@pytest.mark.parametrize("make", [fastloop.Future.__new__, fastloop.Task.__new__])
def test_without_init_every_method_answers_and_none_crashes(make):
    bare = make(fastloop.Future if make is fastloop.Future.__new__ else fastloop.Task)
    for name in dir(bare):
        attribute = getattr(bare, name, None)
        if callable(attribute) and not name.startswith("__"):
            for args in ((), (None,), (print,)):
                try:
                    attribute(*args)
                except Exception:
                    pass
    try:
        repr(bare)
    except AssertionError:  # 3.11's own formatter, of a task without a coroutine
        assert sys.version_info < (3, 12)
    with pytest.raises(RuntimeError, match="not initialized"):
        iter(bare).send(None)


# --- strangers ---


def test_awaiting_futures_of_other_makes_in_both_directions():
    class PurePython(asyncio.futures._PyFuture):
        pass

    async def main():
        loop = asyncio.get_running_loop()
        for future in (asyncio.Future(loop=loop), PurePython(loop=loop)):
            loop.call_soon(future.set_result, 1)
            assert await future == 1
        for future in (asyncio.Future(loop=loop), PurePython(loop=loop)):
            loop.call_soon(future.set_exception, KeyError("k"))
            with pytest.raises(KeyError):
                await future
        for future in (asyncio.Future(loop=loop), PurePython(loop=loop)):
            task = asyncio.ensure_future(wait_for(future))
            await asyncio.sleep(0)
            task.cancel("m")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert future.cancelled()
        native = _asyncio.Task(wait_for(loop.create_future()), loop=loop)
        await asyncio.sleep(0)
        native._fut_waiter.set_result("from ours")
        assert await native == "from ours"

    async def wait_for(future):
        return await future

    run(main())


def test_our_task_on_asyncios_loop():
    async def child(value):
        await asyncio.sleep(0.001)
        assert isinstance(asyncio.current_task(), fastloop.Task)
        return value

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [fastloop.Task(child(i), loop=loop) for i in range(3)]
        assert set(tasks) <= asyncio.all_tasks()
        future = fastloop.Future(loop=loop)
        loop.call_soon(future.set_result, 9)
        return await asyncio.gather(*tasks, future)

    assert asyncio.run(main()) == [0, 1, 2, 9]


def test_a_loop_class_that_overrides_call_soon_is_asked():
    calls = []

    class MyLoop(fastloop.Loop):
        def call_soon(self, callback, *args, context=None):
            calls.append(callback)
            return super().call_soon(callback, *args, context=context)

    async def main():
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=MyLoop) as runner:
        runner.run(main())
    assert len(calls) >= 3


# --- what may be yielded ---


class Yields:
    def __init__(self, value):
        self.value = value

    def __await__(self):
        return (yield self.value)


@pytest.mark.parametrize(
    "yielded, text",
    [
        (lambda: 5, "Task got bad yield: 5"),
        (lambda: asyncio.get_running_loop().create_future(), "yield was used instead of yield from"),
        (lambda: (x for x in ()), "yield was used instead of yield from for generator"),
        (lambda: asyncio.current_task(), "Task cannot await on itself"),
    ],
)
def test_bad_yields(yielded, text):
    async def main():
        with pytest.raises(RuntimeError, match=text):
            await Yields(yielded())
        return "went on"

    assert run(main()) == asyncio.run(main()) == "went on"


def test_a_future_of_another_loop_is_refused():
    other = fastloop.new_event_loop()

    async def main():
        for future in (other.create_future(), asyncio.Future(loop=other)):
            with pytest.raises(RuntimeError, match="attached to a different loop"):
                await future

    run(main())
    other.close()


# --- life ---


def test_finished_tasks_and_futures_are_freed_without_the_collector():
    async def child():
        await asyncio.sleep(0)
        return object()

    async def main():
        refs = []
        gc.disable()
        try:
            for _ in range(10):
                task = asyncio.create_task(child())
                refs.append(weakref.ref(task))
                await task
            del task
            await asyncio.sleep(0)
            return [r() for r in refs]
        finally:
            gc.enable()

    assert run(main()) == [None] * 10


def test_no_task_is_current_in_the_finalizer_of_one():
    seen = []

    class Result:
        def __del__(self):
            seen.append(asyncio.current_task())

    async def child():
        return Result()

    async def main():
        asyncio.create_task(child())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    assert seen == [None]


def reports_of(main):
    reports = []

    async def wrapper():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda loop, c: reports.append((c["message"], type(c.get("exception"))))
        )
        await main()
        gc.collect()
        await asyncio.sleep(0)

    run(wrapper())
    return reports


def test_an_exception_nobody_asked_for_is_reported():
    async def main():
        loop = asyncio.get_running_loop()
        loop.create_future().set_exception(KeyError())
        loop.create_task(fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def fail():
        raise ValueError

    assert sorted(reports_of(main), key=str) == [
        ("Future exception was never retrieved", KeyError),
        ("Task exception was never retrieved", ValueError),
    ]


def test_a_pending_task_that_is_lost_is_reported():
    async def main():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        del task

    async def forever():
        await asyncio.get_running_loop().create_future()

    assert reports_of(main) == [("Task was destroyed but it is pending!", type(None))]


def test_all_tasks_shows_ours_and_native_ones_and_no_finished_one():
    async def main():
        loop = asyncio.get_running_loop()
        ours = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
        native = _asyncio.Task(asyncio.sleep(60), loop=loop)
        everything = {asyncio.current_task(), *ours, native}
        assert asyncio.all_tasks() == everything
        ours[0].cancel()
        await asyncio.wait([ours[0]])
        assert asyncio.all_tasks() == everything - {ours[0]}
        native.cancel()

    run(main())


def test_callbacks_that_remove_callbacks_and_compare_badly():
    class Odd:
        def __eq__(self, other):
            if not future.done():
                future.set_result(1)
                future.remove_done_callback(print)
            raise ZeroDivisionError

        __hash__ = None

        def __call__(self, future):
            pass

    loop = fastloop.new_event_loop()
    for n in (1, 2, 3):
        future = loop.create_future()
        for _ in range(n):
            future.add_done_callback(Odd())
        with pytest.raises(ZeroDivisionError):
            future.remove_done_callback(5)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


def test_a_chain_of_a_hundred_thousand_tasks_does_not_recurse():
    async def link(previous):
        if previous is not None:
            await previous

    async def main():
        task = None
        for _ in range(100_000):
            task = asyncio.create_task(link(task))
        await task

    run(main())


# --- eager ---

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")


@eager
@pytest.mark.parametrize("factory", ["fastloop", "asyncio"])
def test_eager_tasks(factory):
    order = []

    async def child(name, wait):
        order.append((name, type(asyncio.current_task()).__name__))
        if wait:
            await asyncio.sleep(0)
        order.append(name)
        return name

    async def main():
        loop = asyncio.get_running_loop()
        module = fastloop if factory == "fastloop" else asyncio
        loop.set_task_factory(module.eager_task_factory)
        me = asyncio.current_task()
        done = asyncio.create_task(child("a", False), name="A")
        assert done.done() and asyncio.current_task() is me
        waits = asyncio.create_task(child("b", True), name="B")
        assert not waits.done() and waits in asyncio.all_tasks()
        assert isinstance(done, fastloop.Task if factory == "fastloop" else asyncio.Task)
        order.append("main")
        assert await asyncio.gather(done, waits) == ["a", "b"]

    run(main())
    assert order == [("a", "Task"), "a", ("b", "Task"), "main", "b"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs came with 3.14")
def test_call_graph():
    async def inner():
        return asyncio.capture_call_graph(outer_task)

    async def outer():
        await asyncio.create_task(inner(), name="inner")

    async def main():
        nonlocal outer_task
        outer_task = asyncio.create_task(middle(), name="middle")
        return await outer_task

    async def middle():
        return await asyncio.create_task(inner(), name="leaf")

    outer_task = None
    graph = run(main())
    assert graph.future.get_name() == "middle"
    assert [g.future.get_coro().__name__ for g in graph.awaited_by] == ["main"]
