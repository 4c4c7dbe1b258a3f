"""Literal addresses: getaddrinfo() without a thread, create_connection() without its detours."""

import functools
import socket
from asyncio import base_events

_Socket = socket.socket  # programs put classes of their own in its place: asyncio's code makes those
_TYPE = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


def _literal(host, port):
    """(family, address) of a literal IPv4 or IPv6 address, else None."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family, (host, port) if family == socket.AF_INET else (host, port, 0, 0)
    return None


def _is_number(port):
    """A port that needs no look into the services database."""
    if isinstance(port, bytes):
        port = port.decode("ascii", "replace")
    return port is None or isinstance(port, int) or (isinstance(port, str) and port.isdecimal())


def _is_literal(host):
    """An IPv4 or IPv6 address as text, perhaps with a zone; what is unusual is not."""
    if type(host) is bytes:
        host = host.decode("ascii", "replace")
    return type(host) is str and _literal(host.partition("%")[0], 0) is not None


class ConnectMixin:
    """Literal addresses in getaddrinfo() and create_connection(); all else is asyncio's."""

    @functools.wraps(base_events.BaseEventLoop.getaddrinfo)
    async def getaddrinfo(self, host, port, *, family=0, type=0, proto=0, flags=0):
        if self._debug or not (_is_literal(host) and _is_number(port)):
            return await super().getaddrinfo(
                host, port, family=family, type=type, proto=proto, flags=flags
            )
        # The resolver answers these by itself, in microseconds: no thread is worth it.
        self._check_closed()
        return base_events.socket.getaddrinfo(host, port, family, type, proto, flags)

    @functools.wraps(base_events.BaseEventLoop.create_connection)
    async def create_connection(self, protocol_factory, host=None, port=None, **options):
        found = None
        plain = socket.socket is _Socket and not options and type(host) is str and type(port) is int and not self._debug
        if plain and base_events.socket is socket:  # a module in its place wants to be asked
            found = _literal(host, port)
        if found is None:
            return await super().create_connection(protocol_factory, host, port, **options)
        family, address = found
        sock = socket.socket(family, _TYPE, socket.IPPROTO_TCP)
        try:
            if sock.gettimeout() != 0:
                sock.setblocking(False)
            await self.sock_connect(sock, address)
            protocol = protocol_factory()
            waiter = self.create_future()
        except BaseException:
            sock.close()
            raise
        # From here on the socket is the transport's to close, also if an interrupt keeps it from being returned.
        transport = self._make_socket_transport(sock, protocol, waiter)
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol


# asyncio's own has none for wraps() to copy.
ConnectMixin.getaddrinfo.__doc__ = """Resolve host and port to a list of (family, type, proto, canonname, sockaddr).

As socket.getaddrinfo(), in a thread unless the host is a literal address. Raises socket.gaierror.
"""
