"""Serve until SIGTERM or SIGINT. Settings come from the environment; README.md lists them."""

import asyncio
import dataclasses
import os
import signal

from .app import Service, Settings


def settings_from(environment):
    """DATABASE, CACHE, PORT, ... as Settings names and types them."""
    fields = [field for field in dataclasses.fields(Settings) if field.name.upper() in environment]
    return Settings(**{field.name: field.type(environment[field.name.upper()]) for field in fields})


async def main():
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    service = Service(settings_from(os.environ))
    print("listening on port", await service.start(), flush=True)
    await stopping.wait()
    await service.stop()
    print(service.summary())


if __name__ == "__main__":
    asyncio.run(main())
