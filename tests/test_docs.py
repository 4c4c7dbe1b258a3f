"""What the documentation says: Python blocks compile, those marked <!-- run --> run, those marked with a file's name
are in that file, which other tests run, links lead somewhere, and every public name has a docstring. (README.md's commands, Sphinx with -W among them, are run by .ci/readme.)"""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastloop
from fastloop import _core, eager, loop, policy

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (\S+) -->\n)?^```(python|json)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(mark, language, code, id=f"{path.stem}-{number}")
    for path in GUIDES
    for number, (mark, language, code) in enumerate(BLOCK.findall(path.read_text()), 1)
]


@pytest.mark.parametrize(("mark", "language", "code"), BLOCKS)
def test_code(mark, language, code):
    if language == "python":
        compile(code, "a guide's code", "exec")
    if mark != "run":
        assert not mark or code in (ROOT / mark).read_text()
        return
    if "import uvicorn" in code:
        pytest.importorskip("uvicorn")
    if "import anyio" in code:
        pytest.importorskip("anyio")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_links_between_files(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def public_names():
    """Every public name of the package and, of its classes, what fastloop itself defines."""
    for module in fastloop, eager, loop, policy:
        for name, value in inspect.getmembers(module):
            if not name.startswith("_") and getattr(value, "__module__", "").startswith("fastloop"):
                yield f"{module.__name__}.{name}", value
    for kind in *(getattr(fastloop, name) for name in fastloop.__all__), _core.SocketTransport:
        if inspect.isclass(kind):
            for base in kind.__mro__:
                if base.__module__.startswith("fastloop"):
                    for name, value in vars(base).items():
                        if not name.startswith("_"):
                            yield f"{base.__qualname__}.{name}", value


def test_public_names_have_docstrings():
    names = dict(public_names())
    assert len(names) > 80
    bare = [name for name, value in names.items() if not (getattr(value, "__doc__", None) or "").strip()]
    assert bare == []


def test_readme_has_no_command_that_is_not_run():
    """.ci/readme runs the blocks marked sh; there are no others, and test_code() runs the Python ones."""
    fences = re.findall(r"^```(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(fences[::2]) == {"sh", "python"} and set(fences[1::2]) == {""}


def test_every_difference_names_its_test():
    lines = (ROOT / "docs" / "differences.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 10
    for row in rows:
        path, name = re.fullmatch(r"`(tests/[\w/]+\.py)`, `(\w+)`", row.strip("| ").rpartition(" | ")[2]).groups()
        assert f"def {name}(" in (ROOT / path).read_text(), row
