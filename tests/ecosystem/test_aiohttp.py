"""An aiohttp application, and aiohttp and httpx clients that fetch from it, in one loop."""

import asyncio
import hashlib
import signal
import sys
from contextlib import asynccontextmanager

import pytest

aiohttp = pytest.importorskip("aiohttp")
web = pytest.importorskip("aiohttp.web")

pytestmark = pytest.mark.ecosystem("aiohttp")

CONCURRENT = 1000

# On 3.12 and 3.13 aiohttp's server calls asyncio.Task(eager_start=True) itself, so there its handlers run in
# asyncio's tasks on any loop; before and after it asks the loop for a task.
HANDLERS_RUN_IN_LOOPS_TASKS = not (3, 12) <= sys.version_info < (3, 14)


def page(number):
    """A body of a length of its own, up to about 100 KB, that no other page could be taken for."""
    seed = hashlib.sha256(str(number).encode()).digest()
    return seed * (1 + number * 3 % 3200)


@pytest.fixture
def application(check_loop):
    """Pages, uploads, streams and a websocket; /together answers only when CONCURRENT requests are there."""
    together = asyncio.Barrier(CONCURRENT)

    def check_handler():
        check_loop(task_is_ours=HANDLERS_RUN_IN_LOOPS_TASKS)

    async def get_page(request):
        check_handler()
        return web.Response(body=page(int(request.match_info["number"])))

    async def get_together(request):
        check_handler()
        async with together:
            return await get_page(request)

    async def upload(request):
        check_handler()
        body = await request.read()
        return web.json_response({"length": len(body), "digest": hashlib.sha256(body).hexdigest()})

    async def stream(request):
        check_handler()
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(int(request.match_info["number"])):
            await response.write(page(number))
        await response.write_eof()
        return response

    async def echo(request):
        check_handler()
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data[::-1])
            else:
                await socket.send_bytes(message.data[::-1])
        return socket

    async def fail(request):
        raise RuntimeError("on purpose")

    app = web.Application(client_max_size=2**24)
    app.add_routes(
        [
            web.get("/page/{number}", get_page),
            web.get("/together/{number}", get_together),
            web.post("/upload", upload),
            web.get("/stream/{number}", stream),
            web.get("/echo", echo),
            web.get("/fail", fail),
        ]
    )
    return app


@asynccontextmanager
async def served(app):
    """Serve `app` on a free port of the loopback interface; gives its base address."""
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=CONCURRENT).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(app, **kwargs):
    async with served(app) as base:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(base, connector=connector, **kwargs) as session:
            yield session


async def get(session, path):
    async with session.get(path) as response:
        assert response.status == 200
        return await response.read()


def test_a_thousand_requests_at_once(run, application, many_files):
    async def main():
        async with client_of(application) as session:
            bodies = await asyncio.gather(*(get(session, f"/together/{n}") for n in range(CONCURRENT)))
        assert all(body == page(n) for n, body in enumerate(bodies))

    run(main)


def test_a_thousand_requests_over_a_few_connections(run, application):
    async def main():
        async with served(application) as base:
            connector = aiohttp.TCPConnector(limit=20)
            async with aiohttp.ClientSession(base, connector=connector) as session:
                bodies = await asyncio.gather(*(get(session, f"/page/{n}") for n in range(CONCURRENT)))
        assert all(body == page(n) for n, body in enumerate(bodies))

    run(main)


@pytest.mark.ecosystem("httpx")
def test_httpx_client(run, application, check_loop):
    httpx = pytest.importorskip("httpx")

    async def fetch(client, number):
        check_loop()
        response = await client.get(f"/page/{number}")
        assert response.status_code == 200
        return response.content

    async def main():
        async with served(application) as base:
            async with httpx.AsyncClient(base_url=base, timeout=250, limits=httpx.Limits(max_connections=50)) as client:
                bodies = await asyncio.gather(*(fetch(client, n) for n in range(200)))
                assert all(body == page(n) for n, body in enumerate(bodies))
                async with client.stream("GET", "/stream/50") as response:
                    streamed = b"".join([chunk async for chunk in response.aiter_bytes()])
                assert streamed == b"".join(map(page, range(50)))

    run(main)


def test_uploads(run, application):
    async def parts(number):
        for n in range(number):
            yield page(n)

    async def post(session, number, chunked):
        body = b"".join(map(page, range(number)))
        async with session.post("/upload", data=parts(number) if chunked else body) as response:
            assert await response.json() == {
                "length": len(body),
                "digest": hashlib.sha256(body).hexdigest(),
            }

    async def main():
        async with client_of(application) as session:
            await asyncio.gather(*(post(session, n, chunked=n % 2 == 0) for n in range(60)))

    run(main)


def test_streamed_downloads_in_both_paces(run, application):
    """Whether the client reads at once or later: every byte, once, in order."""

    async def download(session, number, pause):
        async with session.get(f"/stream/{number}") as response:
            await asyncio.sleep(pause)
            return b"".join([chunk async for chunk in response.content.iter_any()])

    async def main():
        async with client_of(application) as session:
            bodies = await asyncio.gather(*(download(session, n, pause) for n in (1, 40, 80) for pause in (0, 0.05)))
        assert bodies == [b"".join(map(page, range(n))) for n in (1, 40, 80) for _ in range(2)]

    run(main)


def test_websockets(run, application):
    async def talk(session, number):
        async with session.ws_connect("/echo") as socket:
            for n in range(20):
                await socket.send_str(f"{number}-{n}")
                assert await socket.receive_str(timeout=30) == f"{number}-{n}"[::-1]
            await socket.send_bytes(page(number))
            assert await socket.receive_bytes(timeout=30) == page(number)[::-1]
            await socket.ping()
        assert socket.close_code == 1000

    async def main():
        async with client_of(application) as session:
            await asyncio.gather(*(talk(session, n) for n in range(50)))

    run(main)


def test_errors_reach_the_client_and_the_server_lives_on(run, application):
    async def main():
        async with aiohttp.ClientSession() as session:
            async with served(application) as base:
                for path, status in [("/fail", 500), ("/nowhere", 404), ("/page/1", 200)]:
                    async with session.get(base + path) as response:
                        assert response.status == status
                with pytest.raises(TimeoutError):
                    await session.get(base + "/together/1", timeout=aiohttp.ClientTimeout(total=0.05))
                assert await get(session, base + "/page/1") == page(1)
            with pytest.raises(aiohttp.ClientConnectorError):
                await get(session, base + "/page/1")

    run(main)


def test_files(run, tmp_path):
    """A file goes out by loop.sendfile(): whole, in ranges, and to a client that leaves half-way."""
    data = b"".join(page(number) for number in range(200))
    (tmp_path / "data").write_bytes(data)

    async def part(session, start, stop):
        async with session.get("/files/data", headers={"Range": f"bytes={start}-{stop - 1}"}) as response:
            assert (response.status, await response.read()) == (206, data[start:stop])

    async def leave(session):
        async with session.get("/files/data") as response:
            assert await response.content.readexactly(100) == data[:100]

    async def main():
        app = web.Application()
        app.router.add_static("/files", tmp_path)
        async with client_of(app) as session:
            parts = [part(session, n * 10_000, n * 17_000 + 1) for n in range(100)]
            bodies, *_ = await asyncio.gather(get(session, "/files/data"), *parts, leave(session), leave(session))
            assert bodies == data
            assert await get(session, "/files/data") == data

    run(main)


def test_unix_socket(run, application, tmp_path):
    async def main():
        runner = web.AppRunner(application)
        await runner.setup()
        path = str(tmp_path / "socket")
        await web.UnixSite(runner, path).start()
        connector = aiohttp.UnixConnector(path, limit=10)
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
            bodies = await asyncio.gather(*(get(session, f"/page/{n}") for n in range(100)))
        assert bodies == [page(n) for n in range(100)]
        await runner.cleanup()

    run(main)


def test_timeouts_and_cancellation_leave_the_client_usable(run, application):
    async def main():
        async with client_of(application) as session:
            with pytest.raises(TimeoutError):
                await session.get("/together/1", timeout=aiohttp.ClientTimeout(sock_read=0.05))
            calls = [asyncio.create_task(get(session, "/together/1")) for _ in range(20)]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*calls, return_exceptions=True))
            bodies = await asyncio.gather(*(get(session, f"/page/{n}") for n in range(50)))
            assert bodies == [page(n) for n in range(50)]

    run(main)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_app(run, loop_name, start, asgi_app, number):
    """A program of its own; on the signal it answers what is under way, cleans up and exits 0."""
    program = start("aiohttp_app.py", loop_name, 0)
    port = program.port()

    async def main():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            assert (b"fastloop.Loop" in await get(session, "/where")) == (loop_name == "fastloop")
            bodies = await asyncio.gather(*(get(session, f"/page/{n}") for n in range(100)))
            assert bodies == [asgi_app.page(n) for n in range(100)]
            slow = await session.get("/slow/0.3")
            program.process.send_signal(number)
            assert await slow.read() == b"slow"

    run(main)
    assert "shut down\n" in program.finish()
