"""What the suites here share: the look at the running loop. SUITE_LOOP says whose it has to be."""

import asyncio
import os

import pytest

import fastloop


@pytest.fixture(scope="session")
def check():
    """A function to call on a running loop: is it the loop that SUITE_LOOP names?"""

    def check():
        ours = isinstance(asyncio.get_running_loop(), fastloop.Loop)
        assert ours == (os.environ["SUITE_LOOP"] == "fastloop")

    return check
