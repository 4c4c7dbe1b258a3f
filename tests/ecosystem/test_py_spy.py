"""py-spy shows where a program that does not answer is stuck: the coroutine that blocks, and who awaits it."""

import json
import os
import shutil
import subprocess
import sysconfig

import pytest

PY_SPY = shutil.which("py-spy", path=sysconfig.get_path("scripts"))

pytestmark = [
    pytest.mark.ecosystem("py-spy"),
    pytest.mark.skipif(PY_SPY is None, reason="needs the program py-spy"),
]


@pytest.fixture
def dump():
    """dump(process): the names of the functions on each thread's stack, innermost first, by thread's name."""

    def dump(process):
        # A sanitizer is for the interpreter, and nothing for py-spy.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        command = [PY_SPY, "dump", "--json", "--pid", str(process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        return {t["thread_name"]: [frame["name"] for frame in t["frames"]] for t in json.loads(done.stdout)}

    return dump


def test_a_stuck_program(start, dump, loop_name):
    program = start("stuck.py", loop_name)
    program.expect("stuck")
    stacks = dump(program.process)
    main = stacks.pop("MainThread")
    assert main[:2] == ["block_loop", "handle"] and any(name.endswith("run_forever") for name in main)
    assert main[-1] == "<module>"
    [(name, worker)] = stacks.items()
    assert "block_thread" in worker and name == "asyncio_0"
