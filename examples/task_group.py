"""TaskGroup: tasks that live and fail together, their errors handled with except*."""

import asyncio


async def step(name, delay, error=None):
    try:
        await asyncio.sleep(delay)
    except asyncio.CancelledError:
        print(f"  {name}: cancelled")
        raise
    if error:
        raise error
    print(f"  {name}: done")
    return name


async def main():
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(step(name, delay)) for name, delay in [("a", 0.02), ("b", 0.01)]]
    print("results:", [task.result() for task in tasks])

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("key", 0, KeyError("k")))
            group.create_task(step("value", 0, ValueError("v")))
            group.create_task(step("bystander", 60))
    except* KeyError as errors:
        print("lookups that failed:", errors.exceptions)
    except* ValueError as errors:
        print("values that were bad:", errors.exceptions)


asyncio.run(main())
