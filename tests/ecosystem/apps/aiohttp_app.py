"""An aiohttp application, for gunicorn or as a program: web.run_app(app, loop=LOOP, port=PORT, reuse_port=True)."""

import asyncio
import sys

from aiohttp import web
import asgi_app


async def get_page(request):
    return web.Response(body=asgi_app.page(int(request.match_info["number"])))


async def echo(request):
    return web.Response(body=await request.read())


async def get_where(request):
    return web.Response(text=asgi_app.where())


async def slow(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"sl")
    await asyncio.sleep(float(request.match_info["seconds"]))
    await response.write(b"ow")
    return response


async def say_shut_down(app):
    asgi_app.say_shut_down()


async def make_app():
    app = web.Application()
    app.add_routes(
        [
            web.get("/page/{number}", get_page),
            web.post("/echo", echo),
            web.get("/where", get_where),
            web.get("/slow/{seconds}", slow),
        ]
    )
    app.on_cleanup.append(say_shut_down)
    return app


if __name__ == "__main__":
    import fastloop

    name, port = sys.argv[1:]
    factory = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}[name]
    web.run_app(make_app(), host="127.0.0.1", port=int(port), reuse_port=True, loop=factory())
