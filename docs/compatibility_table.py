"""Make docs/compatibility.md from what the tests have seen.

    FASTLOOP_COMPAT=seen.jsonl pytest tests/ecosystem     on each Python, into one file
    python docs/compatibility_table.py seen.jsonl

Each line of the file is one library in one run of the tests: {"library", "version", "python", "passed", "tests"}.
"""

import json
import pathlib
import sys

PAGE = pathlib.Path(__file__).with_name("compatibility.md")
HEAD = """# Compatibility

What runs on fastloop, seen by its own tests. A cell stands for the tests of that library in `tests/ecosystem/` on that Python:
real servers and clients, every answer checked. It names the version of the library that passed and how many tests did; an empty
cell was not run. pytest's plugins have [a table of their own](testing.md); CPython's own asyncio tests are in
`tests/cpython/expected.txt`.

This page is written by `docs/compatibility_table.py` from the record of a test run (`FASTLOOP_COMPAT=FILE pytest`).

"""


def minor(version):
    return tuple(int(part) for part in version.split(".")[:2])


def read(paths):
    """The last line about each library on each Python: {library: {(3, 13): line}}, and the Pythons' full versions."""
    seen, pythons = {}, {}
    for path in paths:
        for text in pathlib.Path(path).read_text().splitlines():
            line = json.loads(text)
            seen.setdefault(line["library"], {})[minor(line["python"])] = line
            pythons[minor(line["python"])] = line["python"]
    return seen, dict(sorted(pythons.items()))


def cell(line):
    if line is None:
        return ""
    tests = line["tests"]
    verdict = "**fails**" if not line["passed"] else f"{tests} test{'s' * (tests > 1)}"
    return f"{line['version']}: {verdict}"


def table(seen, pythons):
    rows = [["", *pythons.values()], ["---"] * (len(pythons) + 1)]
    rows += [[library, *(cell(lines.get(p)) for p in pythons)] for library, lines in sorted(seen.items())]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(HEAD + table(*read(sys.argv[1:])))
