"""Async generators: pipelines, asend, athrow, and what happens to one that is left half-way."""

import asyncio


async def read(count):
    for n in range(count):
        await asyncio.sleep(0)
        yield n


async def batches(source, size):
    batch = []
    async for item in source:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def running_average():
    total = count = 0
    average = None
    while True:
        try:
            value = yield average
        except ValueError as exc:
            print("reset:", exc)
            total = count = 0
            average = None
            continue
        await asyncio.sleep(0)
        total, count = total + value, count + 1
        average = total / count


async def endless():
    try:
        while True:
            yield "again"
    finally:
        await asyncio.sleep(0)
        print("closed with the loop")


async def main():
    async for batch in batches(read(7), 3):
        print("batch", batch)

    average = running_average()
    await anext(average)
    print("averages:", [await average.asend(n) for n in (10, 20, 60)])
    await average.athrow(ValueError("new series"))
    print("after reset:", await average.asend(5))
    await average.aclose()

    # Left open on purpose: asyncio.run closes it by shutdown_asyncgens.
    global left_open
    left_open = endless()
    print(await anext(left_open))


asyncio.run(main())
print("run is over")
