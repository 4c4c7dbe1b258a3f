"""What the dask test has its workers do; they import this module."""

import asyncio
import hashlib
import time


def loop_of(dask_worker=None, dask_scheduler=None):
    """The type of the loop that a worker or scheduler runs on, seen from inside."""
    return type((dask_worker or dask_scheduler).loop.asyncio_loop).__module__


def workers_of(dask_scheduler):
    """The addresses of the workers that the scheduler knows."""
    return list(dask_scheduler.workers)


async def running_loop():
    """A coroutine runs on the worker's loop."""
    await asyncio.sleep(0)
    return type(asyncio.get_running_loop()).__module__


def digest(data):
    return hashlib.sha256(data).hexdigest()


def slowly(number):
    time.sleep(0.05)
    return number * number
