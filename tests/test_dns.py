"""loop.getaddrinfo() and getnameinfo() say what the socket module says, and never block the loop."""

import asyncio
import itertools
import random
import socket
import threading

import pytest

import fastloop

HOSTS = [
    "127.0.0.1", "0.0.0.0", "255.255.255.255", "1.2.3.4", "127.1", "0x7f.1", "2130706433", "1.2.3.256", "1.2.3.4.5",
    "::", "::1", "2001:db8::1", "::ffff:1.2.3.4", "fe80::1%lo", "fe80::1%1", "fe80::1%nothing", "fe80::1%", "::1%lo",
    "1:2:3", "::1::", "[::1]", " 127.0.0.1", "127.0.0.1 ", "127.0.0.1\0", "", "localhost", None, b"127.0.0.1", b"::1", b"fe80::1%lo",
    "\uff11.2.3.4", 5, "a..b", "-",
]  # fmt: skip
PORTS = [None, 0, 80, 65535, 65536, -1, 2**40, "80", "0", "http", "https", "no-such-service", "", " 80", "80 ", b"80", b"http", "٣", 1.5]
FAMILIES = [0, socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 12345]
TYPES = [0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, 99]
PROTOS = [0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, 200]
FLAGS = [
    0, socket.AI_PASSIVE, socket.AI_CANONNAME, socket.AI_NUMERICHOST, socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    socket.AI_ADDRCONFIG, socket.AI_V4MAPPED, socket.AI_V4MAPPED | socket.AI_ALL, socket.AI_CANONNAME | socket.AI_PASSIVE, 1 << 20,
]  # fmt: skip


def run(coroutine):
    with asyncio.Runner(loop_factory=fastloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(coroutine, 280))


def what_came(error):
    """An error to compare. Names of four numbers too large go to a name server, which may be slow for one of the two."""
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return type(error), error.args


def outcome_of(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return what_came(error)


async def outcome(awaitable):
    try:
        return await awaitable
    except Exception as error:
        return what_came(error)


def combinations():
    """Each host and port together, each with some of the thousands of hints; and each hint with a few hosts."""
    rng = random.Random(5)
    hints = list(itertools.product(FAMILIES, TYPES, PROTOS, FLAGS))
    for host, port in itertools.product(HOSTS, PORTS):
        for hint in rng.sample(hints, 4):
            yield host, port, *hint
    for hint in hints:
        for host in rng.sample(["127.0.0.1", "::1", "::ffff:1.2.3.4", "fe80::1%lo"], 2):
            yield host, rng.choice([None, 80, "80"]), *hint


def test_getaddrinfo_agrees_with_the_socket_module():
    async def compare():
        loop = asyncio.get_running_loop()
        count = 0
        for args in combinations():
            host, port, family, type_, proto, flags = args
            if host == "a..b" or (host == "localhost" and flags & socket.AI_CANONNAME):
                continue  # not answered by the machine alone
            got = await outcome(loop.getaddrinfo(host, port, family=family, type=type_, proto=proto, flags=flags))
            assert got == outcome_of(socket.getaddrinfo, *args), args
            count += 1
        return count

    assert run(compare()) > 4000


def test_wrong_arguments():
    async def scenario():
        loop, reference = asyncio.get_running_loop(), asyncio.SelectorEventLoop()
        for args, kwargs in [((), {}), (("::1",), {}), (("::1", 1, 2), {}), (("::1", 1), {"what": 1})]:
            with pytest.raises(TypeError):
                reference.getaddrinfo(*args, **kwargs)
            with pytest.raises(TypeError):
                loop.getaddrinfo(*args, **kwargs)
        reference.close()
        for hint in ("family", "type", "proto", "flags"):
            with pytest.raises(TypeError):
                await loop.getaddrinfo("::1", 1, **{hint: "x"})

    run(scenario())


@pytest.mark.parametrize("host, port, threaded", [("::1", 80, False), ("fe80::1%lo", "80", False), ("localhost", 80, True), ("::1", "http", True)])
def test_only_literals_are_answered_in_the_loops_thread(monkeypatch, host, port, threaded):
    original, threads = socket.getaddrinfo, []

    def getaddrinfo(*args, **kwargs):
        threads.append(threading.get_ident())
        return original(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scenario():
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)

    assert run(scenario()) == original(host, port, type=socket.SOCK_STREAM)
    assert [ident != threading.get_ident() for ident in threads] == [threaded]


def test_a_slow_name_does_not_hold_up_the_loop(monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*args, **kwargs):
        asked.set()
        assert answer.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    async def scenario():
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        connecting = asyncio.ensure_future(loop.create_connection(asyncio.Protocol, "a.name", 80))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        for _ in range(100):  # the loop turns meanwhile
            await asyncio.sleep(0)
        assert not connecting.done()
        answer.set()
        with pytest.raises(socket.gaierror, match="try again"):
            await connecting

    run(scenario())


@pytest.mark.parametrize(
    "sockaddr, flags",
    [
        (("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
        (("127.0.0.1", 80), socket.NI_NUMERICHOST),
        (("::1", 80, 0, 0), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
        (("127.0.0.1", 2**20), 0),
        (("not numeric", 80), socket.NI_NUMERICHOST),
        ("127.0.0.1", 0),
        (("127.0.0.1",), 0),
    ],
)
def test_getnameinfo(sockaddr, flags):
    async def scenario():
        return await outcome(asyncio.get_running_loop().getnameinfo(sockaddr, flags))

    assert run(scenario()) == outcome_of(socket.getnameinfo, sockaddr, flags)
