"""A dask.distributed cluster of several processes: scheduler, workers and client on fastloop."""

import asyncio
import os
import signal

import pytest

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.ecosystem("distributed")

# A worker that stops closes its connections under a heartbeat that is under way, catches what that raises and logs it
# with a traceback, whatever the loop (distributed/worker.py, Worker.close() and heartbeat()). Before it stops, no such
# line is accepted: a connection that breaks then is an error.
LAST_HEARTBEAT = (
    r"Stopping worker at(?:(?!Traceback)[\s\S])*Failed to communicate with scheduler during heartbeat\.\n"
    r"(?:(?!\d{4}-).*\n)*\S*CommClosedError: .*\n"
)


@pytest.fixture
def loop_name():
    return "fastloop"


@pytest.fixture
def jobs(apps, monkeypatch):
    monkeypatch.syspath_prepend(apps)
    import dask_jobs

    return dask_jobs


@pytest.fixture
def cluster(start, tmp_path):
    """A scheduler, a worker that is one process, and one that a nanny starts and starts again: (address, programs)."""
    settings = {"DASK_TEMPORARY_DIRECTORY": str(tmp_path), "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
    launcher = ["-m", "fastloop", "-m"]
    options = ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler = start(*launcher, "distributed.cli.dask_scheduler", *options, "--port", "0", **settings)
    address = scheduler.expect(r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)")[0][1]
    options += ["--nthreads", "2", address]
    plain = start(*launcher, "distributed.cli.dask_worker", "--no-nanny", *options, **settings)
    nanny = start("dask_worker.py", *options, **settings)
    yield address, [scheduler, plain, nanny]
    for program in (plain, nanny, scheduler):
        program.stop(known=LAST_HEARTBEAT)


def test_cluster(run, cluster, jobs):
    address, _ = cluster

    async def main():
        async with distributed.Client(address, asynchronous=True) as client:
            await client.wait_for_workers(2, timeout=250)
            assert await client.run_on_scheduler(jobs.loop_of) == "fastloop.loop"
            assert list((await client.run(jobs.loop_of)).values()) == ["fastloop.loop"] * 2
            assert list((await client.run(jobs.running_loop)).values()) == ["fastloop.loop"] * 2
            pids = set((await client.run(os.getpid)).values())
            assert len(pids) == 2

            squares = client.map(jobs.slowly, range(40))
            total = client.submit(sum, squares)
            assert await total == sum(number * number for number in range(40))
            owners = (await client.who_has(squares)).values()
            assert len({owner for some in owners for owner in some}) == 2

            data = [os.urandom(size) for size in (0, 1, 100_000, 5_000_000)]
            spread = await client.scatter(data, broadcast=True)
            digests = await client.gather(client.map(jobs.digest, spread))
            assert digests == [jobs.digest(item) for item in data]
            assert await client.gather(spread) == data

            with pytest.raises(ZeroDivisionError):
                await client.submit(divmod, 1, 0)

    run(main)


def test_client_program(cluster, start):
    address, _ = cluster
    assert start("dask_client.py", address).finish().endswith("285\n")


def test_killed_worker(run, cluster, jobs):
    """What a killed worker had to do is done by the others, and its nanny starts another."""
    address, (_, plain, _) = cluster

    async def main():
        async with distributed.Client(address, asynchronous=True) as client:
            await client.wait_for_workers(2, timeout=250)
            pids = await client.run(os.getpid)
            (victim,) = set(pids.values()) - {plain.process.pid}
            squares = client.map(jobs.slowly, range(100))
            await asyncio.wait([asyncio.ensure_future(future.result()) for future in squares[:10]])
            os.kill(victim, signal.SIGKILL)
            assert await client.gather(squares) == [number * number for number in range(100)]
            while not (new := set(await client.run_on_scheduler(jobs.workers_of)) - set(pids)):
                await asyncio.sleep(0.05)
            assert list((await client.run(jobs.loop_of, workers=list(new))).values()) == ["fastloop.loop"]
            assert await client.submit(os.getpid, workers=list(new)) not in pids.values()

    run(main)
