"""asyncpg on PostgreSQL: a pool under load, COPY, LISTEN, cursors, TLS, cancelling, time limits, a crash."""

import asyncio
import hashlib
import random

import pytest

asyncpg = pytest.importorskip("asyncpg")
pytestmark = pytest.mark.ecosystem("asyncpg")

POSTGRES_GONE = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError, OSError)


@pytest.fixture
def connect(postgres):
    return lambda **options: asyncpg.connect(**postgres.login | {"database": "postgres"} | options)


@pytest.fixture
def pool(postgres):
    return lambda **options: asyncpg.create_pool(**postgres.login, database="postgres", **options)


async def idle(connection, query="pg_sleep"):
    """Wait until no other session runs such a query any more."""
    busy = "select count(*) from pg_stat_activity where state = 'active' and query like $1 and pid <> pg_backend_pid()"
    while await connection.fetchval(busy, f"%{query}%"):
        await asyncio.sleep(0.01)


def test_transactions_of_many_tasks_in_a_small_pool(run, check_loop, pool):
    class Refused(Exception):
        pass

    async def transfers(pool, seed):
        """Move money about; every third transfer is taken back by an exception."""
        choice = random.Random(seed)
        for number in range(20):
            payer, payee = sorted(choice.sample(range(10), 2), reverse=number % 2)
            try:
                async with pool.acquire() as connection, connection.transaction():
                    check_loop()
                    locked = "select id from accounts where id = any($1) order by id for update"
                    assert len(await connection.fetch(locked, [payer, payee])) == 2
                    change = "update accounts set balance = balance + $2, changes = changes + 1 where id = $1"
                    await connection.execute(change, payer, -number)
                    await connection.execute(change, payee, number)
                    if number % 3 == 0:
                        raise Refused
            except Refused:
                pass

    async def main():
        async with pool(min_size=2, max_size=8) as connections:
            await connections.execute(
                "drop table if exists accounts;"
                "create table accounts (id int primary key, balance int default 100, changes int default 0);"
                "insert into accounts select n from generate_series(0, 9) n"
            )
            await asyncio.gather(*(transfers(connections, seed) for seed in range(40)))
            total, changes = await connections.fetchrow("select sum(balance), sum(changes) from accounts")
        assert (total, changes) == (1000, 40 * 13 * 2)

    run(main)


def test_copy_and_cursor(run, connect):
    rows = [(n, hashlib.sha256(str(n).encode()).hexdigest()) for n in range(20_000)]

    async def main():
        connection = await connect()
        await connection.execute("create temporary table lines (id int, digest text)")
        assert await connection.copy_records_to_table("lines", records=rows) == "COPY 20000"
        out = bytearray()

        async def keep(data):
            out.extend(data)

        await connection.copy_from_query("select * from lines order by id", output=keep)
        assert out.decode() == "".join(f"{n}\t{digest}\n" for n, digest in rows)
        async with connection.transaction():
            cursor = connection.cursor("select * from lines order by id", prefetch=1000)
            assert [tuple(row) async for row in cursor] == rows
        await connection.close()

    run(main)


def test_large_values_both_ways(run, pool):
    async def echo(pool, number):
        value = random.Random(number).randbytes(3_000_000 + number)
        assert await pool.fetchval("select $1::bytea", value) == value

    async def main():
        async with pool(min_size=1, max_size=4) as connections:
            await asyncio.gather(*(echo(connections, number) for number in range(8)))

    run(main)


def test_every_listener_hears_every_notification_in_order(run, connect, check_loop):
    wanted = [str(number) for number in range(200)]

    async def listen(heard):
        connection = await connect()
        done = asyncio.get_running_loop().create_future()

        def hear(connection, pid, channel, payload):
            check_loop(task_is_ours=False)
            heard.append(payload)
            if len(heard) == len(wanted):
                done.set_result(None)

        await connection.add_listener("news", hear)
        return connection, done

    async def main():
        heard = [[] for _ in range(5)]
        listeners = [await listen(each) for each in heard]
        sender = await connect()
        for payload in wanted:
            await sender.execute("select pg_notify('news', $1)", payload)
        await asyncio.gather(*(done for _, done in listeners))
        assert heard == [wanted] * 5
        for connection in [sender, *(connection for connection, _ in listeners)]:
            await connection.close()

    run(main)


def test_cancelled_queries_end_on_the_server_and_the_pool_goes_on(run, pool, connect):
    async def main():
        watcher = await connect()
        async with pool(min_size=5, max_size=5) as connections:
            sleepers = [asyncio.create_task(connections.execute("select pg_sleep(3600)")) for _ in range(10)]
            running = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(3600)'"
            while await watcher.fetchval(running) < 5:
                await asyncio.sleep(0.01)
            for sleeper in sleepers:  # five that run, five that wait for a connection
                sleeper.cancel()
            results = await asyncio.gather(*sleepers, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 10
            await idle(watcher)
            assert await asyncio.gather(*(connections.fetchval("select $1::int", n) for n in range(50))) == [*range(50)]
        await watcher.close()

    run(main)


def test_time_limits(run, pool, connect):
    async def main():
        connection = await connect()
        with pytest.raises(TimeoutError):
            await connection.execute("select pg_sleep(3600)", timeout=0.05)
        assert await connection.fetchval("select 42") == 42
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.execute("select pg_sleep(3600)")
        assert await connection.fetchval("select 43") == 43
        await connection.execute("set statement_timeout = 50")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute("select pg_sleep(3600)")
        await connection.close()

        async with pool(min_size=1, max_size=1) as connections:
            async with connections.acquire():
                with pytest.raises(TimeoutError):
                    await connections.acquire(timeout=0.05)
            assert await connections.fetchval("select 44") == 44

    run(main)


def test_errors_of_the_server_leave_the_connection_usable(run, connect):
    async def main():
        connection = await connect()
        for statement, error in [
            ("select 1 / 0", asyncpg.DivisionByZeroError),
            ("select nothing", asyncpg.UndefinedColumnError),
            ("this is not SQL", asyncpg.PostgresSyntaxError),
        ]:
            with pytest.raises(error):
                await connection.execute(statement)
            assert await connection.fetchval("select 1") == 1
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(password="wrong")

    run(main)


def test_terminated_connections_are_replaced(run, pool, connect):
    async def main():
        async with pool(min_size=5, max_size=5) as connections:
            sleepers = [asyncio.create_task(connections.execute("select pg_sleep(3600)")) for _ in range(5)]
            killer = await connect()
            kill = "select pg_terminate_backend(pid) from pg_stat_activity where query = 'select pg_sleep(3600)'"
            ended = 0
            while ended < 5:
                ended += len(await killer.fetch(kill + " and state = 'active'"))
                await idle(killer)
            for result in await asyncio.gather(*sleepers, return_exceptions=True):
                assert isinstance(result, (asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError))
            assert await asyncio.gather(*(connections.fetchval("select $1::int", n) for n in range(50))) == [*range(50)]
            await killer.close()

    run(main)


def test_what_was_acknowledged_before_a_crash_is_there_after_it(run, postgres, pool):
    acknowledged = set()

    async def write(pool, name, enough):
        """One row after the other until the server is gone; a row not acknowledged may or may not be there."""
        number = name
        while True:
            try:
                await pool.execute("insert into journal values ($1)", number)
            except POSTGRES_GONE:
                return number
            acknowledged.add(number)
            if len(acknowledged) >= 300:
                enough.set()
            number += 20

    async def main():
        enough = asyncio.Event()
        async with pool(min_size=10, max_size=10) as connections:
            await connections.execute("drop table if exists journal; create table journal (id int primary key)")
            writers = [asyncio.create_task(write(connections, name, enough)) for name in range(20)]
            await enough.wait()
            await asyncio.to_thread(postgres.kill)
            doubtful = set(await asyncio.gather(*writers))
            with pytest.raises(POSTGRES_GONE):
                await connections.fetchval("select 1")
            await asyncio.to_thread(postgres.start)
            present = {row["id"] for row in await connections.fetch("select id from journal")}
        assert acknowledged <= present <= acknowledged | doubtful

    with postgres.killable():
        run(main)


def test_tls(run, postgres, pool, connect):
    async def main():
        async with pool(ssl=postgres.tls(), min_size=1, max_size=4) as connections:
            assert await connections.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")

            async def echo(number):
                value = random.Random(number).randbytes(300_000)
                assert await connections.fetchval("select $1::bytea", value) == value

            await asyncio.gather(*(echo(number) for number in range(20)))
            with pytest.raises(TimeoutError):
                await connections.execute("select pg_sleep(3600)", timeout=0.05)
            assert await connections.fetchval("select 42") == 42

    run(main)
