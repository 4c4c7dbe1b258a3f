"""`number_server.py SERVER LOOP`: answers GET /number/N with a text made from N, on a free port: what wrk asks for."""

import asyncio
import sys

import fastloop

FACTORIES = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}


def body_of(path):
    number = path.rpartition("/")[2]
    return f"{number} ".encode() * (1 + int(number) % 50)


def serve_aiohttp(loop):
    from aiohttp import web

    async def get(request):
        return web.Response(body=body_of(request.path))

    app = web.Application()
    app.router.add_get("/number/{number}", get)
    web.run_app(app, host="127.0.0.1", port=0, loop=FACTORIES[loop](), access_log=None)


def serve_uvicorn(loop):
    import uvicorn

    async def app(scope, receive, send):
        body = body_of(scope["path"])
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    factory = {"asyncio": "asyncio", "fastloop": "fastloop:new_event_loop"}[loop]
    uvicorn.run(app, port=0, loop=factory, http="httptools", lifespan="off", access_log=False)


def serve_starlette(loop):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def get(request):
        return Response(body_of(request.url.path))

    factory = {"asyncio": "asyncio", "fastloop": "fastloop:new_event_loop"}[loop]
    app = Starlette(routes=[Route("/number/{number}", get)])
    uvicorn.run(app, port=0, loop=factory, http="h11", access_log=False)


def serve_tornado(loop):
    import signal

    import tornado.httpserver
    import tornado.testing
    import tornado.web

    class Get(tornado.web.RequestHandler):
        async def get(self):
            self.write(body_of(self.request.path))

    async def main():
        app = tornado.web.Application([("/number/.*", Get)], log_function=lambda handler: None)
        server = tornado.httpserver.HTTPServer(app)
        sock, port = tornado.testing.bind_unused_port()
        server.add_socket(sock)
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        print(f"http://127.0.0.1:{port}")
        await stopped.wait()
        server.stop()
        await server.close_all_connections()

    asyncio.Runner(loop_factory=FACTORIES[loop]).run(main())


if __name__ == "__main__":
    server, loop = sys.argv[1:]
    globals()[f"serve_{server}"](loop)
