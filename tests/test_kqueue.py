"""The kqueue poller, on Linux: fastloop built with it, under the tests of loop and transports.

Debian has no libkqueue any more, and libkqueue 2.7 forgets half-closed peers when a fd has
both filters, does not notice closed fds and waits in whole milliseconds. So the extension is
linked with tests/kqueue_on_epoll, where each filter is an epoll of its own. What this cannot
show is how the kernels of macOS and the BSDs behave beside their manuals.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

import fastloop

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
SHIM = HERE / "kqueue_on_epoll"
COMPILER = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kqueue is the poller anyway"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 13), reason="one Python is enough: the poller knows nothing of it"
    ),
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="needs a C compiler"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="built without ASan"),
    pytest.mark.timeout(600),
]


def check(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    """The environment in which `import fastloop` gives the package built for kqueue."""
    work = tmp_path_factory.mktemp("kqueue")
    strict = ["-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", f"-I{SHIM}"]
    check(*COMPILER, *strict, "-c", SHIM / "kqueue.c", "-o", work / "kqueue.o")
    check("ar", "rcs", work / "libkqueue.a", work / "kqueue.o")
    shutil.copytree(ROOT / "src", work / "src")
    shutil.copytree(ROOT / "fastloop", work / "fastloop", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work)
    flags = {
        "FASTLOOP_POLLER": "kqueue",
        "CFLAGS": f"-O1 -Wall -Wextra -Werror -I{SHIM}",
        "LDFLAGS": f"-L{work}",
    }
    build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    check(*build, cwd=work, env=dict(os.environ, **flags))
    return dict(os.environ, PYTHONPATH=str(work), PYTHONSAFEPATH="1")


def test_it_is_the_kqueue_build(environ):
    out = check(sys.executable, "-c", "import fastloop; print(fastloop.__file__)", env=environ)
    assert out.strip().startswith(environ["PYTHONPATH"])
    assert not fastloop.__file__.startswith(environ["PYTHONPATH"])
    (core,) = (pathlib.Path(environ["PYTHONPATH"]) / "fastloop").glob("_core*.so")
    assert b"kqueue" in core.read_bytes()


# Left out: what counts the shim's own fds, which stay open; and epoll's refusal of files.
@pytest.mark.parametrize(
    "tests",
    [
        ("test_loop.py", "test_order.py"),
        ("test_wakeup.py", "-k", "not regular_file and not no_fd_left"),
        ("test_stream_transport.py", "test_stream_object.py", "test_server.py"),
        ("test_streams.py", "test_stream_read.py"),
        ("test_subprocess.py", "--deselect=test_subprocess.py::test_child_that_outlives_the_loop"),
        ("ecosystem/test_aiohttp.py",),
    ],
    ids=lambda tests: tests[0].removesuffix(".py"),
)
def test_suite_on_kqueue(environ, tests):
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", HERE)
    env = dict(environ, FASTLOOP_INSTALLED="1")
    check(sys.executable, "-m", "pytest", *options, *tests, cwd=HERE, env=env)
