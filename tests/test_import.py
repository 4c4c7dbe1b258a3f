"""What importing fastloop does to the interpreter: nothing that asyncio's own loop would notice."""

import subprocess
import sys

import pytest


def test_imported_first_it_leaves_asyncio_its_c_classes():
    """asyncio silently falls back to its Python Task and Future when _asyncio is imported before it."""
    code = (
        "import fastloop; fastloop.Loop; import asyncio\n"
        "print(asyncio.Task.__module__, asyncio.Future.__module__, type(asyncio.current_task).__name__)\n"
        "async def main():\n"
        "    async with asyncio.timeout(60):\n"
        "        return type(asyncio.current_task()) is asyncio.Task\n"
        "with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:\n"
        "    print(runner.run(main()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=True)
    kind = "builtin_function_or_method" if sys.version_info >= (3, 12) else "function"
    assert done.stdout == f"_asyncio _asyncio {kind}\nTrue\n"


def test_importing_it_imports_nothing_else():
    """The pytest plugin is imported in every run of pytest; asyncio and the engine come with the first use."""
    code = (
        "import sys, fastloop\n"
        "print({'asyncio', 'fastloop._core'} & set(sys.modules), 'Loop' in dir(fastloop))\n"
        "from fastloop import Loop\n"
        "print(Loop is fastloop.loop.Loop is fastloop.Loop, fastloop._core is not None)\n"
        "try: fastloop.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=True)
    assert done.stdout == "set() True\nTrue True\nmodule 'fastloop' has no attribute 'nothing'\n"


KEPT_TO_THE_END = """
import asyncio, gc, fastloop
async def fail():
    future = asyncio.get_running_loop().create_future()
    raise ValueError
async def main():
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    task.exception().task = task
    asyncio.kept = task
with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
    runner.run(main())
gc.collect()
"""


@pytest.mark.parametrize("interpreter", ["main", "subinterpreter"])
def test_objects_that_live_as_long_as_the_interpreter(interpreter):
    """Its last collection clears the module before tasks and futures that are in a cycle."""
    code = KEPT_TO_THE_END
    if interpreter == "subinterpreter":
        module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
        # os._exit: 3.12.1 crashes at the end of a process in which a subinterpreter has run asyncio's own loop
        code = (
            f"import os, {module} as i; it = i.create(); failed = i.run_string(it, {code!r}); i.destroy(it)\n"
            "if failed: print(failed, flush=True)\n"
            "os._exit(0)"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
