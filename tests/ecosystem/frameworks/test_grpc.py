"""grpc.aio, whose C core polls in threads of its own and tells the loop through a socket pair."""

import asyncio
import hashlib
import signal
from contextlib import asynccontextmanager

import pytest

grpc = pytest.importorskip("grpc")
aio = pytest.importorskip("grpc.aio")

pytestmark = pytest.mark.ecosystem("grpcio")


def payload(number):
    return hashlib.sha256(str(number).encode()).digest() * (1 + number * 7 % 3000)


@pytest.fixture
def service(check_loop):
    """One method of each kind, all on bytes: /test/<name>."""

    async def unary(request, context):
        check_loop()
        await asyncio.sleep(0)
        return request[::-1]

    async def expand(request, context):
        check_loop()
        for number in range(int(request)):
            yield payload(number)

    async def digest(requests, context):
        check_loop()
        total = hashlib.sha256()
        async for request in requests:
            total.update(request)
        return total.digest()

    async def chat(requests, context):
        check_loop()
        async for request in requests:
            yield request[::-1]

    async def refuse(request, context):
        assert dict(context.invocation_metadata())["who"] == "test"
        context.set_trailing_metadata([("why", "because")])
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    async def fail(request, context):
        raise RuntimeError("on purpose")

    async def hang(request, context):
        service.hanging.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            service.cancelled.set()
            raise

    async def slow(request, context):
        service.hanging.set()
        await asyncio.sleep(0.3)
        return b"slow"

    service = grpc.method_handlers_generic_handler(
        "test",
        {
            "unary": grpc.unary_unary_rpc_method_handler(unary),
            "expand": grpc.unary_stream_rpc_method_handler(expand),
            "digest": grpc.stream_unary_rpc_method_handler(digest),
            "chat": grpc.stream_stream_rpc_method_handler(chat),
            "refuse": grpc.unary_unary_rpc_method_handler(refuse),
            "fail": grpc.unary_unary_rpc_method_handler(fail),
            "hang": grpc.unary_unary_rpc_method_handler(hang),
            "slow": grpc.unary_unary_rpc_method_handler(slow),
        },
    )
    service.hanging, service.cancelled = asyncio.Event(), asyncio.Event()
    return service


@asynccontextmanager
async def served(service):
    """A server on a free port and a channel to it."""
    server = aio.server()
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel
    await server.stop(None)


def test_unary_calls(run, service):
    async def main():
        async with served(service) as (_, channel):
            call = channel.unary_unary("/test/unary")
            answers = await asyncio.gather(*(call(payload(number)) for number in range(300)))
            assert answers == [payload(number)[::-1] for number in range(300)]
            for number in range(100):
                assert await call(payload(number)) == payload(number)[::-1]

    run(main)


def test_streams(run, service):
    async def requests(count):
        for number in range(count):
            yield payload(number)

    async def main():
        async with served(service) as (_, channel):

            async def expand(count):
                got = [answer async for answer in channel.unary_stream("/test/expand")(b"%d" % count)]
                assert got == [payload(number) for number in range(count)]

            async def digest(count):
                answer = await channel.stream_unary("/test/digest")(requests(count))
                assert answer == hashlib.sha256(b"".join(map(payload, range(count)))).digest()

            async def chat(count):
                got = [answer async for answer in channel.stream_stream("/test/chat")(requests(count))]
                assert got == [payload(number)[::-1] for number in range(count)]

            await asyncio.gather(*(call(count) for count in (0, 1, 50, 200) for call in (expand, digest, chat)))

            call = channel.stream_stream("/test/chat")()  # turn by turn
            for number in range(100):
                await call.write(payload(number))
                assert await call.read() == payload(number)[::-1]
            await call.done_writing()
            assert await call.read() is aio.EOF

    run(main)


def test_errors(run, service, caplog):
    async def main():
        async with served(service) as (_, channel):
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary("/test/refuse")(b"", metadata=[("who", "test")])
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert caught.value.details() == "not now"
            assert dict(caught.value.trailing_metadata())["why"] == "because"
            for method, code in [("fail", grpc.StatusCode.UNKNOWN), ("missing", grpc.StatusCode.UNIMPLEMENTED)]:
                with pytest.raises(aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/test/{method}")(b"")
                assert caught.value.code() is code
            assert await channel.unary_unary("/test/unary")(b"abc") == b"cba"
        with pytest.raises(aio.AioRpcError) as caught:
            async with aio.insecure_channel("127.0.0.1:1") as nobody:
                await nobody.unary_unary("/test/unary")(b"")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(main)


def test_deadline_and_cancellation_reach_the_server(run, service):
    async def main():
        async with served(service) as (_, channel):
            hang = channel.unary_unary("/test/hang")
            patience = 0.2
            while not service.hanging.is_set():  # a slow machine may not have come to the handler by then
                with pytest.raises(aio.AioRpcError) as caught:
                    await hang(b"", timeout=patience)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                patience *= 2
            await service.cancelled.wait()

            service.hanging.clear()
            service.cancelled.clear()
            calling = asyncio.ensure_future(hang(b""))
            await service.hanging.wait()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await service.cancelled.wait()

    run(main)


def test_graceful_stop_finishes_what_is_under_way(run, service):
    async def main():
        async with served(service) as (server, channel):
            slow = asyncio.ensure_future(channel.unary_unary("/test/slow")(b""))
            await service.hanging.wait()
            await server.stop(grace=30)
            assert await slow == b"slow"

    run(main)


def test_server_program(run, start):
    server = start("grpc_server.py")
    port = server.port()

    async def main():
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answers = await asyncio.gather(*(channel.unary_unary("/test/where")(b"") for _ in range(100)))
        assert set(answers) == {b"fastloop.loop"}

    run(main)
    assert "stopped\n" in server.stop(signal.SIGTERM)
