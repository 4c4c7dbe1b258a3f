"""wait: watch a set of tasks until the first is done, the first fails, or all are done."""

import asyncio


async def job(name, delay, fail=False):
    await asyncio.sleep(delay)
    if fail:
        raise RuntimeError(f"{name} failed")
    return name


def names(tasks):
    return sorted(task.get_name() for task in tasks)


def start(*specs):
    return {asyncio.create_task(job(*spec), name=spec[0]) for spec in specs}


async def main():
    release = asyncio.Event()
    tasks = start(("fast", 0)) | {asyncio.create_task(release.wait(), name="slow")}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    print("first completed:", names(done), "pending:", names(pending))
    release.set()
    done, pending = await asyncio.wait(tasks)
    print("all completed:", names(done), "pending:", names(pending))

    tasks = start(("ok", 0.01), ("bad", 0.03, True), ("late", 60))
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    print("first exception:", [str(t.exception()) for t in done if t.exception()], "pending:", names(pending))

    # A timeout does not cancel anything: that is the caller's decision.
    done, pending = await asyncio.wait(pending, timeout=0.01)
    print("timed out:", names(done), "pending:", names(pending))
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)
    print("cancelled:", [task.cancelled() for task in pending])


asyncio.run(main())
