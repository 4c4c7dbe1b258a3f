"""HTTP servers under wrk's load: 50 connections for a second, every single answer checked by a script inside wrk."""

import re
import shutil
import signal
import subprocess

import pytest


@pytest.fixture(scope="module")
def wrk():
    return shutil.which("wrk") or pytest.skip("needs wrk, of Debian's package of that name")


@pytest.fixture
def loop_name():
    return "fastloop"


@pytest.mark.parametrize(
    ("server", "status"),
    [
        pytest.param("aiohttp", 0, marks=pytest.mark.ecosystem("aiohttp")),
        pytest.param("uvicorn", -signal.SIGTERM, marks=pytest.mark.ecosystem("uvicorn")),
        pytest.param("starlette", -signal.SIGTERM, marks=pytest.mark.ecosystem("starlette")),
        pytest.param("tornado", 0, marks=pytest.mark.ecosystem("tornado")),
    ],
)
def test_every_answer_is_right(wrk, loop_name, start, apps, server, status):
    pytest.importorskip(server)
    program = start("number_server.py", server, loop_name)
    url = f"http://127.0.0.1:{program.port()}"
    load = [wrk, "-t1", "-c50", "-d1s", "--timeout", "30s", "-s", apps / "every_answer.lua", url]
    done = subprocess.run(load, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    figures = re.search(r"answers=(\d+) right=(\d+) wrong=(\d+) failed=(\d+)", done.stdout)
    answers, right, wrong, failed = map(int, figures.groups())
    assert answers == right > 0, done.stdout
    assert wrong == failed == 0, done.stdout
    program.stop(status=status)
