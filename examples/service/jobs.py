"""Jobs: kept in PostgreSQL until they are done, worked off by queue workers, their results cached in Redis.

A job is in the database before its client hears of it, and is marked done there with its result, so that none is
lost, whatever happens to the process: what is not done is queued again when the service starts. One process serves
one database; to share it among several, let the workers claim rows by "for update skip locked" instead.
"""

import asyncio
import json
import logging

import redis.asyncio

from .work import count_primes

log = logging.getLogger(__name__)

TABLE = """
create table if not exists jobs (id bigserial primary key, upto int not null, result int);
create index if not exists jobs_to_do on jobs (id) where result is null;
"""


class Busy(Exception):
    """More jobs wait than the service takes on."""


class Jobs:
    def __init__(self, database, cache, processes, room=1000, keep=60):
        self.database, self.cache, self.processes = database, cache, processes
        self.room = room  # jobs that may wait
        self.keep = keep  # seconds that a result stays in the cache
        self.queue = asyncio.Queue()
        self.workers = []
        self.done = self.cached = 0

    async def start(self, workers):
        await self.database.execute(TABLE)
        for row in await self.database.fetch("select id, upto from jobs where result is null order by id"):
            self.queue.put_nowait((row["id"], row["upto"]))
        self.workers = [asyncio.create_task(self.work(), name=f"worker {n}") for n in range(workers)]

    async def stop(self, deadline):
        """Work the queue off until then; True if that was enough."""
        try:
            async with asyncio.timeout_at(deadline):
                await self.queue.join()
        except TimeoutError:
            return False
        finally:
            for worker in self.workers:
                worker.cancel()
            await asyncio.gather(*self.workers, return_exceptions=True)
        return True

    async def add(self, upto):
        """The number of a new job, which is in the database now. Raises Busy."""
        if self.queue.qsize() >= self.room:
            raise Busy
        number = await self.database.fetchval("insert into jobs (upto) values ($1) returning id", upto)
        self.queue.put_nowait((number, upto))
        return number

    async def get(self, number):
        """A job as a dictionary, from the cache if it is there; None if there is no such job."""
        if cached := await self.ask_cache("get", f"job:{number}"):
            self.cached += 1
            return json.loads(cached)
        row = await self.database.fetchrow("select id, upto, result from jobs where id = $1", number)
        if row and row["result"] is not None:
            await self.ask_cache("set", f"job:{number}", json.dumps(dict(row)), ex=self.keep)
        return row and dict(row)

    async def ask_cache(self, command, *args, **options):
        """The cache is a help, not a need: without Redis the service is slower and as right."""
        try:
            return await getattr(self.cache, command)(*args, **options)
        except redis.asyncio.RedisError as error:
            log.warning("no cache: %s", error)

    async def work(self):
        while True:
            number, upto = await self.queue.get()
            try:
                result = await self.processes.run(count_primes, upto)
                await self.database.execute("update jobs set result = $2 where id = $1", number, result)
                self.done += 1
            except Exception:
                log.exception("job %d waits for the next start", number)
            finally:
                self.queue.task_done()
