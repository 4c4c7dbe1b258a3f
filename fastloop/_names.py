"""What the loop calls its slowest callback outside debug mode: by names and lines that are there, without the program's repr()."""

import functools
import types
from asyncio import coroutines

from ._core import Task


def _function(function):
    code = function.__code__
    return f"{function.__qualname__}() at {code.co_filename}:{code.co_firstlineno}"


def _callback(callback):
    kind = type(callback)
    while kind is functools.partial:
        callback = callback.func
        kind = type(callback)
    if kind is types.MethodType:
        callback = callback.__func__
        kind = type(callback)
    if kind is types.FunctionType:
        return _function(callback)
    if kind is types.BuiltinFunctionType:
        return f"{callback.__qualname__}()"
    return f"{kind.__qualname__} object"


def _task(task):
    coro = task.get_coro()
    if type(coro) is types.CoroutineType:
        return f"<{type(task).__name__} name={task.get_name()!r} coro=<{coroutines._format_coroutine(coro)}>>"
    return f"<{type(task).__name__} name={task.get_name()!r} coro=<{type(coro).__qualname__} object>>"


def plain_name(entry):
    """Return a str that names a handle, a task or a transport of the ready queue."""
    if isinstance(entry, Task):
        return _task(entry)
    callback = getattr(entry, "_callback", None)
    if callback is None:
        return f"<{type(entry).__name__}>"
    if type(callback) is types.BuiltinFunctionType and isinstance(callback.__self__, Task):
        return _task(callback.__self__)
    when = f"when={entry.when()} " if hasattr(entry, "when") else ""
    return f"<{type(entry).__name__} {when}{_callback(callback)}>"
