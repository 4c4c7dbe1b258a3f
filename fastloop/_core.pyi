"""Types of the C core, but for what only fastloop's own files see.

What behaves as asyncio's is typed as asyncio's.
"""

import asyncio
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Executor
from contextvars import Context
from socket import socket
from typing import Any, TypeAlias, TypedDict, TypeVar, TypeVarTuple, Unpack, final, type_check_only

from _socket import _Address
from _typeshed import ReadableBuffer, WriteableBuffer
from typing_extensions import disjoint_base

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_Ts = TypeVarTuple("_Ts")

if sys.version_info >= (3, 12):
    _CoroutineLike: TypeAlias = Coroutine[Any, Any, _T]
else:
    _CoroutineLike: TypeAlias = Generator[Any, None, _T] | Coroutine[Any, Any, _T]

@type_check_only
class _Stats(TypedDict):
    ready: int
    timers: int
    fds: int
    transports: int
    executor_queue: int
    executor_threads: int
    turns: int
    polls: int
    steps: int
    bytes_in: int
    bytes_out: int
    slowest_turn: float
    slowest_callback: tuple[float, str] | None

@final
class Handle(asyncio.Handle):
    def get_context(self) -> Context: ...  # asyncio: since 3.12

@final
class TimerHandle(asyncio.TimerHandle):
    def get_context(self) -> Context: ...  # asyncio: since 3.12

@disjoint_base
class Future(asyncio.Future[_T]): ...

@disjoint_base
class Task(asyncio.Task[_T_co]):
    def __init__(
        self,
        coro: _CoroutineLike[_T_co],
        *,
        loop: AbstractEventLoop | None = None,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool = False,  # asyncio: since 3.12
    ) -> None: ...
    def get_context(self) -> Context: ...  # asyncio: since 3.12

@final
class SocketTransport(asyncio.Transport):
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...
    def write(self, data: bytes | bytearray | memoryview[Any]) -> None: ...
    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None: ...

@disjoint_base
class Loop:
    slow_callback_duration: float
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: Unpack[_Ts],
        context: Context | None = None,
    ) -> Handle: ...
    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: Unpack[_Ts],
        context: Context | None = None,
    ) -> Handle: ...
    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: Unpack[_Ts],
        context: Context | None = None,
    ) -> TimerHandle: ...
    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: Unpack[_Ts],
        context: Context | None = None,
    ) -> TimerHandle: ...
    def time(self) -> float: ...
    def create_future(self) -> Future[Any]: ...
    if sys.version_info >= (3, 13):
        def create_task(
            self,
            coro: _CoroutineLike[_T],
            *,
            name: object = None,
            context: Context | None = None,
            eager_start: bool | None = None,
        ) -> asyncio.Task[_T]: ...
    else:
        def create_task(
            self, coro: _CoroutineLike[_T], *, name: object = None, context: Context | None = None
        ) -> asyncio.Task[_T]: ...

    def stop(self) -> None: ...
    def is_running(self) -> bool: ...
    def is_closed(self) -> bool: ...
    def get_debug(self) -> bool: ...
    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: Unpack[_Ts]
    ) -> asyncio.Future[_T]: ...
    def sock_accept(self, sock: socket) -> Coroutine[Any, Any, tuple[socket, Any]]: ...
    def sock_connect(self, sock: socket, address: _Address) -> Coroutine[Any, Any, None]: ...
    def sock_recv(self, sock: socket, n: int) -> Coroutine[Any, Any, bytes]: ...
    def sock_recv_into(self, sock: socket, buf: WriteableBuffer) -> Coroutine[Any, Any, int]: ...
    def sock_recvfrom(
        self, sock: socket, bufsize: int
    ) -> Coroutine[Any, Any, tuple[bytes, Any]]: ...
    def sock_recvfrom_into(
        self, sock: socket, buf: WriteableBuffer, nbytes: int = 0
    ) -> Coroutine[Any, Any, tuple[int, Any]]: ...
    def sock_sendall(self, sock: socket, data: ReadableBuffer) -> Coroutine[Any, Any, None]: ...
    def sock_sendto(
        self, sock: socket, data: ReadableBuffer, address: _Address
    ) -> Coroutine[Any, Any, int]: ...
    def stats(self) -> _Stats: ...
