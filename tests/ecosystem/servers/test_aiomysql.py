"""aiomysql on MariaDB: a pool under load, TLS, streaming cursors, cancelling, errors, a crash."""

import asyncio
import hashlib
import random

import pytest

aiomysql = pytest.importorskip("aiomysql")
pymysql = pytest.importorskip("pymysql")
pytestmark = pytest.mark.ecosystem("aiomysql")

MARIADB_GONE = (pymysql.err.OperationalError, pymysql.err.InterfaceError, RuntimeError, OSError)


@pytest.fixture
def pool(mariadb):
    return lambda **options: aiomysql.create_pool(**mariadb.login, db="mysql", autocommit=True, **options)


async def fetch(connection, statement, *args):
    async with connection.cursor() as cursor:
        await cursor.execute(statement, args)
        return await cursor.fetchall()


async def fetch_from(pool, statement, *args):
    async with pool.acquire() as connection:
        return await fetch(connection, statement, *args)


def test_transactions_of_many_tasks_in_a_small_pool(run, check_loop, pool):
    async def transfers(pool, seed):
        """Move money about; every third transfer is rolled back."""
        choice = random.Random(seed)
        for number in range(20):
            payer, payee = choice.sample(range(10), 2)
            async with pool.acquire() as connection:
                check_loop()
                await connection.begin()
                locked = "select id from accounts where id in (%s, %s) order by id for update"
                assert len(await fetch(connection, locked, payer, payee)) == 2
                change = "update accounts set balance = balance + %s, changes = changes + 1 where id = %s"
                await fetch(connection, change, -number, payer)
                await fetch(connection, change, number, payee)
                await (connection.rollback() if number % 3 == 0 else connection.commit())

    async def main():
        async with pool(minsize=2, maxsize=8) as connections:
            columns = "(id int primary key, balance int default 100, changes int default 0)"
            await fetch_from(connections, f"create or replace table accounts {columns}")
            await fetch_from(connections, "insert into accounts (id) select seq from seq_0_to_9")
            await asyncio.gather(*(transfers(connections, seed) for seed in range(20)))
            sums = await fetch_from(connections, "select sum(balance), sum(changes) from accounts")
        assert sums == ((1000, 20 * 13 * 2),)

    run(main)


def test_many_rows_and_a_streaming_cursor(run, mariadb):
    rows = [(n, hashlib.sha256(str(n).encode()).hexdigest()) for n in range(20_000)]

    async def main():
        async with aiomysql.connect(**mariadb.login, db="mysql") as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("create temporary table digests (id int, digest text)")
                assert await cursor.executemany("insert into digests values (%s, %s)", rows) == len(rows)
            async with connection.cursor(aiomysql.SSCursor) as cursor:
                await cursor.execute("select * from digests order by id")
                assert [row async for row in cursor] == rows

    run(main)


def test_large_values_both_ways(run, pool):
    async def echo(pool, number):
        value = random.Random(number).randbytes(3_000_000 + number)
        assert await fetch_from(pool, "select %s", value.hex()) == ((value.hex(),),)

    async def main():
        async with pool(maxsize=4) as connections:
            await asyncio.gather(*(echo(connections, number) for number in range(8)))

    run(main)


def test_tls(run, mariadb, pool):
    async def main():
        async with pool(ssl=mariadb.tls(), maxsize=4) as connections:
            ((_, version),) = await fetch_from(connections, "show status like 'Ssl_version'")
            assert version.startswith("TLS")
            numbers = await asyncio.gather(*(fetch_from(connections, "select %s", n) for n in range(100)))
            assert numbers == [((n,),) for n in range(100)]

    run(main)


def test_a_cancelled_query_costs_its_connection_and_nothing_else(run, pool):
    async def main():
        async with pool(minsize=5, maxsize=5) as connections, pool() as watchers:
            sleepers = [asyncio.create_task(fetch_from(connections, "select sleep(3600)")) for _ in range(10)]
            running = "select id from information_schema.processlist where info = 'select sleep(3600)'"
            while len(ids := await fetch_from(watchers, running)) < 5:
                await asyncio.sleep(0.01)
            for sleeper in sleepers:  # five that run, five that wait for a connection
                sleeper.cancel()
            results = await asyncio.gather(*sleepers, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 10
            for (number,) in ids:  # the protocol has no way to cancel: the server sleeps on
                await fetch_from(watchers, f"kill {number}")
            numbers = await asyncio.gather(*(fetch_from(connections, "select %s", n) for n in range(50)))
            assert numbers == [((n,),) for n in range(50)]

    run(main)


def test_killed_queries_and_errors_leave_the_connection_usable(run, pool, mariadb):
    async def main():
        async with pool() as connections, aiomysql.connect(**mariadb.login) as connection:
            sleeping = asyncio.create_task(fetch(connection, "select sleep(3600) from dual"))
            number = connection.thread_id()
            state = "select count(*) from information_schema.processlist where id = %s and state = 'User sleep'"
            while await fetch_from(connections, state, number) == ((0,),):
                await asyncio.sleep(0.01)
            await fetch_from(connections, f"kill query {number}")
            with pytest.raises(pymysql.err.OperationalError, match="interrupted"):
                await sleeping
            for statement, error in [
                ("select nothing", pymysql.err.OperationalError),
                ("this is not SQL", pymysql.err.ProgrammingError),
            ]:
                with pytest.raises(error):
                    await fetch(connection, statement)
                assert await fetch(connection, "select 1") == ((1,),)

    run(main)


def test_what_was_acknowledged_before_a_crash_is_there_after_it(run, mariadb, pool):
    acknowledged = set()

    async def write(pool, name, enough):
        """One row after the other until the server is gone; a row not acknowledged may or may not be there."""
        number = name
        while True:
            try:
                await fetch_from(pool, "insert into journal values (%s)", number)
            except MARIADB_GONE:
                return number
            acknowledged.add(number)
            if len(acknowledged) >= 300:
                enough.set()
            number += 10

    async def main():
        enough = asyncio.Event()
        async with pool(minsize=10, maxsize=10) as connections:
            await fetch_from(connections, "create or replace table journal (id int primary key)")
            # One for each connection: the pool never wakes those that wait for one which the server has closed.
            writers = [asyncio.create_task(write(connections, name, enough)) for name in range(10)]
            await enough.wait()
            await asyncio.to_thread(mariadb.kill)
            doubtful = set(await asyncio.gather(*writers))
            with pytest.raises(MARIADB_GONE):
                await fetch_from(connections, "select 1")
            await asyncio.to_thread(mariadb.start)
            present = {number for (number,) in await fetch_from(connections, "select id from journal")}
        assert acknowledged <= present <= acknowledged | doubtful

    with mariadb.killable():
        run(main)
