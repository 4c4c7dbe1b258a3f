"""readline(), readuntil() and readexactly() of a stock reader are asyncio's in everything that a program can see."""

import asyncio
import gc
import inspect
import random
import subprocess
import sys
import warnings
from unittest import mock

import pytest
from stream_helpers import run, same, turns

CALLS = {"read": (3,), "readline": (), "readuntil": (b"\n",), "readexactly": (3,)}


async def open_reader(**kwargs):
    """A reader that is connected, its writer, and the writer of the other end."""
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: accepted.set_result(ends), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), **kwargs)
    far_reader, far = await accepted
    server.close()
    return reader, writer, far


async def finish(*writers):
    for writer in writers:
        writer.close()
    for writer in writers:
        await writer.wait_closed()


async def holding(data, **kwargs):
    """The same, and `data` has arrived."""
    reader, writer, far = await open_reader(**kwargs)
    far.write(data)
    while len(reader._buffer) < len(data):
        await asyncio.sleep(0)
    return reader, writer, far


async def outcome(awaitable):
    """What it returns or raises, comparable."""
    try:
        return await awaitable
    except Exception as error:
        return type(error), str(error), error.args, vars(error)


def random_call(rnd):
    separators = [b"\n", b"ab", b"bba", (b"b\n", b"\n"), (b"abab", b"c"), (), (b"", b"a"), "a", None, bytearray(b"\na"), memoryview(b"b")]
    choices = {
        "readline": [()],
        "readuntil": [()] + [(s,) for s in separators],
        "readexactly": [(n,) for n in (0, 1, 5, 60, -1, True, 2.0, None, 2**70)],
        "read": [(n,) for n in (0, 1, 5, 60, True)],
    }
    method = rnd.choice(list(choices))
    return method, rnd.choice(choices[method])


async def trickle(seed):
    """What random reads give when the data comes in random pieces, one while each waits."""
    rnd = random.Random(seed)
    reader, writer, far = await open_reader(limit=rnd.choice([3, 10, 30, 10_000]))
    data = bytes(rnd.choices(b"ab\n", [5, 4, 1], k=2000))
    seen = []
    while not reader.at_eof():
        method, arguments = random_call(rnd)
        task = asyncio.ensure_future(outcome(getattr(reader, method)(*arguments)))
        await turns()
        while not task.done():
            if data:
                size = rnd.choice([1, 2, 7, 50])
                reader.feed_data(data[:size])
                data = data[size:]
            else:
                reader.feed_eof()
            await turns()
        seen.append((method, task.result(), bytes(reader._buffer), reader._paused))
        if len(seen) > 400:
            reader.feed_eof()
    await finish(writer, far)
    return seen


@pytest.mark.parametrize("seed", range(12))
def test_data_that_trickles_in(seed):
    same(trickle, seed, debug=seed % 2 == 1)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("event", ["cancel", "set_exception", "feed_eof", "second", "close"])
def test_what_happens_to_a_waiting_read(method, event):
    async def scenario():
        reader, writer, far = await open_reader()
        call = getattr(reader, method)
        task = asyncio.ensure_future(outcome(call(*CALLS[method])))
        await turns()
        seen = []
        if event == "cancel":
            reader.feed_data(b"a")
            task.cancel() if method == "read" else (await turns(), task.cancel())
            seen.append(await asyncio.gather(task, return_exceptions=True) and task.cancelled())
        elif event == "set_exception":
            reader.set_exception(ZeroDivisionError("of the reader"))
        elif event == "feed_eof":
            reader.feed_eof()
        elif event == "second":
            for other, arguments in CALLS.items():
                seen.append(await outcome(getattr(reader, other)(*arguments)))
            reader.feed_data(b"ab\n")
        else:
            writer.transport.abort()
        if event != "cancel":
            seen.append(await task)
        seen.append((reader._waiter, bytes(reader._buffer), await outcome(call(*CALLS[method])) if reader._eof else None))
        far.close()
        writer.close()
        return seen

    same(scenario)


@pytest.mark.parametrize("method", ["readline", "readuntil", "readexactly"])
def test_they_are_coroutines(method):
    async def scenario():
        reader, writer, far = await open_reader()
        function = getattr(reader, method)
        seen = [inspect.iscoroutinefunction(function), str(inspect.signature(function)), function.__qualname__]
        coroutine = function(*CALLS[method])
        seen += [inspect.iscoroutine(coroutine), asyncio.iscoroutine(coroutine), coroutine.__qualname__]
        waiter = coroutine.send(None)
        seen += [waiter is reader._waiter, asyncio.isfuture(waiter), inspect.getcoroutinestate(coroutine)]
        with pytest.raises(RuntimeError):
            await coroutine
        coroutine.close()
        seen += [reader._waiter, inspect.getcoroutinestate(coroutine)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(*CALLS[method])
            gc.collect()
        seen.append([str(w.message) for w in caught])
        task = asyncio.create_task(function(*CALLS[method]))
        await turns()
        seen += [len(task.get_stack()), type(task.get_coro().cr_frame.f_locals["self"]).__name__, task.get_coro().cr_await is not None]
        reader.feed_data(b"ab\n")
        seen.append(await task)
        seen.append(repr(reader).split(" transport=")[0])
        await finish(writer, far)
        return seen

    same(scenario)


@pytest.mark.parametrize("method", ["_wait_for_data", "_wakeup_waiter", "_maybe_resume_transport", "feed_data", "readuntil"])
@pytest.mark.parametrize("where", ["object", "class", "its class"])
def test_replaced_methods_are_called(run, where, method):
    async def scenario():
        reader, writer, far = await open_reader()
        far.write(b"a\n")
        assert await reader.readline() == b"a\n"
        owner = {"object": reader, "class": asyncio.StreamReader, "its class": type(reader)}[where]
        original, calls = getattr(owner, method), []

        def replacement(*arguments, **kwargs):
            calls.append(method)
            return original(*arguments, **kwargs)

        with mock.patch.object(owner, method, replacement):
            far.write(b"b\n")
            assert await reader.readline() == b"b\n"
            assert calls
            del calls[:]
            task = asyncio.ensure_future(reader.read(10))
            await turns()
            far.write(b"c")
            assert await task == b"c"
            assert bool(calls) == (method != "readuntil")
        del calls[:]
        far.write(b"d\n")
        assert await reader.readline() == b"d\n"
        assert not calls
        await finish(writer, far)

    run(scenario)


def test_a_mock_in_place_of_a_method(run):
    async def scenario():
        reader, writer, far = await holding(b"a\n")
        with mock.patch.object(reader, "readline", return_value=b"mock") as readline:
            assert await reader.readline() == b"mock"
        readline.assert_awaited_once_with()
        with mock.patch.object(asyncio.StreamReader, "readuntil", autospec=True, return_value=b"mock") as readuntil:
            assert await reader.readline() == b"mock"
        readuntil.assert_awaited_once_with(reader, b"\n")
        assert await reader.readline() == b"a\n"
        await finish(writer, far)

    run(scenario)


def test_a_property_in_place_of_an_attribute(run):
    async def scenario():
        reader, writer, far = await holding(b"abcdef\n" * 3)
        assert await reader.readline() == b"abcdef\n"
        with mock.patch.object(asyncio.StreamReader, "_limit", property(lambda self: 3), create=True):
            with pytest.raises(asyncio.LimitOverrunError) as caught:
                await reader.readuntil()
            assert caught.value.consumed == 6
        assert await reader.readline() == b"abcdef\n"
        reader.note = "an attribute of somebody's own is in nobody's way"
        assert await reader.readline() == b"abcdef\n"
        await finish(writer, far)

    run(scenario)


def test_class_is_changed_while_it_waits(run):
    class Other(asyncio.StreamReader):
        pass

    async def scenario():
        reader, writer, far = await open_reader()
        for method, arguments in CALLS.items():
            task = asyncio.ensure_future(getattr(reader, method)(*arguments))
            await turns()
            before, reader.__class__ = reader.__class__, Other
            far.write(b"ab\n")
            assert await task == b"ab\n"
            reader.__class__ = before
        await finish(writer, far)

    run(scenario)


def test_more_than_the_limits_is_read_exactly(run):
    async def scenario():
        reader, writer, far = await open_reader(limit=1000)
        payload = random.Random(1).randbytes(300_000)
        far.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        far.write(payload[:100] + b"|" + payload)
        assert await reader.readexactly(101) == payload[:100] + b"|"
        assert await reader.readexactly(len(payload)) == payload
        await finish(writer, far)

    run(scenario)


def test_replaced_before_the_import():
    """What somebody put into asyncio before fastloop was imported is not taken for asyncio's own."""
    program = """
import asyncio
original = asyncio.StreamReader.readuntil
async def readuntil(self, separator=b"\\n"):
    return (await original(self, separator)).upper()
asyncio.StreamReader.readuntil = readuntil
import fastloop
async def main():
    server = await asyncio.start_server(lambda r, w: w.write(b"line\\n"), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    print(await reader.readline())
    writer.transport.abort()
    server.close()
fastloop.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("b'LINE\\n'\n", "")
