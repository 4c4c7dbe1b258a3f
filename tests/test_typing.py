"""The types that fastloop declares: true of what is there, and of use to a strict program."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import fastloop
from fastloop import _core

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = HERE / "typed_program.py"
PACKAGE = pathlib.Path(fastloop.__file__).resolve().parent

pytest.importorskip("mypy")


def run(*command, cwd):
    """Run a Python command outside the checkout, with mypy reading the package under test."""
    environ = dict(os.environ, MYPY_CACHE_DIR=str(cwd / "cache"))
    if PACKAGE.parent.name != "site-packages":  # mypy finds those by itself
        environ["MYPYPATH"] = str(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What only fastloop's own files see has no stub: modules and C types.
INNER_MODULES = [f.stem for f in PACKAGE.glob("_*.py") if not f.with_suffix(".pyi").exists()]
INNER_TYPES = [
    name
    for name in vars(_core)
    if not name.startswith("_") and name not in {*fastloop.__all__, "Loop", "SocketTransport"}
]


@pytest.mark.timeout(300)
def test_stubs_agree_with_the_runtime(tmp_path):
    """Each name, signature and base."""
    config = "".join(f"[mypy-fastloop.{name}]\nignore_errors = True\n" for name in INNER_MODULES)
    (tmp_path / "mypy.ini").write_text("[mypy]\n" + config)
    inner = INNER_MODULES + [f"_core.{name}" for name in INNER_TYPES]
    allowed = "".join(rf"fastloop\.{re.escape(name)}(\..*)?" + "\n" for name in inner)
    (tmp_path / "allowed").write_text(allowed)
    options = ("--mypy-config-file=mypy.ini", "--allowlist=allowed", "--ignore-unused-allowlist")
    out = run("-m", "mypy.stubtest", *options, "fastloop", cwd=tmp_path)
    assert "no issues found" in out


@pytest.mark.timeout(300)
def test_strict_program(tmp_path):
    assert "no issues found" in run("-m", "mypy", "--strict", PROGRAM, cwd=tmp_path)


def test_program_runs(tmp_path):
    out = run("-W", "error", PROGRAM, cwd=tmp_path)
    assert out.splitlines().count(fastloop.__version__) == 2


def test_program_uses_every_public_name():
    text = PROGRAM.read_text()
    assert [n for n in [*fastloop.__all__, "__version__"] if f"fastloop.{n}" not in text] == []
