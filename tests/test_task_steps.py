"""What a task's step shows: the current task, the handle it is, the context of its errors; and what names a slow one."""

import asyncio
import logging
import sys
import time

import pytest

import fastloop


async def nothing():
    pass


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
@pytest.mark.parametrize("outer", [asyncio.Task, fastloop.Task], ids=["asyncio's", "ours"])
@pytest.mark.parametrize("suspends", [False, True])
def test_the_current_task_around_an_eager_one(fast, outer, suspends):
    seen = []

    async def child(parent):
        seen.append(asyncio.current_task() not in (None, parent))
        if suspends:
            await asyncio.sleep(0)
            seen.append(asyncio.current_task() not in (None, parent))

    async def parent():
        me = asyncio.current_task()
        for _ in range(2):
            task = asyncio.create_task(child(me))
            assert asyncio.current_task() is me
            async with asyncio.timeout(60):
                await task
            assert asyncio.current_task() is me
        return me

    async def main():
        fast.set_task_factory(fastloop.eager_task_factory)
        task = outer(parent(), loop=fast)
        assert await task is task

    fast.run_until_complete(main())
    assert seen and all(seen)


class Bad:
    def __await__(self):
        yield 5


async def bad_yield():
    await Bad()


async def itself():
    await asyncio.current_task()


async def other_loop():
    other = asyncio.new_event_loop()
    try:
        await other.create_future()
    finally:
        other.close()


@pytest.mark.parametrize("coroutine", [bad_yield, itself, other_loop])
def test_the_engines_own_errors_have_no_context(loop, coroutine):
    async def main():
        with pytest.raises(RuntimeError) as caught:
            await loop.create_task(coroutine())
        return caught.value

    try:
        raise ValueError("what the caller is handling")
    except ValueError:
        error = loop.run_until_complete(main())
    assert error.__context__ is None


def test_a_report_from_a_task_in_debug_mode_tells_where_its_handle_was_made(loop, caplog):
    async def main():
        loop.call_exception_handler({"message": "said in a task"})
        await asyncio.sleep(0)
        loop.call_exception_handler({"message": "said later"})

    loop.set_debug(True)
    with caplog.at_level(logging.ERROR, "asyncio"):
        loop.run_until_complete(main())
    texts = [record.getMessage() for record in caplog.records]
    assert [text.splitlines()[0] for text in texts] == ["said in a task", "said later"]
    assert all("Handle created at (most recent call last):" in text for text in texts)


class Result:
    def __repr__(self):
        raise KeyboardInterrupt  # if it is called at all, that shows


def test_a_slow_task_is_named_without_the_programs_repr(fast):
    async def slow_one():
        await asyncio.sleep(0.01)
        time.sleep(0.02 + (fast.stats()["slowest_callback"] or (0,))[0])
        return Result()

    async def main():
        task = fast.create_task(slow_one(), name="mine")
        await asyncio.wait((task,))
        return fast.stats()["slowest_callback"][1]

    name = fast.run_until_complete(main())
    assert name.startswith("<Task name='mine' coro=<") and "slow_one() done, defined at" in name


def test_time_is_the_monotonic_clock_to_the_last_bit(fast):
    for _ in range(1000):
        before, now, after = time.monotonic_ns(), fast.time(), time.monotonic_ns()
        assert before / 1e9 <= now <= after / 1e9
        assert now in {ns / 1e9 for ns in (round(now * 1e9) + d for d in range(-130, 131))}


def test_numbers_that_do_not_add_to_a_float(loop):
    from decimal import Decimal
    from fractions import Fraction

    with pytest.raises(TypeError, match="unsupported operand"):
        loop.call_later(Decimal(1), nothing)
    assert loop.call_later(Fraction(1, 2), nothing).when() > loop.time()


def test_eager_factories_can_be_asked_for():
    assert hasattr(fastloop, "eager_task_factory") == hasattr(asyncio, "eager_task_factory")
    assert hasattr(fastloop, "create_eager_task_factory") == hasattr(asyncio, "create_eager_task_factory")
