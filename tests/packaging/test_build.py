"""The sdist and the wheel, and what a build that cannot succeed says."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytestmark = pytest.mark.timeout(900)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MEGABYTE = 1_000_000
LEFT_BEHIND = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "_build")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, so that building leaves nothing behind in the real one."""
    copy = tmp_path_factory.mktemp("checkout") / "fastloop"
    shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
    return copy


def build(kind, source, out):
    env = {**os.environ, "CFLAGS": os.environ.get("CFLAGS", "") + " -g0"}
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "-o", out, source]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = pathlib.Path(out).iterdir()
    return result


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    return build("--sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the sdist alone: what the sdist lacks is missed here."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return build("--wheel", source, tmp_path_factory.mktemp("wheel"))


def test_sdist_is_small_and_has_every_source(sdist):
    assert sdist.stat().st_size < MEGABYTE
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"src/{path.name}" for path in (ROOT / "src").glob("*.[ch]")}
    assert sources and sources <= packed
    assert {"LICENSE", "README.md", "CHANGELOG.md", "fastloop/py.typed"} <= packed
    assert {"docs/index.md", "docs/conf.py", "benchmarks/run.py", "tests/conftest.py"} <= packed
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]


def test_wheel_is_small_and_typed(wheel):
    assert wheel.stat().st_size < MEGABYTE
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        (metadata,) = [name for name in packed if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    modules = {f"fastloop/{path.name}" for path in (ROOT / "fastloop").glob("*.py*")}
    assert modules | {"fastloop/py.typed", "fastloop/_core.pyi"} <= packed
    assert [name for name in packed if name.endswith(".dist-info/entry_points.txt")]
    assert [name for name in packed if name.startswith("fastloop/_core.cpython-")]
    assert not [name for name in packed if name.endswith((".c", ".h"))]
    assert "Requires-Python: >=3.11" in text
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    assert all("extra == " in line for line in required), "a runtime dependency"


# Runs setup.py with another `sys` in place of its own; setuptools keeps the real one.
PRETENDING = """
import runpy, sys, sysconfig, types, setuptools
changes = {changes!r}
if "include" in changes:
    sysconfig.get_path = lambda name: changes["include"]
if "implementation" in changes:
    changes["implementation"] = types.SimpleNamespace(name=changes["implementation"])
def setup(_real=setuptools.setup, **keywords):
    sys.modules["sys"] = sys
    _real(**keywords)
setuptools.setup = setup
sys.argv = ["setup.py", {command!r}]
sys.modules["sys"] = types.SimpleNamespace(**{{**vars(sys), **changes}})
runpy.run_path("setup.py", run_name="__main__")
"""


def setup_py(checkout, command, env=None, **changes):
    """Run setup.py on a machine that looks different in the way that `changes` says."""
    return subprocess.run(
        [sys.executable, "-c", PRETENDING.format(changes=changes, command=command)],
        cwd=checkout,
        env={**os.environ, **(env or {})},
        text=True,
        capture_output=True,
        timeout=250,
    )


def complaint(done):
    """The one line that a refused build ends with, without a traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"platform": "win32"}, "needs epoll or kqueue"),
        ({"platform": "emscripten"}, "this platform is 'emscripten'"),
        ({"implementation": "pypy"}, "needs CPython 3.11 or newer; this is pypy 3."),
        ({"version_info": (3, 10, 13)}, "needs CPython 3.11 or newer; this is cpython 3.10."),
        ({"include": "/nowhere"}, "CPython's headers are not in '/nowhere'"),
    ],
)
def test_unsupported_build_says_what_is_missing(checkout, changes, expected):
    assert expected in complaint(setup_py(checkout, "build_ext", **changes))


def test_build_without_a_compiler_says_so(checkout, tmp_path):
    done = setup_py(checkout, "build_ext", env={"CC": "no-such-cc"})
    assert "the compiler 'no-such-cc' was not found" in complaint(done)
    done = setup_py(checkout, "build_ext", env={"CC": "cc", "PATH": str(tmp_path)})
    assert "the compiler 'cc' was not found" in complaint(done)


def test_unknown_poller_is_refused(checkout):
    done = setup_py(checkout, "--version", env={"FASTLOOP_POLLER": "select"})
    assert complaint(done) == "error: FASTLOOP_POLLER is 'select'; it may be epoll or kqueue."


def test_unsupported_platform_still_has_metadata(checkout):
    # So that resolvers can read an sdist anywhere and only the build itself refuses.
    done = setup_py(checkout, "--name", platform="win32")
    assert done.returncode == 0 and "fastloop" in done.stdout
