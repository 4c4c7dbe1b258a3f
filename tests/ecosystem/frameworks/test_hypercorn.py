"""hypercorn in a running loop, with clients that speak HTTP/1.1, HTTP/2 and websockets to it."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

httpx = pytest.importorskip("httpx")
hypercorn = pytest.importorskip("hypercorn")
hypercorn_asyncio = pytest.importorskip("hypercorn.asyncio")
websockets = pytest.importorskip("websockets")

pytestmark = pytest.mark.ecosystem("hypercorn")


@asynccontextmanager
async def served(app):
    """Serve an ASGI application on a free port; gives HOST:PORT."""
    stop = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        config = hypercorn.Config.from_mapping(bind=[f"fd://{sock.fileno()}"], errorlog=None, accesslog=None, keep_alive_timeout=250)
        serving = asyncio.create_task(hypercorn_asyncio.serve(app, config, shutdown_trigger=stop.wait))
        yield "{}:{}".format(*sock.getsockname())
        stop.set()
        await serving
        sock.detach()  # hypercorn has closed it


@pytest.mark.parametrize("http2", [False, True])
def test_httpx(run, check_loop, asgi_app, http2):
    pytest.importorskip("h2")

    async def app(scope, receive, send):
        if scope["type"] == "http":
            check_loop()
        await asgi_app.plain(scope, receive, send)

    async def get(client, number):
        response = await client.get(f"/page/{number}")
        assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert (response.status_code, response.content) == (200, asgi_app.page(number))

    async def echo(client, number):
        response = await client.post("/echo", content=asgi_app.page(number))
        assert response.content == asgi_app.page(number)

    async def main():
        async with served(app) as address:
            client = httpx.AsyncClient(http1=not http2, http2=http2, base_url=f"http://{address}", timeout=250)
            async with client:
                await get(client, 0)
                await asyncio.gather(*(call(client, n) for n in range(60) for call in (get, echo)))

    run(main)


def test_websockets(run, check_loop):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        check_loop()
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
            else:
                await send({"type": "websocket.send", "text": message["text"][::-1]})

    async def talk(address, number):
        async with websockets.connect(f"ws://{address}/", open_timeout=250) as connection:
            for n in range(20):
                await connection.send(f"{number}-{n}")
                assert await connection.recv() == f"{number}-{n}"[::-1]

    async def main():
        async with served(app) as address:
            await asyncio.gather(*(talk(address, number) for number in range(30)))

    run(main)
