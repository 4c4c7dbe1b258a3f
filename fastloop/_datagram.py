"""Datagram transports: asyncio's own, with receiving and sending done in C."""

import socket
from asyncio import selector_events, transports

from . import _core

# Looked up once: who keeps tests off the network puts other classes in its place.
_Socket = socket.socket

# Families whose addresses the C code knows.
_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


_stock_sendto = selector_events._SelectorDatagramTransport.sendto


def sendto(self, data, addr=None):
    """asyncio's sendto() of Python 3.13.0 to 3.13.3 without the 8 bytes that it counts for each datagram that waits.

    It never takes them off, so that a protocol is paused for good in the end (gh-135444).
    """
    waiting = len(self._buffer)
    _stock_sendto(self, data, addr)
    if len(self._buffer) > waiting:
        self._buffer_size -= 8


class DatagramTransport(
    selector_events._SelectorDatagramTransport, transports.DatagramTransport
):
    """A datagram endpoint; made by loop.create_datagram_endpoint().

    An asyncio.DatagramTransport that behaves as asyncio's own.
    """

    def __init__(self, loop, sock, *args, **kwargs):
        super().__init__(loop, sock, *args, **kwargs)
        self._datagrams = _core.Datagrams(loop, self, sock)
        self.sendto = self._datagrams.sendto  # no Python frame per datagram

    # What sendto() falls back to.
    _sendto_slowly = sendto if 8 in _stock_sendto.__code__.co_consts else _stock_sendto

    def _add_reader(self, fd, callback, *args):
        super()._add_reader(fd, self._datagrams.receive)

    def _call_connection_lost(self, exc):
        try:
            super()._call_connection_lost(exc)
        finally:
            for name in "sendto", "_datagrams":  # the cycle through them
                self.__dict__.pop(name, None)


class DatagramMixin:
    """loop.create_datagram_endpoint() with DatagramTransport."""

    def _make_datagram_transport(self, sock, protocol, *args, **kwargs):
        if type(sock) is not _Socket or sock.family not in _FAMILIES:
            return super()._make_datagram_transport(sock, protocol, *args, **kwargs)
        self._ensure_fd_no_transport(sock)
        return DatagramTransport(self, sock, protocol, *args, **kwargs)
