"""Loops compared slice by slice, for those within noise of each other: the engine of `run.py --paired`.

Each loop has a process that stays alive and measures a short slice when told. In a round every loop has one, in random order, so
that a round's ratios hold whatever the machine's speed is just then; their median over many rounds tells loops apart that differ
by a few per cent. All processes are started anew a few times, as the places of things in memory alone make some per cent.
"""

import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import traceback

import harness
from harness import HERE, LIMIT
from report import number, ratio


def work(benchmark, loop_name, options):
    """In a worker: answer the start, and then each line of standard input with a slice's figures, as a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed does not count
    harness.pin(0, benchmark.cores)
    try:
        with benchmark.open(loop_name, options) as measure:
            print("{}", file=answers)
            for _ in sys.stdin:
                print(json.dumps(measure()), file=answers)
    except BaseException as error:  # a Rust loop's panic is no Exception
        print(json.dumps({"failure": traceback.format_exception_only(error)[-1].strip()}), file=answers)
    finally:
        os._exit(0)  # no loop's exit should be waited for


class Worker:
    """A loop's process, in a process group of its own that ends with it. It measures only when told."""

    def __init__(self, benchmark, loop_name, seconds):
        command = [sys.executable, HERE / "run.py", "--worker", benchmark.full_name, loop_name, "--paired", "--seconds", str(seconds)]
        self.patience = 60 + 20 * seconds
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # some loops have much to say there
            start_new_session=True,
        )

    def measure(self):
        try:
            self.process.stdin.write(b"slice\n")
        except BrokenPipeError:
            pass  # its end, or what it said last, is the answer
        return self.answer()

    def answer(self):
        """The next line it says; RuntimeError with the reason if that is a failure, or if there is none."""
        if not select.select([self.process.stdout], [], [], self.patience)[0]:
            self.end(patience=0)  # it may be busy, and in the way of the others
            raise RuntimeError("timed out")
        line = self.process.stdout.readline()
        if not line:
            self.end(patience=10)
            raise RuntimeError(f"its process ended with {self.process.returncode}")
        figures = json.loads(line)
        if "failure" in figures:
            raise RuntimeError(figures["failure"])
        return figures

    def end(self, patience):
        """Wait until it has cleaned up and ended by itself, but no longer than that, and kill what is left of its group."""
        if self.process.returncode is not None:
            return
        try:
            pidfd = os.pidfd_open(self.process.pid)  # unlike wait(), leaves the zombie, and so the group its number
            select.select([pidfd], [], [], patience)
            os.close(pidfd)
        finally:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def end_all(workers, patience):
    """The end of their standard input tells them to end; afterwards none is left, also if this is interrupted."""
    for worker in workers:
        worker.process.stdin.close()
    try:
        for worker in workers:
            worker.end(patience)
    finally:
        for worker in workers:
            worker.end(patience=0)


def repeatable(benchmarks):
    """Those of `benchmarks` that one process can measure again and again; the others are named, or refused if there are only such."""
    others = ", ".join(b.full_name for b in benchmarks if not b.repeatable)
    message = f"not with --paired, as one process can measure it only once: {others}"
    kept = [b for b in benchmarks if b.repeatable]
    if not kept:
        sys.exit(message)
    if others:
        print(message, file=sys.stderr)
    return kept


def measure_all(benchmarks, loops, arguments):
    """What run.py's `measure` gives for one benchmark, for all; an entry has `rounds` in place of `runs`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the workers are ended, as by Ctrl-C
    return [measure(b, loops, arguments.restarts, arguments.rounds, arguments.seconds) for b in benchmarks]


def measure(benchmark, loops, restarts, rounds, seconds):
    """All rounds of one benchmark. A loop that failed once takes no further part, and its reason is kept."""
    entry = {
        "name": benchmark.full_name,
        "unit": benchmark.unit,
        "lower_is_better": benchmark.lower_is_better,
        "rounds": [],
        "failures": {},
    }
    for restart in range(restarts):
        workers = {}
        try:
            for name in loops:
                if name not in entry["failures"] and (name != LIMIT or benchmark.has_limit):
                    workers[name] = Worker(benchmark, name, seconds)
                    attempt(entry, name, workers[name].answer)
            ready = ", ".join(name for name in workers if name not in entry["failures"])
            print(f"{benchmark.full_name} {restart + 1}/{restarts}: {rounds} rounds of {ready}", file=sys.stderr)
            run_round(entry, workers)  # a first one that warms up and does not count
            for _ in range(rounds):
                entry["rounds"].append({"restart": restart, "figures": run_round(entry, workers)})
        finally:
            end_all(workers.values(), patience=10)
    return entry


def run_round(entry, workers):
    """A slice of each loop that has not failed: the figures by loop, in the order they were measured."""
    names = [name for name in workers if name not in entry["failures"]]
    figures = {name: attempt(entry, name, workers[name].measure) for name in random.sample(names, len(names))}
    return {name: found for name, found in figures.items() if found}


def attempt(entry, name, action):
    """What `action()` returns; if it fails, nothing, and the reason goes to the entry."""
    try:
        return action()
    except RuntimeError as error:
        entry["failures"][name] = f"{error} (after {len(entry['rounds'])} rounds)"
        print(f"{entry['name']} {name}: {entry['failures'][name]}", file=sys.stderr)


def table(entries, loops):
    """Rows of strings, one a benchmark and loop: medians over all rounds, and how many times better the first loop was."""
    rows = [["benchmark", "loop", "unit", "median", f"{loops[0]}/loop", "quartiles", "won", "CPU us/op"]]
    for entry in entries:
        for name in loops:
            if name in entry["failures"]:
                rows.append([entry["name"], name, entry["unit"], "failed", "", "", "", ""])
            elif found := [r["figures"][name] for r in entry["rounds"] if name in r["figures"]]:
                median = number(statistics.median(f["value"] for f in found))
                cpu = number(statistics.median(f["cpu_us"] for f in found)) if "cpu_us" in found[0] else ""
                rows.append([entry["name"], name, entry["unit"], median, *comparison(entry, loops[0], name), cpu])
    return rows


def comparison(entry, subject, other):
    """The ratio's median and quartiles, and in how many rounds the subject was better; empty where there is nothing to compare."""
    pairs = [r["figures"] for r in entry["rounds"] if subject in r["figures"] and other in r["figures"]]
    if subject == other or not pairs:
        return ["", "", ""]
    ratios = [ratio(entry, figures[subject]["value"], figures[other]["value"]) for figures in pairs]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    won = sum(r > 1 for r in ratios) / len(ratios)
    return [f"{median:.3f}", f"{low:.3f} to {high:.3f}", f"{won:.0%}"]
