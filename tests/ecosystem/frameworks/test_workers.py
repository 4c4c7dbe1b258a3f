"""Servers of several processes on one port: every request answered, by each of them, and an end in good order."""

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest

aiohttp = pytest.importorskip("aiohttp")


@pytest.fixture
def loop_name():
    return "fastloop"  # of the client; every server here is on fastloop


@pytest.fixture
def pids(run, asgi_app):
    """pids(port, count): fetch and check pages, each by a connection of its own, until `count` processes have answered."""

    async def fetch(session, number):
        async with session.get(f"/page/{number}") as response:
            assert (response.status, await response.read()) == (200, asgi_app.page(number))
        async with session.get("/where") as response:
            where, _, pid = (await response.text()).rpartition(" ")
            assert where.startswith("fastloop.Loop")
            return int(pid)

    async def main(port, count):
        seen = set()
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
            while len(seen) < count:
                seen.update(await asyncio.gather(*(fetch(session, number) for number in range(20))))
        return seen

    return lambda port, count: run(main, port, count)


@pytest.mark.ecosystem("uvicorn")
def test_uvicorn_workers(start, pids):
    arguments = "-m uvicorn asgi_app:plain --loop fastloop:new_event_loop --port 0 --workers 2 --no-access-log"
    # The supervisor holds both ends of the pipe it pings a worker by: one killed before it answers is missed only after
    # this many seconds, less than expect() waits, and more than a slow machine takes to start a worker.
    server = start(*arguments.split(), "--timeout-worker-healthcheck", "60")
    port = server.port()
    workers = pids(port, 2)
    assert server.process.pid not in workers

    os.kill(min(workers), signal.SIGKILL)  # its successor takes over
    server.expect("Child process .* died")
    server.expect("Application startup complete", times=3)
    after = pids(port, 2)
    assert len(workers & after) == 1

    assert server.stop().count("shut down\n") == 2


@pytest.mark.ecosystem("uvicorn")
def test_uvicorn_reload(start, run, tmp_path):
    def write(version):
        source = f"async def app(scope, receive, send):\n    version = b'{version}'\n"
        source += "    await send({'type': 'http.response.start', 'status': 200})\n"
        source += "    await send({'type': 'http.response.body', 'body': version})\n"
        (tmp_path / "served.py").write_text(source)
        os.utime(tmp_path / "served.py", (version, version))  # one that differs from the last however fast this is

    async def wait_until_served(port, version):
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            answer = None
            while answer != str(version):
                with contextlib.suppress(aiohttp.ClientConnectionError):  # the old process's end
                    async with session.get("/") as response:
                        answer = await response.text()

    version = 1_000_000_000
    write(version)
    arguments = "-m uvicorn served:app --loop fastloop:new_event_loop --port 0 --lifespan off --reload"
    server = start(*arguments.split(), cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")
    port = server.port()
    run(wait_until_served, port, version)
    while "Reloading" not in server.output:  # it may look at the files for the first time only now
        version += 100
        write(version)
        time.sleep(0.1)
    run(wait_until_served, port, version)
    server.stop()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("-c gunicorn_uvicorn.py asgi_app:plain", id="uvicorn", marks=pytest.mark.ecosystem("uvicorn-worker")),
        pytest.param("-c gunicorn_install.py -k asgi asgi_app:plain", id="asgi"),
        pytest.param("-c gunicorn_install.py -k aiohttp.GunicornWebWorker aiohttp_app:make_app", id="aiohttp"),
    ],
)
@pytest.mark.ecosystem("gunicorn")
def test_gunicorn(start, pids, run, tmp_path, arguments):
    pytest.importorskip("gunicorn")
    pytest.importorskip("uvicorn_worker")
    server = start("-m", "gunicorn", "-b", "127.0.0.1:0", "-w", "2", *arguments.split(), HOME=str(tmp_path))
    port = server.port(r"Listening at: http://127\.0\.0\.1:(\d+)")
    workers = pids(port, 2)
    assert {int(match[1]) for match in server.expect(r"Booting worker with pid: (\d+)", times=2)} == workers

    os.kill(min(workers), signal.SIGKILL)
    server.expect("Booting worker", times=3)
    assert len(workers & pids(port, 2)) == 1

    async def ask_and_stop():
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            responses = await asyncio.gather(*(session.get("/slow/0.5") for _ in range(10)))
            server.process.send_signal(signal.SIGTERM)
            return [await response.read() for response in responses]

    assert run(ask_and_stop) == [b"slow"] * 10  # what was under way is finished
    assert server.finish().count("shut down\n") == 2


@pytest.mark.ecosystem("hypercorn")
def test_hypercorn_workers(start, pids):
    pytest.importorskip("hypercorn")
    server = start("-m", "hypercorn", "--workers", "2", "--bind", "127.0.0.1:0", "hypercorn_app:app")
    workers = pids(server.port(), 2)
    assert server.process.pid not in workers
    assert "shut down\n" in server.stop()  # when one worker is gone hypercorn kills those that are not


@pytest.mark.ecosystem("aiohttp")
def test_programs_that_share_a_port(start, pids):
    """SO_REUSEPORT: the kernel deals the connections out to independent programs; one may go at any time."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))  # not listening: it only keeps the number ours
        port = holder.getsockname()[1]
        programs = [start("aiohttp_app.py", "fastloop", port) for _ in range(2)]
        for program in programs:
            program.expect("Running on")
        assert pids(port, 2) == {program.process.pid for program in programs}
        assert "shut down\n" in programs[0].stop()
        assert pids(port, 1) == {programs[1].process.pid}
        assert "shut down\n" in programs[1].stop(signal.SIGINT)
