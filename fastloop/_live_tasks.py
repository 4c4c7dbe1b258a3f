"""asyncio.all_tasks() on Python 3.11 to 3.13 sees fastloop's tasks too.

There asyncio keeps every task in a WeakSet, and adding to it is the largest single cost of
making a task. The engine keeps its tasks in a list of its own; this gives asyncio's private
set a subclass that shows them as well, once, when this file is imported. (3.14 has such a
list itself.)
"""

import sys
import weakref
from asyncio import tasks

from . import _core


class _TaskSet(weakref.WeakSet):
    def __iter__(self):
        yield from super().__iter__()
        yield from _core._live_tasks()

    def __len__(self):
        return super().__len__() + len(_core._live_tasks())

    def __contains__(self, item):
        return super().__contains__(item) or item in _core._live_tasks()


if _core._keeps_live_tasks:
    if sys.version_info < (3, 12):
        tasks._all_tasks.__class__ = _TaskSet
    else:
        tasks._scheduled_tasks.__class__ = _TaskSet
