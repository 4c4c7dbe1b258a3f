"""What the tests of executors share: both loops, both thread pools, a worker that is busy, scripts."""

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading

import pytest

import fastloop

LOOPS = {"asyncio": asyncio.new_event_loop, "fastloop": fastloop.new_event_loop}
POOLS = {
    "stdlib": concurrent.futures.ThreadPoolExecutor,
    "fastloop": fastloop.ThreadPoolExecutor,
}


@pytest.fixture(params=LOOPS)
def runner(request):
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


@pytest.fixture
def fast():
    with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
        yield runner


@pytest.fixture(params=POOLS)
def pool_type(request):
    return POOLS[request.param]


@pytest.fixture
def one_worker(runner):
    """A runner whose default executor has one thread, and that thread is busy until let go."""
    release = threading.Event()

    async def occupy():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(fastloop.ThreadPoolExecutor(1))
        started = threading.Event()
        busy = loop.run_in_executor(None, lambda: started.set() or release.wait())
        started.wait()
        return busy

    busy = runner.run(occupy())
    yield runner, busy, release
    release.set()


def run_script(source, *, code=0, timeout=200, args=("-X", "dev")):
    """Run source in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, *args, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
