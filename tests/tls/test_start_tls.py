"""Plain connections that become TLS ones: start_tls() of the loop and of StreamWriter, TLS in TLS."""

import asyncio
import ssl
import sys

import pytest

import fastloop

MESSAGE = b"behind TLS\n"


@pytest.fixture
def on_fastloop(loop_factory):
    return loop_factory is fastloop.new_event_loop


async def stream_server(handle):
    """A server of one client, its address, and the event of `handle(reader, writer)` having ended."""
    handled = asyncio.Event()

    async def handler(reader, writer):
        try:
            await handle(reader, writer)
        finally:
            handled.set()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname(), handled


async def close(writer):
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass


def test_stream_writers_of_both_sides(run, contexts, tls_version):
    server_context, client_context = contexts(tls_version)

    async def handle(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.start_tls(server_context)
        assert writer.get_extra_info("sslcontext") is server_context
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
        await close(writer)

    async def scenario():
        server, address, handled = await stream_server(handle)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go ahead\n"
        plain = writer.transport
        await writer.start_tls(client_context, server_hostname="localhost")
        assert writer.transport is not plain
        assert writer.get_extra_info("ssl_object").version()
        for size in (1, 100, 300_000):
            writer.write(b"x" * size)
            assert await reader.readexactly(size) == b"x" * size
        await close(writer)
        await handled.wait()
        server.close()

    run(scenario())


def test_handshake_that_came_early(run, contexts, on_fastloop):
    """A PROXY header and the ClientHello in one piece: the reader has both when TLS begins."""
    if not on_fastloop and sys.version_info < (3, 14):
        pytest.skip("asyncio loses what the reader holds; python/cpython#142352")
    server_context, client_context = contexts()

    async def handle(reader, writer):
        assert await reader.readline() == b"PROXY\n"
        while not reader._buffer:
            await asyncio.sleep(0)
        await writer.start_tls(server_context)
        assert await reader.readline() == MESSAGE
        writer.write(MESSAGE)
        await close(writer)

    async def scenario():
        server, address, handled = await stream_server(handle)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await asyncio.open_connection(*address)

        async def complete(operation):
            while True:
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(100_000))

        writer.write(b"PROXY\n")
        await complete(tls.do_handshake)
        tls.write(MESSAGE)
        writer.write(outgoing.read())
        assert await complete(lambda: tls.read(1000)) == MESSAGE
        await close(writer)
        await handled.wait()
        server.close()

    run(scenario())


@pytest.mark.parametrize("side", ["server", "client"])
def test_plain_text_before_the_handshake_is_never_read_after_it(run, contexts, on_fastloop, side):
    """STARTTLS injection: somebody in between sends a command in plain text behind STARTTLS."""
    if not on_fastloop:
        pytest.skip("asyncio keeps it on the client's side, and before 3.14 on both")
    server_context, client_context = contexts()
    injected = b"injected command\n"
    seen = bytearray()

    async def upgrade(reader, writer, context, **options):
        """The victim: has read its line, and the attacker's is in the reader behind it."""
        while not reader._buffer:
            await asyncio.sleep(0)
        try:
            await writer.start_tls(context, **options)
            while data := await reader.read(1000):
                seen.extend(data)
        finally:
            await close(writer)

    async def handle(reader, writer):
        if side == "server":
            assert await reader.readline() == b"STARTTLS\n"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await upgrade(reader, writer, server_context)
            return
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n" + injected)
        try:
            await writer.start_tls(server_context)
        except (ssl.SSLError, ConnectionError):
            pass
        await close(writer)

    async def scenario():
        server, address, handled = await stream_server(handle)
        reader, writer = await asyncio.open_connection(*address)
        if side == "client":
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go ahead\n"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await upgrade(reader, writer, client_context, server_hostname="localhost")
        else:
            writer.write(b"STARTTLS\n" + injected)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await writer.start_tls(client_context, server_hostname="localhost")
            await close(writer)
        await handled.wait()
        assert not seen
        server.close()

    run(scenario())


def test_loop_start_tls_and_its_errors(run, contexts, recorder):
    server_context, client_context = contexts()

    async def scenario():
        loop = asyncio.get_running_loop()
        ends = []

        def accept():
            ends.append(recorder())
            return ends[-1]

        server = await loop.create_server(accept, "127.0.0.1", 0)
        transport, client = await loop.create_connection(recorder, *server.sockets[0].getsockname())
        while not ends or ends[0].transport is None:
            await asyncio.sleep(0)
        with pytest.raises(TypeError, match="sslcontext is expected to be an instance of ssl.SSLC"):
            await loop.start_tls(transport, client, None)
        with pytest.raises(TypeError, match="transport None is not supported by start_tls"):
            await loop.start_tls(None, client, client_context)
        with pytest.raises(ValueError, match="ssl_handshake_timeout should be a positive number"):
            await loop.start_tls(transport, client, client_context, ssl_handshake_timeout=-1)
        server_tls, client_tls = await asyncio.gather(
            loop.start_tls(ends[0].transport, ends[0], server_context, server_side=True),
            loop.start_tls(transport, client, client_context, server_hostname="localhost"),
        )
        assert client.events == ["made"] and client_tls.get_protocol() is client
        client_tls.write(MESSAGE)
        await ends[0].until(lambda self: self.data == MESSAGE)
        server_tls.close()
        await client.event("lost")
        await ends[0].event("lost")
        server.close()

    run(scenario())


def test_cancelled_start_tls_closes(run, contexts, recorder):
    _, client_context = contexts()

    async def scenario():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(recorder, *server.sockets[0].getsockname())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await loop.start_tls(transport, client, client_context, server_hostname="localhost")
        assert transport.is_closing()
        server.close()

    run(scenario())


@pytest.mark.parametrize("depth", [2, 3])
def test_tls_in_tls(run, connect, contexts, recorder, depth):
    server_context, client_context = contexts()

    async def scenario():
        loop = asyncio.get_running_loop()
        server, client = await connect()
        transports = [server.transport, client.transport]
        ends = [server, client]
        for _ in range(depth - 1):
            ends = [recorder(), recorder()]
            transports = await asyncio.gather(
                loop.start_tls(transports[0], ends[0], server_context, server_side=True),
                loop.start_tls(
                    transports[1], ends[1], client_context, server_hostname="localhost"
                ),
            )
        data = bytes(range(256)) * 4000
        transports[0].write(data)
        transports[1].write(data)
        for end in ends:
            await end.until(lambda self: len(self.data) == len(data))
            assert end.data == data
        transports[1].get_extra_info("peername")
        transports[1].close()
        for end in ends:
            end.events.insert(0, "made")  # start_tls() does not call connection_made()
            await end.event("lost")

    run(scenario())
