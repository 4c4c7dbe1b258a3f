"""A handshake that is given up at any of its steps, and what is said of a connection afterwards."""

import asyncio
import gc
import io
import os
import socket
import ssl
import warnings

import pytest

STEPS = ["nothing", "half a hello", "the hello", "in the sni callback"]


@pytest.fixture
def hello(contexts):
    """What a client sends first."""
    _, client_context = contexts()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client_context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.fixture
def peer():
    """`peer()`: a socket for the loop, and its other end."""
    made = []

    def peer():
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        made.append(theirs)
        return ours, theirs

    yield peer
    for sock in made:
        sock.close()


async def closed(sock):
    """Read until the other end has closed."""
    loop = asyncio.get_running_loop()
    try:
        while await loop.sock_recv(sock, 65536):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize("way", ["abort", "close", "cancel"])
@pytest.mark.parametrize("step", STEPS)
def test_given_up_by_the_server(run, contexts, recorder, peer, hello, step, way):
    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, _ = contexts()
        ours, theirs = peer()
        raw, protocol = await loop.connect_accepted_socket(recorder, ours)

        def give_up(*args):
            assert not task.done()
            task.cancel() if way == "cancel" else getattr(raw, way)()

        if step == "in the sni callback":
            server_context.sni_callback = give_up
        task = asyncio.create_task(
            loop.start_tls(raw, protocol, server_context, server_side=True)
        )
        if step != "nothing":
            await loop.sock_sendall(theirs, hello[:50] if step == "half a hello" else hello)
        if step == "the hello":
            await loop.sock_recv(theirs, 1)  # the answer
        elif step != "in the sni callback":
            for _ in range(10):
                await asyncio.sleep(0)
        if step != "in the sni callback":
            give_up()
        await closed(theirs)
        if way == "cancel":
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task is None  # asyncio says no more of it
        assert raw.is_closing()
        assert protocol.events == ["made"] and not protocol.data

    run(scenario())


@pytest.mark.parametrize("passed", [0, 1, 5, 6, 100, 500])
def test_given_up_by_the_client(run, contexts, recorder, peer, passed):
    """Cancelled when so many bytes of the server's answer have come."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        ours, theirs = peer()
        task = asyncio.create_task(
            loop.create_connection(
                recorder, sock=ours, ssl=client_context, server_hostname="localhost"
            )
        )
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(await loop.sock_recv(theirs, 65536))
        with pytest.raises(ssl.SSLWantReadError):
            server_context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
        answer = outgoing.read()
        assert len(answer) > passed
        await loop.sock_sendall(theirs, answer[:passed])
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed(theirs)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(scenario())
        gc.collect()


def test_nothing_secret_is_told(loop_factory, certificates, recorder, connect, log):
    """Neither what was sent nor a key stands in a repr, a log or a report, in debug mode either."""
    secret = os.urandom(16).hex()
    told = io.StringIO()

    class Fails(recorder):
        def data_received(self, data):
            super().data_received(data)
            if data.endswith(b"!"):
                raise ZeroDivisionError

    async def scenario():
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0  # every callback is told of

        def report(loop, context):
            print(context, file=told)
            loop.default_exception_handler(context)

        loop.set_exception_handler(report)
        server, client = await connect(server_protocol=Fails)
        server.transport.pause_reading()
        client.transport.write(secret.encode() * 10_000)
        for end in (server, client):
            ssl_protocol = end.transport._ssl_protocol
            print(end.transport, ssl_protocol, ssl_protocol._transport, file=told)
            print(end.transport.get_extra_info("ssl_object"), file=told)
        server.transport.resume_reading()
        client.transport.write(secret.encode() + b"!")
        await server.event("lost")
        await client.event("lost")
        assert server.data.startswith(secret.encode())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(scenario(), 250))
    print(*log(), file=told)
    text = told.getvalue()
    assert "Fatal error on SSL protocol" in text and "took" in text
    assert secret not in text and secret[:16] not in text
    for line in (certificates / "localhost.key").read_text().splitlines():
        assert line not in text
