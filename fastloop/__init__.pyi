import sys

from . import eager as eager, loop as loop, policy as policy
from ._core import Future, Handle, Task, TimerHandle
from ._executor import ThreadPoolExecutor
if sys.version_info >= (3, 12):
    from .eager import create_eager_task_factory as create_eager_task_factory
    from .eager import eager_task_factory as eager_task_factory
from .loop import Loop
from .policy import EventLoopPolicy, install, new_event_loop, run

__version__: str

__all__ = [
    "EventLoopPolicy",
    "Future",
    "Handle",
    "Loop",
    "Task",
    "ThreadPoolExecutor",
    "TimerHandle",
    "install",
    "new_event_loop",
    "run",
]
if sys.version_info >= (3, 12):
    __all__ += ["create_eager_task_factory", "eager_task_factory"]
