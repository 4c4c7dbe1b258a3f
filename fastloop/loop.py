"""The event loop: the C engine in front of asyncio's own Unix loop.

`_core.Loop` overrides everything that runs per callback, task, timer or packet. What is cold,
and where every Python version has details of its own (argument checks, happy eyeballs, Server
objects, shutdown of executors and asynchronous generators), is inherited from the running
interpreter's asyncio, so that signatures, errors and texts are exactly that version's.
"""

import asyncio
import selectors
import sys
import threading
import weakref
from asyncio import events, unix_events

# The engine imports _names and _streams, maybe when no file can be opened: they are there by then.
from . import _core, _live_tasks, _names, _streams  # noqa: F401
from ._connect import ConnectMixin
from ._datagram import DatagramMixin
from ._pipes import PipeMixin
from ._process import ProcessMixin
from ._signals import SignalMixin
from ._tls import TLSMixin
from ._transports import TransportMixin


# Looked up once: programs put other classes, this one too, in asyncio's place.
_AsyncioLoop = asyncio.SelectorEventLoop


class _Engine:
    """Stands where asyncio's loop has its selector, for who looks there; the poller is in C."""

    def __init__(self, loop):
        self._loop = weakref.ref(loop)

    def close(self):
        """Nothing to do: Loop.close() closes the engine."""

    def get_map(self):
        """The fds that a selector would know: none."""
        return {}

    def get_key(self, fileobj):
        """The selectors.SelectorKey of a file object or fd, its data the pair of handles.

        Raises KeyError if the loop watches it for no callback.
        """
        loop = self._loop()
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        reader, writer = loop._handles_of(fd) if loop is not None else (None, None)
        if reader is None and writer is None:
            raise KeyError(f"{fileobj!r} is not registered")
        wanted = selectors.EVENT_READ * (reader is not None)
        wanted |= selectors.EVENT_WRITE * (writer is not None)
        return selectors.SelectorKey(fileobj, fd, wanted, (reader, writer))


class Loop(
    _core.Loop,
    ProcessMixin,
    PipeMixin,
    DatagramMixin,
    SignalMixin,
    ConnectMixin,
    TLSMixin,
    TransportMixin,
    _AsyncioLoop,
):
    """An asyncio event loop whose engine is written in C.

    It does all that asyncio.SelectorEventLoop does, with the same signatures, errors and order
    of callbacks; see the asyncio documentation of `loop` methods. Not thread-safe but for
    call_soon_threadsafe(). Raises OSError where the poller cannot be opened.
    """

    def __init__(self):
        _core.Loop.__init__(self)
        _AsyncioLoop.__init__(self, _Engine(self))

    def run_forever(self):
        """Run until stop() is called.

        Raises RuntimeError if the loop is closed or running, or another one runs in this
        thread. KeyboardInterrupt and SystemExit raised in a callback or task come out of it.
        """
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        try:
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,
                finalizer=self._asyncgen_finalizer_hook,
            )
            events._set_running_loop(self)
            self._run()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)

    def close(self):
        """Close the loop: what is queued is dropped, the default executor is told to end.

        Without effect if it is closed. Raises RuntimeError while it runs.
        """
        super().close()
        self._close_engine()

    def __del__(self, _asyncio=vars(unix_events)):
        # A loop that is set and not closed goes at the end of the interpreter, when asyncio's
        # modules are empty and their code cannot run. asyncio's own is never finalized there.
        if _asyncio.get("sys") is not None:
            super().__del__()


Loop._bind_methods()
