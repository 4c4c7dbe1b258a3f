"""AsyncMock and its kin."""

import asyncio
from unittest.mock import AsyncMock, MagicMock, call, patch

import pytest


class Client:
    async def get(self, path):
        raise NotImplementedError

    async def get_twice(self, path):
        return await asyncio.gather(self.get(path), self.get(path))


async def test_return_value_and_await_count():
    mock = AsyncMock(return_value=3)
    assert await asyncio.gather(mock(1), mock(2)) == [3, 3]
    assert mock.await_args_list == [call(1), call(2)]
    mock.assert_awaited_with(2)


async def test_side_effects():
    mock = AsyncMock(side_effect=["one", ValueError("two")])
    assert await mock() == "one"
    with pytest.raises(ValueError):
        await mock()
    with pytest.raises(StopAsyncIteration):
        await mock()


async def test_side_effect_that_awaits():
    async def slow(value):
        await asyncio.sleep(0.001)
        return value

    assert await asyncio.create_task(AsyncMock(side_effect=slow)("x")) == "x"


async def test_patched_method():
    with patch.object(Client, "get", autospec=True, return_value="page") as get:
        assert await Client().get_twice("/") == ["page", "page"]
    assert get.await_count == 2


async def test_context_manager_and_iterator():
    mock = MagicMock()
    mock.__aenter__.return_value = "entered"
    mock.__aiter__.return_value = [1, 2, 3]
    async with mock as entered:
        assert entered == "entered"
    mock.__aexit__.assert_awaited_once()
    assert [item async for item in mock] == [1, 2, 3]


async def test_mock_as_a_callback_of_the_loop():
    callback = MagicMock()
    asyncio.get_running_loop().call_soon(callback, 1)
    await asyncio.sleep(0)
    callback.assert_called_once_with(1)


async def test_time_out_of_a_mock_that_hangs():
    mock = AsyncMock(side_effect=asyncio.Event().wait)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(mock(), 0.01)
