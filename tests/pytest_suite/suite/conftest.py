"""Fixtures of every scope, as a user of pytest-asyncio writes them, and the check that the loop is ours."""

import asyncio
import inspect
import os

import pytest
import pytest_asyncio

import fastloop

# How the loop is chosen: by_policy, by_factory, by_one_factory, or not here at all.
CHOICE = os.environ.get("SUITE_CHOICE", "")
pytest_plugins = [CHOICE] if CHOICE else []


def on_the_wanted_loop(request):
    """Ours, unless the test's parameters say `stock`."""
    callspec = getattr(request.node, "callspec", None)
    ours = callspec is None or "stock" not in callspec.id.split("-")
    if "factory" in CHOICE and not inspect.iscoroutinefunction(request.function):
        return True  # the hook is asked for async test functions only
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    return (isinstance(loop, fastloop.Loop), isinstance(task, fastloop.Task)) == (ours, ours)


@pytest.fixture(autouse=True)
async def every_test_runs_on_the_wanted_loop(request):
    assert on_the_wanted_loop(request)
    yield
    assert on_the_wanted_loop(request)


@pytest.fixture
def check_loop(request):
    """To be called inside a test of a wider loop scope than the fixture above has."""

    def check():
        assert on_the_wanted_loop(request)

    return check


class Resource:
    """Something that must be opened and closed in one and the same loop."""

    async def open(self):
        self.loop, self.is_open = asyncio.get_running_loop(), True
        await asyncio.sleep(0)
        return self

    async def close(self):
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        self.is_open = False


def resource_of(scope):
    @pytest_asyncio.fixture(scope=scope, loop_scope=scope)
    async def resource():
        resource = await Resource().open()
        yield resource
        await resource.close()

    return resource


function_resource = resource_of("function")
class_resource = resource_of("class")
module_resource = resource_of("module")
package_resource = resource_of("package")
session_resource = resource_of("session")


@pytest.fixture
async def value_without_teardown():
    return await asyncio.sleep(0, "value")


@pytest.fixture
async def echo_server():
    async def echo(reader, writer):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()
