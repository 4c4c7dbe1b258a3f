"""A suite for pytest-aiohttp: a server and its client."""

import pytest
from aiohttp import web

pytestmark = pytest.mark.asyncio


async def test_client_and_server(aiohttp_client, check):
    async def handler(request):
        check()
        return web.Response(text=request.match_info["name"])

    app = web.Application()
    app.router.add_get("/{name}", handler)
    client = await aiohttp_client(app)
    response = await client.get("/somebody")
    assert (response.status, await response.text()) == (200, "somebody")
    check()


async def test_server(aiohttp_server, check):
    check()
    server = await aiohttp_server(web.Application())
    assert server.port
