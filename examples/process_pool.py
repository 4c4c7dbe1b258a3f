"""ProcessPoolExecutor: CPU-bound work on other cores while the loop goes on."""

import asyncio
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def count_primes(limit):
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit)), os.getpid()


def fail(what):
    raise ArithmeticError(what)


async def main():
    loop = asyncio.get_running_loop()
    # spawn: a fresh interpreter per worker, because forking a program that has threads is unsafe.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        calls = [loop.run_in_executor(pool, count_primes, limit) for limit in (10, 100, 1000)]
        answers = await asyncio.gather(*calls)
        print("primes:", [count for count, _ in answers])
        print("in this process:", any(pid == os.getpid() for _, pid in answers))
        try:
            await loop.run_in_executor(pool, fail, "in the worker")
        except ArithmeticError as exc:
            print("raised", exc)


if __name__ == "__main__":  # workers import this file
    asyncio.run(main())
