"""What `fastloop` offers, imported together when the first of its names is used: __init__.py."""

from ._core import Future, Handle, Task, TimerHandle  # noqa: F401
from ._executor import ThreadPoolExecutor  # noqa: F401
from .eager import create_eager_task_factory, eager_task_factory  # noqa: F401
from .loop import Loop  # noqa: F401
from .policy import EventLoopPolicy, install, new_event_loop, run  # noqa: F401
