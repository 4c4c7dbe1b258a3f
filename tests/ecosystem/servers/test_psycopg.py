"""psycopg 3's async side on PostgreSQL: it waits for its sockets by add_reader and add_writer."""

import asyncio
import hashlib
import random

import pytest

psycopg = pytest.importorskip("psycopg")
psycopg_pool = pytest.importorskip("psycopg_pool")
pytestmark = pytest.mark.ecosystem("psycopg")


@pytest.fixture
def connect(postgres):
    def connect(**options):
        return psycopg.AsyncConnection.connect(**postgres.login, dbname="postgres", autocommit=True, **options)

    return connect


@pytest.fixture
def pool(postgres):
    def pool(**options):
        login = postgres.login | {"dbname": "postgres", "autocommit": True}
        return psycopg_pool.AsyncConnectionPool(kwargs=login, open=False, **options)

    return pool


async def fetch(connection, query, *args):
    cursor = await connection.execute(query, args)
    return await cursor.fetchall()


def test_transactions_of_many_tasks_in_a_small_pool(run, check_loop, pool):
    class Refused(Exception):
        pass

    async def transfers(pool, seed):
        """Move money about; every third transfer is taken back by an exception."""
        choice = random.Random(seed)
        for number in range(20):
            payer, payee = choice.sample(range(10), 2)
            try:
                async with pool.connection() as connection, connection.transaction():
                    check_loop()
                    locked = "select id from wallets where id = any(%s) order by id for update"
                    assert len(await fetch(connection, locked, [payer, payee])) == 2
                    change = "update wallets set balance = balance + %s, changes = changes + 1 where id = %s"
                    await connection.execute(change, (-number, payer))
                    await connection.execute(change, (number, payee))
                    if number % 3 == 0:
                        raise Refused
            except Refused:
                pass

    async def main():
        async with pool(min_size=2, max_size=8, timeout=250) as connections:
            async with connections.connection() as connection:
                await connection.execute("drop table if exists wallets")
                await connection.execute(
                    "create table wallets (id int primary key, balance int default 100, changes int default 0)"
                )
                await connection.execute("insert into wallets select n from generate_series(0, 9) n")
            await asyncio.gather(*(transfers(connections, seed) for seed in range(40)))
            async with connections.connection() as connection:
                sums = await fetch(connection, "select sum(balance), sum(changes) from wallets")
        assert sums == [(1000, 40 * 13 * 2)]

    run(main)


def test_copy_and_server_side_cursor(run, connect):
    rows = [(n, hashlib.sha256(str(n).encode()).hexdigest()) for n in range(20_000)]

    async def main():
        async with await connect() as connection, connection.transaction():
            await connection.execute("create temporary table lines (id int, digest text)")
            async with connection.cursor() as cursor:
                async with cursor.copy("copy lines from stdin") as copy:
                    for row in rows:
                        await copy.write_row(row)
                out = bytearray()
                async with cursor.copy("copy (select * from lines order by id) to stdout") as copy:
                    async for data in copy:
                        out += data
            assert out.decode() == "".join(f"{n}\t{digest}\n" for n, digest in rows)
            async with connection.cursor("many") as cursor:
                cursor.itersize = 1000
                await cursor.execute("select * from lines order by id")
                assert [row async for row in cursor] == rows

    run(main)


def test_pipeline_and_large_values(run, connect):
    values = [random.Random(number).randbytes(1_000_000 + number) for number in range(8)]

    async def main():
        async with await connect() as connection, connection.pipeline():
            cursors = [await connection.execute("select %s::bytea", [value], binary=True) for value in values]
            assert [(await cursor.fetchone())[0] for cursor in cursors] == values

    run(main)


def test_every_listener_hears_every_notification_in_order(run, connect):
    wanted = [str(number) for number in range(200)]

    async def listen(ready):
        async with await connect() as connection:
            await connection.execute("listen bulletin")
            ready.release()
            return [news.payload async for news in connection.notifies(stop_after=len(wanted))][: len(wanted)]

    async def main():
        ready = asyncio.Semaphore(0)
        listeners = [asyncio.create_task(listen(ready)) for _ in range(5)]
        for _ in listeners:
            await ready.acquire()
        async with await connect() as sender:
            for payload in wanted:
                await sender.execute("select pg_notify('bulletin', %s)", [payload])
        assert await asyncio.gather(*listeners) == [wanted] * 5

    run(main)


def test_cancelled_queries_end_on_the_server_and_the_pool_goes_on(run, pool, connect):
    async def sleep(pool):
        async with pool.connection() as connection:
            await connection.execute("select pg_sleep(3601)")

    async def select(pool, number):
        async with pool.connection() as connection:
            return (await fetch(connection, "select %s::int", number))[0][0]

    async def main():
        running = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(3601)'"
        async with await connect() as watcher, pool(min_size=5, max_size=5, timeout=250) as connections:
            sleepers = [asyncio.create_task(sleep(connections)) for _ in range(10)]
            while await fetch(watcher, running) != [(5,)]:
                await asyncio.sleep(0.01)
            for sleeper in sleepers:  # five that run, five that wait for a connection
                sleeper.cancel()
            results = await asyncio.gather(*sleepers, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 10
            while await fetch(watcher, running) != [(0,)]:
                await asyncio.sleep(0.01)
            assert await asyncio.gather(*(select(connections, number) for number in range(50))) == [*range(50)]

    run(main)


def test_time_limits_and_errors_leave_the_connection_usable(run, connect, pool):
    async def main():
        async with await connect() as connection:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connection.execute("select pg_sleep(3600)")
            assert await fetch(connection, "select 1") == [(1,)]
            await connection.execute("set statement_timeout = 50")
            with pytest.raises(psycopg.errors.QueryCanceled):
                await connection.execute("select pg_sleep(3600)")
            while True:
                try:
                    await connection.execute("set statement_timeout = 0")
                    break
                except psycopg.errors.QueryCanceled:  # it took this longer than the limit still in force
                    pass
            for statement, error in [
                ("select 1 / 0", psycopg.errors.DivisionByZero),
                ("this is not SQL", psycopg.errors.SyntaxError),
            ]:
                with pytest.raises(error):
                    await connection.execute(statement)
                assert await fetch(connection, "select 1") == [(1,)]
        async with pool(min_size=1, max_size=1) as connections:
            async with connections.connection():
                with pytest.raises(psycopg_pool.PoolTimeout):
                    await connections.getconn(timeout=0.05)

    run(main)


def test_what_was_acknowledged_before_a_crash_is_there_after_it(run, postgres, pool, connect):
    acknowledged = set()

    async def write(pool, name, enough):
        """One row after the other until the server is gone; a row not acknowledged may or may not be there."""
        number = name
        while True:
            try:
                async with pool.connection() as connection:
                    await connection.execute("insert into diary values (%s)", [number])
            except psycopg.OperationalError:
                return number
            acknowledged.add(number)
            if len(acknowledged) >= 300:
                enough.set()
            number += 10

    async def main():
        enough = asyncio.Event()
        async with pool(min_size=10, max_size=10, timeout=250) as connections:
            async with connections.connection() as connection:
                await connection.execute("drop table if exists diary")
                await connection.execute("create table diary (id int primary key)")
            writers = [asyncio.create_task(write(connections, name, enough)) for name in range(10)]
            await enough.wait()
            await asyncio.to_thread(postgres.kill)
            doubtful = set(await asyncio.gather(*writers))
            with pytest.raises(psycopg.OperationalError):
                await connect()
            await asyncio.to_thread(postgres.start)
            async with connections.connection() as connection:
                present = {number for (number,) in await fetch(connection, "select id from diary")}
        assert acknowledged <= present <= acknowledged | doubtful

    with postgres.killable():
        run(main)
