"""Background tasks: keep a reference until they are done, and look at how they ended."""

import asyncio


class Background:
    """The loop itself keeps only weak references: a task that nobody holds may vanish half-way."""

    def __init__(self):
        self.tasks = set()
        self.errors = []

    def start(self, coro, name):
        task = asyncio.create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.finished)
        return task

    def finished(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.errors.append(f"{task.get_name()}: {task.exception()!r}")

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def send_mail(address):
    await asyncio.sleep(0.01)
    if "@" not in address:
        raise ValueError(address)


async def poll():
    while True:
        await asyncio.sleep(60)


async def main():
    background = Background()
    mails = [background.start(send_mail(to), f"mail to {to}") for to in ("ada@example.com", "nowhere")]
    background.start(poll(), "poll")
    print("running:", len(background.tasks))
    await asyncio.wait(mails)
    print("still running:", [task.get_name() for task in background.tasks], "errors:", background.errors)
    await background.stop()
    print("left:", len(background.tasks))


asyncio.run(main())
