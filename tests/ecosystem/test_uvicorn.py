"""uvicorn serving plain ASGI, Starlette and FastAPI: in code, from its command line, and inside a running loop."""

import asyncio
import signal

import pytest

aiohttp = pytest.importorskip("aiohttp")
uvicorn = pytest.importorskip("uvicorn")

pytestmark = pytest.mark.ecosystem("uvicorn")

LOOPS = {"asyncio": "asyncio", "fastloop": "fastloop:new_event_loop"}
WHERE = {"asyncio": "asyncio._UnixSelectorEventLoop _asyncio.Task", "fastloop": "fastloop.Loop fastloop.Task"}


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


@pytest.fixture
def command_line(start):
    """`python -m uvicorn asgi_app:APP` on one of the loops."""

    def command_line(app_name, loop, *options):
        app = [f"asgi_app:{app_name}", "--loop", LOOPS[loop], "--port", "0", "--no-access-log"]
        return start("-m", "uvicorn", *app, *options)

    return command_line


@pytest.fixture
def in_code(start):
    """`uvicorn.run(app, loop=...)`."""
    return lambda app_name, loop, http="h11": start("asgi_app.py", app_name, LOOPS[loop], http)


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


# A lone uvicorn shuts down in good order and then gives itself the signal that it caught.


def test_uvicorn_run(loop_name, run, in_code, asgi_app, app_name, http):
    server = in_code(app_name, loop_name, http)
    port = server.port()
    assert run(fetch, port, "/where").startswith(WHERE[loop_name])
    run(fetch_all, port, asgi_app, 300)
    assert "shut down\n" in server.stop(status=-signal.SIGTERM)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
def test_command_line(loop_name, run, command_line, asgi_app, number, status):
    server = command_line("plain", loop_name)
    port = server.port()
    assert run(fetch, port, "/where").startswith(WHERE[loop_name])
    run(fetch_all, port, asgi_app, 100)
    assert "shut down\n" in server.stop(number, status)


def test_request_under_way_at_sigterm_is_answered(loop_name, run, in_code):
    server = in_code("plain", loop_name)
    port = server.port()

    async def main():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            responses = await asyncio.gather(*(session.get("/slow/0.5") for _ in range(20)))
            server.process.send_signal(signal.SIGTERM)  # each has its headers now and lacks half its body
            return [await response.read() for response in responses]

    assert run(main) == [b"slow"] * 20
    assert "shut down\n" in server.finish(-signal.SIGTERM)


@pytest.fixture(params=["websockets", "wsproto"])
def ws(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.ecosystem("fastapi")
def test_fastapi_websockets(loop_name, run, command_line, ws):
    server = command_line("fastapi", loop_name, "--ws", ws)
    port = server.port()

    async def talk(session, number):
        async with session.ws_connect("/reverse") as socket:
            for n in range(20):
                await socket.send_str(f"{number}-{n}")
                assert await socket.receive_str(timeout=30) == f"{number}-{n}"[::-1]
            await socket.send_str("long" * 50_000)
            assert await socket.receive_str(timeout=30) == "gnol" * 50_000
            await socket.close(code=4000)

    async def main():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await asyncio.gather(*(talk(session, n) for n in range(30)))

    run(main)
    server.expect("websocket closed with 4000\n", times=30)
    server.stop(status=-signal.SIGTERM)


@pytest.mark.ecosystem("fastapi")
def test_fastapi_streams_and_background_tasks(loop_name, run, command_line, asgi_app):
    server = command_line("fastapi", loop_name)
    port = server.port()

    async def stream(session, count):
        async with session.get(f"/stream/{count}") as response:
            assert await response.read() == b"".join(map(asgi_app.page, range(count)))

    async def leave_early(session):
        async with session.get("/stream/1000000") as response:
            assert await response.content.readexactly(32) == asgi_app.page(0)
        # Leaving the block with the body unread closes the connection.

    async def in_background(session, word):
        async with session.post(f"/background/{word}") as response:
            assert await response.json() == "accepted"
        done = []
        while f"{word} again" not in done:
            async with session.get("/background") as response:
                done = await response.json()
        assert done.index(word) < done.index(f"{word} again")

    async def main():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            calls = [call(session) for call in [leave_early] * 10]
            calls += [stream(session, count) for count in range(30)]
            calls += [in_background(session, word) for word in ("one", "two", "three")]
            await asyncio.gather(*calls)

    run(main)
    server.stop(status=-signal.SIGTERM)


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
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=250) as client:
            responses = await asyncio.gather(*(client.get(f"/page/{number}") for number in range(100)))
        assert [response.content for response in responses] == [asgi_app.page(n) for n in range(100)]
        server.should_exit = True
        await serving

    run(main)
