"""Hooks of asyncio's loop that make transports, where Python is fast enough."""

from asyncio import sslproto

from . import _core


class TransportMixin:
    """Puts fastloop's SocketTransport under what asyncio builds on its own."""

    def _make_ssl_transport(
        self,
        rawsock,
        protocol,
        sslcontext,
        waiter=None,
        *,
        server_side=False,
        server_hostname=None,
        extra=None,
        server=None,
        **options,
    ):
        """A TLS transport: asyncio's SSLProtocol over a SocketTransport."""
        self._ensure_fd_no_transport(rawsock)
        context = {"context": options.pop("context")} if "context" in options else {}
        ssl_protocol = sslproto.SSLProtocol(
            self, protocol, sslcontext, waiter, server_side, server_hostname, **options
        )
        self._make_socket_transport(
            rawsock, ssl_protocol, extra=extra, server=server, **context
        )
        return ssl_protocol._app_transport

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
