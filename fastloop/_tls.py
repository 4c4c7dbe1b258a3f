"""TLS: asyncio's SSLProtocol with what runs for every record in C (src/tls.h)."""

import functools
from asyncio import base_events, sslproto, streams

from . import _core


class SSLTransport(_core.TLSTransport, sslproto._SSLProtocolTransport):
    """The transport that an application protocol gets over TLS."""


SSLTransport._bind_methods()


class SSLProtocol(_core.TLSProtocol, sslproto.SSLProtocol):
    """The protocol of the transport underneath: handshake, records, shutdown."""

    max_size = 0  # of a receive buffer that asyncio makes for each connection: we need none

    def _get_app_transport(self):
        if self._app_transport is None:
            if self._app_transport_created:
                raise RuntimeError("Creating _SSLProtocolTransport twice")
            self._app_transport = SSLTransport(self._loop, self)
            self._app_transport_created = True
        return self._app_transport


def _take_unread(protocol):
    """What the reader of an asyncio.StreamReaderProtocol holds; it holds nothing any more."""
    reader = None
    if isinstance(protocol, streams.StreamReaderProtocol):
        reader = protocol._stream_reader
    if reader is None or not reader._buffer:
        return b""
    unread = bytes(reader._buffer)
    reader._buffer.clear()
    return unread


class TLSMixin:
    """The hooks of asyncio's loop that make TLS transports."""

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
        """A TLS transport over a SocketTransport."""
        self._ensure_fd_no_transport(rawsock)
        context = {"context": options.pop("context")} if "context" in options else {}
        ssl_protocol = SSLProtocol(
            self, protocol, sslcontext, waiter, server_side, server_hostname, **options
        )
        self._make_socket_transport(
            rawsock, ssl_protocol, extra=extra, server=server, **context
        )
        return ssl_protocol._app_transport

    @functools.wraps(base_events.BaseEventLoop.start_tls)
    async def start_tls(
        self,
        transport,
        protocol,
        sslcontext,
        *,
        server_side=False,
        server_hostname=None,
        ssl_handshake_timeout=None,
        ssl_shutdown_timeout=None,
    ):
        ssl = sslproto.ssl
        if ssl is None:
            raise RuntimeError("Python ssl module is not available")
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter = self.create_future()
        ssl_protocol = SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        # Nothing is received before connection_made().
        transport.pause_reading()
        # What came already, unread, is the beginning of the peer's handshake or nothing that
        # may be trusted. 3.14 does the same, for servers.
        ssl_protocol._feed(_take_unread(protocol))
        transport.set_protocol(ssl_protocol)
        made = self.call_soon(ssl_protocol.connection_made, transport)
        resumed = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            made.cancel()
            resumed.cancel()
            waiter = None  # its exception refers to this frame
            raise
        return ssl_protocol._app_transport
