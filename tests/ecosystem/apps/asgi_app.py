"""ASGI applications for uvicorn, the same paths in plain ASGI, Starlette and FastAPI.

/page/N answers with a body made from N, /echo with the request's body, /where with the loop and task that the handler
runs in and the process. In plain ASGI /slow/SECONDS sends half its body at once and the rest after that time. FastAPI also has
a websocket, streams and background tasks. Run as a program: uvicorn.run(APP, loop=LOOP, http=HTTP).
"""

import asyncio
import hashlib
import os
import sys


def page(number):
    return hashlib.sha256(str(number).encode()).digest() * (1 + number * 3 % 3200)


def where():
    types = type(asyncio.get_running_loop()), type(asyncio.current_task())
    names = [f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" for kind in types]
    return " ".join([*names, str(os.getpid())])


def say_shut_down():
    """In one piece: others may write to the same pipe."""
    os.write(1, b"shut down\n")


async def read_body(receive):
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def plain(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        say_shut_down()
        await send({"type": "lifespan.shutdown.complete"})
        return
    _, kind, *rest = scope["path"].split("/")
    if kind == "page":
        body = page(int(rest[0]))
    elif kind == "echo":
        body = await read_body(receive)
    elif kind == "slow":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"sl", "more_body": True})
        await asyncio.sleep(float(rest[0]))
        await send({"type": "http.response.body", "body": b"ow"})
        return
    else:
        body = where().encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), 30_000):
        await send({"type": "http.response.body", "body": body[start : start + 30_000], "more_body": True})
    await send({"type": "http.response.body"})


def make_lifespan():
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def lifespan(app):
        yield
        say_shut_down()

    return lifespan


def make_starlette():
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def get_page(request):
        return Response(page(request.path_params["number"]))

    async def echo(request):
        return Response(await request.body())

    async def get_where(request):
        return Response(where())

    routes = [
        Route("/page/{number:int}", get_page),
        Route("/echo", echo, methods=["POST"]),
        Route("/where", get_where),
    ]
    return Starlette(routes=routes, lifespan=make_lifespan())


def make_fastapi():
    from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
    from fastapi.responses import StreamingResponse

    app = FastAPI(lifespan=make_lifespan())

    async def number_of(number: int):
        yield number  # a dependency with a clean-up, run around the handler

    @app.get("/page/{number}")
    def get_page(number: int = Depends(number_of)):  # not async: FastAPI calls it in a thread
        return Response(page(number))

    @app.post("/echo")
    async def echo(request: Request):
        return Response(await request.body())

    @app.get("/where")
    async def get_where():
        return Response(where())

    @app.get("/stream/{count}")
    async def stream(count: int):
        async def pages():
            for number in range(count):
                yield page(number)
                await asyncio.sleep(0)

        return StreamingResponse(pages())

    done = []

    async def note(word):
        await asyncio.sleep(0)
        done.append(word)

    @app.post("/background/{word}")
    async def background(word: str, tasks: BackgroundTasks):
        tasks.add_task(note, word)
        tasks.add_task(done.append, f"{word} again")  # not async: in a thread
        return "accepted"

    @app.get("/background")
    async def get_done():
        return done

    @app.websocket("/reverse")
    async def reverse(socket: WebSocket):
        await socket.accept()
        try:
            while True:
                await socket.send_text((await socket.receive_text())[::-1])
        except WebSocketDisconnect as disconnect:
            print("websocket closed with", disconnect.code, flush=True)

    return app


def __getattr__(name):
    """`asgi_app:starlette` and `asgi_app:fastapi` are made when asked for: either may be missing."""
    makers = {"starlette": make_starlette, "fastapi": make_fastapi}
    if name not in makers:
        raise AttributeError(name)
    return makers[name]()


if __name__ == "__main__":
    import uvicorn

    name, loop, http = sys.argv[1:]
    app = plain if name == "plain" else __getattr__(name)
    uvicorn.run(app, host="127.0.0.1", port=0, loop=loop, http=http, access_log=False)
