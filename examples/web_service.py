"""An aiohttp service and a thousand concurrent requests to it, every answer checked.

    pip install aiohttp
    python -m fastloop examples/web_service.py
"""

import asyncio
import hashlib

from aiohttp import ClientSession, TCPConnector, web

REQUESTS = 1000


async def digest(request):
    """POST /digest/{name}: the SHA-256 of the body, after a moment of waiting."""
    body = await request.read()
    await asyncio.sleep(0.001)
    return web.json_response(
        {"name": request.match_info["name"], "sha256": hashlib.sha256(body).hexdigest()}
    )


async def serve():
    """Start the service on a free port; return its runner and its address."""
    app = web.Application()
    app.router.add_post("/digest/{name}", digest)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=REQUESTS)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def fetch(session, url, number):
    """One request; True if the answer is the right one."""
    body = f"request {number} ".encode() * (number % 500)
    async with session.post(f"{url}/digest/{number}", data=body) as response:
        answer = await response.json()
    return answer == {"name": str(number), "sha256": hashlib.sha256(body).hexdigest()}


async def main():
    runner, url = await serve()
    try:
        async with ClientSession(connector=TCPConnector(limit=200)) as session:
            right = await asyncio.gather(*(fetch(session, url, n) for n in range(REQUESTS)))
    finally:
        await runner.cleanup()
    print(f"{sum(right)} of {REQUESTS} answers were right")


if __name__ == "__main__":
    asyncio.run(main())
