"""A pytest-asyncio suite as a user writes it, on fastloop in each way pytest-asyncio has to choose a loop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop

pytest_asyncio = pytest.importorskip("pytest_asyncio")
pytest.importorskip("pytest_timeout")

HERE = Path(__file__).parent
UNITTESTS = HERE / "suite" / "suite_isolated.py"  # no plugin chooses a loop for these

# In suite/: 36 async tests, one of them expected to fail; one sync test with an async fixture; 2 of unittest.


def outcomes(*arguments, choice=""):
    """The last line of a run of the suite, without the time it took, and all it printed."""
    paths = [str(HERE), str(Path(fastloop.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    suite = HERE / "suite"
    done = subprocess.run(
        [sys.executable, *arguments, "-q", "-p", "no:cacheprovider"]
        + ["--rootdir", suite, "--confcutdir", suite, "-c", suite / "pytest.ini", suite],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTEST_ADDOPTS": "", "SUITE_CHOICE": choice},
        capture_output=True,
        text=True,
        timeout=250,
    )
    return done.stdout.strip().splitlines()[-1].partition(" in ")[0], done.stdout + done.stderr


def expect(wanted, output):
    last, everything = output
    assert last == wanted, everything


@pytest.mark.parametrize("dev", [[], ["-X", "dev"]], ids=["plain", "dev"])
def test_under_the_launcher(dev):
    """python -m fastloop -m pytest: nothing in the suite or its configuration knows of fastloop."""
    expect("38 passed, 1 xfailed", outcomes(*dev, "-m", "fastloop", "-m", "pytest"))


def test_parametrised_policy():
    expect("72 passed, 2 xfailed", outcomes("-m", "pytest", "--ignore", UNITTESTS, choice="by_policy"))


@pytest.mark.skipif(
    not hasattr(pytest_asyncio.plugin.PytestAsyncioSpecs, "pytest_asyncio_loop_factories"),
    reason="pytest-asyncio has the hook since 1.4",
)
@pytest.mark.parametrize(
    ("choice", "wanted"), [("by_factory", "71 passed, 2 xfailed"), ("by_one_factory", "36 passed, 1 xfailed")]
)
def test_loop_factories(choice, wanted):
    expect(wanted, outcomes("-m", "pytest", "--ignore", UNITTESTS, choice=choice))


def test_the_suite_notices_another_loop():
    """Else all of the above could have run on asyncio."""
    last, everything = outcomes("-m", "pytest")
    assert last == "1 xfailed, 38 errors", everything
