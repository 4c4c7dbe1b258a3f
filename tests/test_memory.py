"""Allocations that fail: a MemoryError or a report, and a loop that still works; never a crash. And memory that is kept."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

pytest.importorskip("_testcapi", reason="needs CPython's _testcapi")

PROGRAM = pathlib.Path(__file__).with_name("memory_program.py")


@pytest.mark.timeout(900)
def test_allocations_that_fail():
    done = subprocess.run(
        [sys.executable, PROGRAM, "0", "250", "23"], capture_output=True, text=True, timeout=880
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-3000:]


LARGE_MESSAGES = """
import resource, fastloop
loop = fastloop.new_event_loop()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = faults()
    for _ in range(100):
        [bytes(100 * 1024) for _ in range(4)]
print(faults() - before)
loop.close()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="it has its own allocator")
def test_memory_of_large_messages_is_kept():
    """Every four of them would be 100 page faults if malloc() gave it back to the kernel; see keep_freed_memory() in loop.c."""
    done = subprocess.run([sys.executable, "-c", LARGE_MESSAGES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
