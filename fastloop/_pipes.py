"""Pipe transports: asyncio's own, with fewer copies of what goes through them."""

import collections
import itertools
import os
from asyncio import unix_events
from asyncio.log import logger

# Chunks given to one writev(); IOV_MAX is 1024 on Linux, macOS and the BSDs.
_CHUNKS_AT_ONCE = 64


class _Chunks:
    """What waits to be written; stands in the place of asyncio's bytearray.

    Keeps what is immutable as it is, where a bytearray would copy it, and copy what is left
    again and again as it shrinks.
    """

    __slots__ = ("_parts", "_size")

    def __init__(self):
        self._parts = collections.deque()
        self._size = 0

    def __len__(self):
        return self._size

    def __iadd__(self, data):
        view = data if isinstance(data, memoryview) else memoryview(data)
        if type(view.obj) is not bytes or not view.c_contiguous:
            view = memoryview(view.tobytes())
        self._parts.append(view.cast("B"))
        self._size += view.nbytes
        return self

    def clear(self):
        self._parts.clear()
        self._size = 0

    def write(self, fd):
        """Write what the kernel takes now and forget it."""
        sent = os.writev(fd, tuple(itertools.islice(self._parts, _CHUNKS_AT_ONCE)))
        self._size -= sent
        while sent:
            part = self._parts.popleft()
            if len(part) > sent:
                self._parts.appendleft(part[sent:])
                break
            sent -= len(part)


class ReadPipeTransport(unix_events._UnixReadPipeTransport):
    """The reading end of a pipe; made by loop.connect_read_pipe()."""

    def _read_ready(self):
        loop = self._loop
        try:
            data = loop._read_pipe(self._fileno, self.max_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._fatal_error(exc, "Fatal read error on pipe transport")
            return
        if data:
            self._protocol.data_received(data)
            return
        if loop.get_debug():
            logger.info("%r was closed by peer", self)
        self._closing = True
        loop._remove_reader(self._fileno)
        loop.call_soon(self._protocol.eof_received)
        loop.call_soon(self._call_connection_lost, None)


class WritePipeTransport(unix_events._UnixWritePipeTransport):
    """The writing end of a pipe; made by loop.connect_write_pipe()."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._buffer = _Chunks()

    def _write_ready(self):
        try:
            self._buffer.write(self._fileno)
        except (BlockingIOError, InterruptedError):
            return
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._buffer.clear()
            self._conn_lost += 1
            # asyncio's order: _fatal_error() leaves a writer without a buffer alone
            self._loop._remove_writer(self._fileno)
            self._fatal_error(exc, "Fatal write error on pipe transport")
            return
        if self._buffer:
            return
        self._loop._remove_writer(self._fileno)
        self._maybe_resume_protocol()  # may write
        if self._closing:
            self._loop._remove_reader(self._fileno)
            self._call_connection_lost(None)


class PipeMixin:
    """loop.connect_read_pipe() and connect_write_pipe() with these transports."""

    def _make_read_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return WritePipeTransport(self, pipe, protocol, waiter, extra)
