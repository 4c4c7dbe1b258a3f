"""CPython's own tests of ThreadPoolExecutor, run with fastloop.ThreadPoolExecutor in its place."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

TESTS = "test.test_concurrent_futures"
SPEC = importlib.util.find_spec(TESTS)
MODULES = [TESTS]  # one file up to Python 3.11
if SPEC is not None and SPEC.submodule_search_locations:
    NAMES = ["test_as_completed", "test_init", "test_shutdown", "test_thread_pool", "test_wait"]
    MODULES = [f"{TESTS}.{name}" for name in NAMES]

# Test ids that may not pass, each with the reason.
EXCEPTIONS = {}

RUNNER = """
import concurrent.futures, importlib, json, sys, unittest
import fastloop
concurrent.futures.ThreadPoolExecutor = fastloop.ThreadPoolExecutor
concurrent.futures.thread.ThreadPoolExecutor = fastloop.ThreadPoolExecutor
module = importlib.import_module(sys.argv[1])
package, _, name = sys.argv[1].rpartition(".")
util = importlib.import_module(package + ".util") if package != "test" else module
assert util.ThreadPoolMixin.executor_type is fastloop.ThreadPoolExecutor

def cases(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        elif type(test).__name__.startswith("ThreadPool"):
            yield test

class Result(unittest.TextTestResult):
    passed = ()
    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += (test.id(),)

suite = unittest.TestSuite(cases(unittest.defaultTestLoader.loadTestsFromModule(module)))
result = unittest.TextTestRunner(stream=sys.stderr, resultclass=Result, verbosity=2).run(suite)
bad = [test.id() for test, _ in result.failures + result.errors]
print("\\n" + json.dumps({"passed": result.passed, "bad": bad, "run": result.testsRun}))
"""


pytestmark = [
    pytest.mark.skipif(
        SPEC is None,
        reason="this interpreter does not carry the test.test_concurrent_futures package",
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def runs():
    """Every module's run, started at once: they mostly sleep."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = {
        module: subprocess.Popen(
            [sys.executable, "-c", RUNNER, module],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        for module in MODULES
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("module", MODULES)
def test_thread_pool_tests_of_cpython(runs, module):
    output, report = runs[module].communicate(timeout=500)
    assert runs[module].returncode == 0, report
    outcome = json.loads(output.splitlines()[-1])
    assert outcome["run"] > 0
    unexpected = [test for test in outcome["bad"] if test not in EXCEPTIONS]
    assert not unexpected, report
    assert not set(outcome["passed"]) & set(EXCEPTIONS), "listed as an exception, but passes"
