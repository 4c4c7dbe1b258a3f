"""TaskGroup: tasks that live and fail together, their errors handled with except*."""

import asyncio


async def step(name, waits, error=None):
    try:
        await waits
    except asyncio.CancelledError:
        print(f"  {name}: cancelled")
        raise
    if error:
        raise error
    print(f"  {name}: done")
    return name


async def main():
    async with asyncio.TaskGroup() as group:
        b = group.create_task(step("b", asyncio.sleep(0.01)))
        tasks = [group.create_task(step("a", asyncio.wait([b]))), b]
    print("results:", [task.result() for task in tasks])

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("key", asyncio.sleep(0), KeyError("k")))
            group.create_task(step("value", asyncio.sleep(0), ValueError("v")))
            group.create_task(step("bystander", asyncio.sleep(60)))
    except* KeyError as errors:
        print("lookups that failed:", errors.exceptions)
    except* ValueError as errors:
        print("values that were bad:", errors.exceptions)


asyncio.run(main())
