"""Allocations that fail: a MemoryError or a report, and a loop that still works; never a crash."""

import pathlib
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
