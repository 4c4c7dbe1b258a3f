"""redis-py's asyncio side on Redis: pipelines, transactions, pub/sub, streams, blocking calls, cancelling, a crash."""

import asyncio
import random

import pytest

redis = pytest.importorskip("redis")
redis_asyncio = pytest.importorskip("redis.asyncio")
pytestmark = pytest.mark.ecosystem("redis")

REDIS_GONE = (redis.ConnectionError, redis.TimeoutError, OSError)


@pytest.fixture
def client(redis_server):
    """Redis.from_url with an empty database."""

    async def client(**options):
        client = redis_asyncio.from_url(redis_server.url, **{"socket_timeout": 100, **options})
        await client.flushdb()
        return client

    return client


def test_pipelines_of_many_tasks(run, check_loop, client):
    async def count(redis, name):
        for number in range(10):
            async with redis.pipeline(transaction=number % 2) as pipe:
                for _ in range(10):
                    pipe.incr(f"own-{name}").incr("common")
                answers = await pipe.execute()
            check_loop()
            assert answers[::2] == [*range(number * 10 + 1, number * 10 + 11)]
            assert answers[1::2] == sorted(answers[1::2])

    async def main():
        async with await client() as redis:
            await asyncio.gather(*(count(redis, name) for name in range(50)))
            assert await redis.get("common") == b"5000"

    run(main)


def test_optimistic_transactions(run, client):
    async def add(redis, times):
        for _ in range(times):
            async with redis.pipeline() as pipe:
                while True:
                    try:
                        await pipe.watch("sum")
                        value = int(await pipe.get("sum") or 0)
                        pipe.multi()
                        pipe.set("sum", value + 1)
                        await pipe.execute()
                        break
                    except redis_asyncio.WatchError:
                        continue

    async def main():
        async with await client() as redis:
            await asyncio.gather(*(add(redis, 20) for _ in range(8)))
            assert await redis.get("sum") == b"160"

    run(main)


@pytest.mark.parametrize("protocol", [2, 3])
def test_large_values_both_ways(run, client, protocol):
    async def echo(redis, number):
        value = random.Random(number).randbytes(2_000_000 + number)
        await redis.set(f"large-{number}", value)
        assert await redis.get(f"large-{number}") == value

    async def main():
        async with await client(protocol=protocol) as redis:
            await asyncio.gather(*(echo(redis, number) for number in range(8)))
            await redis.flushdb()

    run(main)


def test_every_subscriber_gets_every_message_in_order(run, check_loop, client):
    wanted = [str(number).encode() for number in range(1000)]

    async def subscribe(redis, ready):
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe("news")
            heard = []
            async for message in pubsub.listen():
                check_loop()
                if message["type"] == "subscribe":
                    ready.release()
                    continue
                heard.append(message["data"])
                if len(heard) == len(wanted):
                    return heard

    async def main():
        ready = asyncio.Semaphore(0)
        async with await client() as redis:
            subscribers = [asyncio.create_task(subscribe(redis, ready)) for _ in range(10)]
            for _ in subscribers:
                await ready.acquire()
            for start in range(0, len(wanted), 100):
                async with redis.pipeline(transaction=False) as pipe:
                    for data in wanted[start : start + 100]:
                        pipe.publish("news", data)
                    assert await pipe.execute() == [10] * 100
            assert await asyncio.gather(*subscribers) == [wanted] * 10

    run(main)


def test_a_list_as_a_queue_gives_each_item_once(run, client):
    async def take(redis):
        taken = []
        while True:
            _, item = await redis.blpop(["queue"], timeout=0)
            if item == b"end":
                return taken
            taken.append(int(item))

    async def main():
        async with await client(socket_timeout=None) as redis:
            takers = [asyncio.create_task(take(redis)) for _ in range(10)]
            for number in range(1000):
                await redis.rpush("queue", number)
            await redis.rpush("queue", *["end"] * len(takers))
            taken = await asyncio.gather(*takers)
        assert sorted(sum(taken, [])) == [*range(1000)]
        assert all(each == sorted(each) for each in taken)

    run(main)


def test_cancelled_blocking_calls_leave_no_answer_behind(run, client):
    """A connection whose call was cancelled is not used for the next one, which would read the old answer."""

    async def blocked(redis):
        return (await redis.info("clients"))["blocked_clients"]

    async def main():
        async with await client(socket_timeout=None) as redis, await client() as watcher:
            for _ in range(5):
                waiting = [asyncio.create_task(redis.blpop([f"list-{n}"], timeout=0)) for n in range(20)]
                while await blocked(watcher) < 20:
                    await asyncio.sleep(0.005)
                for task in waiting:
                    task.cancel()
                results = await asyncio.gather(*waiting, return_exceptions=True)
                assert [type(result) for result in results] == [asyncio.CancelledError] * 20
                while await blocked(watcher):
                    await asyncio.sleep(0.005)
                for n in range(20):
                    await watcher.rpush(f"list-{n}", n)
                answers = await asyncio.gather(*(redis.echo(f"text {n}") for n in range(50)))
                assert answers == [f"text {n}".encode() for n in range(50)]
                values = await asyncio.gather(*(redis.lpop(f"list-{n}") for n in range(20)))
                assert values == [str(n).encode() for n in range(20)]

    run(main)


def test_time_limits(run, client):
    async def main():
        async with await client() as redis:
            assert await redis.blpop(["nothing"], timeout=0.05) is None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await redis.blpop(["nothing"], timeout=0)
            assert await redis.echo("still there") == b"still there"

    run(main)


def test_stream_with_a_consumer_group(run, client):
    async def consume(redis, name):
        seen = []
        while True:
            answer = await redis.xreadgroup("group", name, {"events": ">"}, count=1, block=30_000)
            for _, entries in answer:
                for number, fields in entries:
                    await redis.xack("events", "group", number)
                    if b"end" in fields:
                        return seen
                    seen.append(int(fields[b"n"]))

    async def main():
        async with await client(protocol=2, socket_timeout=100) as redis:
            await redis.xgroup_create("events", "group", mkstream=True)
            consumers = [asyncio.create_task(consume(redis, f"consumer-{n}")) for n in range(4)]
            for number in range(500):
                await redis.xadd("events", {"n": number})
            for _ in consumers:
                await redis.xadd("events", {"end": 1})
            seen = await asyncio.gather(*consumers)
            assert sorted(sum(seen, [])) == [*range(500)]
            assert all(each == sorted(each) for each in seen)
            assert (await redis.xpending("events", "group"))["pending"] == 0

    run(main)


def test_what_was_acknowledged_before_a_crash_is_there_after_it(run, redis_server, client):
    acknowledged = set()

    async def write(redis, name, enough):
        number = name
        while True:
            try:
                await redis.sadd("journal", number)
            except REDIS_GONE:
                return number
            acknowledged.add(number)
            if len(acknowledged) >= 500:
                enough.set()
            number += 20

    async def main():
        enough = asyncio.Event()
        async with await client() as redis:
            async with redis.pubsub() as pubsub:
                await pubsub.subscribe("news")
                listening = asyncio.create_task(pubsub.get_message(ignore_subscribe_messages=True, timeout=None))
                writers = [asyncio.create_task(write(redis, name, enough)) for name in range(20)]
                await enough.wait()
                await asyncio.to_thread(redis_server.kill)
                doubtful = set(await asyncio.gather(*writers))
                await asyncio.gather(listening, return_exceptions=True)
            with pytest.raises(REDIS_GONE):
                await redis.ping()
            await asyncio.to_thread(redis_server.start)
            present = {int(member) for member in await redis.smembers("journal")}
        assert acknowledged <= present <= acknowledged | doubtful

    with redis_server.killable():
        run(main)
