"""fastloop.ThreadPoolExecutor: concurrent.futures.ThreadPoolExecutor over a queue in C."""

import concurrent.futures
import concurrent.futures.thread as _stdlib
import os
import threading
import time
import weakref

from fastloop._core import WorkQueue

__all__ = ["ThreadPoolExecutor"]

_Base = concurrent.futures.ThreadPoolExecutor  # programs may put another in its place

# Those that a forked child has to clear of its parent's threads and calls.
_executors = weakref.WeakSet()


# .context is what the worker thread runs calls in, if prepare_context() was overridden.
_here = threading.local()


class _Context:
    """As concurrent.futures.thread.WorkerContext of Python 3.14: what surrounds a worker's calls."""

    def __init__(self, initializer, initargs):
        self._initializer = initializer
        self._initargs = initargs

    def initialize(self):
        if self._initializer is not None:
            self._initializer(*self._initargs)

    def finalize(self):
        pass


def _run_in_context(task):
    return _here.context.run(task)


def _worker(queue, ticket, context):
    """Be a worker thread of queue."""
    # Here and not by who starts the thread, which an interrupt could keep from it.
    with _stdlib._global_shutdown_lock:
        if not _stdlib._shutdown:
            # concurrent.futures' exit function wakes and joins the threads listed here.
            _stdlib._threads_queues[threading.current_thread()] = queue
    try:
        context.initialize()
    except BaseException:
        concurrent.futures._base.LOGGER.critical("Exception in initializer:", exc_info=True)
        queue.fail(ticket, "A thread initializer failed, the thread pool is not usable anymore")
        return
    _here.context = context
    try:
        queue.work(ticket)
    finally:
        context.finalize()


class ThreadPoolExecutor(_Base):
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

    _starter = None  # the thread that is in _start_worker()

    def __init__(
        self, max_workers=None, thread_name_prefix="", initializer=None, initargs=(), **ctxkwargs
    ):
        super().__init__(max_workers, thread_name_prefix, initializer, initargs, **ctxkwargs)
        self._initializer = initializer
        self._initargs = initargs
        self._work_queue = queue = WorkQueue(self._max_workers)
        queue.direct = self._calls_as_they_are()
        queue.owner = weakref.ref(self, queue.abandon)
        _executors.add(self)

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        if not self._work_queue.direct:
            fn, args, kwargs = _run_in_context, (self._resolve_work_item_task(fn, args, kwargs),), {}
        self._work_queue.submit(self, future, fn, args, kwargs)
        return future

    submit.__doc__ = concurrent.futures.Executor.submit.__doc__

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._work_queue.close(cancel_futures)
        if wait:
            self._join_threads()

    shutdown.__doc__ = concurrent.futures.Executor.shutdown.__doc__

    def _join_threads(self):
        """Wait for all threads, the one too that somebody's submit() is just starting for a call that was accepted."""
        while True:
            threads = list(self._threads)
            for thread in threads:
                thread.join()
            # unless this runs inside that submit(), in a signal handler or a finalizer, which cannot go on meanwhile
            underway = self._work_queue.starting and self._starter != threading.get_ident()
            if not underway and len(threads) == len(self._threads):
                return
            time.sleep(0.0005)  # it is about to be listed: no lock, which the starting thread could hold while it is interrupted

    def _calls_as_they_are(self):
        """Whether prepare_context(), new in Python 3.14, is nobody's own."""
        prepare = getattr(type(self), "prepare_context", None)
        inherited = getattr(_Base, "prepare_context", None)
        return getattr(prepare, "__func__", prepare) is getattr(inherited, "__func__", inherited)

    def _start_worker(self, ticket):
        """Start one more thread; the queue calls this when it has more calls than workers."""
        self._starter = threading.get_ident()
        if self._work_queue.direct:
            context = _Context(self._initializer, self._initargs)
        else:
            context = self._create_worker_context()
        thread = threading.Thread(
            name=f"{self._thread_name_prefix}_{len(self._threads)}",
            target=_worker,
            args=(self._work_queue, ticket, context),
        )
        try:
            thread.start()
            self._threads.add(thread)
        finally:
            self._starter = None

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
