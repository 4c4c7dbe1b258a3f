"""`python -m asyncio ps PID` and `pstree PID` (3.14) read tasks out of a running process: as many, with the same names,
stacks and awaiters, as in the same program on asyncio."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 14), reason="these tools came with Python 3.14"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only root may read another process"),
]

# A tree of tasks. It says "stands" when each of them waits, and ends with its standard input, whatever becomes of the test.
PROGRAM = """
import asyncio, ctypes, os, socket, sys

LOOP, LAST = sys.argv[1:]
arrivals = 0

async def leaf(last=False):
    global arrivals
    arrivals += 1
    if arrivals == 8:
        if LAST == "runs":
            print("stands", flush=True)
            sys.stdin.read()
        asyncio.get_running_loop().call_soon(lambda: print("stands", flush=True))
    await asyncio.Event().wait()

async def middle():
    await leaf()

async def wait_for(task):
    await task

async def grouped():
    async with asyncio.TaskGroup() as group:
        group.create_task(middle(), name="member")
        group.create_task(middle(), name="eager member", eager_start=True)
        group.create_task(leaf())

async def gathered():
    await asyncio.gather(leaf(), asyncio.create_task(middle(), name="named"))

async def main():
    loop = asyncio.get_running_loop()
    loop.add_reader(0, os._exit, 0)
    async with asyncio.TaskGroup() as group:
        group.create_task(grouped(), name="grouped")
        group.create_task(gathered()).set_name("gathered")
        shared = group.create_task(middle(), name="shared")
        group.create_task(wait_for(shared), name="one")
        group.create_task(wait_for(shared), name="other")
        group.create_task(asyncio.wait_for(leaf(), 3600), name="in time")
        async with asyncio.timeout(3600):
            await asyncio.shield(leaf())

async def operation():
    loop = asyncio.get_running_loop()
    loop.add_reader(0, os._exit, 0)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    receiving = loop.create_task(loop.sock_recv(ours, 1), name="receiving")
    loop.call_later(0, lambda: print("stands", flush=True))
    await receiving

ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody may look, not only root
if LOOP == "fastloop":
    import fastloop
factory = fastloop.new_event_loop if LOOP == "fastloop" else asyncio.SelectorEventLoop
asyncio.run(operation() if LAST == "operation" else main(), loop_factory=factory)
"""


@contextlib.contextmanager
def standing(folder, loop, last):
    """The process of the program, once all of its tasks wait; the last one waits or `runs`."""
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    paths = [Path(fastloop.__file__).parent.parent, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, program, loop, last]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout.readline() == "stands\n"
            yield process
        finally:
            process.kill()


def look(tool, process):
    command = [sys.executable, "-X", "utf8", "-m", "asyncio", tool, str(process.pid)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=250)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    return done.stdout


def table(text):
    """What `ps` printed, without addresses and process ids, in any order."""
    header, ruler, *rows = text.splitlines()
    assert header.split() == "tid task id task name coroutine stack awaiter chain awaiter name awaiter id".split()
    return sorted(" ".join(re.sub("0x[0-9a-f]+", "0x", row).split()[1:]) for row in rows)


def branches(text):
    """What `pstree` printed, as the path of each line from its root, in any order."""
    paths, path = [], []
    for line in text.splitlines():
        indent, label = re.fullmatch(r"([ │├└─]*)(.*)", line).groups()
        path = [*path[: len(indent) // 4 - 1], label]
        paths.append(path)
    return sorted(paths)


@pytest.mark.parametrize("last", ["waits", "runs"])
def test_table_and_tree_are_those_of_asyncio(tmp_path, last):
    seen = {}
    for loop in ("asyncio", "fastloop"):
        with standing(tmp_path, loop, last) as process:
            seen[loop] = table(look("ps", process)), branches(look("pstree", process))
    rows, paths = seen["fastloop"]
    assert (rows, paths) == seen["asyncio"]
    assert len(rows) == 15  # 13 tasks, of which one has three awaiters
    names = ["Task-1", "grouped", "gathered", "shared", "one", "other", "in time", "member", "eager member", "named"]
    assert {path[-1] for path in paths} >= {f"(T) {name}" for name in names}
    assert any(path[0] == "(T) Task-1" and path[-1].startswith("leaf ") and "(T) member" in path for path in paths)


def test_a_task_whose_coroutine_is_not_the_interpreters_has_a_name_and_no_stack(tmp_path):
    with standing(tmp_path, "fastloop", "operation") as process:
        assert table(look("ps", process)) == ["0x Task-1 operation 0x", "0x receiving operation Task-1 0x"]


def test_printed_call_graph_is_that_of_asyncio():
    async def leaf(event):
        await event.wait()

    async def gathered(event):
        await asyncio.gather(leaf(event), leaf(event))

    async def main():
        event = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(leaf(event), name="waiting")
            group.create_task(gathered(event), name="gathered")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            graphs = [asyncio.format_call_graph(task) for task in [waiting, *asyncio.all_tasks()]]
            event.set()
        return [re.sub(r"Task-\d+|0x[0-9a-f]+", "", graph) for graph in graphs]

    theirs = asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop)
    ours = fastloop.run(main())
    assert ours[0] == theirs[0] and sorted(ours) == sorted(theirs)
    assert len(theirs) == 6 and "leaf()" in theirs[0] and "main()" in theirs[0]
