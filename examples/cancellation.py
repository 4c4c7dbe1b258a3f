"""Cancellation: clean up and pass it on, swallow it knowingly, delay it, and leave none behind."""

import asyncio


async def careful():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as exc:
        print("cleaning up because of", exc.args)
        raise
    finally:
        await asyncio.sleep(0)  # awaiting is allowed while cleaning up
        print("cleaned up")


async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling() == 1:
                print("not the first time round")
                continue
            raise


async def parent():
    await asyncio.gather(careful(), asyncio.sleep(60))


async def commit(ready, log):
    await ready.wait()
    log.append("committed")


async def main():
    task = asyncio.create_task(careful())
    await asyncio.sleep(0)
    task.cancel("user left")
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled:", task.cancelled())

    task = asyncio.create_task(stubborn())
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    print("stubborn cancelled:", task.cancelled(), "requests:", task.cancelling())

    # Cancelling who waits cancels what it waits for ...
    task = asyncio.create_task(parent())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])

    # ... but not through a shield.
    ready, log = asyncio.Event(), []
    inner = asyncio.create_task(commit(ready, log))
    outer = asyncio.create_task(asyncio.wait_for(asyncio.shield(inner), None))
    await asyncio.sleep(0)
    outer.cancel()
    await asyncio.wait([outer])
    print("outer cancelled:", outer.cancelled(), "log:", log)
    ready.set()
    await inner
    print("log:", log)

    # Whatever still runs when main returns is cancelled by asyncio.run, and waited for.
    global left
    left = asyncio.create_task(careful())
    await asyncio.sleep(0)


asyncio.run(main())
print("left cancelled:", left.cancelled())
