"""Every public name of fastloop in use, for test_typing.py: checked by mypy --strict, and run."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, assert_type

import fastloop


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def count() -> AsyncIterator[int]:
    yield 1


async def futures(loop: fastloop.Loop) -> None:
    future: fastloop.Future[int] = fastloop.Future(loop=loop)
    future.add_done_callback(lambda f: print(f.result()))
    future.set_result(1)
    assert_type(await future, int)
    assert_type(loop.create_future(), fastloop.Future[Any]).cancel("no longer wanted")


async def tasks(loop: fastloop.Loop) -> None:
    task = fastloop.Task(answer(2), loop=loop, name="two")
    assert_type(task, fastloop.Task[int])
    assert_type(await task, int)
    made = loop.create_task(answer(3), name="three")
    assert_type(made, asyncio.Task[int])
    native: asyncio.Future[int] = task
    assert_type(await asyncio.gather(native, made), tuple[int, int])


async def handles(loop: fastloop.Loop) -> None:
    soon = loop.call_soon(print, "soon")
    later = loop.call_later(0.01, print, "later")
    at = loop.call_at(loop.time() + 1, print)
    foreign = loop.call_soon_threadsafe(print, "from another thread")
    assert_type(soon, fastloop.Handle).cancel()
    assert_type(later, fastloop.TimerHandle).cancel()
    assert_type(at.when(), float)
    at.cancel()
    assert_type(foreign.cancelled(), bool)


async def sockets(loop: fastloop.Loop) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        loop.add_reader(other, print, "readable")
        assert_type(loop.remove_reader(other), bool)
        await loop.sock_sendall(one, b"bytes")
        assert_type(await loop.sock_recv(other, 10), bytes)


async def threads(loop: fastloop.Loop) -> None:
    with fastloop.ThreadPoolExecutor(max_workers=1) as pool:
        assert_type(await loop.run_in_executor(pool, abs, -1), int)
        assert_type(pool.submit(abs, -1).result(), int)


async def main() -> str:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, fastloop.Loop)
    if sys.version_info >= (3, 12):
        loop.set_task_factory(fastloop.eager_task_factory)
        loop.set_task_factory(fastloop.create_eager_task_factory(fastloop.Task))
    loop.set_task_factory(None)
    await futures(loop)
    await tasks(loop)
    await handles(loop)
    await sockets(loop)
    await threads(loop)
    async for number in count():
        assert_type(number, int)
    assert_type(loop.stats()["turns"], int)
    assert_type(loop.stats()["slowest_turn"], float)
    return fastloop.__version__


print(assert_type(fastloop.run(main(), debug=False), str))
print(fastloop.run(main(), loop_factory=fastloop.new_event_loop))
with asyncio.Runner(loop_factory=fastloop.Loop) as runner:
    assert_type(runner.run(main()), str)
if sys.version_info < (3, 14):
    asyncio.set_event_loop_policy(fastloop.EventLoopPolicy())
fastloop.install()
asyncio.run(main())
