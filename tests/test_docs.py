"""The guides' code: every Python block compiles, those marked <!-- run --> run, every link leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = [DOCS / f"{name}.md" for name in ("switching", "blocking-code", "frameworks")]
BLOCK = re.compile(r"(<!-- run -->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(run, code, id=f"{path.stem}-{number}")
    for path in GUIDES
    for number, (run, code) in enumerate(BLOCK.findall(path.read_text()), 1)
]


@pytest.mark.parametrize(("run", "code"), BLOCKS)
def test_code(run, code):
    compile(code, "a guide's code", "exec")
    if not run:
        return
    if "import uvicorn" in code:
        pytest.importorskip("uvicorn")
    if "import anyio" in code:
        pytest.importorskip("anyio")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_links_between_files(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target
