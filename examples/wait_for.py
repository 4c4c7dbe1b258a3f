"""wait_for: one awaitable with a time limit, and shield for what must not be cancelled by it."""

import asyncio


async def work(delay, log):
    try:
        await asyncio.sleep(delay)
        return "finished"
    except asyncio.CancelledError:
        log.append("work was cancelled")
        raise


async def main():
    log = []
    print("in time:", await asyncio.wait_for(work(0.01, log), timeout=60))

    try:
        await asyncio.wait_for(work(60, log), timeout=0.01)
    except TimeoutError:
        print("too late:", log)

    # The time limit ends the waiting, not the shielded work.
    release = asyncio.Event()
    precious = asyncio.create_task(release.wait())
    try:
        await asyncio.wait_for(asyncio.shield(precious), timeout=0.01)
    except TimeoutError:
        print("stopped waiting, still running:", not precious.done())
    release.set()
    print("shielded:", await precious)


asyncio.run(main())
