"""Running a server on one core under a load on the next: what the network, HTTP and TLS benchmarks share."""

import contextlib
import functools
import json
import os
import pathlib
import random
import socket
import subprocess
import tempfile
import threading
import time

from harness import LIMIT, compile_c, new_loop

ALL_CORES = sorted(os.sched_getaffinity(0))  # read before the worker is pinned
CLIENT_CORE = {ALL_CORES[1 % len(ALL_CORES)]}


def make_socket(kind):
    """A listening (or, for udp, bound) non-blocking socket and its address in the load generator's notation."""
    if kind == "unix":
        path = tempfile.mktemp(prefix="fastloop-benchmark-")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        address = f"unix:{path}"
    else:
        # An address of 127/8 of its own: thousands of ports in TIME_WAIT would slow the next run.
        host = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.1"
        # asyncio sets TCP_NODELAY only where the protocol number is given, as it is on the sockets it makes itself.
        type_and_protocol = (socket.SOCK_DGRAM, 0) if kind == "udp" else (socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock = socket.socket(socket.AF_INET, *type_and_protocol)
        sock.bind((host, 0))
        address = f"{kind}:{host}:{sock.getsockname()[1]}"
    if kind != "udp":
        sock.listen(4096)
    sock.setblocking(False)
    return sock, address


def on_client_core(command):
    """Start `command` on the core that the server does not use."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, CLIENT_CORE)
    return process


def loadgen(arguments, *, flags=(), scale=1):
    """A load: how to start the C load generator on an address and how to read its figures; a message counts `scale` times."""

    def start(address, options):
        length = ["-n", str(options.ops), "-t", "1e9"] if options.ops else ["-t", str(options.seconds)]
        return on_client_core([compile_c("loadgen.c", *flags), *arguments.split(), *length, address])

    def read(output):
        figures = json.loads(output)
        rate, count = figures.pop("messages_per_second"), figures.pop("messages")
        return {"value": rate * scale, "operations": count * scale, **figures}

    return start, read


def finish(process, read):
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.strip() or f"load ended with {process.returncode}")
    return read(output)


@contextlib.contextmanager
def serve(loop_name, options, kind, start_server, load, limit=None):
    """A server on a fresh loop, or `limit(fd)` as its own process, and the function that puts the load on it and returns its figures.

    `start_server` is `async def f(loop, sock)`; what it returns is kept alive meanwhile. The loop runs only under the load.
    """
    start_load, read = load
    sock, address = make_socket(kind)

    def run_load():
        return finish(start_load(address, options), read)

    try:
        if loop_name == LIMIT:
            with c_server(limit, sock) as server:
                yield functools.partial(load_process, server, run_load)
        else:
            loop = new_loop(loop_name)
            keep = loop.run_until_complete(start_server(loop, sock))
            yield functools.partial(load_loop, loop, run_load)
            del keep
    finally:
        if kind == "unix":
            os.unlink(address.removeprefix("unix:"))


@contextlib.contextmanager
def c_server(command, sock):
    """The C program `command(fd)` that serves on `sock`, until the context ends."""
    server = subprocess.Popen(command(sock.fileno()), pass_fds=[sock.fileno()])
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def with_cpu(figures, seconds):
    return {**figures, "cpu_us": seconds * 1e6 / figures["operations"]}


def load_process(server, run_load):
    def cpu():
        return int(pathlib.Path(f"/proc/{server.pid}/schedstat").read_text().split()[0]) / 1e9

    before = cpu()
    figures = run_load()
    return with_cpu(figures, cpu() - before)


def load_loop(loop, run_load):
    """Run the loop until `run_load()`, in a thread that only waits for its process, is over; that thread's CPU time does not count."""
    outcome = []

    def watch():
        try:
            outcome.append(run_load())
        except Exception as error:
            outcome.append(error)
        outcome.append(time.thread_time())
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=watch)
    before = time.process_time()
    thread.start()
    loop.run_forever()
    cpu = time.process_time() - before
    thread.join()
    figures, watching = outcome
    if isinstance(figures, Exception):
        raise figures
    return with_cpu(figures, cpu - watching)
