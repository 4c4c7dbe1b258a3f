"""fastloop's pytest plugin, with each plugin that runs async tests. FASTLOOP_PLUGIN_LINES: older versions, too."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("anyio")
pytest.importorskip("pytest_aiohttp")
pytest_asyncio = pytest.importorskip("pytest_asyncio")

PLUGINS = pathlib.Path(__file__).parent / "plugins"
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-c", PLUGINS / "pytest.ini", "--rootdir=.")
TOLD = ("-o", "asyncio_default_fixture_loop_scope=function")  # pytest-asyncio warns without
STRICT = ("-W", "error", *TOLD)  # no warning of any kind is ours

ONE = "suite_asyncio.py"

# Version lines, to be put in front of what is installed. FASTLOOP_PLUGIN_LINES is "all" or some of the names.
LINES = {
    "0.23": ["pytest-asyncio==0.23.*", "pytest-aiohttp==1.0.*", "anyio==4.0.*", "sniffio", "pytest==8.*"],
    "0.24": ["pytest-asyncio==0.24.*", "pytest-aiohttp==1.1.*", "anyio==4.5.*", "sniffio", "pytest==8.*"],
    "0.25": ["pytest-asyncio==0.25.*", "pytest-aiohttp==1.1.*", "anyio==4.8.*", "sniffio", "pytest==8.*"],
    "0.26": ["pytest-asyncio==0.26.*", "pytest-aiohttp==1.1.*", "anyio==4.9.*", "sniffio", "pytest==8.*"],
    "1.0": ["pytest-asyncio==1.0.*", "pytest-aiohttp==1.1.*", "anyio==4.10.*", "sniffio", "pytest==8.*"],
    "1.2": ["pytest-asyncio==1.2.*", "anyio==4.12.*", "pytest==8.*"],
    "1.3": ["pytest-asyncio==1.3.*", "anyio==4.12.*"],
    "1.4": ["pytest-asyncio==1.4.*", "anyio==4.14.*"],
}
ASKED_FOR = os.environ.get("FASTLOOP_PLUGIN_LINES", "").split()
OLDER = list(LINES) if ASKED_FOR == ["all"] else ASKED_FOR


def install(line):
    """The folder with the packages of a line; kept for the next run."""
    python = "{}.{}".format(*sys.version_info)
    folder = pathlib.Path(tempfile.gettempdir(), f"fastloop-plugins-{os.getuid()}", f"{line}-{python}")
    if not folder.exists():
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as new:
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", new + "/it"]
            subprocess.run([*command, *LINES[line]], check=True, timeout=100)
            os.rename(new + "/it", folder)
    return folder


def test_every_kind_of_suite_runs_on_fastloop(run_python):
    code, output = run_python(*PYTEST, *STRICT, "--fastloop", PLUGINS, cwd=PLUGINS)
    assert code == 0 and " 16 passed" in output, output
    assert "event loop: fastloop.Loop (fastloop " in output


def test_the_ini_file_may_ask_for_it(run_python):
    code, output = run_python(*PYTEST, *STRICT, "-o", "fastloop=true", ONE, cwd=PLUGINS)
    assert code == 0 and "event loop: fastloop.Loop (fastloop " in output, output


@pytest.mark.parametrize("launcher", [[], ["-m", "fastloop"]], ids=["plain", "launcher"])
def test_no_deprecation_warning_from_start_to_exit(run_python, launcher):
    """3.14+ deprecates policies. The interpreter's -W counts from its start to its exit, pytest's only in between."""
    warnings = ["-W", "error::DeprecationWarning", "-W", "error::PendingDeprecationWarning"]
    code, output = run_python(*warnings, *launcher, *PYTEST, *TOLD, "--fastloop", PLUGINS, cwd=PLUGINS)
    assert code == 0 and " 16 passed" in output, output
    assert "DeprecationWarning" not in output, output


@pytest.mark.parametrize("ask", [[], ["-o", "fastloop=true", "--no-fastloop"]], ids=["unasked", "refused"])
def test_not_asked_for_it_changes_nothing(run_python, ask):
    code, output = run_python(*PYTEST, *STRICT, *ask, ONE, cwd=PLUGINS, loop="stock")
    assert code == 0 and "event loop:" not in output, output


if OLDER:

    @pytest.mark.parametrize("line", OLDER)
    def test_older_versions_of_the_plugins(run_python, line):
        code, output = run_python(*PYTEST, "--fastloop", PLUGINS, cwd=PLUGINS, packages=[install(line)])
        assert code == 0 and " 16 passed" in output, output
        assert f"asyncio-{line}." in output


def test_not_asked_for_it_imports_nothing(run_python, tmp_path):
    (tmp_path / "suite_imports.py").write_text(
        "import sys\n"
        "unused = {'fastloop._core', 'fastloop.loop'}\n"
        "if sys.version_info < (3, 14):  # its pdb, which pytest imports, imports asyncio\n"
        "    unused.add('asyncio')\n"
        "def test_imports():\n"
        "    assert 'fastloop.pytest_plugin' in sys.modules\n"
        "    assert not unused & set(sys.modules)\n"
    )
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    code, output = run_python(*PYTEST, "-p", "fastloop", cwd=tmp_path, **alone)
    assert code == 0, output


def test_kept_out_it_leaves_no_trace(run_python, tmp_path):
    (tmp_path / "suite_imports.py").write_text(
        "import sys\n"
        "def test_imports():\n"
        "    assert not [name for name in sys.modules if 'fastloop' in name]\n"
    )
    code, output = run_python(*PYTEST, "-p", "no:fastloop", cwd=tmp_path)
    words = [word for word in output.split() if "/" not in word]  # a path may have the name in it
    assert code == 0 and not [word for word in words if "fastloop" in word], output
    code, output = run_python(*PYTEST, "-p", "no:fastloop", "--fastloop", cwd=tmp_path)
    assert code == 4 and "unrecognized arguments: --fastloop" in output, output


STOCK_POLICY = """
import asyncio, sys
from asyncio import unix_events
new = sys.version_info >= (3, 14)
def stock_policy():
    return (unix_events._DefaultEventLoopPolicy if new else asyncio.DefaultEventLoopPolicy)()
"""
# What a suite may say for itself: (its conftest.py, the kind of suite, extra options of pytest)
CHOICES = {
    "policy of a fixture": (
        STOCK_POLICY + "import pytest\n@pytest.fixture(scope='session')\ndef event_loop_policy():\n    return stock_policy()\n",
        "asyncio",
        ["-W", "ignore:Overriding:pytest.PytestDeprecationWarning", "--deselect", "suite_asyncio.py::test_run_by_asyncio_itself"],
    ),
    "policy set by conftest.py": (
        STOCK_POLICY + "(asyncio.events._set_event_loop_policy if new else asyncio.set_event_loop_policy)(stock_policy())\n",
        "asyncio",
        [],
    ),
    "anyio backend options": (
        "import asyncio, pytest\n@pytest.fixture(scope='module')\ndef anyio_backend():\n"
        "    return 'asyncio', {'loop_factory': asyncio.SelectorEventLoop}\n",
        "anyio",
        [],
    ),
}
if hasattr(pytest_asyncio.plugin.PytestAsyncioSpecs, "pytest_asyncio_loop_factories"):
    CHOICES["loop factories"] = (
        "import asyncio\ndef pytest_asyncio_loop_factories(config, item):\n"
        "    return {'stock': asyncio.SelectorEventLoop}\n",
        "asyncio",
        ["--deselect", "suite_asyncio.py::test_run_by_asyncio_itself"],
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_the_choice_of_the_suite_itself_stands(run_python, tmp_path, choice):
    conftest, kind, options = CHOICES[choice]
    shared = (PLUGINS / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(shared + conftest)
    suite = (PLUGINS / f"suite_{kind}.py").read_text()
    if kind == "anyio":  # conftest.py's fixture, not the suite's own
        suite = suite.replace("def anyio_backend", "def unused")
    (tmp_path / f"suite_{kind}.py").write_text(suite)
    code, output = run_python(*PYTEST, *STRICT, *options, "--fastloop", cwd=tmp_path, loop="stock")
    assert code == 0, output
    set_globally = choice == "policy set by conftest.py"
    assert ("event loop: not fastloop's" in output) == set_globally, output


def test_the_policy_before_is_given_back(run_python, tmp_path):
    (tmp_path / "suite_nothing.py").write_text("def test_nothing(): pass\n")
    (tmp_path / "program.py").write_text(
        "import pytest, sys\n"
        "from asyncio import events\n"
        "for before in None, object.__new__(events.AbstractEventLoopPolicy if sys.version_info < (3, 14)\n"
        "                                   else events._AbstractEventLoopPolicy):\n"
        "    events._event_loop_policy = before\n"
        "    assert pytest.main(sys.argv[1:]) == 0\n"
        "    assert events._event_loop_policy is before\n"
        "events._event_loop_policy = None\n"
    )
    code, output = run_python("program.py", *PYTEST[2:], "--fastloop", cwd=tmp_path)
    assert code == 0, output


def test_a_program_that_has_imported_fastloop_already(run_python, tmp_path):
    """pytest warns of plugins that it comes too late to rewrite."""
    (tmp_path / "suite_nothing.py").write_text("def test_nothing(): pass\n")
    code, output = run_python("-m", "fastloop", *PYTEST, *STRICT, "--fastloop", cwd=tmp_path)
    assert code == 0 and "warning" not in output, output
