"""Measure event loops against each other and against the limit, and print one table.

python benchmarks/run.py [NAME ...] [--loops fastloop,asyncio,uvloop,...] [--rounds N] [--markdown] [--json FILE] [--plot FOLDER]
python benchmarks/run.py [NAME ...] --paired [--restarts N] [--rounds N] [--seconds 0.1]    # for loops within noise of each other

A NAME is a group ("core"), a benchmark ("core.sleep0") or a pattern ("network.*1k*"). The first loop is the one whose ratios are shown.
"""

import argparse
import datetime
import fnmatch
import importlib
import json
import os
import platform
import subprocess
import sys

import harness
import paired
import plot
from harness import BENCHMARKS, LIMIT, LOOPS, Options
from report import number, print_table, ratio

GROUPS = ("core", "executor", "network", "http", "tls", "process")


def load_groups():
    for group in GROUPS:
        importlib.import_module(f"bench_{group}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to run; everything without one")
    parser.add_argument("--loops", default=",".join(LOOPS), help="comma-separated, the subject first (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="interleaved runs of each loop, the best counts (default: 5; 25 if paired)")
    parser.add_argument("--seconds", type=float, help="length of one run or slice (default: 0.5; 0.1 if paired)")
    parser.add_argument("--paired", action="store_true", help="short slices of all loops in turn, and their ratios within a round")
    parser.add_argument("--restarts", type=int, default=4, help="with --paired: how often all begin anew (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", metavar="FILE", help="also write every single figure to FILE")
    parser.add_argument("--plot", metavar="FOLDER", help="also draw a chart of each group, FOLDER/<group>.svg")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "LOOP"), help="run one benchmark here and print its JSON")
    parser.add_argument("--ops", type=int, help="with --worker: a fixed number of operations, for profilers that count instructions")
    arguments = parser.parse_args()
    if arguments.paired and arguments.plot:
        parser.error("--plot draws the best of single runs, which --paired does not have")
    arguments.rounds = arguments.rounds or (25 if arguments.paired else 5)
    arguments.seconds = arguments.seconds or (0.1 if arguments.paired else 0.5)
    return arguments


def work(benchmark, loop_name, options):
    """In a fresh process: run one benchmark once and print what it found."""
    if not options.ops:
        harness.pin(0, benchmark.cores)
    print(json.dumps(benchmark.run(loop_name, options)), flush=True)
    os._exit(0)  # no figure should wait for, or fail by, what a loop does at interpreter exit


def run_fresh(benchmark, loop_name, seconds):
    """One figure from a fresh process: its dict, or the reason why there is none."""
    command = [sys.executable, __file__, "--worker", benchmark.full_name, loop_name, "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 20 * seconds)
    except subprocess.TimeoutExpired:
        return None, "timed out"
    try:
        return json.loads(done.stdout), None
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"exit code {done.returncode}"


def selected(names):
    if not names:
        return list(BENCHMARKS.values())
    chosen = [b for b in BENCHMARKS.values() if any(n == b.group or fnmatch.fnmatch(b.full_name, n) for n in names)]
    return chosen or sys.exit(f"no benchmark matches {' '.join(names)}; --list shows them")


def measure(benchmark, loops, rounds, seconds):
    """All runs of one benchmark, interleaved: A B C, A B C, ... A loop that failed is not tried again."""
    runs, failures = {name: [] for name in loops}, {}
    for turn in range(rounds):
        for name in loops:
            if name in failures or (name == LIMIT and not benchmark.has_limit):
                continue
            result, failure = run_fresh(benchmark, name, seconds)
            if failure:
                failures[name] = failure
            else:
                runs[name].append(result)
            print(f"{benchmark.full_name} {turn + 1}/{rounds} {name}: {failure or result}", file=sys.stderr)
    return {
        "name": benchmark.full_name,
        "unit": benchmark.unit,
        "lower_is_better": benchmark.lower_is_better,
        "runs": {name: results for name, results in runs.items() if results},
        "failures": failures,
    }


def best(entry, name):
    values = [result["value"] for result in entry["runs"].get(name, ())]
    if not values:
        return None
    return min(values) if entry["lower_is_better"] else max(values)


def table(entries, loops):
    """Rows of strings: the best figures, then the subject's ratios."""
    subject, others = loops[0], loops[1:]
    peers = [name for name in others if name not in ("asyncio", LIMIT)]
    rows = [["benchmark", "unit", *loops, "/asyncio", "/uvloop", "/best peer", "/limit"]]
    for entry in entries:
        figures = {name: best(entry, name) for name in loops}
        known = [figures[name] for name in peers if figures[name]]
        best_peer = (min(known) if entry["lower_is_better"] else max(known)) if known else None
        against = [figures.get("asyncio"), figures.get("uvloop"), best_peer, figures.get(LIMIT)]
        cells = ["failed" if name in entry["failures"] else number(figures[name]) for name in loops]
        ratios = [ratio(entry, figures[subject], other) for other in against]
        rows.append([entry["name"], entry["unit"], *cells, *["" if r is None else f"{r:.2f}" for r in ratios]])
    return rows


def main():
    arguments = parse_arguments()
    load_groups()
    if arguments.worker:
        name, loop_name = arguments.worker
        (paired.work if arguments.paired else work)(BENCHMARKS[name], loop_name, Options(arguments.seconds, arguments.ops))
    if arguments.list:
        print("\n".join(BENCHMARKS))
        return
    benchmarks = selected(arguments.names)
    if arguments.paired:
        benchmarks = paired.repeatable(benchmarks)
    loops = [name for name in arguments.loops.split(",") if harness.is_available(name)] + [LIMIT]
    title = f"CPython {platform.python_version()}, {platform.platform()}, "
    if arguments.paired:
        title += f"{arguments.restarts} x {arguments.rounds} rounds of {arguments.seconds} s slices"
        entries = paired.measure_all(benchmarks, loops, arguments)
        rows = paired.table(entries, loops)
    else:
        title += f"best of {arguments.rounds} interleaved runs"
        entries = [measure(b, loops, arguments.rounds, arguments.seconds) for b in benchmarks]
        rows = table(entries, loops)
    if arguments.json:
        when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with open(arguments.json, "w") as file:
            json.dump({"title": title, "when": when, "loops": loops, "benchmarks": entries}, file, indent=1)
    if arguments.plot:
        plot.write(arguments.plot, title, entries, loops, lambda e, name: ratio(e, best(e, name), best(e, "asyncio")))
    print(title, end="\n\n")
    print_table(rows, arguments.markdown)
    for entry in entries:
        for name, reason in entry["failures"].items():
            print(f"\n{entry['name']} failed on {name}: {reason}")


if __name__ == "__main__":
    main()
