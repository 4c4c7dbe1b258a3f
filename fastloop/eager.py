"""Task factories that start a task's coroutine at once (Python 3.12 and later)."""

from . import _live_tasks  # noqa: F401
from ._core import Task


def create_eager_task_factory(custom_task_constructor):
    """Return a task factory that makes tasks by custom_task_constructor(coro, ...,
    eager_start=True), as asyncio.create_eager_task_factory() does."""

    def factory(loop, coro, *, name=None, context=None, eager_start=True):
        return custom_task_constructor(
            coro, loop=loop, name=name, context=context, eager_start=eager_start
        )

    return factory


eager_task_factory = create_eager_task_factory(Task)
