"""Subprocesses: spawning and waiting, and 64 MB through a child's stdin and stdout."""

import asyncio
import contextlib
import subprocess

from harness import Benchmark, elapsed, new_loop, register, timed

SIZE = 64 * 1024 * 1024


def popen(k):
    for _ in range(k):
        subprocess.Popen(["/bin/true"]).wait()


@timed("process", limit=popen, unit="processes/s", cores=2)
async def spawn_wait(loop, k):
    for _ in range(k):
        process = await asyncio.create_subprocess_exec("/bin/true")
        await process.wait()


async def through_cat():
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
    chunk = b"x" * 65536

    async def feed():
        for _ in range(SIZE // len(chunk)):
            process.stdin.write(chunk)
            await process.stdin.drain()
        process.stdin.close()

    feeder = asyncio.ensure_future(feed())
    received = 0
    while data := await process.stdout.read(1 << 18):
        received += len(data)
    await feeder
    if received != SIZE or await process.wait() != 0:
        raise RuntimeError(f"{received} of {SIZE} bytes came back")


@contextlib.contextmanager
def pipes(loop_name, options):
    loop = new_loop(loop_name)
    yield lambda: {"value": SIZE / 1e6 / min(elapsed(lambda _: loop.run_until_complete(through_cat()), 1) for _ in range(2))}


register(Benchmark("process", "pipes_64mb", "MB/s", pipes, cores=2))
