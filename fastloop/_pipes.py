"""Pipe transports: asyncio's own, with fewer copies of what goes through them, and larger pipes for bulk data."""

import collections
import fcntl
import itertools
import os
from asyncio import base_subprocess, streams, subprocess, unix_events
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


# What a pipe holds on Linux unless somebody asked for another size. With so little each side mostly
# waits for the other. The other side may read and write up to 256 KB at a time (cat of coreutils 9.5
# and later does): only through a pipe of several times that do both sides work at once.
_USUAL_SIZE = 65536
_LARGE_SIZE = 1048576  # the most that a user without privileges may ask for (pipe(7))
_FULL_TIMES = 4  # how often it was full before it is made larger
# Large pipes that one loop has at a time. A user without privileges gets 64 MB for all pipes of all programs, and
# beyond that each new pipe holds two pages (pipe(7), pipe-user-pages-soft): so much is left for others.
_LARGE_AT_ONCE = 4
_LEFT_FOR_OTHERS = 32  # new pipes of the usual size


def _others_have_room():
    """Whether pipes that the user's other programs make now get their usual size."""
    fds = []
    try:
        for _ in range(_LEFT_FOR_OTHERS):
            fds += os.pipe()
        return fcntl.fcntl(fds[-1], fcntl.F_GETPIPE_SZ) >= _USUAL_SIZE
    except OSError:
        return False
    finally:
        for fd in fds:
            os.close(fd)


class _Growing:
    """A pipe transport whose pipe grows once it was found full a few times."""

    _times_full = 0
    _large = False

    def _found_full(self):
        self._times_full += 1
        if self._times_full != _FULL_TIMES or self._loop._large_pipes >= _LARGE_AT_ONCE:
            return
        try:
            if fcntl.fcntl(self._fileno, fcntl.F_GETPIPE_SZ) != _USUAL_SIZE:
                return
            fcntl.fcntl(self._fileno, fcntl.F_SETPIPE_SZ, _LARGE_SIZE)
            if not _others_have_room():
                fcntl.fcntl(self._fileno, fcntl.F_SETPIPE_SZ, _USUAL_SIZE)
                return
        except (AttributeError, OSError):
            return  # not Linux, no pipe, or more than the user's share; or too much in it now to shrink
        self._large = True
        self._loop._large_pipes += 1

    def _call_connection_lost(self, exc):
        if self._loop is None:
            return  # a callback closed it while it was ending anyway
        if self._large:
            self._loop._large_pipes -= 1
        super()._call_connection_lost(exc)


_FEED_DATA = streams.StreamReader.feed_data
_PIPE_DATA_RECEIVED = subprocess.SubprocessStreamProtocol.pipe_data_received


def _reader_behind(protocol):
    """The StreamReader in which ends what `protocol` receives, if only asyncio's code is in between."""
    if type(protocol) is not base_subprocess.ReadSubprocessPipeProto:
        return None
    process = protocol.proc
    if type(process) is not unix_events._UnixSubprocessTransport or process._pending_calls is not None:
        return None
    target = process._protocol
    if (
        type(target) is not subprocess.SubprocessStreamProtocol
        or getattr(target.pipe_data_received, "__func__", None) is not _PIPE_DATA_RECEIVED
    ):
        return None
    reader = target.stdout if protocol.fd == 1 else target.stderr
    if (
        type(reader) is not streams.StreamReader
        or getattr(reader.feed_data, "__func__", None) is not _FEED_DATA
        or type(reader._buffer) is not bytearray
        or type(reader._limit) is not int
        or reader._eof
    ):
        return None
    return reader


class ReadPipeTransport(_Growing, unix_events._UnixReadPipeTransport):
    """The reading end of a pipe; made by loop.connect_read_pipe()."""

    def _read_ready(self):
        reader = _reader_behind(self._protocol)
        try:
            if reader is not None and self._read_into(reader):
                return
            data = self._loop._read_pipe(self._fileno, self.max_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._fatal_error(exc, "Fatal read error on pipe transport")
            return
        if data:
            if len(data) >= _USUAL_SIZE:
                self._found_full()
            self._protocol.data_received(data)
        else:
            self._ended()

    def _read_into(self, reader):
        """Read what is there into the StreamReader; False if that cannot be done."""
        buffer = reader._buffer
        before = len(buffer)
        # From a reader that keeps up, as much as does not quite make it pause the transport: it runs before the next
        # event. Else as much ahead as asyncio, which fills the buffer by reads of what a pipe usually holds.
        size = 2 * reader._limit + 1 - before
        if before:
            size += _USUAL_SIZE - 1
        elif size > _USUAL_SIZE:
            size -= 1
        if not 0 < size < self.max_size:
            size = self.max_size
        last = self._loop._read_pipe_into(self._fileno, size, buffer)
        if last is None:
            return False
        if last:
            if len(buffer) + 1 - before >= _USUAL_SIZE:
                self._found_full()
            reader.feed_data(last)  # wakes who waits, and pauses what is too fast
        else:
            self._ended()
        return True

    def _ended(self):
        loop = self._loop
        if loop.get_debug():
            logger.info("%r was closed by peer", self)
        self._closing = True
        loop._remove_reader(self._fileno)
        loop.call_soon(self._protocol.eof_received)
        loop.call_soon(self._call_connection_lost, None)


class WritePipeTransport(_Growing, unix_events._UnixWritePipeTransport):
    """The writing end of a pipe; made by loop.connect_write_pipe()."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._buffer = _Chunks()

    def write(self, data):
        """Write bytes, a bytearray or a memoryview of any shape; as asyncio.WriteTransport.write()."""
        if isinstance(data, memoryview) and not (data.c_contiguous and data.ndim == data.itemsize == 1):
            data = data.tobytes()  # asyncio counts elements of its first dimension where os.write() counts bytes
        super().write(data)

    def _write_ready(self):
        self._found_full()  # or there were nothing to wait for
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
        closing = self._closing
        self._maybe_resume_protocol()  # may write, or close, which ends by itself now that nothing waits
        if closing and self._loop is not None:
            self._loop._remove_reader(self._fileno)
            self._call_connection_lost(None)


class PipeMixin:
    """loop.connect_read_pipe() and connect_write_pipe() with these transports."""

    _large_pipes = 0

    def _make_read_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return WritePipeTransport(self, pipe, protocol, waiter, extra)
