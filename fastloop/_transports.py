"""Hooks of asyncio's loop for transports, where Python is fast enough."""

from . import _core


class TransportMixin:
    """Lends the fd of a SocketTransport."""

    async def _sendfile_native(self, transp, file, offset, count):
        """loop.sendfile() by sendfile(2): the fd is lent to sock_sendfile() meanwhile."""
        if not isinstance(transp, _core.SocketTransport):
            return await super()._sendfile_native(transp, file, offset, count)
        resume_reading = transp.is_reading()
        transp.pause_reading()
        await transp._make_empty_waiter()
        transp._lend_fd()
        try:
            return await self.sock_sendfile(transp._sock, file, offset, count, fallback=False)
        finally:
            transp._reset_empty_waiter()
            transp._take_fd_back()
            if resume_reading:
                transp.resume_reading()
