import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Protocol, TypeVar, type_check_only

from ._core import Task

_T_co = TypeVar("_T_co", covariant=True)
_Task_co = TypeVar("_Task_co", bound=asyncio.Task[Any], covariant=True)

@type_check_only
class _TaskConstructor(Protocol[_Task_co]):
    def __call__(
        self,
        coro: Coroutine[Any, Any, Any],
        /,
        *,
        loop: AbstractEventLoop,
        name: str | None,
        context: Context | None,
        eager_start: bool,
    ) -> _Task_co: ...

@type_check_only
class _TaskFactory(Protocol[_Task_co]):
    def __call__(
        self,
        loop: AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool = True,
    ) -> _Task_co: ...

def create_eager_task_factory(
    custom_task_constructor: _TaskConstructor[_Task_co],
) -> _TaskFactory[_Task_co]: ...
def eager_task_factory(
    loop: AbstractEventLoop | None,
    coro: Coroutine[Any, Any, _T_co],
    *,
    name: str | None = None,
    context: Context | None = None,
    eager_start: bool = True,
) -> Task[_T_co]: ...
