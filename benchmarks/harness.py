"""What every benchmark shares: the registry, the loops, pinning to cores, timing and the compiling of the C programs."""

import asyncio
import contextlib
import functools
import hashlib
import importlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
LOOPS = ("fastloop", "asyncio", "uvloop", "rloop", "zuvloop", "rsloop", "zloop", "blazio")
LIMIT = "limit"  # stands in a loop's place for the bare-C or bare-interpreter figure

sys.path.append(str(HERE.parent))  # last, so that an installed fastloop wins over an in-place build


@dataclass(frozen=True)
class Benchmark:
    """One row of the table.

    `open(loop_name, options)` is a context manager for all that can be ready beforehand, such as the loop and its server. It gives
    a function that measures once: it returns a dict with at least `value`, in `unit`, and where it is known `cpu_us`, the CPU
    microseconds of the measured process for each of its operations.
    """

    group: str
    name: str
    unit: str
    open: Callable
    has_limit: bool = False
    lower_is_better: bool = False
    cores: int = 1  # how many cores the measured process may use; a load generator has the next one
    repeatable: bool = True  # whether one process can measure again and again

    @property
    def full_name(self):
        return f"{self.group}.{self.name}"

    def run(self, loop_name, options):
        with self.open(loop_name, options) as measure:
            return measure()


@dataclass(frozen=True)
class Options:
    """What a run is told: its length in seconds, or for profiling a fixed number of operations."""

    seconds: float = 0.5
    ops: int | None = None


BENCHMARKS: dict[str, Benchmark] = {}


def register(benchmark):
    BENCHMARKS[benchmark.full_name] = benchmark
    return benchmark


def new_loop(name):
    """A new event loop of the package `name`; every peer has the same `new_event_loop()`."""
    loop = importlib.import_module(name).new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def is_available(name):
    try:
        importlib.import_module(name).new_event_loop().close()
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError):
            print(f"{name} is left out: {error!r}", file=sys.stderr)
        return False
    return True


def timed(group, *, batch=1, limit=None, unit="ops/s", cores=1):
    """Register `async def f(loop, k)`, which does `k * batch` operations; `limit(k)` does the same without a loop."""

    def decorate(function):
        @contextlib.contextmanager
        def open_loop(loop_name, options):
            if loop_name == LIMIT:
                yield rate(limit, batch, options)
                return
            with contextlib.closing(new_loop(loop_name)) as loop:
                yield rate(lambda k: loop.run_until_complete(function(loop, k)), batch, options)

        register(Benchmark(group, function.__name__, unit, open_loop, limit is not None, cores=cores))
        return function

    return decorate


def rate(function, batch, options, repeats=3):
    """Find the `k` for which `function(k)` takes the right time; the function that then measures: the best of `repeats` timings."""
    if options.ops:
        return functools.partial(count_only, function, max(1, options.ops // batch))
    function(1)  # what is only done once, such as imports and compiling, is not measured
    k, taken = 1, 0.0
    while taken < options.seconds / 20:
        k *= 2
        taken = elapsed(function, k)
    k = max(1, round(k * options.seconds / repeats / taken))

    def measure():
        cpu = time.process_time()
        shortest = min(elapsed(function, k) for _ in range(repeats))
        cpu = time.process_time() - cpu
        return {"value": k * batch / shortest, "cpu_us": cpu * 1e6 / (repeats * k * batch)}

    return measure


def count_only(function, k):
    function(k)
    return {"value": 0.0}


def elapsed(function, k):
    start = time.perf_counter()
    function(k)
    return time.perf_counter() - start


def pin(first, count=1):
    """Keep this process (and what it starts) on `count` cores from the `first` of the machine's."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(first + i) % len(cores)] for i in range(count)})


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(base) / "fastloop-benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def compile_c(source, *flags):
    """Compile `source` (a file beside this one) once, outside the tree; the path of the program or library."""
    text = (HERE / source).read_bytes()
    key = hashlib.sha256(repr((text, flags)).encode()).hexdigest()[:16]
    target = cache_directory() / f"{pathlib.Path(source).stem}-{key}"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", part, HERE / source, *flags], check=True)
        part.rename(target)
    return target
