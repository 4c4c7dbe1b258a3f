"""Hooks of asyncio's loop for transports, where Python is fast enough."""

import asyncio

from . import _core


class TransportMixin:
    """Lends the fd of a SocketTransport."""

    async def _sendfile_native(self, transp, file, offset, count):
        """loop.sendfile() by sendfile(2): the fd is lent to sock_sendfile() meanwhile.

        Raises ConnectionError if the transport is closed before all is sent; asyncio's waits for ever then.
        """
        if not isinstance(transp, _core.SocketTransport):
            return await super()._sendfile_native(transp, file, offset, count)
        resume_reading = transp.is_reading()
        transp.pause_reading()
        try:
            await transp._make_empty_waiter()
            lost = transp._lend_fd()
            sending = self.create_task(self.sock_sendfile(transp._sock, file, offset, count, fallback=False))
            try:
                await asyncio.wait((sending, lost), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not sending.done():
                    sending.cancel()
                    await asyncio.wait((sending,))
                if not lost.cancel():
                    lost.exception()  # looked at: nobody need be told that nobody did
            return lost.result() if sending.cancelled() else sending.result()
        finally:
            transp._reset_empty_waiter()
            transp._take_fd_back()
            if resume_reading:
                transp.resume_reading()
