"""A chain of our objects, each the only one to hold the next, is freed in a thread with a small stack, however long."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, gc, sys, threading
import fastloop

kind, way = sys.argv[1:]
LENGTH = 100_000


def nothing(*args):
    pass


def link(loop, last):
    if kind == "handle":
        handle = loop.call_soon(nothing, last)
        loop._ready_kept.append(handle)
        return handle
    if kind == "timer":
        return loop.call_later(1e6, nothing, last)
    future = loop.create_future()
    if kind == "future":
        future.set_result(last)
    else:
        future.add_done_callback(lambda f, last=last: last)
    return future


def chain():
    loop = fastloop.new_event_loop()
    loop._ready_kept = []
    last = None
    for _ in range(LENGTH):
        last = link(loop, last)
    return loop, last


def main():
    loop, last = chain()
    if way == "close":
        loop._ready_kept.clear()
        loop.close()
        last = None
    elif way == "collect":
        cycle = [loop, last]
        cycle.append(cycle)
        del loop, last, cycle
        gc.collect()
    else:
        loop.close()
        loop._ready_kept.clear()
        last = None
    print("freed")


threading.stack_size(128 * 1024)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("way", ["drop", "close", "collect"])
@pytest.mark.parametrize("kind", ["handle", "timer", "future", "callback"])
def test_a_long_chain_is_freed(kind, way):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, kind, way], capture_output=True, text=True, timeout=280
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "freed\n", "")
