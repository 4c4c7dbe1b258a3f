"""create_connection() to a literal address, without the detours of the general case."""

import functools
import socket
from asyncio import base_events

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


class ConnectMixin:
    """The common case of create_connection(); all else is asyncio's."""

    @functools.wraps(base_events.BaseEventLoop.create_connection)
    async def create_connection(self, protocol_factory, host=None, port=None, **options):
        found = None
        plain = not options and type(host) is str and type(port) is int and not self._debug
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
            transport = self._make_socket_transport(sock, protocol, waiter)
        except BaseException:
            sock.close()
            raise
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol
