"""HTTP under `wrk -c50` (Debian's package wrk): a plain-text ASGI application on uvicorn, and an aiohttp one."""

import re
import shutil

from harness import Benchmark, register
from servers import on_client_core, serve

BODY = b"Hello, World!"


async def asgi_application(scope, receive, send):
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def uvicorn_server(loop, sock):
    import uvicorn

    config = uvicorn.Config(asgi_application, access_log=False, log_level="warning", lifespan="off", backlog=4096)
    return loop.create_task(uvicorn.Server(config).serve(sockets=[sock]))


async def aiohttp_server(loop, sock):
    from aiohttp import web

    async def hello(request):
        return web.Response(body=BODY, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock, backlog=4096).start()
    return runner


def start_wrk(address, options):
    if not shutil.which("wrk"):
        raise RuntimeError("wrk is not installed")
    url = f"http://{address.removeprefix('tcp:')}/"
    return on_client_core(["wrk", "-t1", "-c50", f"-d{max(1, round(options.seconds))}s", "--latency", url])


def read_wrk(output):
    """wrk's figures; an answer that is not 200, a socket error, or no answer at all makes them worthless."""
    operations = int(re.search(r"(\d+) requests in", output)[1])
    if "Non-2xx" in output or "Socket errors" in output or not operations:
        raise RuntimeError(output)
    p50, p99 = (microseconds(re.search(rf"{p}%\s+([\d.]+)(\w+)", output)) for p in (50, 99))
    value = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
    return {"value": value, "operations": operations, "p50_us": p50, "p99_us": p99}


def microseconds(match):
    return float(match[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[match[2]]


def http(name, server):
    def open_server(loop_name, options):
        return serve(loop_name, options, "tcp", server, (start_wrk, read_wrk))

    register(Benchmark("http", name, "requests/s", open_server))


http("uvicorn_plaintext", uvicorn_server)
http("aiohttp_plaintext", aiohttp_server)
