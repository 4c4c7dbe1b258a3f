"""Third-party asyncio programs on fastloop, and on asyncio to know that the test itself is right.

A test says by `pytest.mark.ecosystem("library", ...)`, mostly on its whole module, which packages it shows at work. With
FASTLOOP_COMPAT=FILE set a line of JSON about each goes to that file: {"library", "version", "python", "passed", "tests"}.
The compatibility table in the documentation is made from those lines.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fastloop

FACTORIES = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}

APPS = Path(__file__).parent / "apps"

# A program does not outlive a test run that is killed.
WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []

# What the tests on fastloop came to: {library: [passed or not, ...]}.
OUTCOMES = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[OUTCOMES] = {}
    config.addinivalue_line("markers", "ecosystem(library, ...): the packages that the test shows at work on fastloop")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("loop_name") != "asyncio" and (report.failed or (report.when == "call" and report.passed)):
        for library in {name for mark in item.iter_markers("ecosystem") for name in mark.args}:
            item.config.stash[OUTCOMES].setdefault(library, []).append(report.passed)
    return report


def pytest_sessionfinish(session):
    if not (path := os.environ.get("FASTLOOP_COMPAT")):
        return
    with open(path, "a") as file:
        for library, outcomes in sorted(session.config.stash[OUTCOMES].items()):
            line = {
                "library": library,
                "version": importlib.metadata.version(library),
                "python": platform.python_version(),
                "passed": all(outcomes),
                "tests": len(outcomes),
            }
            file.write(json.dumps(line) + "\n")


@pytest.fixture(params=FACTORIES)
def loop_name(request):
    return request.param


@pytest.fixture
def loop_factory(loop_name):
    return FACTORIES[loop_name]


@pytest.fixture
def check_loop(loop_name):
    """A function to call wherever a library runs our code: is this the loop and the task it should be?"""

    def check(task_is_ours=True):
        ours = loop_name == "fastloop"
        assert isinstance(asyncio.get_running_loop(), fastloop.Loop) == ours
        assert isinstance(asyncio.current_task(), fastloop.Task) == (ours and task_is_ours)
        assert isinstance(asyncio.get_running_loop().create_future(), fastloop.Future) == ours

    return check


@pytest.fixture
def run(loop_factory, check_loop):
    """Run one coroutine function to its end, as asyncio.run does, and fail on anything the loop complains about."""

    def run(main, *args, timeout=280):
        complaints = []

        async def checked():
            check_loop()
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            async with asyncio.timeout(timeout):
                return await main(*args)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            result = runner.run(checked())
        assert complaints == []
        return result

    return run


@pytest.fixture
def many_files():
    """Room for a thousand connections with both ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Program:
    """A Python program with all that it starts, in a process group of its own; its output is read as it comes."""

    def __init__(self, *arguments, cwd=APPS, **environment):
        # What was imported here can be imported there, whatever PYTHONSAFEPATH says.
        paths = [Path(fastloop.__file__).parent.parent, cwd, os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
        self.process = subprocess.Popen(
            [*WITH_US, sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines, self.ended, self.news = [], False, threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()

    @property
    def output(self):
        return "".join(self.lines)

    def expect(self, pattern, times=1):
        """Wait until `pattern` has been printed `times` times; the matches."""
        with self.news:
            self.news.wait_for(lambda: self.ended or len(re.findall(pattern, self.output)) >= times, timeout=250)
            matches = list(re.finditer(pattern, self.output))
        assert len(matches) >= times, f"waited for {pattern!r}, got:\n{self.output}"
        return matches

    def port(self, pattern=r"https?://127\.0\.0\.1:(\d+)"):
        """The port that the program says it listens on, once it does: some print it before."""
        port, deadline = int(self.expect(pattern)[0][1]), time.monotonic() + 250
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return port
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.output
                time.sleep(0.01)

    def stop(self, number=signal.SIGTERM, status=0, known=None):
        """Send the signal, check that the program ends with `status` and without a traceback; all it printed.

        `known` is a pattern of what is not looked at: a traceback that the program logs on every loop.
        """
        self.process.send_signal(number)
        return self.finish(status, known)

    def finish(self, status=0, known=None):
        assert self.process.wait(250) == status, self.output
        self.reader.join(250)  # ends when no child of the program is left
        assert not self.reader.is_alive(), f"a child outlived the program:\n{self.output}"
        unexplained = re.sub(known, "", self.output) if known else self.output
        assert "Traceback (most" not in unexplained, self.output
        return self.output

    def clean_up(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def apps():
    """The folder of the programs that tests start."""
    return APPS


@pytest.fixture(scope="session")
def asgi_app():
    """apps/asgi_app.py as a module."""
    spec = importlib.util.spec_from_file_location("asgi_app", APPS / "asgi_app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start():
    """start(ARGUMENT...): a Python program that is gone when the test is over."""
    programs = []

    def start(*arguments, **kwargs):
        programs.append(Program(*arguments, **kwargs))
        return programs[-1]

    yield start
    for program in programs:
        program.clean_up()
