from . import eager as eager, loop as loop, policy as policy
from ._core import Future, Handle, Task, TimerHandle
from ._executor import ThreadPoolExecutor
from .eager import create_eager_task_factory, eager_task_factory
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
    "create_eager_task_factory",
    "eager_task_factory",
    "install",
    "new_event_loop",
    "run",
]
