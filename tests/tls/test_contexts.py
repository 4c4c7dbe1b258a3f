"""What users configure on an SSLContext works as they did it, in every place that takes one; many clients that vanish leave nothing."""

import asyncio
import os
import socket
import ssl
import sys

import pytest

import fastloop


async def echo(reader, writer):
    while data := await reader.read(100_000):
        writer.write(data)
        await writer.drain()
    writer.close()


async def talk(reader, writer):
    assert writer.get_extra_info("ssl_object").version()
    for size in (1, 100, 200_000):
        writer.write(b"x" * size)
        assert await reader.readexactly(size) == b"x" * size
    writer.close()
    await writer.wait_closed()


def test_unix_sockets(run, contexts, tmp_path):
    async def scenario():
        server_context, client_context = contexts()
        path = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(echo, path, ssl=server_context)
        await talk(*await asyncio.open_unix_connection(path, ssl=client_context, server_hostname="localhost"))
        with pytest.raises(ValueError, match="you have to pass server_hostname when using ssl"):
            await asyncio.open_unix_connection(path, ssl=client_context)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_unix_connection(path, ssl=True, server_hostname="localhost")
        server.close()

    run(scenario())


def test_over_a_socket_subclass(run, contexts):
    class Counting(socket.socket):
        received = sent = 0

        def recv(self, size):
            data = super().recv(size)
            self.received += len(data)
            return data

        def recv_into(self, buffer):
            size = super().recv_into(buffer)
            self.received += size
            return size

        def send(self, data):
            size = super().send(data)
            self.sent += size
            return size

        def sendmsg(self, buffers):
            size = super().sendmsg(buffers)
            self.sent += size
            return size

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts()[0])
        sock = Counting()
        sock.connect(server.sockets[0].getsockname())
        sock.setblocking(False)
        await talk(*await asyncio.open_connection(sock=sock, ssl=contexts()[1], server_hostname="localhost"))
        assert sock.received > 200_000 and sock.sent > 200_000
        server.close()
        await server.wait_closed()

    run(main())


def test_connect_accepted_socket(run, contexts):
    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        ours, theirs = socket.socketpair()

        def serve():
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo)

        client = asyncio.create_task(asyncio.open_connection(sock=theirs, ssl=client_context, server_hostname="localhost"))
        await loop.connect_accepted_socket(serve, ours, ssl=server_context)
        await talk(*await client)

    run(scenario())


def test_keys_are_logged(run, contexts, tls_version, tmp_path):
    """SSLContext.keylog_filename: for who looks into his own connections."""

    async def scenario():
        server_context, client_context = contexts(tls_version)
        client_context.keylog_filename = str(tmp_path / "keys")
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context)
        address = server.sockets[0].getsockname()
        await talk(*await asyncio.open_connection(*address, ssl=client_context, server_hostname="localhost"))
        server.close()

    run(scenario())
    words = {line.split()[0] for line in (tmp_path / "keys").read_text().splitlines() if not line.startswith("#")}
    assert words >= {"CLIENT_RANDOM"} if tls_version is ssl.TLSVersion.TLSv1_2 else {"CLIENT_TRAFFIC_SECRET_0"}


class Resuming(ssl.SSLContext):
    """Offers the session of the last connection in the next: how a user of asyncio has them resumed."""

    session = None

    def wrap_bio(self, incoming, outgoing, server_side=False, server_hostname=None, session=None):
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, self.session)


def test_sessions_are_resumed(run, contexts, certificates, tls_version):
    async def scenario():
        server_context, _ = contexts(tls_version)
        client_context = Resuming(ssl.PROTOCOL_TLS_CLIENT)
        client_context.load_verify_locations(certificates / "localhost.pem")
        client_context.minimum_version = client_context.maximum_version = tls_version
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context)
        reused = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(), ssl=client_context, server_hostname="localhost"
            )
            await talk(reader, writer)
            ssl_object = writer.get_extra_info("ssl_object")
            reused.append(ssl_object.session_reused)
            client_context.session = ssl_object.session
        server.close()
        return reused

    assert run(scenario()) == [False, True, True]


def test_sni_callback_gives_another_context(run, contexts, certificates):
    async def scenario():
        server_context, client_context = contexts()
        plain = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        plain.load_cert_chain(certificates / "client.pem", certificates / "client.key")  # which nobody here trusts

        def choose(ssl_object, name, context):
            if name == "localhost":
                ssl_object.context = server_context
            elif name == "refused":
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        plain.sni_callback = choose
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=plain)
        address = server.sockets[0].getsockname()
        await talk(*await asyncio.open_connection(*address, ssl=client_context, server_hostname="localhost"))
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(*address, ssl=client_context, server_hostname="127.0.0.1")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(*address, ssl=client_context, server_hostname="refused")
        server.close()

    run(scenario())


def resident_memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory in use from Linux's /proc")
@pytest.mark.skipif("SANITIZED" in os.environ, reason="the sanitizers keep freed memory")
@pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="one Python is enough for half a minute's work")
@pytest.mark.timeout(900)
def test_fifty_thousand_clients_that_vanish(contexts):
    """Before, in and after their hello, by a reset: memory and open files stay where they were."""

    async def scenario():
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts()
        tls = client_context.wrap_bio(ssl.MemoryBIO(), out := ssl.MemoryBIO(), server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = out.read()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=server_context, backlog=200)
        address = server.sockets[0].getsockname()

        async def vanish(number):
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                await loop.sock_connect(sock, address)
                if number % 4:
                    await loop.sock_sendall(sock, hello[: 100 if number % 4 == 1 else None])
                if number % 4 == 3:
                    await loop.sock_recv(sock, 100_000)

        async def many(count):
            for start in range(0, count, 100):
                await asyncio.gather(*map(vanish, range(start, start + 100)))
            while loop.stats()["transports"]:
                await asyncio.sleep(0.001)
            return len(os.listdir("/proc/self/fd")), resident_memory()

        files, memory = await many(2000)
        files_after, memory_after = await many(48_000)
        server.close()
        assert files_after <= files
        assert memory_after - memory < 48_000 * 100  # bytes: an SSL object alone takes ten thousand

    fastloop.run(asyncio.wait_for(scenario(), 880))
