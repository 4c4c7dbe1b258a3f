"""uvicorn serving plain ASGI, Starlette and FastAPI: in code, from its command line, and inside a running loop."""

import asyncio
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop

aiohttp = pytest.importorskip("aiohttp")
uvicorn = pytest.importorskip("uvicorn")

pytestmark = pytest.mark.ecosystem("uvicorn")

APPS = Path(__file__).parent / "apps"
LOOPS = {"asyncio": "asyncio", "fastloop": "fastloop:new_event_loop"}
WHERE = {"asyncio": "asyncio._UnixSelectorEventLoop _asyncio.Task", "fastloop": "fastloop.Loop fastloop.Task"}


@pytest.fixture(scope="module")
def asgi_app():
    spec = importlib.util.spec_from_file_location("asgi_app", APPS / "asgi_app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FRAMEWORKS = [pytest.param(name, marks=pytest.mark.ecosystem(name)) for name in ("starlette", "fastapi")]


@pytest.fixture(params=["plain", *FRAMEWORKS])
def app_name(request):
    if request.param != "plain":
        pytest.importorskip(request.param)
    return request.param


@pytest.fixture(params=["h11", "httptools"])
def http(request):
    pytest.importorskip(request.param)
    return request.param


def start(*arguments):
    """A uvicorn of its own, and the port it says it listens on."""
    # What was imported here can be imported there, whatever PYTHONSAFEPATH says.
    paths = [str(Path(fastloop.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    server = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = []
    for line in server.stderr:
        log.append(line)
        if running := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            return server, int(running[1])
    raise AssertionError("".join(log))


def in_code(app_name, loop, http="h11"):
    return start(APPS / "asgi_app.py", app_name, LOOPS[loop], http)


def command_line(app_name, loop):
    app = ["--app-dir", APPS, f"asgi_app:{app_name}"]
    return start("-m", "uvicorn", *app, "--loop", LOOPS[loop], "--port", "0", "--no-access-log")


async def fetch_all(port, asgi_app, count):
    """`count` pages and `count` echoes at once, every body checked."""

    async def get(number):
        async with session.get(f"/page/{number}") as response:
            assert response.status == 200
            assert await response.read() == asgi_app.page(number)

    async def echo(number):
        async with session.post("/echo", data=asgi_app.page(number)) as response:
            assert await response.read() == asgi_app.page(number)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        await asyncio.gather(*map(get, range(count)), *map(echo, range(count)))


async def fetch(port, path):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get(path) as response:
            return await response.text()


def stop(server):
    """SIGTERM; uvicorn shuts down in good order and then dies of the signal it caught."""
    server.send_signal(signal.SIGTERM)
    stdout, stderr = server.communicate(timeout=60)
    assert server.returncode == -signal.SIGTERM
    assert "Traceback" not in stderr
    return stdout


def test_uvicorn_run(loop_name, run, asgi_app, app_name, http):
    server, port = in_code(app_name, loop_name, http)
    with server:
        assert run(fetch, port, "/where") == WHERE[loop_name]
        run(fetch_all, port, asgi_app, 300)
        assert stop(server) == "shut down\n"


def test_command_line(loop_name, run, asgi_app):
    server, port = command_line("plain", loop_name)
    with server:
        assert run(fetch, port, "/where") == WHERE[loop_name]
        run(fetch_all, port, asgi_app, 100)
        assert stop(server) == "shut down\n"


def test_request_under_way_at_sigterm_is_answered(loop_name, run):
    server, port = in_code("plain", loop_name)

    async def main():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            responses = await asyncio.gather(*(session.get("/slow/0.5") for _ in range(20)))
            server.send_signal(signal.SIGTERM)  # each has its headers now and lacks half its body
            return [await response.read() for response in responses]

    with server:
        assert run(main) == [b"slow"] * 20
        stdout, _ = server.communicate(timeout=60)
        assert (server.returncode, stdout) == (-signal.SIGTERM, "shut down\n")


@pytest.mark.ecosystem("httpx")
def test_server_and_httpx_client_in_one_loop(run, check_loop, asgi_app):
    httpx = pytest.importorskip("httpx")

    async def app(scope, receive, send):
        check_loop()
        await asgi_app.plain(scope, receive, send)

    async def main():
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            responses = await asyncio.gather(*(client.get(f"/page/{number}") for number in range(100)))
        assert [response.content for response in responses] == [asgi_app.page(n) for n in range(100)]
        server.should_exit = True
        await serving

    run(main)
