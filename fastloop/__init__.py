"""fastloop: asyncio's engine in plain C.

    import fastloop
    fastloop.run(main())

or `fastloop.install()` and asyncio as ever, or `loop_factory=fastloop.new_event_loop`.
"""

from ._core import Future, Handle, Task, TimerHandle
from ._executor import ThreadPoolExecutor
from ._live_tasks import show_in_all_tasks as _show_in_all_tasks
from .eager import create_eager_task_factory, eager_task_factory
from .loop import Loop
from .policy import EventLoopPolicy, install, new_event_loop, run

__version__ = "0.1.0"

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

_show_in_all_tasks()
del _show_in_all_tasks
