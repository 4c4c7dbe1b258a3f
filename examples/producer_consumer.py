"""Queue: producers and consumers at their own pace, with a bound, a join and an end."""

import asyncio


async def produce(queue, items):
    for item in items:
        await queue.put(item)  # waits while the queue is full


async def consume(queue, results):
    while True:
        item = await queue.get()
        try:
            await asyncio.sleep(0.001)
            results.append(item * item)
        finally:
            queue.task_done()


async def main():
    queue = asyncio.Queue(maxsize=4)
    results = []
    consumers = [asyncio.create_task(consume(queue, results)) for _ in range(3)]
    await asyncio.gather(produce(queue, range(10)), produce(queue, range(10, 20)))
    await queue.join()  # every item that was put has been marked done
    for consumer in consumers:
        consumer.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    print("results:", sorted(results) == [n * n for n in range(20)], "left:", queue.qsize())

    urgent = asyncio.PriorityQueue()
    for priority, name in [(3, "sweep"), (1, "fire"), (2, "phone")]:
        urgent.put_nowait((priority, name))
    print("by priority:", [(await urgent.get())[1] for _ in range(3)])


asyncio.run(main())
