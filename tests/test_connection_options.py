"""What create_connection(), create_server() and the others can be told: asyncio is the measure."""

import asyncio
import contextlib
import os
import select
import socket
import sys

import pytest
from stream_helpers import Recorder, same

since_3_12 = pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")
since_3_13 = pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
V4, V6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


def resolve_to(*places):
    """The running loop finds these (family, host, port) for every name."""

    async def getaddrinfo(host, port, **kw):
        return [(family, socket.SOCK_STREAM, 6, "", (host, port)) for family, host, port in places]

    asyncio.get_running_loop().getaddrinfo = getaddrinfo


def free_port(family, host):
    """A port that refuses connections: bound, but nobody listens."""
    sock = socket.socket(family)
    sock.bind((host, 0))
    return sock, sock.getsockname()[1]


@contextlib.contextmanager
def full_listener():
    """The port of a listener whose queue is full: who connects to it waits."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queued = True
        while queued:
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            queued = bool(select.select([], [sock], [], 0.2)[1])
        yield listener.getsockname()[1]


async def talk(reader, writer):
    """What an echo server answers until its end, after which it has closed its socket."""
    writer.write(b"hello")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def talk_to_each(server):
    """Connect to each of the server's sockets: the families, and what came back."""
    return [
        (sock.family, await talk(*await asyncio.open_connection(*sock.getsockname()[:2])))
        for sock in server.sockets
    ]


async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


# ---- create_connection ---------------------------------------------------------


def test_happy_eyeballs_pass_an_address_that_hangs():
    async def scenario():
        with full_listener() as hangs, socket.create_server(("127.0.0.1", 0)) as answers:
            resolve_to((*V4, hangs), (*V4, answers.getsockname()[1]))
            transport, _ = await asyncio.get_running_loop().create_connection(
                Recorder, "name", 1, happy_eyeballs_delay=0.01
            )
            transport.abort()
            return transport.get_extra_info("peername") == answers.getsockname()

    assert same(scenario) is True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interleave": 1},
        {"happy_eyeballs_delay": 0.25},
        {"interleave": 2, "happy_eyeballs_delay": 0.25},
    ],
)
def test_the_addresses_are_tried_in_order(options):
    async def scenario():
        (no_6, port_6), (no_4, port_4) = free_port(*V6), free_port(*V4)
        with no_6, no_4, socket.create_server(("127.0.0.1", 0)) as answers:
            port = answers.getsockname()[1]
            resolve_to((*V6, port_6), (*V6, port_6), (*V4, port_4), (*V4, port))
            tried, loop = [], asyncio.get_running_loop()
            connect = loop.sock_connect

            async def sock_connect(sock, address):
                tried.append((sock.family, address[1] == port))
                await connect(sock, address)

            loop.sock_connect = sock_connect
            transport, _ = await loop.create_connection(Recorder, "name", 1, **options)
            transport.abort()
            return tried

    assert same(scenario)[-1] == (socket.AF_INET, True)


@pytest.mark.parametrize("all_errors", [False, pytest.param(True, marks=since_3_12)])
def test_every_address_refuses(all_errors):
    async def scenario():
        (no_6, port_6), (no_4, port_4) = free_port(*V6), free_port(*V4)
        with no_6, no_4:
            resolve_to((*V6, port_6), (*V4, port_4))
            options = {"all_errors": True} if all_errors else {}
            try:
                await asyncio.get_running_loop().create_connection(Recorder, "name", 1, **options)
            except (OSError, ExceptionGroup) as error:
                inner = [type(e) for e in getattr(error, "exceptions", ())]
                text = str(error).replace(str(port_6), "6").replace(str(port_4), "4")
                return type(error), inner, text

    kind, inner, _ = same(scenario)
    assert (kind, inner) == (
        (ExceptionGroup, [ConnectionRefusedError] * 2) if all_errors else (OSError, [])
    )


def test_local_addr():
    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport, _ = await asyncio.get_running_loop().create_connection(
                Recorder, *listener.getsockname(), local_addr=("127.0.0.7", 0)
            )
            peer, address = listener.accept()
            peer.close()
            transport.abort()
            return address[0], address == transport.get_extra_info("sockname")

    assert same(scenario) == ("127.0.0.7", True)


# ---- create_server ----------------------------------------------------------------


@pytest.mark.parametrize(
    "host", [["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "::1"], "::1", None, ""]
)
def test_hosts(host):
    async def scenario():
        async with await asyncio.start_server(echo, host, 0) as server:
            only_6 = [
                s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                for s in server.sockets
                if s.family == socket.AF_INET6
            ]
            return await talk_to_each(server), only_6

    seen, _ = same(scenario)
    assert {answer for _, answer in seen} == {b"hello"}


def test_ports_are_shared_only_if_asked():
    async def scenario():
        loop, results = asyncio.get_running_loop(), []
        for reuse_port in (True, False):
            async with await loop.create_server(
                Recorder, "127.0.0.1", 0, reuse_port=reuse_port
            ) as first:
                port = first.sockets[0].getsockname()[1]
                try:
                    async with await loop.create_server(
                        Recorder, "127.0.0.1", port, reuse_port=reuse_port
                    ):
                        results.append("shared")
                except OSError as error:
                    results.append((error.errno, str(error).replace(str(port), "PORT")))
        return results

    shared, (errno, _) = same(scenario)
    assert (shared, errno) == ("shared", 98 if sys.platform == "linux" else errno)


@pytest.mark.parametrize("reuse_address", [None, True, False])
def test_reuse_address_and_keep_alive(reuse_address):
    async def scenario():
        keep_alive = {"keep_alive": True} if sys.version_info >= (3, 13) else {}
        server = await asyncio.get_running_loop().create_server(
            Recorder, "127.0.0.1", 0, reuse_address=reuse_address, backlog=7, **keep_alive
        )
        async with server:
            return [
                server.sockets[0].getsockopt(socket.SOL_SOCKET, option)
                for option in (socket.SO_REUSEADDR, socket.SO_KEEPALIVE)
            ]

    assert same(scenario)[0] == (reuse_address is not False)


def test_serving_begins_when_told():
    async def scenario():
        seen = []
        server = await asyncio.start_server(echo, "127.0.0.1", 0, start_serving=False)
        with socket.socket() as early:
            seen.append(
                (server.is_serving(), early.connect_ex(server.sockets[0].getsockname()) == 0)
            )
        await server.start_serving()
        seen.append((server.is_serving(), await talk_to_each(server)))
        task = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        try:
            await server.serve_forever()
        except RuntimeError as error:
            seen.append("is already being awaited" in str(error))
        task.cancel()
        seen.append(
            isinstance(
                (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
            )
        )
        seen.append((server.is_serving(), server.sockets))
        await server.wait_closed()
        return seen

    seen = same(scenario)
    assert (seen[0], seen[1][0], seen[2:]) == ((False, False), True, [True, True, (False, ())])


@since_3_13
@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
def test_clients_of_a_closed_server(how):
    async def scenario():
        made = []

        def factory():
            made.append(Recorder())
            return made[-1]

        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        while not (made and made[0].data):
            await asyncio.sleep(0)
        server.close()
        getattr(server, how)()
        await server.wait_closed()
        try:
            end = await reader.read()
        except ConnectionResetError as error:
            end = type(error)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await made[0].lost
        return made[0].events, end

    assert same(scenario)


# ---- Unix sockets -------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_abstract_name():
    async def scenario():
        name = f"\0fastloop-test-{os.getpid()}"
        async with await asyncio.start_unix_server(echo, name):
            return await talk(*await asyncio.open_unix_connection(name))

    assert same(scenario) == b"hello"


@pytest.mark.parametrize(
    "cleanup", [None, pytest.param(True, marks=since_3_13), pytest.param(False, marks=since_3_13)]
)
def test_socket_files(tmp_path, cleanup):
    """A stale one is replaced, another file is in the way; and is it there after the end?"""
    path = tmp_path / "socket"
    options = {} if cleanup is None else {"cleanup_socket": cleanup}

    async def scenario():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        async with await asyncio.start_unix_server(echo, path, **options):
            answer = await talk(*await asyncio.open_unix_connection(path))
        after = path.exists()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.write_text("a file")
        try:
            await asyncio.start_unix_server(echo, path, **options)
        except OSError as error:
            return answer, after, error.errno, str(error), path.read_text()

    answer, *_, text = same(scenario)
    assert (answer, text) == (b"hello", "a file")


# ---- UDP ------------------------------------------------------------------------------


@pytest.mark.parametrize("allow_broadcast", [None, True])
@pytest.mark.parametrize("reuse_port", [None, True])
def test_datagram_options(allow_broadcast, reuse_port):
    async def scenario():
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol,
            local_addr=("127.0.0.1", 0),
            allow_broadcast=allow_broadcast,
            reuse_port=reuse_port,
        )
        sock = transport.get_extra_info("socket")
        options = [
            bool(sock.getsockopt(socket.SOL_SOCKET, o))
            for o in (socket.SO_BROADCAST, socket.SO_REUSEPORT)
        ]
        transport.close()
        return options

    assert same(scenario) == [bool(allow_broadcast), bool(reuse_port)]
