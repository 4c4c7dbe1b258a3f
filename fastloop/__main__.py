"""`python -m fastloop SCRIPT [ARGS]` or `-m MODULE [ARGS]`: run a program on fastloop."""

import os
import runpy
import sys

from . import __version__, install

USAGE = """usage: python -m fastloop SCRIPT [ARGS ...]
       python -m fastloop -m MODULE [ARGS ...]

Run a Python program with fastloop as its event loop."""


def main():
    """Take the program from sys.argv and run it as __main__. Exit status 2 on wrong usage."""
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if args and args[0] in ("-V", "--version"):
        print(f"fastloop {__version__}")
        return
    as_module = args[:1] == ["-m"]
    if as_module:
        del args[0]
    if not args or args[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    install()
    sys.argv[:] = args
    if as_module:
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
        return
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.abspath(args[0]))
    runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    main()
