import asyncio
import sys
from asyncio import AbstractEventLoop, unix_events
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .loop import Loop

_T = TypeVar("_T")

if sys.version_info >= (3, 14):
    _BasePolicy = unix_events._DefaultEventLoopPolicy
else:
    _BasePolicy = asyncio.DefaultEventLoopPolicy

class EventLoopPolicy(_BasePolicy): ...

def new_event_loop() -> Loop: ...
def install() -> None: ...
def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], AbstractEventLoop] | None = None,
) -> _T: ...
