"""Lock: one task at a time in a section that awaits; waiting tasks are served in order."""

import asyncio


class Account:
    def __init__(self):
        self.balance = 100
        self.lock = asyncio.Lock()

    async def withdraw_unsafely(self, amount):
        balance = self.balance
        await asyncio.sleep(0)  # another task runs here and reads the same balance
        self.balance = balance - amount

    async def withdraw(self, amount):
        async with self.lock:
            await self.withdraw_unsafely(amount)


async def main():
    account = Account()
    await asyncio.gather(*(account.withdraw_unsafely(10) for _ in range(10)))
    print("without the lock:", account.balance)

    account = Account()
    await asyncio.gather(*(account.withdraw(10) for _ in range(10)))
    print("with the lock:", account.balance, "locked:", account.lock.locked())

    order = []

    async def enter(name):
        async with account.lock:
            order.append(name)
            await asyncio.sleep(0.001)

    await asyncio.gather(*map(enter, "abcd"))
    print("served in order:", order)


asyncio.run(main())
