"""Every program in examples/ does the same on fastloop as on asyncio: output, exit code and warnings."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = {"asyncio": [], "fastloop": ["-m", "fastloop"]}


def command(loop, script, *args, dev=False):
    return [sys.executable, *(["-X", "dev"] if dev else []), *LOOPS[loop], str(script), *args]


def execute(loop, script, dev=False, **kwargs):
    return subprocess.run(command(loop, script, dev=dev), capture_output=True, text=True, timeout=140, **kwargs)


def normalise(stderr):
    """stderr without what differs between two runs: times, addresses, slow-step reports of a loaded
    machine, warnings about the interpreter's own modules, and traceback frames outside the examples (they
    are the loop's and the launcher's own)."""
    stderr = re.sub(r"0x[0-9a-f]+", "0x", stderr)
    stderr = re.sub(r"took \d+\.\d+ seconds", "took some seconds", stderr)
    lines, foreign_frame = [], False
    for line in stderr.splitlines():
        if re.match(r'  File ".*", line \d+', line):
            foreign_frame = str(EXAMPLES) not in line
        elif not line.startswith("    "):
            foreign_frame = False
        slow_step = "Executing <" in line and "<Handle sleep(" not in line
        interpreters_own = line.startswith("<frozen ")  # 3.15's linecache in a spawned process, for one
        if not (foreign_frame or slow_step or interpreters_own):
            lines.append(line)
    return lines


def test_launcher_puts_our_loop_in_place(tmp_path):
    script = tmp_path / "which.py"
    script.write_text(
        "import asyncio, sys, fastloop\n"
        "async def main():\n"
        "    assert type(asyncio.get_running_loop()) is fastloop.Loop\n"
        "    assert type(asyncio.current_task()) is fastloop.Task\n"
        "    print(sys.argv, __name__, __file__)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        command("fastloop", script, "--flag", "x"), capture_output=True, text=True, timeout=140, check=True
    )
    assert done.stdout == f"{[str(script), '--flag', 'x']} __main__ {script}\n"


@pytest.mark.parametrize("dev", [False, True], ids=["plain", "dev"])
@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_same_on_both_loops(script, dev):
    wanted, got = (execute(loop, script, dev) for loop in ("asyncio", "fastloop"))
    assert wanted.returncode == 0 and wanted.stdout, wanted.stderr
    assert (got.stdout, got.returncode, normalise(got.stderr)) == (wanted.stdout, 0, normalise(wanted.stderr))
    if script.stem != "debug_mode":
        assert normalise(wanted.stderr) == []


class Clients:
    """Clients of examples/graceful_shutdown.py that send without pause and note how each request ended."""

    def __init__(self, port):
        self.port, self.answered, self.unanswered = port, 0, 0

    async def send_until_refused(self, name):
        """One connection after the other, several requests on each, until the listener is gone."""
        number = 0
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return
            try:
                for number in range(number, number + 5):
                    text = f"{name}-{number}".encode()
                    writer.write(text + b"\n")
                    answer = await reader.readline()
                    if not answer:
                        self.unanswered += 1
                        break
                    assert answer == hashlib.sha256(text).hexdigest().encode() + b"\n"
                    self.answered += 1
            except ConnectionError:
                self.unanswered += 1
            finally:
                writer.close()


def start_service(loop, *args, dev=False):
    service = subprocess.Popen(
        command(loop, EXAMPLES / "graceful_shutdown.py", "0", *args, dev=dev),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return service, int(re.fullmatch(r"listening on port (\d+)\n", service.stdout.readline())[1])


def end_of(service):
    """Exit code, stderr and the four numbers that the service prints last."""
    stdout, stderr = service.communicate(timeout=140)
    return service.returncode, normalise(stderr), [int(word) for word in stdout.split()[1::2]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_no_accepted_request_is_lost_under_load(number):
    # On fastloop alone: asyncio's server can be between accepting a connection and making its transport
    # when it is closed, and then reports an unclosed one.
    service, port = start_service("fastloop")
    clients = Clients(port)

    async def load():
        async with asyncio.TaskGroup() as group:
            for name in range(50):
                group.create_task(clients.send_until_refused(name))
            while clients.answered < 500:
                await asyncio.sleep(0.001)
            service.send_signal(number)

    with service:
        asyncio.run(asyncio.wait_for(load(), 140))
        code, stderr, (accepted, answered, recorded, cancelled) = end_of(service)
    assert (code, stderr, cancelled) == (0, [], 0)
    assert accepted == answered == recorded == clients.answered >= 500
    assert clients.unanswered <= 50  # at most the one that each client sent as the door closed


@pytest.mark.parametrize("loop", LOOPS)
def test_what_outlasts_the_deadline_is_cancelled(loop):
    service, port = start_service(loop, "0.2", dev=True)

    async def client():
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for (_, writer), request in zip(connections, [b"sleep 3600\n", b"sleep 0.1\n", b"quick\n"]):
            writer.write(request)
        assert len(await connections[2][0].readline()) == 65
        os.kill(service.pid, signal.SIGTERM)
        answers = [await reader.readline() for reader, _ in connections]
        for _, writer in connections:
            writer.close()
        return answers

    with service:
        assert asyncio.run(asyncio.wait_for(client(), 140)) == [b"", b"slept\n", b""]
        assert end_of(service) == (0, [], [3, 2, 1, 1])


def test_workers_are_replaced_under_load_without_losing_a_connection():
    # On fastloop alone, as above.
    server = subprocess.Popen(
        command("fastloop", EXAMPLES / "workers.py", "0", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = []  # of who answered

    async def send_until(done, port, name):
        while not done.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            pids.append(int(await reader.readline()))
            writer.write(b"%d\n" % name)
            assert await reader.read() == b"%d\n" % name
            writer.close()
            await writer.wait_closed()

    async def main():
        done = asyncio.Event()
        port = int((await asyncio.to_thread(server.stdout.readline)).split()[-1])
        async with asyncio.TaskGroup() as group:
            for name in range(20):
                group.create_task(send_until(done, port, name))
            while len(pids) < 200:
                await asyncio.sleep(0.001)
            server.send_signal(signal.SIGHUP)
            assert await asyncio.to_thread(server.stdout.readline) == "replaced\n"
            before, answered = set(pids), len(pids)
            while len(pids) < answered + 200:
                await asyncio.sleep(0.001)
            done.set()
        server.send_signal(signal.SIGTERM)
        return before, set(pids[answered + 20 :])  # 20 may have been on their way

    with server:
        try:
            before, after = asyncio.run(asyncio.wait_for(main(), 140))
            assert (server.communicate(timeout=140), server.returncode) == (("", ""), 0)
        finally:
            server.kill()
    assert len(before | after) <= 4 and len(after) <= 2
