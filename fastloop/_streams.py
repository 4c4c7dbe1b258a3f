"""What an asyncio.StreamReader becomes when it begins to read from a SocketTransport."""

import asyncio
import weakref
from asyncio import trsock

from ._core import _begin_read, _end_read, _flush_writes, _take_exactly, _take_until

_Stock = asyncio.StreamReader


class StreamReader(_Stock):
    """An asyncio.StreamReader whose read() receives into the very bytes object that it returns.

    asyncio's read() copies it out of the reader's buffer. What the other methods find in the buffer they take out at once.
    The class of a stock reader is changed to this one when its connection is made; subclasses and other readers are left as
    they are.
    """

    __slots__ = ()

    def exception(self):
        """As asyncio.StreamReader.exception().

        asyncio.StreamWriter.drain() begins with it: what was gathered until the end of the loop's turn is sent then, so
        that after drain() it is with the kernel, as on asyncio.
        """
        _flush_writes(self)
        return self._exception

    async def read(self, n=-1):
        """As asyncio.StreamReader.read()."""
        waiter = _begin_read(self, n)
        if waiter is None:  # something is there already, or has to be raised, or is unusual
            return await _Stock.read(self, n)
        try:
            await waiter
        except BaseException:
            self._waiter = None
            _end_read(self, 0)
            raise
        data = _end_read(self, n)
        return await _Stock.read(self, n) if data is None else data

    async def readline(self):
        """As asyncio.StreamReader.readline()."""
        searched = 0
        while type(line := _take_until(self, b"\n", searched)) is not bytes:
            if line is None:
                return await _Stock.readline(self)
            searched = len(self._buffer)
            try:
                await line
            finally:
                self._waiter = None
        return line

    async def readuntil(self, separator=b"\n"):
        """As asyncio.StreamReader.readuntil()."""
        searched = 0
        while type(data := _take_until(self, separator, searched)) is not bytes:
            if data is None:
                return await _Stock.readuntil(self, separator)
            searched = max(0, len(self._buffer) + 1 - len(separator))
            try:
                await data
            finally:
                self._waiter = None
        return data

    async def readexactly(self, n):
        """As asyncio.StreamReader.readexactly()."""
        while type(data := _take_exactly(self, n)) is not bytes:
            if data is None:
                return await _Stock.readexactly(self, n)
            try:
                await data
            finally:
                self._waiter = None
        return data


class TransportSocket(trsock.TransportSocket):
    """The socket that get_extra_info("socket") gives.

    What the transport has gathered until the end of the loop's turn is sent before the program uses the socket itself.
    """

    __slots__ = ("_transport",)

    def __init__(self, sock, transport):
        self._sock = sock
        self._transport = weakref.ref(transport)

    def _flush(self):
        transport = self._transport()
        if transport is not None:
            transport._flush()

    def fileno(self):
        """As socket.fileno()."""
        self._flush()
        return super().fileno()

    def dup(self):
        """As socket.dup()."""
        self._flush()
        return super().dup()

    def setsockopt(self, *args, **kwargs):
        """As socket.setsockopt()."""
        self._flush()
        return super().setsockopt(*args, **kwargs)

    def shutdown(self, how):
        """As socket.shutdown()."""
        self._flush()
        super().shutdown(how)
