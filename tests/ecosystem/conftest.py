"""Third-party asyncio programs on fastloop, and on asyncio to know that the test itself is right."""

import asyncio
import resource

import pytest

import fastloop

FACTORIES = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}


@pytest.fixture(params=FACTORIES)
def loop_name(request):
    return request.param


@pytest.fixture
def loop_factory(loop_name):
    return FACTORIES[loop_name]


@pytest.fixture
def check_loop(loop_name):
    """A function to call wherever a library runs our code: is this the loop and the task it should be?"""

    def check(task_is_ours=True):
        ours = loop_name == "fastloop"
        assert isinstance(asyncio.get_running_loop(), fastloop.Loop) == ours
        assert isinstance(asyncio.current_task(), fastloop.Task) == (ours and task_is_ours)
        assert isinstance(asyncio.get_running_loop().create_future(), fastloop.Future) == ours

    return check


@pytest.fixture
def run(loop_factory, check_loop):
    """Run one coroutine function to its end, as asyncio.run does, and fail on anything the loop complains about."""

    def run(main, *args, timeout=60):
        complaints = []

        async def checked():
            check_loop()
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            async with asyncio.timeout(timeout):
                return await main(*args)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            result = runner.run(checked())
        assert complaints == []
        return result

    return run


@pytest.fixture
def many_files():
    """Room for a thousand connections with both ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
