"""fastloop.ThreadPoolExecutor: concurrent.futures.ThreadPoolExecutor over a queue in C."""

import concurrent.futures
import concurrent.futures.thread as _stdlib
import os
import threading
import weakref

from fastloop._core import WorkQueue

__all__ = ["ThreadPoolExecutor"]

# Those that a forked child has to clear of its parent's threads and calls.
_executors = weakref.WeakSet()


def _worker(queue, initializer, initargs):
    """Be a worker thread of queue."""
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException:
            concurrent.futures._base.LOGGER.critical("Exception in initializer:", exc_info=True)
            queue.fail("A thread initializer failed, the thread pool is not usable anymore")
            return
    del initializer, initargs
    queue.work()


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """Run calls in a pool of threads, handing them over in C.

    Takes what concurrent.futures.ThreadPoolExecutor of the running Python takes and does what
    it does; ``loop.run_in_executor()`` of a fastloop loop gives its calls to the threads
    directly, without a concurrent.futures.Future.

    max_workers is the largest number of threads (an int above 0, else ValueError; None:
    processors + 4, at most 32); thread_name_prefix a str; initializer(*initargs) is called
    in each new thread, and if it raises the pool is broken: every call queued then or later
    raises BrokenThreadPool.  A thread starts when a call finds none idle, and stays until
    shutdown().  In the child of a fork the pool is empty and works.
    """

    def __init__(self, max_workers=None, thread_name_prefix="", initializer=None, initargs=()):
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        self._initializer = initializer
        self._initargs = initargs
        self._work_queue = queue = WorkQueue(self._max_workers)
        queue.owner = weakref.ref(self, queue.abandon)
        _executors.add(self)

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        self._work_queue.submit(self, future, fn, args, kwargs)
        return future

    submit.__doc__ = concurrent.futures.Executor.submit.__doc__

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._work_queue.close(cancel_futures)
        if wait:
            for thread in list(self._threads):
                thread.join()

    shutdown.__doc__ = concurrent.futures.Executor.shutdown.__doc__

    def _start_worker(self):
        """Start one more thread; the queue calls this when it has more calls than workers."""
        queue = self._work_queue
        thread = threading.Thread(
            name=f"{self._thread_name_prefix}_{len(self._threads)}",
            target=_worker,
            args=(queue, self._initializer, self._initargs),
        )
        thread.start()
        self._threads.add(thread)
        # concurrent.futures' exit function wakes and joins the threads listed here.
        _stdlib._threads_queues[thread] = queue
        if _stdlib._shutdown:
            # It may have read the list before this thread was in it.
            queue.put(None)

    @property
    def _shutdown(self):
        return self._work_queue.closed

    @_shutdown.setter
    def _shutdown(self, value):
        """Ignore what the inherited __init__ sets: the queue knows."""

    @property
    def _broken(self):
        return self._work_queue.broken

    @_broken.setter
    def _broken(self, value):
        """As _shutdown."""

    def _after_fork(self):
        self._threads.clear()
        self._work_queue.reset()


def _after_fork_in_child():
    for executor in list(_executors):
        executor._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
