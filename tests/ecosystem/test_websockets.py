"""The websockets library: server and clients in one loop."""

import asyncio

import pytest

websockets = pytest.importorskip("websockets")
server_of = pytest.importorskip("websockets.asyncio.server")

pytestmark = pytest.mark.ecosystem("websockets")


PATIENCE = {"open_timeout": 250, "close_timeout": 250, "ping_timeout": 250}  # seconds, on a machine that stands still at times


def connect(uri, **kwargs):
    return websockets.connect(uri, **PATIENCE, **kwargs)


def address(server, path=""):
    return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/{path}"


@pytest.fixture
def serve(check_loop):
    """A server that echoes every message, text as text and bytes as bytes."""

    async def echo(connection):
        check_loop()
        async for message in connection:
            await connection.send(message)

    return lambda handler=echo, **kwargs: server_of.serve(handler, "127.0.0.1", 0, **PATIENCE, **kwargs)


def test_many_clients_many_messages(run, serve):
    async def talk(uri, number):
        async with connect(uri) as connection:
            for n in range(20):
                await connection.send(f"{number}-{n}")
                assert await connection.recv() == f"{number}-{n}"
        assert connection.close_code == 1000

    async def main():
        async with serve() as server:
            await asyncio.gather(*(talk(address(server), n) for n in range(100)))

    run(main)


def test_large_and_fragmented_messages(run, serve):
    large = bytes(range(256)) * 16384  # 4 MB, past every buffer and watermark

    async def main():
        async with serve(max_size=None) as server:
            async with connect(address(server), max_size=None) as connection:
                sending = asyncio.create_task(connection.send(large))
                assert await connection.recv() == large
                await sending
                await connection.send(["frag", "ment", "ed"])
                assert await connection.recv() == "fragmented"

    run(main)


def test_ping_is_answered(run, serve):
    async def main():
        async with serve() as server, connect(address(server)) as connection:
            latency = await (await connection.ping())
            assert latency > 0

    run(main)


def test_broadcast_reaches_everyone_in_order(run, serve):
    async def main():
        here = asyncio.Barrier(31)

        async def hold(connection):
            await here.wait()
            await connection.wait_closed()

        async def listen(uri):
            async with connect(uri) as connection:
                return [await connection.recv() for _ in range(10)]

        async with serve(hold) as server:
            listeners = [asyncio.create_task(listen(address(server))) for _ in range(30)]
            await here.wait()
            for n in range(10):
                server_of.broadcast(server.connections, f"news {n}")
            heard = await asyncio.gather(*listeners)
        assert heard == [[f"news {n}" for n in range(10)]] * 30

    run(main)


def test_closing_the_server_tells_the_clients(run, serve):
    async def main():
        async with serve() as server:
            clients = [await connect(address(server)) for _ in range(10)]
            server.close()
            await server.wait_closed()
            for client in clients:
                with pytest.raises(websockets.ConnectionClosedOK):
                    await client.recv()
                assert client.close_code == 1001

    run(main)


def test_client_that_vanishes(run, serve):
    """An aborted connection ends its handler with the library's error; the others go on."""

    async def main():
        ended = asyncio.get_running_loop().create_future()

        async def handler(connection):
            try:
                async for message in connection:
                    await connection.send(message)
                    if message == "vanish":
                        await connection.recv()
            except websockets.ConnectionClosedError as exc:
                ended.set_result(exc)

        async with serve(handler) as server:
            async with connect(address(server)) as steady:
                gone = await connect(address(server))
                await gone.send("vanish")
                await gone.recv()
                gone.transport.abort()
                assert isinstance(await ended, websockets.ConnectionClosedError)
                await steady.send("still here")
                assert await steady.recv() == "still here"

    run(main)
