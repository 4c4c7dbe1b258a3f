"""Task factories that start a task's coroutine at once (Python 3.12 and later)."""

from . import _live_tasks  # noqa: F401
from ._core import Task


def create_eager_task_factory(custom_task_constructor):
    """Return a task factory whose tasks run to their first suspension before it returns.

    As asyncio.create_eager_task_factory(). `custom_task_constructor` is called with (coro, *, loop, name, context,
    eager_start) and returns the task: fastloop.Task or a subclass of it, as a rule. Python 3.12 and later.
    """

    def factory(loop, coro, *, name=None, context=None, eager_start=True):
        return custom_task_constructor(
            coro, loop=loop, name=name, context=context, eager_start=eager_start
        )

    return factory


eager_task_factory = create_eager_task_factory(Task)
eager_task_factory.__doc__ = """The eager task factory that makes fastloop.Task: for loop.set_task_factory().

Takes (loop, coro, *, name=None, context=None, eager_start=True), as asyncio.eager_task_factory() does, and returns the
Task, done already if the coroutine did not suspend. Python 3.12 and later.
"""
