"""A suite for anyio's pytest plugin."""

import anyio
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def opened(check):
    check()
    yield anyio.Event()
    check()


async def test_function(check, opened):
    check()
    async with anyio.create_task_group() as group:
        group.start_soon(opened.wait)
        opened.set()


@pytest.mark.parametrize("number", range(3))
async def test_parametrised(check, opened, number):
    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(lambda: number) == number
    check()
