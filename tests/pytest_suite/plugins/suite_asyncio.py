"""A suite for pytest-asyncio: fixtures of both kinds, loops of several scopes."""

import asyncio
import importlib.metadata

import pytest
import pytest_asyncio

OLD = importlib.metadata.version("pytest-asyncio").startswith("0.23.")
SCOPE = "scope" if OLD else "loop_scope"


@pytest_asyncio.fixture
async def opened(check):
    check()
    yield asyncio.get_running_loop()
    check()


@pytest.mark.asyncio
async def test_function(check, opened):
    check()
    assert asyncio.get_running_loop() is opened
    assert await asyncio.to_thread(len, "four") == 4


@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(3))
async def test_parametrised(check, number):
    check()
    assert await asyncio.sleep(0, number) == number


@pytest.mark.asyncio(**{SCOPE: "module"})
async def test_module(check):
    check()


@pytest.mark.asyncio(**{SCOPE: "session"})
async def test_session(check):
    check()


@pytest.mark.asyncio(**{SCOPE: "class"})
class TestClass:
    async def test_first(self, check):
        check()
        type(self).loop = asyncio.get_running_loop()

    async def test_second(self, check):
        check()
        assert asyncio.get_running_loop() is self.loop


def test_run_by_asyncio_itself(check):
    async def main():
        check()

    asyncio.run(main())
