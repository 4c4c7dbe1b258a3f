"""What importing fastloop does to the interpreter: nothing that asyncio's own loop would notice."""

import subprocess
import sys


def test_imported_first_it_leaves_asyncio_its_c_classes():
    """asyncio silently falls back to its Python Task and Future when _asyncio is imported before it."""
    code = (
        "import fastloop, asyncio\n"
        "print(asyncio.Task.__module__, asyncio.Future.__module__, type(asyncio.current_task).__name__)\n"
        "async def main():\n"
        "    async with asyncio.timeout(60):\n"
        "        return type(asyncio.current_task()) is asyncio.Task\n"
        "with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:\n"
        "    print(runner.run(main()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    kind = "builtin_function_or_method" if sys.version_info >= (3, 12) else "function"
    assert done.stdout == f"_asyncio _asyncio {kind}\nTrue\n"
