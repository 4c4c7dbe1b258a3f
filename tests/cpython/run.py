"""Run CPython's own asyncio tests, those of the running interpreter, on a given event loop.

    python tests/cpython/run.py [--loop fastloop|asyncio|uvloop] [-j N] [MODULE ...]

Each module runs in a process of its own (`child.py`). A test that crashes the process or does not end is noted as such, and
the rest of its module goes on in a new process. What does not pass is then run on stock asyncio: only tests that asyncio
passes here count. `expected.txt` lists the ones that fastloop is not meant to pass; an entry that passes, or that names no
test, is an error like any other. Exit code 0 means: all that asyncio passes, passes.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PREFIX = "test.test_asyncio."
TEST_SECONDS = 150  # without a test ending; the slowest take five on an idle machine
LISTED_SECONDS = 5  # the same for tests of expected.txt, some of which hang
EXIT_SECONDS = 100

CORE = """test_tasks test_tasks+real test_futures test_futures+real test_futures2 test_eager_task_factory test_locks
test_queues test_runners test_runners+real test_taskgroups test_timeouts test_waitfor test_context test_threads test_pep492
test_pep492+real test_base_events test_base_events+real test_staggered test_graph""".split()
NETWORK = """test_events test_sock_lowlevel test_sendfile test_server test_server_context test_streams test_buffered_proto
test_protocols test_transports test_unix_events test_subprocess test_ssl test_sslproto""".split()
# On some versions these make no default loop: they test classes, simulated loops or a bare BaseEventLoop.
WITHOUT_LOOP = {"test_runners", "test_futures", "test_protocols", "test_transports", "test_pep492"}


def available_modules():
    """The modules above that this interpreter's test package has."""
    if importlib.util.find_spec("test.test_asyncio") is None:
        return []
    return [name for name in CORE + NETWORK if importlib.util.find_spec(PREFIX + name.partition("+")[0])]


@dataclasses.dataclass
class Outcome:
    kind: str  # pass, skip, fail, error, crash, timeout
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self):
        return self.kind == "pass"


@dataclasses.dataclass
class ModuleRun:
    """What one module did on one loop."""

    module: str
    outcomes: dict = dataclasses.field(default_factory=dict)  # test id -> Outcome
    ids: list = dataclasses.field(default_factory=list)
    loops: dict = dataclasses.field(default_factory=dict)  # loop type -> number made
    skipped: str = ""  # why the whole module was skipped
    broken: str = ""  # why it could not run to its end
    seconds: float = 0.0

    def short(self, test_id):
        return self.module + test_id.removeprefix(PREFIX + self.module.partition("+")[0])


class ChildProcess:
    """One `child.py`, followed through the file it writes its events to."""

    running = set()

    def __init__(self, loop, module, folder, only):
        self._folder = folder
        events, log = folder / "events", folder / "log"
        for path in (events, log):
            path.write_bytes(b"")
        command = [sys.executable, "-X", "faulthandler", "-W", "default", str(HERE / "child.py"), loop, module, str(events)]
        if only is not None:
            (folder / "only").write_text(json.dumps(sorted(only)))
            command.append(str(folder / "only"))
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONASYNCIO", "PYTEST_"))}
        with log.open("wb") as output:
            # A session of its own, so that what the tests leave behind can be ended with it.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=folder, start_new_session=True
            )
        self.running.add(self)
        self._events = events.open()
        self._rest = ""

    def events(self):
        """Yield each event as it comes, None for every quiet tenth of a second, until the process has ended."""
        while True:
            ended = self.process.poll() is not None
            *lines, self._rest = (self._rest + self._events.read()).split("\n")
            yield from map(json.loads, lines)
            if ended:
                return
            if not lines:
                yield None
                time.sleep(0.1)

    def abort(self):
        """End a process that hangs; faulthandler leaves the stacks of its threads in the log."""
        for number in (signal.SIGABRT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
                return

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._events.close()
        self.running.discard(self)

    def log_end(self):
        return (self._folder / "log").read_text(errors="replace")[-4000:]


def run_module(module, loop, only=None, expected=()):
    """Run a module, or only the given test ids of it, on a loop; give the expected failures less time."""
    run = ModuleRun(module)
    began = time.monotonic()
    left = only
    with tempfile.TemporaryDirectory(prefix="fastloop-conformance-") as folder:
        while True:
            stopped_in = run_once(run, loop, pathlib.Path(folder), left, expected)
            if stopped_in is None:
                break
            wanted = run.ids if only is None else only
            left = [test_id for test_id in wanted if test_id not in run.outcomes]
            if not left:
                break
    run.seconds = time.monotonic() - began
    for test_id in run.ids if only is None else only:
        run.outcomes.setdefault(test_id, Outcome("error", "did not run\n" + run.broken))
    return run


def run_once(run, loop, folder, only, expected):
    """Run one process of a module; returns the id of the test it crashed or hung in, or None."""
    child = ChildProcess(loop, run.module, folder, only)
    running, last, finished, how = None, time.monotonic(), False, ""
    try:
        for event in child.events():
            now = time.monotonic()
            if event is None:
                listed = running is not None and run.short(running) in expected
                if now - last > (EXIT_SECONDS if finished else LISTED_SECONDS if listed else TEST_SECONDS):
                    how = "timeout"
                    child.abort()
                continue
            last = now
            match event.pop("event"):
                case "tests":
                    run.ids = event["ids"]
                case "start":
                    running = event["id"]
                case "done":
                    running = None
                    run.outcomes[event["id"]] = Outcome(event["outcome"], event["detail"], event["seconds"])
                case "fixture":
                    note_fixture(run, event)
                case "end":
                    finished = True
                    run.skipped = event.get("skipped", "")
                    for name, number in event.get("loops", {}).items():
                        run.loops[name] = run.loops.get(name, 0) + number
        code = child.process.returncode
        if running is not None:
            run.outcomes[running] = Outcome(how or "crash", f"exit code {code}\n{child.log_end()}")
        elif not finished or code != 0 or how:
            when = "after its last test" if finished else "outside any test"
            run.broken = f"{how or f'exit code {code}'} {when}\n{child.log_end()}"
        return running
    finally:
        child.close()


def note_fixture(run, event):
    """Note the outcome of a test that never started: all tests of a class whose fixture failed, or a single one."""
    scope = event["id"].partition("(")[2].rstrip(")")  # "setUpClass (test.test_asyncio.test_x.Class)"
    outcome = Outcome(event["outcome"], event["detail"])
    ids = [test_id for test_id in run.ids if test_id.startswith(scope + ".")] if scope else [event["id"]]
    for test_id in ids:
        if event["id"].startswith("tearDown") or test_id not in run.outcomes:
            run.outcomes[test_id] = outcome


def read_expected(path=HERE / "expected.txt", version=sys.version_info[:2]):
    """Read the list of exceptions for one Python version: {short test id: reason}."""
    expected = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        versions, test_id, reason = line.split(None, 2)
        first, _, last = versions.partition("-")
        low, high = (tuple(map(int, end.split("."))) for end in (first, last or first))
        if low <= version <= high:
            if test_id in expected:
                raise ValueError(f"{path.name}:{number}: {test_id} is listed twice for Python {version}")
            expected[test_id] = reason
    return expected


@dataclasses.dataclass
class Verdict:
    """A module on a loop, held against asyncio and against the list of exceptions."""

    run: ModuleRun
    regressions: list  # ids asyncio passes, not listed
    listed: list  # ids asyncio passes, listed with a reason
    problems: list  # texts: unexpected passes, stale entries, a broken run

    @property
    def ok(self):
        return not self.regressions and not self.problems

    def text(self, lines_each=None):
        """What happened, with the details of each failure, or their last lines."""
        run = self.run
        if run.skipped:
            return f"{run.module}: skipped as a whole: {run.skipped}"
        passed = sum(outcome.passed for outcome in run.outcomes.values())
        alike = len(run.outcomes) - passed - len(self.regressions) - len(self.listed)
        loops = ", ".join(f"{name} {number}" for name, number in sorted(run.loops.items())) or "none"
        lines = [
            f"{'ok  ' if self.ok else 'FAIL'} {run.module}: {passed} passed, {len(self.regressions)} failed, "
            f"{len(self.listed)} excepted, {alike} asyncio does not pass either; loops made: {loops}; {run.seconds:.0f} s"
        ]
        for test_id in self.regressions:
            outcome = run.outcomes[test_id]
            lines.append(f"\n---- {outcome.kind}: {run.short(test_id)}\n{last_lines(outcome.detail, lines_each)}")
        lines += [f"\n---- {last_lines(problem, lines_each)}" for problem in self.problems]
        return "\n".join(lines)


def last_lines(text, number=None):
    """The last lines of a text, all of them for None."""
    return "\n".join(text.rstrip().splitlines()[-number if number else None :])


def judge(module, loop, expected):
    """Run a module on the loop, and what does not pass on asyncio too; compare."""
    run = run_module(module, loop, expected=expected)
    problems = []
    if run.broken:
        problems.append(f"{module} did not run to a clean end: {run.broken}")
    failed = [test_id for test_id, outcome in run.outcomes.items() if not outcome.passed]
    if loop == "asyncio":
        regressions = [test_id for test_id in failed if run.outcomes[test_id].kind != "skip"]
        return Verdict(run, regressions, [], problems)
    if not run.skipped and not run.broken and module not in WITHOUT_LOOP:
        if not any(name.startswith(loop) for name in run.loops):
            problems.append(f"{module} made no loop of {loop}")
    baseline = run_module(module, "asyncio", failed).outcomes if failed else {}
    worse = [test_id for test_id in failed if baseline[test_id].passed]
    for test_id in run.ids:
        if run.short(test_id) in expected and test_id not in failed:
            problems.append(f"unexpected pass: {run.short(test_id)} is in expected.txt")
    known = {run.short(test_id) for test_id in run.ids}
    for name in expected:
        if name.partition(".")[0] == module and name not in known and not run.skipped:
            problems.append(f"stale entry in expected.txt: {name} is no test of Python {sys.version.split()[0]}")
    listed = [test_id for test_id in worse if run.short(test_id) in expected]
    return Verdict(run, [test_id for test_id in worse if test_id not in listed], listed, problems)


def end_now(number, frame):
    """Let no child outlive the runner when it is told to end."""
    for child in list(ChildProcess.running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
    os._exit(128 + number)


def main():
    parser = argparse.ArgumentParser(description="Run CPython's asyncio tests on an event loop.")
    parser.add_argument("--loop", default="fastloop", help="module that brings the loop (default: fastloop)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="modules run at the same time (default: 2)")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as test_tasks; default: all")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_now)
    modules = options.modules or available_modules()
    if not modules:
        sys.exit(f"Python {sys.version.split()[0]} was installed without its test package")
    expected = read_expected() if options.loop == "fastloop" else {}
    began = time.monotonic()
    verdicts = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(judge, module, options.loop, expected) for module in modules]
        for job in concurrent.futures.as_completed(jobs):
            verdicts.append(job.result())
            print(verdicts[-1].text(), flush=True)
    passed = sum(outcome.passed for verdict in verdicts for outcome in verdict.run.outcomes.values())
    failed = sum(len(verdict.regressions) for verdict in verdicts)
    excepted = sum(len(verdict.listed) for verdict in verdicts)
    print(
        f"Python {sys.version.split()[0]}, {options.loop}: of {passed + failed + excepted} tests {passed} pass, {failed} fail, "
        f"{excepted} are excepted; {time.monotonic() - began:.0f} s"
    )
    sys.exit(not all(verdict.ok for verdict in verdicts))


if __name__ == "__main__":
    main()
