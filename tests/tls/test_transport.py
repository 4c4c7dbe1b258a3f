"""TLS transports: what asyncio promises of them, on fastloop and on asyncio."""

import asyncio
import gc
import random
import socket
import ssl
import warnings
from asyncio import sslproto

import pytest

import fastloop


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


async def finish(*ends):
    """Close the transports and wait until both are lost."""
    for end in ends:
        if not end.transport.is_closing():
            end.transport.close()
    for end in ends:
        await end.event("lost")


# ---- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, 16384, 16385, 100_000, 3_000_000])
def test_both_directions_at_once(run, connect, tls_version, size):
    async def scenario():
        server, client = await connect(tls_version)
        for end, seed in ((server, 1), (client, 2)):
            end.transport.write(noise(size, seed))
        await client.until(lambda self: len(self.data) >= size)
        await server.until(lambda self: len(self.data) >= size)
        assert client.data == noise(size, 1) and server.data == noise(size, 2)
        await finish(client, server)
        assert client.events[0] == server.events[0] == "made"
        assert client.events[-1] == server.events[-1] == ("lost", type(None))

    run(scenario())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_can_be_written(run, connect, kind):
    async def scenario():
        server, client = await connect()
        client.transport.write(kind(b"one "))
        client.transport.write(kind(b""))
        client.transport.writelines([kind(b"two "), b"", kind(b"three "), kind(noise(100_000))])
        client.transport.writelines(part for part in (kind(b"four"),))
        client.transport.writelines([])
        expected = b"one two three " + noise(100_000) + b"four"
        await server.until(lambda self: len(self.data) >= len(expected))
        assert server.data == expected
        await finish(client, server)

    run(scenario())


@pytest.mark.parametrize("wrong", ["text", 1, None, [b"x"]])
def test_what_cannot_be_written(run, connect, wrong):
    async def scenario():
        server, client = await connect()
        expected = f"data: expecting a bytes-like instance, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match=expected):
            client.transport.write(wrong)
        with pytest.raises(TypeError):
            client.transport.writelines(1)
        with pytest.raises(NotImplementedError):
            client.transport.write_eof()
        assert client.transport.can_write_eof() is False
        await finish(client, server)

    run(scenario())


class SmallBuffer(asyncio.BufferedProtocol):
    """Receives into one small buffer, of a size that no record has."""

    size = 777
    transport = None

    def __init__(self):
        self.buffer, self.data = bytearray(self.size), bytearray()
        self.eof, self.lost = False, asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, hint):
        assert isinstance(hint, int)
        return memoryview(self.buffer)

    def buffer_updated(self, count):
        assert 0 < count <= self.size
        self.data += self.buffer[:count]

    def eof_received(self):
        self.eof = True

    def connection_lost(self, exc):
        self.lost.set()


@pytest.mark.parametrize("size", [1, 777, 16384, 16385, 500_000])
def test_buffered_protocol(run, connect, recorder, tls_version, size):
    async def scenario():
        server, client = await connect(tls_version, SmallBuffer)
        data = noise(777 * 40 + 5)
        client.transport.write(data)
        while len(server.data) < len(data):
            await asyncio.sleep(0)
        assert server.data == data
        # ... and a protocol of the other kind, in the middle of the connection
        other = recorder()
        server.transport.set_protocol(other)
        assert server.transport.get_protocol() is other
        client.transport.write(b"more")
        await other.until(lambda self: self.data == b"more")
        client.transport.close()
        await other.event("lost")
        assert other.events == ["eof", ("lost", type(None))]

    SmallBuffer.size = size
    run(scenario())


def test_backlog_is_written_after_the_handshake(run, contexts, recorder):
    """start_tls() gives a transport whose writes wait for the handshake; they keep their order."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        left, right = socket.socketpair()
        plain, _ = await loop.create_connection(recorder, sock=left)
        other, _ = await loop.create_connection(recorder, sock=right)
        server, client = recorder(), recorder()

        def make(protocol, context, **options):
            module = sslproto if not isinstance(loop, fastloop.Loop) else fastloop._tls
            ssl_protocol = module.SSLProtocol(
                loop, protocol, context, loop.create_future(), call_connection_made=False, **options
            )
            return ssl_protocol

        ends = []
        for transport, ssl_protocol in (
            (plain, make(server, server_context, server_side=True)),
            (other, make(client, client_context, server_hostname="localhost")),
        ):
            transport.set_protocol(ssl_protocol)
            loop.call_soon(ssl_protocol.connection_made, transport)
            ends.append(ssl_protocol._app_transport)
        await asyncio.sleep(0)
        changed = bytearray(b"two ")
        ends[1].write(b"one ")
        ends[1].writelines([changed, b"three"])
        assert ends[1].get_write_buffer_size() == 13
        await server.until(lambda self: len(self.data) == 13)
        assert server.data == b"one two three"
        assert ends[1].get_write_buffer_size() == 0
        for end in ends:
            end.close()
        await server.event("lost")
        await client.event("lost")

    run(scenario())


# ---- flow control ---------------------------------------------------------------------------


def test_writing_is_paused_and_resumed(run, connect):
    async def scenario():
        server, client = await connect()
        server.transport.pause_reading()
        assert not server.transport.is_reading()
        written = 0
        while "pause" not in client.events:
            client.transport.write(noise(50_000, written))
            written += 50_000
            assert written < 100_000_000
            await asyncio.sleep(0)
        assert client.transport.get_write_buffer_size() > 0 and client.transport._protocol_paused
        server.transport.resume_reading()
        await client.event("resume")
        await server.until(lambda self: len(self.data) == written)
        assert server.data == b"".join(noise(50_000, i) for i in range(0, written, 50_000))
        await finish(client, server)

    run(scenario())


def test_paused_reading_stops_the_transport_underneath(run, connect):
    async def scenario():
        server, client = await connect()
        server.transport.pause_reading()
        raw = server.transport._ssl_protocol._transport
        client.transport.write(noise(10_000_000))
        while raw.is_reading():
            await asyncio.sleep(0)
        size = server.transport.get_read_buffer_size()
        assert size >= server.transport.get_read_buffer_limits()[1] and not server.data
        server.transport.resume_reading()
        await server.until(lambda self: len(self.data) == 10_000_000)
        assert server.data == noise(10_000_000)
        await finish(client, server)

    run(scenario())


def test_buffer_limits(run, connect):
    async def scenario():
        server, client = await connect()
        transport = client.transport
        for kind in ("read", "write"):
            get = getattr(transport, f"get_{kind}_buffer_limits")
            put = getattr(transport, f"set_{kind}_buffer_limits")
            assert get() == ((64 * 1024, 256 * 1024) if kind == "read" else (128 * 1024, 512 * 1024))
            put(high=1000)
            assert get() == (250, 1000)
            put(low=1000)
            assert get() == (1000, 4000)
            put(high=2.5, low=1.5)
            assert get() == (1.5, 2.5)
            put(high=10**30, low=1)
            assert get() == (1, 10**30)
            with pytest.raises(ValueError, match=r"high \(1\) must be >= low \(2\) must be >= 0"):
                put(high=1, low=2)
            put()
        # asyncio pauses for nothing at all here, and then a drain() may wait for ever
        transport.set_write_buffer_limits(high=0)
        transport.set_write_buffer_limits(high=1)
        if isinstance(asyncio.get_running_loop(), fastloop.Loop):
            assert client.events == ["made"]
        await finish(client, server)

    run(scenario())


def test_error_in_pause_writing_is_reported(loop_factory, connect, recorder):
    class Bad(recorder):
        def pause_writing(self):
            raise ZeroDivisionError

        resume_writing = pause_writing

    async def scenario():
        contexts = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, c: contexts.append(c))
        server, client = await connect(client_protocol=Bad)
        server.transport.pause_reading()
        client.transport.write(bytes(10_000_000))  # the transport underneath takes it all, and pauses
        client.transport.write(bytes(10_000_000))
        assert contexts[0]["message"] == "protocol.pause_writing() failed"
        server.transport.resume_reading()
        await server.until(lambda self: len(self.data) == 20_000_000)
        assert [c["message"] for c in contexts][:2] == [
            "protocol.pause_writing() failed",
            "protocol.resume_writing() failed",
        ]
        for context in contexts:
            assert isinstance(context["exception"], ZeroDivisionError)
            assert context["transport"] is client.transport
            assert context["protocol"] is client.transport._ssl_protocol
        await finish(client, server)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


# ---- what can be asked ----------------------------------------------------------------------


def test_extra_info_and_attributes(run, connect, tls_version):
    async def scenario():
        server, client = await connect(tls_version)
        transport = client.transport
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, sslproto._SSLProtocolTransport)
        assert isinstance(transport._ssl_protocol, sslproto.SSLProtocol)
        get = transport.get_extra_info
        assert get("ssl_object").version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[tls_version.name]
        assert get("ssl_object").context is get("sslcontext")
        assert get("peercert")["subject"] == ((("commonName", "localhost"),),)
        assert server.transport.get_extra_info("peercert") is None
        assert get("cipher") == get("ssl_object").cipher() and get("compression") is None
        assert get("peername") == server.transport.get_extra_info("sockname")
        assert get("socket").getpeername() == get("peername")
        assert get("nothing") is None and get("nothing", 5) == 5
        assert transport._ssl_protocol._extra["ssl_object"] is get("ssl_object")
        assert transport._ssl_protocol._app_transport is transport
        assert transport._ssl_protocol._app_protocol is client
        assert transport._ssl_protocol._state is sslproto.SSLProtocolState.WRAPPED
        assert "ssl" in type(transport).__name__.lower()
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        await finish(server, client)
        assert transport._ssl_protocol._transport is None
        assert get("cipher") and get("socket") is None

    run(scenario())


def test_alpn_sni_and_session(run, contexts, recorder):
    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts(ssl.TLSVersion.TLSv1_2)
        names = []
        server_context.sni_callback = lambda obj, name, context: names.append(name)
        server_context.set_alpn_protocols(["h2", "http/1.1"])
        client_context.set_alpn_protocols(["http/1.1"])
        server = await loop.create_server(recorder, "127.0.0.1", 0, ssl=server_context)
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await loop.create_connection(
            recorder, "127.0.0.1", port, ssl=client_context, server_hostname="localhost"
        )
        assert names == ["localhost"]
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert transport.get_extra_info("ssl_object").session is not None
        server.close()
        await finish(protocol)

    run(scenario())


async def connect_with_certificate(certificates, recorder, server_context, client_context):
    """A server that asks for a certificate, a client that has one and has said hello, and the server's end."""
    loop = asyncio.get_running_loop()
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(certificates / "client.pem")
    client_context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    ends = []

    def accept():
        ends.append(recorder())
        return ends[-1]

    server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_context)
    _, client = await loop.create_connection(
        recorder, *server.sockets[0].getsockname(), ssl=client_context
    )
    client.transport.write(b"hello")
    await ends[0].until(lambda self: self.data == b"hello")
    return server, client, ends[0]


def test_client_certificate(run, contexts, certificates, recorder):
    async def scenario():
        server, client, end = await connect_with_certificate(certificates, recorder, *contexts())
        subject = end.transport.get_extra_info("peercert")["subject"]
        assert subject == ((("commonName", "client"),),)
        server.close()
        await finish(client, end)

    run(scenario())


@pytest.mark.parametrize("data_with_request", [b"", b"answer"])
def test_post_handshake_authentication(run, contexts, certificates, recorder, data_with_request):
    """The client's answer to a request that came with no data, or with some, is sent."""

    async def scenario():
        both = contexts(ssl.TLSVersion.TLSv1_3)
        for context in both:
            context.post_handshake_auth = True
        server, client, end = await connect_with_certificate(certificates, recorder, *both)
        ssl_object = end.transport.get_extra_info("ssl_object")
        assert ssl_object.getpeercert() is None
        ssl_object.verify_client_post_handshake()
        end.transport.write(data_with_request or b"x")
        await client.until(lambda self: self.data == (data_with_request or b"x"))
        client.transport.write(b" again")
        await end.until(lambda self: self.data == b"hello again")
        assert ssl_object.getpeercert()["subject"] == ((("commonName", "client"),),)
        server.close()
        await finish(client, end)

    run(scenario())


# ---- verification, names, timeouts ----------------------------------------------------------


def test_verification_is_on_by_default(loop_factory, contexts, recorder):
    async def scenario():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        server_context, client_context = contexts()
        server = await loop.create_server(recorder, "127.0.0.1", 0, ssl=server_context)
        address = server.sockets[0].getsockname()
        connect = loop.create_connection
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed|self signed"):
            await connect(recorder, *address, ssl=True)
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed|self signed"):
            await connect(recorder, *address, ssl=True, server_hostname="")
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await connect(recorder, *address, ssl=client_context, server_hostname="elsewhere")
        with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
            await connect(recorder, *address, server_hostname="localhost")
        left, right = socket.socketpair()
        with left, right:
            with pytest.raises(ValueError, match="You must set server_hostname when using ssl"):
                await connect(recorder, sock=left, ssl=client_context)
        for option in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            with pytest.raises(ValueError, match=f"{option} should be a positive number, got 0"):
                await connect(recorder, *address, ssl=client_context, **{option: 0})
            with pytest.raises(ValueError, match=f"{option} is only meaningful with ssl"):
                await connect(recorder, *address, **{option: 1})
        with pytest.raises(TypeError):
            await loop.create_server(recorder, "127.0.0.1", 0, ssl=True)
        _, protocol = await connect(recorder, *address, ssl=client_context)
        server.close()
        await finish(protocol)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(scenario(), 250))


def test_handshake_timeout(run, contexts, recorder):
    async def scenario():
        loop = asyncio.get_running_loop()
        _, client_context = contexts()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            expected = "SSL handshake is taking longer than 0.05 seconds: aborting the connection"
            with pytest.raises(ConnectionAbortedError, match=expected):
                await loop.create_connection(
                    recorder, *silent.getsockname(), ssl=client_context, ssl_handshake_timeout=0.05
                )

    run(scenario())


def test_shutdown_timeout(run, contexts, recorder):
    """A peer that never says goodbye."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        listener = socket.create_server(("127.0.0.1", 0))

        def serve():
            sock, _ = listener.accept()
            wrapped = server_context.wrap_socket(sock, server_side=True)
            wrapped.recv(5)
            return wrapped

        with listener:
            thread = loop.run_in_executor(None, serve)
            transport, protocol = await loop.create_connection(
                recorder, *listener.getsockname(), ssl=client_context, ssl_shutdown_timeout=0.05
            )
            transport.write(b"hello")
            with await thread:
                transport.close()
                assert await protocol.event("lost") == ("lost", TimeoutError)

    run(scenario())


# ---- ends -----------------------------------------------------------------------------------


def raw_client(context, address):
    """A blocking TLS client, which can also end without close_notify."""
    sock = socket.create_connection(address)
    return context.wrap_socket(sock, server_hostname="localhost")


@pytest.mark.parametrize("keep_open", [None, True])
@pytest.mark.parametrize("end", ["unwrap", "shutdown", "reset"])
def test_peer_ends(run, contexts, recorder, tls_version, log, end, keep_open):
    """By close_notify, by a plain FIN, by a reset; eof_received() may answer what it likes."""

    class Server(recorder):
        def eof_received(self):
            super().eof_received()
            return keep_open

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts(tls_version)
        protocol = Server()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=server_context)

        def client():
            sock = raw_client(client_context, server.sockets[0].getsockname())
            sock.sendall(b"hello")
            assert sock.recv(5) == b"world"
            if end == "unwrap":
                sock.unwrap().close()
            elif end == "shutdown":
                raw = socket.socket(fileno=sock.detach())
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(1000):
                    pass
                raw.close()
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()

        done = loop.run_in_executor(None, client)
        await protocol.until(lambda self: self.data == b"hello")
        protocol.transport.write(b"world")
        await done
        lost = await protocol.event("lost")
        if end == "reset":
            assert lost[1] in (ConnectionResetError, BrokenPipeError)
        else:
            assert protocol.events == ["made", "eof", ("lost", type(None))]
            warned = "returning true from eof_received() has no effect when using ssl" in log()
            assert warned is bool(keep_open)
        server.close()

    run(scenario())


def test_data_in_front_of_close_notify(run, contexts, recorder):
    """What was sent before the end arrives, also while reading is paused."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        protocol = recorder()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=server_context)

        def client():
            sock = raw_client(client_context, server.sockets[0].getsockname())
            sock.sendall(noise(100_000))
            sock.unwrap().close()

        await asyncio.gather(loop.run_in_executor(None, client), protocol.event("lost"))
        assert protocol.data == noise(100_000)
        assert protocol.events == ["made", "eof", ("lost", type(None))]
        server.close()

    run(scenario())


def test_everything_written_arrives_before_the_end(run, connect):
    async def scenario():
        server, client = await connect()
        server.transport.pause_reading()
        client.transport.write(noise(5_000_000))
        client.transport.close()
        server.transport.resume_reading()
        await server.event("lost")
        await client.event("lost")
        assert server.data == noise(5_000_000)

    run(scenario())


def test_writing_after_the_end(run, connect, log):
    async def scenario():
        server, client = await connect()
        client.transport.close()
        for _ in range(7):
            client.transport.write(b"too late")
        client.transport.writelines([b"too", b"late"])
        await client.event("lost")
        await server.event("lost")
        assert not server.data
        for _ in range(3):
            client.transport.write(b"too late")
        assert log().count("SSL connection is closed") >= 3

    run(scenario())


@pytest.mark.parametrize("state", ["wrapped", "flushing", "shutdown", "lost", "twice"])
def test_abort(run, connect, state):
    async def scenario():
        server, client = await connect()
        transport = client.transport
        server.transport.pause_reading()
        if state == "flushing":
            transport.write(noise(5_000_000))
        if state in ("flushing", "shutdown"):
            transport.close()
        if state == "lost":
            transport.close()
            server.transport.resume_reading()
            await client.event("lost")
        transport.abort()
        if state == "twice":
            transport.abort()
        assert transport.is_closing()
        assert await client.event("lost") == ("lost", type(None))
        server.transport.resume_reading()
        await server.event("lost")
        assert client.events.count("made") == 1
        assert [e[0] for e in client.events].count("lost") == 1

    run(scenario())


@pytest.mark.parametrize("how", ["close", "abort", "raise", "exit"])
def test_end_inside_data_received(loop_factory, connect, recorder, how):
    class Ends(recorder):
        def data_received(self, data):
            super().data_received(data)
            if how == "raise":
                raise ZeroDivisionError
            if how == "exit":
                raise SystemExit(7)
            getattr(self.transport, how)()

    reported = []

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda loop, c: reported.append(c))
        server, client = await connect(server_protocol=Ends)
        for number in range(3):
            client.transport.write(b"%d" % number)
        await client.event("lost")
        assert await server.event("lost") == (
            "lost",
            ZeroDivisionError if how == "raise" else type(None),
        )
        assert server.data in (b"0", b"01", b"012")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if how == "exit":
            with pytest.raises(SystemExit):
                runner.run(scenario())
        else:
            runner.run(asyncio.wait_for(scenario(), 250))
    if how == "raise":
        assert [c["message"] for c in reported] == ["Fatal error on SSL protocol"]
        assert isinstance(reported[0]["protocol"], sslproto.SSLProtocol)


def test_close_twice_forgets_the_protocol(run, connect):
    async def scenario():
        server, client = await connect()
        transport = client.transport
        transport.close()
        transport.close()
        await client.event("lost")
        await server.event("lost")
        assert transport._ssl_protocol is None and transport.is_closing()
        with pytest.raises(AttributeError):
            transport.write(b"x")
        transport.abort()

    run(scenario())


def test_unclosed_transport_warns(run, connect):
    async def scenario():
        server, client = await connect()
        raw = client.transport._ssl_protocol._transport
        expected = "unclosed transport <asyncio._SSLProtocolTransport object>"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            raw.pause_reading()  # nobody but the transports themselves refers to them now
            client.transport = raw = None
            del client
            while expected not in [str(w.message) for w in caught]:
                await asyncio.sleep(0)  # what is queued for them goes first
                gc.collect()
        await server.event("lost")

    run(scenario())


def test_debug_messages(run, connect, log):
    async def scenario():
        server, client = await connect()
        await finish(client, server)

    run(scenario(), debug=True)
    texts = " ".join(log())
    assert "starts SSL handshake" in texts and "SSL handshake took" in texts


