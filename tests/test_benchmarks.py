"""benchmarks/run.py --paired measures every round, names what failed, and leaves no process behind. Speeds are not looked at."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are for Linux")

# A loop whose second counted slice fails: it runs once to start the server, once to warm up, and then once a slice.
BRITTLE = """
import asyncio, os, sys

class Loop(asyncio.SelectorEventLoop):
    runs = 0

    def run_forever(self):
        print("noise" * 100_000)
        print("noise" * 100_000, file=sys.stderr)
        self.runs += 1
        if self.runs == 4:
            {end}
        super().run_forever()

new_event_loop = Loop
"""


@pytest.fixture
def start(tmp_path):
    """Start run.py with some arguments; at the end of the test, nothing that it started may live on."""
    mark = f"FASTLOOP_BENCHMARK_TEST={uuid.uuid4()}"
    path = [str(ROOT / "benchmarks"), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "XDG_CACHE_HOME": str(tmp_path)}
    environment.update([mark.split("=")])
    started = []

    def start(*arguments):
        command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--paired", "--seconds", "0.02", *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()
    deadline = time.monotonic() + 60  # the kernel may need a moment for those that were killed
    while (left := alive_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def alive_with(mark):
    """The command lines of all processes with `mark` in their environment; those of zombies are empty."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes())
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def measured(process, file):
    """The entries of FILE by name, once the run is over; its output, when it failed."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return {entry["name"]: entry for entry in json.loads(file.read_text())["benchmarks"]}, output


def rounds_of(entry):
    return collections.Counter(name for r in entry["rounds"] for name in r["figures"])


def test_every_round_has_a_figure_of_every_loop_and_of_the_limit(start, tmp_path):
    file = tmp_path / "figures.json"
    names = ["core.call_soon", "network.protocol_1k_10"]
    run = start(*names, "--loops", "fastloop,asyncio", "--restarts", "2", "--rounds", "2", "--json", file)
    entries, output = measured(run, file)
    assert list(entries) == names
    assert not any(entry["failures"] for entry in entries.values())
    assert rounds_of(entries[names[0]]) == {"fastloop": 4, "asyncio": 4}
    assert rounds_of(entries[names[1]]) == {"fastloop": 4, "asyncio": 4, "limit": 4}
    for entry in entries.values():
        assert [r["restart"] for r in entry["rounds"]] == [0, 0, 1, 1]
        for figures in (figures for r in entry["rounds"] for figures in r["figures"].values()):
            assert figures["value"] > 0
            assert figures["cpu_us"] > 0
    assert [line.split()[:2] for line in output.splitlines() if line.startswith(("core", "network"))] == [
        ["core.call_soon", "fastloop"],
        ["core.call_soon", "asyncio"],
        ["network.protocol_1k_10", "fastloop"],
        ["network.protocol_1k_10", "asyncio"],
        ["network.protocol_1k_10", "limit"],
    ]


def test_a_slice_that_failed_is_reported(start, tmp_path):
    file = tmp_path / "figures.json"
    (tmp_path / "raising.py").write_text(BRITTLE.format(end="raise ValueError('no more')"))
    (tmp_path / "dying.py").write_text(BRITTLE.format(end="os.kill(os.getpid(), 9)"))
    name = "network.protocol_1k_10"
    run = start(name, "--loops", "asyncio,raising,dying", "--restarts", "1", "--rounds", "3", "--json", file)
    entries, output = measured(run, file)
    assert rounds_of(entries[name]) == {"asyncio": 3, "limit": 3, "raising": 1, "dying": 1}
    reasons = {
        "raising": "ValueError: no more (after 1 rounds)",
        "dying": "its process ended with -9 (after 1 rounds)",
    }
    assert entries[name]["failures"] == reasons
    for loop, reason in reasons.items():
        assert f"{name} failed on {loop}: {reason}" in output


def test_a_run_that_is_stopped_leaves_nothing(start):
    run = start("network.unix_1k_10", "--loops", "asyncio", "--restarts", "1", "--rounds", "1000000")
    for line in run.stderr:
        if "rounds of" in line:
            break
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate()
    assert run.returncode == 1, errors
    assert "terminated" in errors


def test_what_a_process_measures_once_is_refused(start):
    run = start("network.idle_10k")
    _, errors = run.communicate()
    assert run.returncode == 1
    assert "not with --paired, as one process can measure it only once: network.idle_10k" in errors
