"""A process pool for a service: signals to the group do not end it, a death in it loses no call, no orphan is left.

The pool's processes import this module and work.py, and nothing else of the service.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool


def prepare_process():
    """In each process of the pool, before its first call.

    Ctrl-C, and who stops a service by its process group, mean the main process, which knows what is to be finished.
    SIGTERM keeps its meaning: by it the executor ends the other processes after one has died.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """A pool's process whose parent was killed would otherwise wait for a call for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def interrupt_blocked():
    """A process that is started in here does not see Ctrl-C before prepare_process() has run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def retrieve(call):
    """Nobody need wait for this call any more, so that its exception is no news."""
    if not call.cancelled():
        call.exception()


class Processes:
    def __init__(self, count):
        self.count = count
        self.pool = self.new_pool()

    def new_pool(self):
        # Spawned, not forked: there are threads in the service, and a fork would copy their locks.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.count, context, initializer=prepare_process)

    async def run(self, function, *args):
        """loop.run_in_executor(), but a call that is lost because some process has died is made once more."""
        try:
            return await self.try_to_run(function, *args)
        except BrokenProcessPool:
            return await self.try_to_run(function, *args)

    async def try_to_run(self, function, *args):
        pool = self.pool
        try:
            with interrupt_blocked():
                call = asyncio.get_running_loop().run_in_executor(pool, function, *args)
            call.add_done_callback(retrieve)
            # Not "await call", which would cancel it: on 3.11 a pool that is ended with a cancelled call
            # in it prints an InvalidStateError.
            await asyncio.wait([call])
            return call.result()
        except BrokenProcessPool:
            if self.pool is pool:
                self.pool = self.new_pool()  # the old one ends by itself
            raise

    async def stop(self, all_done):
        """End the pool: at once if not all is done, since a process cannot be cancelled."""
        if not all_done:
            for process in multiprocessing.active_children():
                process.kill()
        await asyncio.to_thread(self.pool.shutdown, cancel_futures=True)
