"""nats-py on NATS: publish and subscribe, queue groups, requests, draining, a server that goes and comes back."""

import asyncio
import random

import pytest

nats = pytest.importorskip("nats")
errors = pytest.importorskip("nats.errors")
pytestmark = pytest.mark.ecosystem("nats-py")


@pytest.fixture
def connect(nats_server):
    return lambda **options: nats.connect(nats_server.url, connect_timeout=60, **options)


def test_every_subscriber_gets_every_message_in_order(run, check_loop, connect):
    wanted = [str(number).encode() for number in range(1000)]

    async def listen(subscription):
        return [(await subscription.next_msg(timeout=200)).data for _ in wanted]

    async def by_callback(client, done):
        heard = []

        async def hear(message):
            check_loop()
            heard.append(message.data)
            if len(heard) == len(wanted):
                done.set_result(heard)

        await client.subscribe("news.>", cb=hear)

    async def main():
        listener, sender = await connect(), await connect()
        done = asyncio.get_running_loop().create_future()
        await by_callback(listener, done)
        subscriptions = [await listener.subscribe("news.*") for _ in range(10)]
        subscribers = [asyncio.create_task(listen(each)) for each in subscriptions]
        await listener.flush(timeout=200)
        for data in wanted:
            await sender.publish("news.today", data)
        assert await asyncio.gather(*subscribers) == [wanted] * 10
        assert await done == wanted
        await sender.close()
        await listener.drain()

    run(main)


def test_a_queue_group_gives_each_message_to_one_member(run, connect):
    seen = []

    async def main():
        members = [await connect() for _ in range(5)]
        done = asyncio.Event()

        async def hear(message):
            seen.append(int(message.data))
            if len(seen) == 1000:
                done.set()

        for client in members:
            await client.subscribe("jobs", queue="workers", cb=hear)
            await client.flush(timeout=200)
        sender = await connect()
        for number in range(1000):
            await sender.publish("jobs", str(number).encode())
        await sender.flush(timeout=200)
        await done.wait()
        for client in [sender, *members]:
            await client.drain()  # what is under way is still delivered: nothing may come twice
        assert sorted(seen) == [*range(1000)]

    run(main)


def test_many_requests_at_once(run, connect):
    async def main():
        server, client = await connect(), await connect()

        async def double(message):
            await message.respond(message.data * 2)

        await server.subscribe("double", cb=double)
        await server.flush(timeout=200)

        async def ask(number):
            data = random.Random(number).randbytes(number * 100)
            return (await client.request("double", data, timeout=200)).data == data * 2

        assert all(await asyncio.gather(*(ask(number) for number in range(1000))))
        await client.close()
        await server.close()

    run(main)


def test_cancelled_and_late_requests(run, connect):
    async def main():
        client = await connect()
        await client.subscribe("silent")
        with pytest.raises(errors.NoRespondersError):
            await client.request("nobody", b"", timeout=200)
        with pytest.raises(errors.TimeoutError):
            await client.request("silent", b"", timeout=0.05)
        waiting = [asyncio.create_task(client.request("silent", b"", timeout=3600)) for _ in range(20)]
        await client.flush(timeout=200)
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 20
        assert await client.flush(timeout=200) is None
        await client.close()

    run(main)


def test_subscriptions_outlive_the_server(run, nats_server, connect):
    async def main():
        disconnected, reconnected = asyncio.Event(), asyncio.Event()

        async def on_disconnect():
            disconnected.set()

        async def on_reconnect():
            reconnected.set()

        async def on_error(error):
            pass  # that the connection was lost, and refused for a while

        client = await connect(
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            error_cb=on_error,
            reconnect_time_wait=0.05,
            max_reconnect_attempts=-1,
        )
        subscription = await client.subscribe("news")
        await client.publish("news", b"before")
        assert (await subscription.next_msg(timeout=200)).data == b"before"
        await asyncio.to_thread(nats_server.kill)
        await disconnected.wait()
        await asyncio.to_thread(nats_server.start)
        await reconnected.wait()
        for number in range(100):
            await client.publish("news", str(number).encode())
        assert [int((await subscription.next_msg(timeout=200)).data) for _ in range(100)] == [*range(100)]
        await client.close()

    with nats_server.killable():
        run(main)
