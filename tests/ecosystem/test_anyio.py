"""anyio's asyncio backend with loop_factory=fastloop.new_event_loop."""

import math
import os
import signal
import sys
import threading

import pytest

anyio = pytest.importorskip("anyio")
import anyio.abc  # noqa: E402
import anyio.from_thread  # noqa: E402
import anyio.to_process  # noqa: E402
import anyio.to_thread  # noqa: E402

pytestmark = pytest.mark.ecosystem("anyio")


@pytest.fixture
def run(loop_factory, check_loop):
    """anyio.run on the loop under test."""

    def run(main):
        async def checked():
            check_loop()
            with anyio.fail_after(280):
                return await main()

        return anyio.run(checked, backend="asyncio", backend_options={"loop_factory": loop_factory})

    return run


def test_task_group_cancel_scope_and_errors(run, check_loop):
    async def main():
        log = []

        async def child(name, delay):
            check_loop()
            try:
                await anyio.sleep(delay)
                log.append(name)
            except anyio.get_cancelled_exc_class():
                log.append(f"{name} cancelled")
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.001)
                raise

        async with anyio.create_task_group() as group:
            group.start_soon(child, "slow", 60)
            group.start_soon(child, "fast", 0)
            await anyio.sleep(0.02)
            group.cancel_scope.cancel()
        assert log == ["fast", "slow cancelled"]

        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep(60)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            await anyio.sleep_forever()

        async def fail(error):
            raise error

        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(fail, ValueError("one"))
                group.start_soon(fail, KeyError("two"))
                await anyio.sleep_forever()
        assert {type(error) for error in caught.value.exceptions} == {ValueError, KeyError}

    run(main)


def test_start_waits_for_started(run):
    async def main():
        async def service(*, task_status):
            await anyio.sleep(0)
            task_status.started("ready")
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            assert await group.start(service) == "ready"
            group.cancel_scope.cancel()

    run(main)


def test_memory_streams_and_synchronisation(run):
    async def main():
        send, receive = anyio.create_memory_object_stream[int](5)
        limiter, got, peak = anyio.CapacityLimiter(3), [], []

        async def produce(stream, numbers):
            async with stream:
                for number in numbers:
                    await stream.send(number)

        async def consume(stream):
            async with stream:
                async for number in stream:
                    async with limiter:
                        peak.append(limiter.borrowed_tokens)
                        await anyio.sleep(0)
                        got.append(number)

        async with anyio.create_task_group() as group, send, receive:
            for start in range(0, 1000, 100):
                group.start_soon(produce, send.clone(), range(start, start + 100))
                group.start_soon(consume, receive.clone())
        assert sorted(got) == list(range(1000))
        assert max(peak) == 3

    run(main)


def test_threads_both_ways(run, check_loop):
    async def main():
        async def double(number):
            check_loop()
            await anyio.sleep(0)
            return number * 2

        def in_thread(number):
            assert threading.current_thread() is not threading.main_thread()
            return anyio.from_thread.run(double, number)

        results = {}

        async def call(number):
            results[number] = await anyio.to_thread.run_sync(in_thread, number)

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(call, number)
        assert results == {number: number * 2 for number in range(100)}

    run(main)


def test_blocking_portal(loop_factory, check_loop):
    async def value():
        check_loop()
        await anyio.sleep(0)
        return "from the portal"

    with anyio.from_thread.start_blocking_portal("asyncio", {"loop_factory": loop_factory}) as portal:
        assert portal.call(value) == "from the portal"
        assert [portal.start_task_soon(value).result() for _ in range(10)] == ["from the portal"] * 10


def test_worker_process(run):
    async def main():
        assert await anyio.to_process.run_sync(math.factorial, 20) == math.factorial(20)
        with pytest.raises(ValueError):
            await anyio.to_process.run_sync(math.factorial, -1)

    run(main)


def test_tcp_and_unix_sockets(run, check_loop, tmp_path):
    data = os.urandom(300_000)

    async def main():
        async def echo(stream):
            check_loop()
            async with stream:
                async for chunk in stream:
                    await stream.send(chunk)

        async def exchange(connect):
            async with await connect() as stream:
                received = bytearray()
                async with anyio.create_task_group() as group:
                    group.start_soon(stream.send, data)
                    while len(received) < len(data):
                        received += await stream.receive()
                assert received == data
                await stream.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        unix_listener = await anyio.create_unix_listener(tmp_path / "socket")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as servers, listener, unix_listener:
            servers.start_soon(listener.serve, echo)
            servers.start_soon(unix_listener.serve, echo)
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(exchange, lambda: anyio.connect_tcp("127.0.0.1", port))
                    group.start_soon(exchange, lambda: anyio.connect_unix(tmp_path / "socket"))
            servers.cancel_scope.cancel()

    run(main)


def test_udp(run):
    async def main():
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as server:
            port = server.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.create_connected_udp_socket("127.0.0.1", port) as client:
                for number in range(20):
                    await client.send(b"%d" % number)
                    packet, (host, reply_port) = await server.receive()
                    await server.sendto(packet * 2, host, reply_port)
                    assert await client.receive() == b"%d%d" % (number, number)

    run(main)


def test_processes_files_and_signals(run, tmp_path):
    async def main():
        done = await anyio.run_process([sys.executable, "-c", "print(input()[::-1])"], input=b"abc\n")
        assert done.stdout == b"cba\n"
        process = await anyio.open_process([sys.executable, "-c", "import time; time.sleep(60)"])
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
        await process.aclose()

        path = anyio.Path(tmp_path / "file")
        await path.write_text("one\ntwo\n")
        async with await anyio.open_file(path) as file:
            assert [line async for line in file] == ["one\n", "two\n"]

        with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            async for number in signals:
                assert number == signal.SIGUSR1
                break

    run(main)
