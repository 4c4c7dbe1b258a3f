"""examples/service on real servers: its answers, its cache, and its end by a signal under load, nothing lost.

The async tests run under pytest-asyncio on fastloop (conftest.py chooses it); the service itself runs in the test's
own loop, or, where it is to end by a signal, in a process.
"""

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import pytest

import fastloop

aiohttp = pytest.importorskip("aiohttp")
asyncpg = pytest.importorskip("asyncpg")
redis_asyncio = pytest.importorskip("redis.asyncio")
pytestmark = pytest.mark.ecosystem("pytest-asyncio", "aiohttp", "asyncpg", "redis")

EXAMPLES = Path(__file__).parents[3] / "examples"
PRIMES = {100: 25, 1000: 168, 2000: 303, 3000: 430}


@pytest.fixture
async def settings(postgres, redis_server):
    """DATABASE and CACHE of servers with nothing in them."""
    assert type(asyncio.get_running_loop()) is fastloop.Loop
    connection = await asyncpg.connect(**postgres.login, database="postgres")
    await connection.execute("drop database if exists service with (force)")
    await connection.execute("create database service")
    await connection.close()
    async with redis_asyncio.from_url(redis_server.url) as cache:
        await cache.flushall()
    password = postgres.login["password"].replace(" ", "%20")
    database = f"postgresql://tester:{password}@127.0.0.1:{postgres.port}/service"
    return {"database": database, "cache": redis_server.url, "patience": 60, "port": 0, "processes": 2}


@pytest.fixture
async def jobs_table(settings):
    """A function to ask the service's database behind its back."""

    async def fetch():
        connection = await asyncpg.connect(settings["database"])
        rows = await connection.fetch("select id, upto, result from jobs order by id")
        await connection.close()
        return [tuple(row) for row in rows]

    return fetch


@pytest.fixture
async def client(settings, monkeypatch):
    """The service in this loop, and an HTTP client of it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from service.app import Service, Settings

    service = Service(Settings(**settings))
    port = await service.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session
    await service.stop()
    assert service.accepted == service.answered


class Process:
    """The service in a process group of its own."""

    async def start(self, settings):
        paths = [str(EXAMPLES), str(Path(fastloop.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self.process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "fastloop", "-m", "service"],
            env=os.environ
            | {name.upper(): str(value) for name, value in settings.items()}
            | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        line = await self.process.stdout.readline()
        if not line.startswith(b"listening"):
            raise AssertionError((await self.process.stderr.read()).decode())
        self.url = f"http://127.0.0.1:{int(line.split()[-1])}"

    async def end(self):
        """Exit code, stderr, and the numbers of the summary."""
        stdout, stderr = await asyncio.wait_for(self.process.communicate(), 250)
        return self.process.returncode, stderr.decode(), [int(number) for number in re.findall(rb"\d+", stdout)]


@pytest.fixture
async def process(settings):
    """A function that starts the service with these settings; what still runs at the end is killed."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**more):
            process = Process()
            await process.start(settings | more)

            async def kill():
                if process.process.returncode is None:
                    os.killpg(process.process.pid, signal.SIGKILL)
                    await process.process.communicate()

            stack.push_async_callback(kill)
            return process

        yield start


async def finished(session, number):
    """The job once it has its result."""
    async with asyncio.timeout(250):
        while True:
            async with session.get(f"/jobs/{number}") as response:
                assert response.status == 200
                job = await response.json()
            if job["result"] is not None:
                return job
            await asyncio.sleep(0.01)


async def post(session, upto):
    async with session.post("/jobs", json={"upto": upto}) as response:
        assert response.status == 202
        return (await response.json())["id"]


async def test_jobs_are_done_and_cached(client, jobs_table):
    async def one(upto):
        number = await post(client, upto)
        assert await finished(client, number) == {"id": number, "upto": upto, "result": PRIMES[upto]}
        return number, upto, PRIMES[upto]

    done = await asyncio.gather(*(one(upto) for upto in [*PRIMES] * 25))
    assert await jobs_table() == sorted(done)
    before = {"done": 0}
    while before["done"] < 100:  # counted a moment after it is in the database
        async with client.get("/health") as response:
            before = await response.json()
    assert before["done"] == 100 and before["waiting"] == 0
    await asyncio.gather(*(finished(client, number) for number, _, _ in done))
    async with client.get("/health") as response:
        assert (await response.json())["cached"] == before["cached"] + 100


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"upto": "1"}', b'{"upto": 0}', b"\xff"])
async def test_nonsense_is_refused(client, jobs_table, body):
    async with client.post("/jobs", data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
    assert await jobs_table() == []


async def test_unknown_jobs(client):
    for path in ["/jobs/1", "/jobs/x", "/jobs/-1", "/jobs/" + "9" * 30]:
        async with client.get(path) as response:
            assert response.status == 404


async def test_without_its_cache_it_is_as_right(client, redis_server):
    with redis_server.killable():
        number = await post(client, 1000)
        await asyncio.to_thread(redis_server.kill)
        assert (await finished(client, number))["result"] == 168
        number = await post(client, 2000)
        assert (await finished(client, number))["result"] == 303
    assert (await finished(client, number))["result"] == 303


async def test_a_process_that_dies_takes_no_job_with_it(client, jobs_table):
    numbers = [await post(client, 3_000_000) for _ in range(4)]
    while not multiprocessing.active_children():
        await asyncio.sleep(0.005)
    multiprocessing.active_children()[0].kill()
    results = [(await finished(client, number))["result"] for number in numbers]
    assert results == [216816] * 4


async def test_jobs_left_by_a_crash_are_done_at_the_next_start(process, jobs_table):
    crashing = await process(processes=1)
    async with aiohttp.ClientSession(crashing.url) as session:
        numbers = await asyncio.gather(*(post(session, 3000) for _ in range(100)))
    os.killpg(crashing.process.pid, signal.SIGKILL)
    await crashing.process.communicate()
    assert [number for number, _, _ in await jobs_table()] == sorted(numbers)

    service = await process()
    async with aiohttp.ClientSession(service.url) as session:
        jobs = await asyncio.gather(*(finished(session, number) for number in numbers))
    assert [job["result"] for job in jobs] == [PRIMES[3000]] * 100
    service.process.send_signal(signal.SIGTERM)
    code, stderr, _ = await service.end()
    assert (code, stderr) == (0, "")


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)],
    ids=["SIGTERM", "SIGTERM to the process group", "SIGINT to the process group"],
)
async def test_no_accepted_request_is_lost_under_load(process, jobs_table, number, whole_group):
    service = await process(grace=200)
    acknowledged, unanswered, enough = {}, 0, asyncio.Event()

    async def send_until_refused(session, upto):
        nonlocal unanswered
        while True:
            try:
                acknowledged[await post(session, upto)] = upto
            except aiohttp.ClientConnectorError:
                return
            except aiohttp.ClientConnectionError:  # its connection was closed before the request was read
                unanswered += 1
            if len(acknowledged) >= 300:
                enough.set()

    async with aiohttp.ClientSession(service.url) as session, asyncio.TaskGroup() as group:
        for upto in [*PRIMES] * 10:
            group.create_task(send_until_refused(session, upto))
        await enough.wait()
        if whole_group:
            os.killpg(service.process.pid, number)
        else:
            service.process.send_signal(number)

    code, stderr, (accepted, answered, done, left) = await service.end()
    assert (code, stderr, left) == (0, "", 0)
    assert accepted == answered == done == len(acknowledged) >= 300
    assert await jobs_table() == sorted((number, upto, PRIMES[upto]) for number, upto in acknowledged.items())
    assert unanswered <= 40  # at most the one that each client sent as the door closed


async def test_what_outlasts_the_deadline_is_left_for_the_next_start(process, jobs_table):
    service = await process(processes=1, grace=0.3)
    async with aiohttp.ClientSession(service.url) as session:
        quick = await post(session, 100)
        await finished(session, quick)
        numbers = [await post(session, 10_000_000) for _ in range(50)]
    service.process.send_signal(signal.SIGTERM)
    code, stderr, (accepted, answered, done, _) = await service.end()
    assert (code, accepted) == (0, answered)
    rows = await jobs_table()
    assert [number for number, _, _ in rows] == [quick, *numbers]
    assert 0 < [result for _, _, result in rows].count(None) <= 51 - done  # a result may be there and not counted yet
    assert "Traceback" not in stderr
