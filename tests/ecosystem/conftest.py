"""Third-party asyncio programs on fastloop, and on asyncio to know that the test itself is right.

A test says by `pytest.mark.ecosystem("library", ...)`, mostly on its whole module, which packages it shows at work. With
FASTLOOP_COMPAT=FILE set a line of JSON about each goes to that file: {"library", "version", "python", "passed", "tests"}.
The compatibility table in the documentation is made from those lines.
"""

import asyncio
import importlib.metadata
import json
import os
import platform
import resource

import pytest

import fastloop

FACTORIES = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}

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

    def run(main, *args, timeout=60):
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
