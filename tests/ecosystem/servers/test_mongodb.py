"""motor and pymongo's async client against mongo_server.py, which speaks MongoDB's wire protocol."""

import asyncio
import random

import pytest

pymongo = pytest.importorskip("pymongo")
pymongo_errors = pytest.importorskip("pymongo.errors")
motor_asyncio = pytest.importorskip("motor.motor_asyncio")

CLIENTS = {"pymongo": pymongo.AsyncMongoClient, "motor": motor_asyncio.AsyncIOMotorClient}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.ecosystem(name)) for name in CLIENTS])
def connect(request, mongo_server):
    def connect(**options):
        return CLIENTS[request.param]("127.0.0.1", mongo_server.port, **options)

    return connect


@pytest.fixture
def with_client(run, connect):
    """Run a test on a client, its database empty before, and close it afterwards."""

    def with_client(test, **options):
        async def main():
            client = connect(**options)
            try:
                await client.tests.things.delete_many({})
                await test(client, client.tests.things)
            finally:
                closing = client.close()  # motor's is no coroutine
                if closing is not None:
                    await closing

        run(main)

    return with_client


def test_inserted_documents_are_found_again_over_many_batches(with_client, check_loop):
    async def test(client, things):
        documents = [{"_id": n, "group": n % 10, "data": random.Random(n).randbytes(100)} for n in range(5000)]
        answer = await things.insert_many(documents)
        check_loop()
        assert answer.inserted_ids == [*range(5000)]
        assert [each async for each in things.find(batch_size=300)] == documents
        assert await things.find({"group": 3}).to_list(None) == documents[3::10]
        assert await things.find_one({"_id": 77}) == documents[77]
        assert await things.find_one({"_id": -1}) is None
        assert (await client.tests.command("open"))["cursors"] == 0

    with_client(test)


def test_many_tasks_on_few_connections(with_client):
    async def work(things, name):
        for number in range(10):
            await things.insert_one({"_id": f"{name}-{number}", "name": name})
            await things.update_one({"_id": "counter"}, {"$inc": {"value": 1}})
        found = [each["_id"] async for each in things.find({"name": name}, batch_size=3)]
        assert found == [f"{name}-{number}" for number in range(10)]
        assert (await things.delete_many({"name": name})).deleted_count == 10

    async def test(client, things):
        await things.insert_one({"_id": "counter", "value": 0})
        await asyncio.gather(*(work(things, name) for name in range(50)))
        assert await things.find({}).to_list(None) == [{"_id": "counter", "value": 500}]

    with_client(test, maxPoolSize=5)


def test_large_documents_both_ways(with_client):
    async def test(client, things):
        documents = [{"_id": n, "data": random.Random(n).randbytes(4_000_000 + n)} for n in range(6)]
        await asyncio.gather(*(things.insert_one(document) for document in documents))
        found = await asyncio.gather(*(things.find_one({"_id": n}) for n in range(6)))
        assert found == documents

    with_client(test)


def test_errors_leave_the_client_usable(with_client):
    async def test(client, things):
        await things.insert_one({"_id": 1})
        with pytest.raises(pymongo_errors.DuplicateKeyError):
            await things.insert_one({"_id": 1})
        with pytest.raises(pymongo_errors.BulkWriteError) as caught:
            await things.insert_many([{"_id": n} for n in range(4)], ordered=False)
        assert caught.value.details["nInserted"] == 3
        with pytest.raises(pymongo_errors.OperationFailure, match="no such command"):
            await client.tests.command("unheard")
        assert (await client.admin.command("ping"))["ok"] == 1

    with_client(test)


def test_an_abandoned_cursor_is_closed_on_the_server(with_client):
    async def test(client, things):
        await things.insert_many([{"_id": n} for n in range(500)])
        cursor = things.find(batch_size=10)
        async for document in cursor:
            if document["_id"] == 25:
                break
        assert (await client.tests.command("open"))["cursors"] == 1
        await cursor.close()
        assert (await client.tests.command("open"))["cursors"] == 0

    with_client(test)


def test_time_limit_of_a_command_that_never_answers(with_client):
    async def test(client, things):
        with pytest.raises(pymongo_errors.PyMongoError) as caught:
            with pymongo.timeout(0.3):
                await client.tests.command("block")
        assert caught.value.timeout
        await things.insert_one({"_id": 1})
        assert await things.find_one({}) == {"_id": 1}

    with_client(test)


@pytest.mark.ecosystem("pymongo")
def test_cancelled_commands_do_not_spoil_the_next_ones(run, mongo_server):
    """pymongo's own client alone: motor's call goes on in its thread."""

    async def main():
        async with pymongo.AsyncMongoClient("127.0.0.1", mongo_server.port, maxPoolSize=10) as client:
            before = (await client.tests.command("open"))["blocked"]
            blocked = [asyncio.create_task(client.tests.command("block")) for _ in range(5)]
            while (await client.tests.command("open"))["blocked"] < before + 5:
                await asyncio.sleep(0.005)
            for task in blocked:
                task.cancel()
            results = await asyncio.gather(*blocked, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 5
            things = client.tests.after_cancel
            await asyncio.gather(*(things.insert_one({"_id": n}) for n in range(50)))
            assert sorted([each["_id"] async for each in things.find()]) == [*range(50)]
            await things.delete_many({})

    run(main)


def test_a_server_that_goes_and_comes_back(with_client, mongo_server):
    async def test(client, things):
        await asyncio.gather(*(things.insert_one({"_id": n}) for n in range(20)))
        await asyncio.to_thread(mongo_server.kill)
        with pytest.raises(pymongo_errors.AutoReconnect):
            await things.insert_one({"_id": 20})
        await asyncio.to_thread(mongo_server.start)
        assert await things.find_one({}) is None  # it keeps nothing
        await things.insert_one({"_id": 21})

    with mongo_server.killable():
        with_client(test, retryReads=False, serverSelectionTimeoutMS=60_000)
