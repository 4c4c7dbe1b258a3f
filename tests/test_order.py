"""The order of callbacks and task steps is asyncio's, step for step."""

import asyncio
import random

import pytest

import fastloop


def random_program(seed):
    """A coroutine function that spawns, awaits, cancels and schedules at random, with a trace."""
    rng = random.Random(seed)
    choices = [rng.random() for _ in range(4000)]

    async def main():
        loop = asyncio.get_running_loop()
        trace = []
        futures = [loop.create_future() for _ in range(6)]
        tasks = []
        picks = iter(choices)

        def pick(n):
            return int(next(picks, 0) * n)

        def callback(name):
            trace.append(("callback", name))
            future = futures[pick(len(futures))]
            if not future.done() and pick(2):
                future.set_result(name)

        async def child(name, depth):
            try:
                for i in range(pick(6)):
                    own_name = asyncio.current_task().get_name()
                    trace.append((name, i, own_name if own_name[0] == "t" else "gathered"))
                    await step(f"{name}.{i}", depth)
            except asyncio.CancelledError as exc:
                trace.append((name, "cancelled", exc.args))
                if pick(2):
                    raise
            except ValueError as exc:
                trace.append((name, "error", str(exc)))
            trace.append((name, "end"))
            return name

        async def step(name, depth):
            action = pick(11)
            if action <= 2:
                await asyncio.sleep(0)
            elif action == 3:
                loop.call_soon(callback, name)
            elif action == 4:
                index = pick(len(futures))
                if futures[index].done():
                    futures[index] = loop.create_future()
                futures[index].add_done_callback(lambda f: trace.append(("done", name)))
            elif action == 5:
                future = futures[pick(len(futures))]
                if not future.done():
                    loop.call_soon(lambda: future.done() or future.set_result(name))
                trace.append((name, "got", await future))
            elif action == 6:
                future = futures[pick(len(futures))]
                if not future.done():
                    future.set_exception(ValueError(name))
                    future.exception()
            elif action == 7 and depth < 4:
                task = loop.create_task(child(name, depth + 1), name=name)
                tasks.append(task)
                if pick(2):
                    trace.append((name, "joined", await task))
            elif action == 8 and tasks:
                task = tasks[pick(len(tasks))]
                trace.append((name, "cancel", task.cancel(name)))
            elif action == 9 and depth < 4:
                names = [f"{name}:{i}" for i in range(pick(4))]
                done = await asyncio.gather(
                    *[child(n, depth + 1) for n in names], return_exceptions=True
                )
                trace.append((name, "gathered", [type(d).__name__ for d in done]))
            elif action == 10:
                await asyncio.wait_for(asyncio.sleep(0, name), 600)

        root = [loop.create_task(child(f"t{i}", 0), name=f"t{i}") for i in range(5)]
        tasks.extend(root)
        for _ in range(200):
            await asyncio.sleep(0)
            if all(t.done() for t in tasks):
                break
        for task in tasks:
            task.cancel("end")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        trace.append([type(r).__name__ for r in results])
        return trace

    return main


@pytest.mark.parametrize("seed", range(60))
def test_same_trace_as_asyncio(seed):
    def trace_on(factory):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(random_program(seed)())

    expected = trace_on(asyncio.SelectorEventLoop)
    assert len(expected) > 1
    assert trace_on(fastloop.new_event_loop) == expected


def test_timers_run_by_deadline_then_age():
    loop = fastloop.new_event_loop()
    ran = []
    now = loop.time()
    rng = random.Random(1)
    wanted = []
    for i in range(500):
        when = now + rng.randrange(20) / 10_000
        handle = loop.call_at(when, ran.append, (when, i))
        if rng.random() < 0.3:
            handle.cancel()
        else:
            wanted.append((when, i))
    loop.call_at(now + 0.01, loop.stop)
    loop.run_forever()
    loop.close()
    assert ran == sorted(wanted)
