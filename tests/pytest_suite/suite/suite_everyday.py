"""What users test: results, errors, timeouts, cancellation, streams, threads, subprocesses, context."""

import asyncio
import contextvars
import sys

import pytest

request_id = contextvars.ContextVar("request_id", default=None)


@pytest.mark.parametrize("number", range(5))
async def test_parametrised(number):
    assert await asyncio.sleep(0, number) == number


@pytest.mark.parametrize("error", [ValueError, KeyError, asyncio.CancelledError])
async def test_errors_of_tasks(error):
    async def fail():
        raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        await asyncio.create_task(fail())


async def test_timeout():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


@pytest.mark.timeout(20)
async def test_with_pytest_timeout():
    await asyncio.sleep(0.001)


@pytest.mark.xfail(strict=True, raises=AssertionError)
async def test_expected_failure():
    await asyncio.sleep(0)
    assert False


async def test_task_group_errors():
    async def fail(number):
        await asyncio.sleep(0)
        raise ValueError(number)

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(fail(number))
    assert [error.args for error in caught.value.exceptions] == [(0,), (1,), (2,)]


async def test_cancellation():
    cleaned = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    assert task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert cleaned == [True]


async def test_streams(echo_server):
    async def talk(number):
        reader, writer = await asyncio.open_connection(*echo_server)
        for n in range(10):
            writer.write(b"%d %d\n" % (number, n))
            assert await reader.readline() == b"%d %d\n" % (number, n)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*map(talk, range(20)))


async def test_threads_and_context():
    request_id.set(7)
    assert await asyncio.to_thread(request_id.get) == 7
    loop = asyncio.get_running_loop()
    future = await asyncio.to_thread(asyncio.run_coroutine_threadsafe, asyncio.sleep(0, "back"), loop)
    assert await asyncio.wrap_future(future) == "back"


async def test_subprocess():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print(input()[::-1])", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    stdout, _ = await process.communicate(b"abc\n")
    assert (stdout, process.returncode) == (b"cba\n", 0)


async def test_exceptions_nobody_looks_at_reach_the_handler():
    heard = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: heard.append(context["exception"].args))
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    assert heard == [("division by zero",)]


async def test_tasks_left_behind_are_cancelled():
    asyncio.get_running_loop().left_behind = asyncio.create_task(asyncio.Event().wait())


@pytest.fixture
async def background(request):
    stop = asyncio.Event()
    ticks = []

    async def tick():
        while not stop.is_set():
            ticks.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(tick())
    yield ticks
    stop.set()
    await task


async def test_background_task_of_a_fixture(background):
    before = len(background)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(background) > before


class TestUnittestStyle:
    """Methods, sync set-up, async tests."""

    def setup_method(self):
        self.queue = asyncio.Queue()

    async def test_queue(self):
        await self.queue.put("item")
        assert await self.queue.get() == "item"
