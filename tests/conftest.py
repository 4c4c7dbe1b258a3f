"""What every test relies on: the package under test, and no silent skips in CI."""

import asyncio
import os
import pathlib
import signal

import pytest

import fastloop

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A subprocess of a test starts in the checkout, whose fastloop/ has no compiled core when the
# package is installed elsewhere. PYTHONPATH still works under a safe path.
os.environ.setdefault("PYTHONSAFEPATH", "1")

# A shell starts what it runs in the background, as CI's stages are, with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Reasons that a machine, not a Python version, gives for not running a test.
LACKING = ("needs ", "could not import ")

NEW_LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}


@pytest.fixture(params=NEW_LOOPS)
def loop(request):
    """A loop of each kind, for what holds for both."""
    loop = NEW_LOOPS[request.param]()
    yield loop
    if not loop.is_running():
        loop.close()


@pytest.fixture
def fast():
    """A fastloop loop."""
    loop = fastloop.new_event_loop()
    yield loop
    loop.close()


def in_ci():
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_report_header(config):
    return f"fastloop {fastloop.__version__} from {pathlib.Path(fastloop.__file__).parent}"


def pytest_configure(config):
    """FASTLOOP_INSTALLED=1: refuse to test a checkout in place of the installed wheel."""
    package = pathlib.Path(fastloop.__file__).resolve().parent
    if os.environ.get("FASTLOOP_INSTALLED") and package == ROOT / "fastloop":
        raise pytest.UsageError(f"fastloop comes from the checkout: {package}")


def fail_if_lacking(report):
    """In CI a test that skips because something is not installed has failed."""
    if not (in_ci() and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if reason.startswith(LACKING):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    fail_if_lacking(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    fail_if_lacking(report)
    return report
