"""How a program says that fastloop's loop is the one to use."""

import asyncio
import sys
from asyncio import events, unix_events

from .loop import Loop

# 3.14 deprecates policies: the public names of these warn there.
if sys.version_info >= (3, 14):
    _BasePolicy = unix_events._DefaultEventLoopPolicy
    _set_policy = events._set_event_loop_policy
else:
    _BasePolicy = asyncio.DefaultEventLoopPolicy
    _set_policy = asyncio.set_event_loop_policy


class EventLoopPolicy(_BasePolicy):
    """asyncio's default policy, but new_event_loop() gives a fastloop.Loop.

    For `asyncio.set_event_loop_policy(fastloop.EventLoopPolicy())`. Policies are deprecated
    since Python 3.14: prefer fastloop.run() or `loop_factory=fastloop.new_event_loop`.
    """

    _loop_factory = Loop


def new_event_loop():
    """Return a new fastloop.Loop, for `loop_factory=`. Raises OSError as Loop() does."""
    return Loop()


def install():
    """Make asyncio.run() and asyncio.new_event_loop() use fastloop, in the whole process.

    Sets an EventLoopPolicy, on Python 3.14 and later without the deprecation warning.
    """
    _set_policy(EventLoopPolicy())


def run(main, *, debug=None, loop_factory=None):
    """Run the coroutine `main` on a new fastloop.Loop and return its result.

    As asyncio.run(): afterwards all tasks are cancelled, asynchronous generators and the
    default executor (within 5 minutes) are shut down, and the loop is closed. `debug`: bool,
    or None for asyncio's default. `loop_factory`: callable giving the loop, None for
    fastloop.new_event_loop. Raises RuntimeError inside a running loop and ValueError
    (TypeError since 3.14) if `main` is no coroutine.
    """
    if events._get_running_loop() is not None:
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")
    factory = new_event_loop if loop_factory is None else loop_factory
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)
