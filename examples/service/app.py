"""The service as one object: what it is made of, the order in which that starts and ends, and its HTTP side.

POST /jobs {"upto": N} answers 202 {"id": ...}, 400 to nonsense, 503 when too many wait; GET /jobs/ID answers the job,
with its result when it is done; GET /health tells how the service is.
"""

import asyncio
import json
import os
from dataclasses import dataclass

import asyncpg
import redis.asyncio
from aiohttp import web
from redis.backoff import NoBackoff
from redis.retry import Retry

from .jobs import Busy, Jobs
from .processes import Processes

LARGEST = 10_000_000


@dataclass
class Settings:
    database: str  # postgresql://user:password@host:port/name
    cache: str  # redis://host:port/number
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    patience: float = 1.0  # seconds for the cache to answer
    grace: float = 10.0  # seconds from the signal until what still runs is given up
    workers: int = 8
    processes: int = os.cpu_count() or 1


class Service:
    def __init__(self, settings):
        self.settings = settings
        self.accepted = self.answered = 0

    async def start(self):
        """Inside out: nothing is offered before what it needs is there. Returns the port."""
        settings = self.settings
        self.database = await asyncpg.create_pool(settings.database, min_size=2, max_size=10)
        # One quick try: a cache that is down must not hold up a request.
        retry = Retry(NoBackoff(), 0)
        self.cache = redis.asyncio.from_url(settings.cache, socket_timeout=settings.patience, retry=retry)
        self.processes = Processes(settings.processes)
        self.jobs = Jobs(self.database, self.cache, self.processes)
        await self.jobs.start(settings.workers)
        app = web.Application(middlewares=[self.count])
        app.add_routes(
            [
                web.post("/jobs", self.post_job),
                web.get(r"/jobs/{number:\d{1,18}}", self.get_job),
                web.get("/health", self.get_health),
            ]
        )
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=settings.grace)
        await self.runner.setup()
        await web.TCPSite(self.runner, settings.host, settings.port).start()
        return self.runner.addresses[0][1]

    async def stop(self):
        """Outside in: take no more, answer what was accepted, do what was promised, then close what that needed."""
        deadline = asyncio.get_running_loop().time() + self.settings.grace
        await self.runner.cleanup()  # closes the listener and idle connections, waits for requests under way
        all_done = await self.jobs.stop(deadline)
        await self.processes.stop(all_done)  # what they still worked on is in the database, not done
        await self.cache.aclose()
        await self.database.close()

    def summary(self):
        left = self.jobs.queue.qsize()
        return f"accepted {self.accepted} answered {self.answered} done {self.jobs.done} left {left}"

    @web.middleware
    async def count(self, request, handler):
        self.accepted += 1
        try:
            return await handler(request)
        finally:
            self.answered += 1

    async def post_job(self, request):
        try:
            upto = (await request.json())["upto"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise web.HTTPBadRequest(text='the body is to be {"upto": N}') from None
        if type(upto) is not int or not 1 <= upto <= LARGEST:
            raise web.HTTPBadRequest(text=f"upto is to be a number from 1 to {LARGEST}")
        try:
            number = await self.jobs.add(upto)
        except Busy:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"}) from None
        return web.json_response({"id": number}, status=202)

    async def get_job(self, request):
        job = await self.jobs.get(int(request.match_info["number"]))
        if job is None:
            raise web.HTTPNotFound
        return web.json_response(job)

    async def get_health(self, request):
        return web.json_response(
            {"waiting": self.jobs.queue.qsize(), "done": self.jobs.done, "cached": self.jobs.cached}
        )
