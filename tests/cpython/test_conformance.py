"""CPython's own asyncio tests on fastloop, module by module: all that asyncio passes must pass. See run.py."""

import concurrent.futures
import importlib.util
import pathlib

import pytest

SPEC = importlib.util.spec_from_file_location("fastloop_conformance_run", pathlib.Path(__file__).with_name("run.py"))
conformance = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(conformance)

MODULES = conformance.available_modules()


@pytest.fixture(scope="session")
def verdicts(request):
    """The verdicts of the selected modules, worked out two at a time: {module: future}."""
    selected = [item.callspec.params["module"] for item in request.session.items if item.originalname == "test_module"]
    expected = conformance.read_expected()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {module: pool.submit(conformance.judge, module, "fastloop", expected) for module in dict.fromkeys(selected)}


@pytest.mark.skipif(not MODULES, reason="needs the interpreter's test package (Debian: libpython3.x-testsuite)")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", MODULES)
def test_module(verdicts, module):
    verdict = verdicts[module].result()
    if not verdict.ok:
        pytest.fail(verdict.text(lines_each=15), pytrace=False)


def test_exceptions_name_modules_that_run():
    versions = [(3, minor) for minor in range(11, 16)]
    named = {test_id.partition(".")[0] for version in versions for test_id in conformance.read_expected(version=version)}
    assert named <= set(conformance.CORE + conformance.NETWORK)
