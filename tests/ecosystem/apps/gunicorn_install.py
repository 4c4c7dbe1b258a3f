"""gunicorn's configuration for workers that ask asyncio for a new loop: its own `asgi` ones, aiohttp's."""

import fastloop

fastloop.install()
asgi_loop = "asyncio"
