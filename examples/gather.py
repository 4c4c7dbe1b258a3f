"""gather: run awaitables at the same time, results in the order they were given."""

import asyncio


async def square(n):
    await asyncio.sleep(0.03 - n / 100)  # the last one given is the first one done
    if n == 2:
        raise ValueError("two is not allowed")
    return n * n


async def main():
    print("all good:", await asyncio.gather(square(0), square(1), square(3)))

    # return_exceptions: failures take their place among the results.
    print("mixed:", await asyncio.gather(*map(square, range(4)), return_exceptions=True))

    # Without it the first failure is raised at once; the others run on and may still be used.
    others = [asyncio.create_task(square(n)) for n in (0, 1)]
    try:
        await asyncio.gather(*others, square(2))
    except ValueError as exc:
        print("raised:", exc)
    print("the others:", await asyncio.gather(*others))


asyncio.run(main())
