"""Threads and the loop: the executor bridge both ways, and how far busy workers starve the loop."""

import asyncio
import concurrent.futures
import contextlib
import importlib.machinery
import importlib.util
import sysconfig
import threading
import time

from harness import Benchmark, compile_c, new_loop, register, timed

CORES = 2  # the loop and a worker thread, as a service has them


def noop():
    pass


async def nothing():
    pass


def floor(k):
    """Two thread switches and two hand-overs of the GIL in bare C, `k` times."""
    include = sysconfig.get_path("include")
    path = compile_c("switch_floor.c", "-shared", "-fPIC", "-pthread", f"-I{include}")
    loader = importlib.machinery.ExtensionFileLoader("switch_floor", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("switch_floor", loader))
    loader.exec_module(module)
    module.round_trips(k)


@timed("executor", limit=floor, cores=CORES)
async def sequential(loop, k):
    for _ in range(k):
        await loop.run_in_executor(None, noop)


@timed("executor", batch=100, cores=CORES)
async def hundred(loop, k):
    for _ in range(k):
        await asyncio.gather(*[loop.run_in_executor(None, noop) for _ in range(100)])


@timed("executor", limit=floor, cores=CORES)
async def to_thread(loop, k):
    for _ in range(k):
        await asyncio.to_thread(noop)


@timed("executor", limit=floor, cores=CORES)
async def run_coroutine_threadsafe(loop, k):
    done = loop.create_future()

    def ask():
        for _ in range(k):
            asyncio.run_coroutine_threadsafe(nothing(), loop).result()
        loop.call_soon_threadsafe(done.set_result, None)

    thread = threading.Thread(target=ask)
    thread.start()
    await done
    thread.join()


@contextlib.contextmanager
def starvation(loop_name, options):
    """Steps of a CPU-bound task on the loop beside 32 threads of the default executor that never rest."""
    stop = False

    def burn():
        while not stop:
            pass

    async def steps():
        nonlocal stop
        stop = False
        workers = [loop.run_in_executor(None, burn) for _ in range(32)]
        await asyncio.sleep(0.05)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < max(2, options.seconds):  # a step takes tens of milliseconds
            sum(range(1000))
            await asyncio.sleep(0)
            count += 1
        count /= time.perf_counter() - begin
        stop = True
        await asyncio.gather(*workers)
        return count

    loop = new_loop(loop_name)
    if loop_name != "fastloop":  # whose own pool of 32 is what is measured
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(32))
    yield lambda: {"value": loop.run_until_complete(steps())}


register(Benchmark("executor", "busy_workers_32", "steps/s", starvation, cores=CORES))
