"""Comprehensions with async for and await."""

import asyncio


async def numbers(count):
    for n in range(count):
        await asyncio.sleep(0)
        yield n


async def double(n):
    await asyncio.sleep(0)
    return n * 2


async def is_even(n):
    await asyncio.sleep(0)
    return n % 2 == 0


async def main():
    print("list:", [n async for n in numbers(5)])
    print("set:", sorted({n % 3 async for n in numbers(9)}))
    print("dict:", {n: await double(n) async for n in numbers(3)})
    print("filtered:", [await double(n) async for n in numbers(6) if await is_even(n)])
    print("nested:", [(a, b) async for a in numbers(2) async for b in numbers(2)])

    doubled = (await double(n) async for n in numbers(4))  # an async generator: nothing runs yet
    print("generator:", [n async for n in doubled])

    # A comprehension awaits one after the other; gather or a TaskGroup runs them together.
    print("together:", await asyncio.gather(*[double(n) async for n in numbers(3)]))


asyncio.run(main())
