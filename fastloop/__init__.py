"""fastloop: asyncio's engine in plain C.

    import fastloop
    fastloop.run(main())

or `fastloop.install()` and asyncio as ever, or `loop_factory=fastloop.new_event_loop`.

The names below are imported when the first of them is used: pytest, which loads the plugin in
this package whenever it runs, pays for nothing that it does not use. (That word to pytest:
PYTEST_DONT_REWRITE, or it warns when a program has imported fastloop before it.)
"""

import sys

__version__ = "0.1.0"

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
_EAGER = ["create_eager_task_factory", "eager_task_factory"]
if sys.version_info >= (3, 12):  # as asyncio: a program asks by hasattr() whether eager tasks can be had
    __all__ += _EAGER


def __getattr__(name):
    """Import the whole of fastloop at the first use of one of its names."""
    if name in _EAGER and name not in __all__:
        raise AttributeError(f"fastloop.{name} needs Python 3.12 or newer: older tasks cannot start eagerly")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _api

    globals().update((public, getattr(_api, public)) for public in __all__)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})
