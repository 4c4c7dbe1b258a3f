"""aio-pika on RabbitMQ: confirmed publishing, shared queues, redelivery, calls and answers, a broker that crashes."""

import asyncio
import hashlib
import random

import pytest

aio_pika = pytest.importorskip("aio_pika")
exceptions = pytest.importorskip("aio_pika.exceptions")
patterns = pytest.importorskip("aio_pika.patterns")
pytestmark = pytest.mark.ecosystem("aio-pika")


@pytest.fixture
def connect(rabbitmq):
    return lambda: aio_pika.connect(rabbitmq.url, timeout=200)


def test_each_confirmed_message_is_handled_once(run, check_loop, connect):
    handled = []

    async def consume(connection, done):
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=10)

        async def handle(message):
            check_loop()
            async with message.process():
                await asyncio.sleep(0)
                handled.append(int(message.body))
            if len(handled) == 1000:
                done.set()

        await (await channel.get_queue("jobs")).consume(handle)

    async def main():
        async with await connect() as connection:
            channel = await connection.channel(publisher_confirms=True)
            queue = await channel.declare_queue("jobs", auto_delete=True)
            done = asyncio.Event()
            for _ in range(4):
                await consume(connection, done)

            async def publish(number):
                message = aio_pika.Message(str(number).encode())
                await channel.default_exchange.publish(message, routing_key=queue.name)

            await asyncio.gather(*(publish(number) for number in range(1000)))
            await done.wait()
        assert sorted(handled) == [*range(1000)]

    run(main)


def test_every_queue_of_a_fanout_gets_every_message_in_order(run, connect):
    wanted = [str(number).encode() for number in range(300)]

    async def hear(queue):
        heard = []
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                heard.append(message.body)
                if len(heard) == len(wanted):
                    return heard

    async def main():
        async with await connect() as connection:
            channel = await connection.channel()
            news = await channel.declare_exchange("news", aio_pika.ExchangeType.FANOUT, auto_delete=True)
            queues = [await channel.declare_queue(exclusive=True) for _ in range(5)]
            for queue in queues:
                await queue.bind(news)
            listeners = [asyncio.create_task(hear(queue)) for queue in queues]
            for body in wanted:
                await news.publish(aio_pika.Message(body), routing_key="")
            assert await asyncio.gather(*listeners) == [wanted] * 5

    run(main)


def test_large_bodies_and_redelivery(run, connect):
    bodies = [random.Random(number).randbytes(1_500_000 + number) for number in range(8)]

    async def main():
        async with await connect() as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(exclusive=True)
            for body in bodies:
                await channel.default_exchange.publish(aio_pika.Message(body), routing_key=queue.name)
            first = [await queue.get(timeout=200) for _ in bodies]
            assert [message.body for message in first] == bodies
            assert not any(message.redelivered for message in first)
            for message in reversed(first):
                await message.reject(requeue=True)
            again = [await queue.get(timeout=200) for _ in bodies]
            assert {hashlib.sha256(message.body).digest() for message in again} == {
                hashlib.sha256(body).digest() for body in bodies
            }
            assert all(message.redelivered for message in again)
            for message in again:
                await message.ack()
            with pytest.raises(exceptions.QueueEmpty):
                await queue.get(timeout=200)

    run(main)


def test_remote_calls(run, connect):
    async def multiply(x, y):
        return x * y

    async def main():
        async with await connect() as connection, await connect() as other:
            server = await patterns.RPC.create(await connection.channel())
            await server.register("multiply", multiply, auto_delete=True)
            client = await patterns.RPC.create(await other.channel())
            products = await asyncio.gather(*(client.call("multiply", {"x": n, "y": n}) for n in range(100)))
            assert products == [n * n for n in range(100)]

    run(main)


def test_what_the_broker_refuses_and_what_is_cancelled(run, connect):
    async def main():
        async with await connect() as connection:
            channel = await connection.channel()
            with pytest.raises(exceptions.ChannelNotFoundEntity):
                await channel.declare_queue("nothing of this name", passive=True)
            channel = await connection.channel(on_return_raises=True)
            with pytest.raises(exceptions.PublishError):
                await channel.default_exchange.publish(aio_pika.Message(b""), routing_key="nobody", mandatory=True)

            queue = await channel.declare_queue(exclusive=True)

            async def hear():
                async for message in queue.iterator():
                    await message.ack()

            listeners = [asyncio.create_task(hear()) for _ in range(5)]
            while (await channel.declare_queue(queue.name, passive=True)).declaration_result.consumer_count < 5:
                await asyncio.sleep(0.01)
            for task in listeners:
                task.cancel()
            results = await asyncio.gather(*listeners, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 5
            await channel.default_exchange.publish(aio_pika.Message(b"after"), routing_key=queue.name)

    run(main)


@pytest.mark.parametrize("loop_name", ["fastloop"], indirect=True)  # the broker takes long to start
def test_a_robust_connection_outlives_the_broker(run, rabbitmq):
    async def publish(channel, queue, numbers):
        for number in numbers:
            body, mode = str(number).encode(), aio_pika.DeliveryMode.PERSISTENT
            await channel.default_exchange.publish(aio_pika.Message(body, delivery_mode=mode), queue.name)

    async def main():
        connection = await aio_pika.connect_robust(rabbitmq.url, timeout=200, reconnect_interval=0.1)
        async with connection:
            lost, back = asyncio.Event(), asyncio.Event()
            connection.close_callbacks.add(lambda *_: lost.set())
            connection.reconnect_callbacks.add(lambda *_: back.set())
            channel = await connection.channel()
            queue = await channel.declare_queue("kept", durable=True)
            await publish(channel, queue, range(100))
            await asyncio.to_thread(rabbitmq.kill)
            await lost.wait()
            await asyncio.to_thread(rabbitmq.start)
            await back.wait()
            await publish(channel, queue, range(100, 200))
            numbers = []
            async with queue.iterator() as messages:
                async for message in messages:
                    await message.ack()
                    numbers.append(int(message.body))
                    if numbers[-1] == 199:
                        break
            assert numbers[-100:] == [*range(100, 200)]
            # A broker that was killed has at times lost all that it had confirmed (3.10: about once in twenty).
            assert numbers[:-100] in ([], [*range(100)])
            await queue.delete()

    with rabbitmq.killable():
        run(main)
