"""Run small programs on fastloop while one allocation, or a few in a row, fail: see test_memory.py.

    python memory_program.py FIRST LAST STEP [SCENARIO...]

Each scenario runs once for every number in range(FIRST, LAST, STEP): the allocation of that number fails, and in a second
run those after it as well. What may come of it: nothing, a MemoryError, or a report to the exception handler. A scenario
that then waits for ever must have been reported. Prints what is otherwise; exit status 1 if anything is.
"""

import asyncio
import contextvars
import faulthandler
import gc
import inspect
import os
import sys
import traceback
import warnings

import _testcapi

import fastloop

VARIABLE = contextvars.ContextVar("variable")
READ_END, WRITE_END = os.pipe()
os.write(WRITE_END, b"x")


async def sleepy(delay=0):
    await asyncio.sleep(delay)
    return delay


async def failing():
    await asyncio.sleep(0)
    raise ValueError("of a task")


def fail():
    raise ValueError("of a callback")


def ignore(*args):
    pass


def turn(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def call_soon(loop):
    for arguments in ((), (1,), (1, 2, 3), (1, 2, 3, 4, 5)):
        loop.call_soon(ignore, *arguments)
    loop.call_soon_threadsafe(VARIABLE.set, 1)
    loop.call_soon(loop.call_soon, int)._context
    turn(loop)
    turn(loop)


def many_callbacks(loop):
    for _ in range(300):  # the queue grows
        loop.call_soon(int)
    turn(loop)


def failing_callback(loop):
    loop.call_soon(fail)
    kept = loop.call_soon(fail)
    turn(loop)
    del kept


def timers(loop):
    handles = [loop.call_later(delay, int) for delay in (0, 0.001, 5, 6)]
    handles[2].cancel()
    turn(loop)
    handles[1].when()


def callbacks(loop):
    future = loop.create_future()
    for callback in (print, ignore, str, str):
        future.add_done_callback(callback)
    future.remove_done_callback(print)
    future._callbacks
    future.set_result(1)
    turn(loop)
    return future.result()


def exceptions(loop):
    future = loop.create_future()
    future.add_done_callback(ignore)
    future.set_exception(ValueError)
    turn(loop)
    future.exception()
    future = loop.create_future()
    future.cancel("why")
    try:
        future.result()
    except asyncio.CancelledError:
        pass


async def task(loop):
    await sleepy()


async def tasks(loop):
    waiting = [loop.create_task(sleepy(), name="one"), asyncio.ensure_future(sleepy(0.0001))]
    for each in waiting:
        await each
    waiting[0].get_name(), waiting[1].get_name(), asyncio.current_task()


async def wait_of(future):
    return await future


async def three_await_one(loop):
    future = loop.create_future()
    waiting = [loop.create_task(wait_of(future)) for _ in range(3)]
    await asyncio.sleep(0)
    future.set_result(None)
    for each in waiting:
        await each


async def foreign_future(loop):
    future = asyncio.Future()
    loop.call_soon(future.set_result, 1)
    await future


async def cancelled_tasks(loop):
    task = loop.create_task(sleepy(10))
    await asyncio.sleep(0)
    task.cancel("why")
    try:
        await task
    except asyncio.CancelledError:
        pass


async def failing_task(loop):
    try:
        await loop.create_task(failing())
    except ValueError:
        pass


async def produce(queue):
    for i in range(3):
        await queue.put(i)


async def queue(loop):
    queue = asyncio.Queue(1)
    producer = loop.create_task(produce(queue))
    for _ in range(3):
        await queue.get()
    await producer


def reader(loop):
    called = []
    loop.add_reader(READ_END, called.append, 1)
    loop.add_writer(WRITE_END, called.append, 2)
    turn(loop)
    loop.remove_reader(READ_END)
    loop.remove_writer(WRITE_END)


class OwnTask(fastloop.Task):
    pass


def make_own_task(loop, coro, **options):
    return OwnTask(coro, loop=loop, **options)


async def own_task(loop):
    loop.set_task_factory(make_own_task)
    await loop.create_task(sleepy())


# Little Python code runs while allocations fail: the interpreter itself does not always survive that. 3.12 and 3.13 crash,
# on asyncio's loop as well, where they cannot make a function or throw into a coroutine.
SCENARIOS = [call_soon, many_callbacks, failing_callback, timers, callbacks, exceptions, reader, task]
if sys.version_info < (3, 12):
    SCENARIOS += [tasks, three_await_one, foreign_future, cancelled_tasks, failing_task, queue, own_task]


def for_lack_of_memory(error):
    """Whether a MemoryError is, or is behind, this exception."""
    seen = set()
    errors = [error]
    while errors:
        error = errors.pop()
        if isinstance(error, MemoryError):
            return True
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            errors += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return False


def attempt(scenario, first, last, patience):
    """Run it; give what is wrong, or None."""
    loop = fastloop.new_event_loop()
    reports, waited = [], []
    loop.set_exception_handler(lambda loop, context: reports.append(context))
    sys.unraisablehook = reports.append
    error = None

    def give_up():
        waited.append(True)
        loop.stop()

    loop.call_later(patience, give_up)
    main = scenario(loop) if inspect.iscoroutinefunction(scenario) else None
    _testcapi.set_nomemory(first, last)
    try:
        if main is not None:
            loop.run_until_complete(main)
        else:
            scenario(loop)
    except BaseException as exc:
        error = exc
    finally:
        _testcapi.remove_mem_hooks()
    if sys.version_info < (3, 12):  # there _set_running_loop(None) needs memory
        asyncio._set_running_loop(None)
    if loop.is_running() or asyncio._get_running_loop() or asyncio.current_task(loop):
        return f"it seems to run: {error!r}"
    kind, text = type(error), "".join(traceback.format_exception(error)) if error else ""
    lacked = for_lack_of_memory(error)
    error = None
    loop.set_exception_handler(lambda loop, context: None)
    loop.close()
    gc.collect()
    if waited and not reports and not lacked:
        return "it hangs"
    if kind is type(None) or lacked or (reports and not issubclass(kind, SystemError)):
        return None
    return text


def name_callback(callback, args, **options):
    return "a callback"


def main():
    # asyncio's joins strings by +=, where CPython 3.13 itself uses freed memory when there is none.
    asyncio.format_helpers._format_callback_source.__code__ = name_callback.__code__
    faulthandler.enable()
    faulthandler.dump_traceback_later(800, exit=True)
    warnings.simplefilter("ignore")
    first, last, step = map(int, sys.argv[1:4])
    wrong = 0
    for scenario in SCENARIOS:
        if sys.argv[4:] and scenario.__name__ not in sys.argv[4:]:
            continue
        attempt(scenario, 1 << 30, 0, 10)  # what is imported or cached the first time is
        for number in range(first, last, step):
            for length in (1, 20):
                said = attempt(scenario, number, number + length, 0.02)
                if said == "it hangs":  # or is slow
                    said = attempt(scenario, number, number + length, 30)
                if said is not None:
                    wrong += 1
                    print(f"{scenario.__name__}, allocations {number} to {number + length - 1}: {said}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
