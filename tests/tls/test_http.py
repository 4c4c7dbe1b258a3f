"""aiohttp and httpx over HTTPS, both sides on fastloop."""

import asyncio
import hashlib

import pytest

aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")
web = pytest.importorskip("aiohttp.web")


def body(number):
    return hashlib.sha256(str(number).encode()).digest() * (1 + number * 37 % 9000)


@pytest.fixture
def serve(contexts):
    """`async with serve() as (url, client_context)`"""

    class Serve:
        async def __aenter__(self):
            async def get(request):
                return web.Response(body=body(int(request.match_info["number"])))

            async def put(request):
                return web.Response(text=hashlib.sha256(await request.read()).hexdigest())

            async def chat(request):
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                async for message in socket:
                    await socket.send_bytes(message.data[::-1])
                return socket

            server_context, client_context = contexts()
            app = web.Application(client_max_size=10**8)
            app.add_routes([web.get("/{number:\\d+}", get), web.put("/", put), web.get("/chat", chat)])
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=server_context)
            await site.start()
            host, port = site._server.sockets[0].getsockname()
            return f"https://{host}:{port}", client_context

        async def __aexit__(self, *exc):
            await self.runner.cleanup()

    return Serve


def test_aiohttp(run, serve):
    async def scenario():
        async with serve() as (url, context):
            connector = aiohttp.TCPConnector(ssl=context, limit=20)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def fetch(number):
                    async with session.get(f"{url}/{number}") as response:
                        assert await response.read() == body(number)

                await asyncio.gather(*(fetch(number) for number in range(100)))
                upload = body(123) * 10
                async with session.put(url + "/", data=upload) as response:
                    assert await response.text() == hashlib.sha256(upload).hexdigest()
                async with session.ws_connect(url + "/chat") as socket:
                    for number in range(5):
                        await socket.send_bytes(body(number))
                        assert await socket.receive_bytes() == body(number)[::-1]

    run(scenario())


def test_httpx(run, serve):
    async def scenario():
        async with serve() as (url, context):
            async with httpx.AsyncClient(verify=context, timeout=90) as client:

                async def fetch(number):
                    assert (await client.get(f"{url}/{number}")).content == body(number)

                for first in range(0, 60, 20):
                    await asyncio.gather(*(fetch(first + i) for i in range(20)))
                upload = body(77) * 10
                response = await client.put(url + "/", content=upload)
                assert response.text == hashlib.sha256(upload).hexdigest()
            async with httpx.AsyncClient(timeout=90) as client:
                with pytest.raises(httpx.ConnectError):
                    await client.get(url + "/1")

    run(scenario())
