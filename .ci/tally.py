"""tally.py FAILED XML...: prints 'N passed, N failed, N skipped' and exits 1 unless all is well.

FAILED names, one a line, the stages that failed; XML are the JUnit files, one folder a stage. A
stage that failed without a failing test (a build, a crash, a time limit) counts as one failure.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def read(path):
    """Return (passed, failed, skipped) of one JUnit file; an unfinished one counts for nothing."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except ElementTree.ParseError:
        return 0, 0, 0
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return total - failed - skipped, failed, skipped


def main(failed_list, *files):
    passed = failed = skipped = 0
    unexplained = set(pathlib.Path(failed_list).read_text().split())
    for file in map(pathlib.Path, files):
        if not file.exists():  # a glob that matched nothing
            continue
        p, f, s = read(file)
        passed, failed, skipped = passed + p, failed + f, skipped + s
        if f:
            unexplained.discard(file.parent.name)
    failed += len(unexplained)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


sys.exit(main(*sys.argv[1:]))
