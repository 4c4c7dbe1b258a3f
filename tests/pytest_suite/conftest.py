"""What is in suite/ and plugins/ is run in a pytest of its own, by the tests beside them."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

import fastloop

collect_ignore = ["suite", "plugins"]


@pytest.fixture(scope="session")
def entry_point(tmp_path_factory):
    """A folder for PYTHONPATH that lets pytest find the plugin, as an installed fastloop does by itself."""
    folder = tmp_path_factory.mktemp("entry_point")
    if not importlib.metadata.entry_points(group="pytest11", name="fastloop"):
        info = folder / "fastloop-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastloop\nVersion: 0\n")
        (info / "entry_points.txt").write_text("[pytest11]\nfastloop = fastloop.pytest_plugin\n")
    return folder


@pytest.fixture
def run_python(entry_point):
    """Run a Python in which the plugin is installed; its exit code and all it printed."""

    def run_python(*arguments, cwd, loop="fastloop", packages=(), **environ):
        package = pathlib.Path(fastloop.__file__).parent.parent
        path = [*packages, entry_point, package, os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, map(str, path))), "PYTEST_ADDOPTS": "", "SUITE_LOOP": loop}
            | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=140,
        )
        return done.returncode, done.stdout

    return run_python
