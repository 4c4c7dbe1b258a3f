"""Notebooks: top-level await in IPython and in an ipykernel on fastloop, and nested runs refused as asyncio refuses them."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import closing

import pytest

import fastloop


def run_runner(coroutine):
    with asyncio.Runner() as runner:
        runner.run(coroutine)


def run_forever(coroutine):
    coroutine.close()
    asyncio.get_running_loop().run_forever()


def run_on_another(coroutine):
    with closing(fastloop.new_event_loop()) as loop:
        loop.run_until_complete(coroutine)


NESTED = {
    "asyncio.run": asyncio.run,
    "fastloop.run": fastloop.run,
    "Runner.run": run_runner,
    "run_until_complete": lambda coroutine: asyncio.get_running_loop().run_until_complete(coroutine),
    "run_forever": run_forever,
    "another loop": run_on_another,
}


@pytest.mark.parametrize("call", NESTED.values(), ids=NESTED)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.filterwarnings("ignore:unclosed event loop")
def test_nested_runs_get_asyncios_errors(call):
    async def main():
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError) as caught:
            call(coroutine)
        coroutine.close()
        assert await asyncio.sleep(0, "goes on") == "goes on"
        return str(caught.value)

    errors = []
    for factory in (fastloop.new_event_loop, asyncio.SelectorEventLoop):
        with asyncio.Runner(loop_factory=factory) as runner:
            errors.append(runner.run(main()))
    assert errors[0] == errors[1]


@pytest.mark.ecosystem("ipython")
def test_ipython(tmp_path):
    pytest.importorskip("IPython")
    cell = "import asyncio; await asyncio.sleep(0); print(type(asyncio.get_running_loop()).__module__)"
    done = subprocess.run(
        [sys.executable, "-m", "fastloop", "-m", "IPython", "--simple-prompt", "-c", cell],
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert (done.returncode, done.stdout) == (0, "fastloop.loop\n"), done.stderr


@pytest.fixture
def kernel(apps, tmp_path, monkeypatch):
    """A kernel started as apps/kernel.json says, and a client of it."""
    pytest.importorskip("ipykernel")
    manager_of = pytest.importorskip("jupyter_client.manager")
    kernelspec = pytest.importorskip("jupyter_client.kernelspec")
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "kernels" / "fastloop"
    folder.mkdir(parents=True)
    spec = json.loads((apps / "kernel.json").read_text())
    spec["argv"][0] = sys.executable
    (folder / "kernel.json").write_text(json.dumps(spec))
    specs = kernelspec.KernelSpecManager(kernel_dirs=[str(folder.parent)])
    manager = manager_of.KernelManager(kernel_name="fastloop", kernel_spec_manager=specs)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=250)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert not manager.is_alive()


def run_cell(client, code):
    """What the cell prints; an error in it is raised here."""
    printed = []

    def hear(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        assert message["msg_type"] != "error", "\n".join(content["traceback"])

    client.execute_interactive(code, output_hook=hear, timeout=250)
    return "".join(printed)


@pytest.mark.ecosystem("ipykernel")
def test_kernel(kernel):
    imports = "import asyncio, fastloop\nloop = asyncio.get_running_loop()\nprint(type(loop).__module__)"
    assert run_cell(kernel, imports) == "fastloop.loop\n"
    assert run_cell(kernel, "print(await asyncio.gather(*(asyncio.sleep(0, n) for n in range(5))))") == "[0, 1, 2, 3, 4]\n"
    assert run_cell(kernel, "print(await asyncio.to_thread(sum, range(10)))") == "45\n"

    # A task goes on while later cells run.
    start = "done = asyncio.Event()\nasync def work():\n    await done.wait()\n    return 'worked'\ntask = asyncio.create_task(work())"
    assert run_cell(kernel, start) == ""
    assert run_cell(kernel, "print(task.done(), type(task).__module__)\ndone.set()") == "False fastloop\n"
    assert run_cell(kernel, "print(await task)") == "worked\n"

    nested = "coroutine = asyncio.sleep(0)\ntry:\n    {}(coroutine)\nexcept RuntimeError as error:\n    print(error)\ncoroutine.close()"
    refused = "asyncio.run() cannot be called from a running event loop\n"
    assert run_cell(kernel, nested.format("asyncio.run")) == refused
    assert run_cell(kernel, nested.format("fastloop.run")) == refused
    assert run_cell(kernel, nested.format("loop.run_until_complete")) == "This event loop is already running\n"
    assert run_cell(kernel, "print(await asyncio.sleep(0, 'goes on'))") == "goes on\n"
