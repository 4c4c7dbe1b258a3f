"""Signal handlers: asyncio's own, made so that a storm loses no kind of signal.

asyncio learns which signals came from the bytes that Python's C handler writes to a socket
pair. It is not blocking: when it is full the bytes are lost, and with them the only signal of
another kind that came in between. So the Python-level handler, which runs once for each kind
however many came, takes a note, and the loop calls the handlers of what was noted and had no byte.
"""

import weakref
from asyncio import unix_events


class SignalMixin:
    """loop.add_signal_handler() over a socket pair that is made when first needed."""

    _noted_signals = None
    _handled_signals = ()  # whose bytes are still to come

    def _make_self_pipe(self):
        self._ssock = self._csock = None
        self._internal_fds += 1  # the engine's own

    def _close_self_pipe(self):
        self._internal_fds -= 1
        if self._ssock is not None:
            super()._close_self_pipe()

    def add_signal_handler(self, sig, callback, *args):
        """Call callback(*args) in the loop when signal number `sig` arrives.

        Raises TypeError for a coroutine function, ValueError for an invalid number, and
        RuntimeError for one that cannot be caught or outside the main thread; see asyncio.
        """
        if self._ssock is None and not self._closed:
            super()._make_self_pipe()
        super().add_signal_handler(sig, callback, *args)
        if self._noted_signals is None:
            self._noted_signals = set()
            self._handled_signals = set()
        signal = unix_events.signal
        signal.signal(sig, _Note(self))
        signal.siginterrupt(sig, False)
        # That it is full is no news to be printed: it is taken care of.
        signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)

    def _note_signal(self, sig):
        """Called by Python between any two bytecodes of the main thread."""
        if not self._noted_signals:
            self.call_soon_threadsafe(self._check_noted_signals)
        self._noted_signals.add(sig)

    def _check_noted_signals(self):
        if self._ssock is not None:
            self._read_from_self()
        while self._noted_signals:
            sig = self._noted_signals.pop()
            self._handled_signals.add(sig)
            self._handle_signal(sig)

    def _process_self_data(self, data):
        if self._handled_signals:
            # A byte that could not be read yet when its signal was handled. If it was lost, this is a later signal's,
            # which is noted and handled for that.
            data = bytes(sig for sig in data if not self._take_handled(sig))
        if self._noted_signals:
            self._noted_signals.difference_update(data)
        super()._process_self_data(data)

    def _take_handled(self, sig):
        handled = sig in self._handled_signals
        self._handled_signals.discard(sig)
        return handled


class _Note:
    """The Python-level signal handler; does not keep the loop alive."""

    __slots__ = ("_loop",)

    def __init__(self, loop):
        self._loop = weakref.ref(loop)

    def __call__(self, sig, frame):
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop._note_signal(sig)
