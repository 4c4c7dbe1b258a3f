"""What an asyncio.StreamReader becomes when it begins to read from a SocketTransport."""

import asyncio

from ._core import _begin_read, _end_read


class StreamReader(asyncio.StreamReader):
    """An asyncio.StreamReader whose read() receives into the very bytes object that it returns.

    asyncio's read() copies it out of the reader's buffer. The class of a stock reader is changed
    to this one when its connection is made; subclasses and other readers are left as they are.
    """

    __slots__ = ()

    async def read(self, n=-1):
        """As asyncio.StreamReader.read()."""
        waiter = _begin_read(self, n)
        if waiter is None:  # something is there already, or has to be raised, or is unusual
            return await super().read(n)
        try:
            await waiter
        except BaseException:
            self._waiter = None
            _end_read(self, 0)
            raise
        data = _end_read(self, n)
        return await super().read(n) if data is None else data
