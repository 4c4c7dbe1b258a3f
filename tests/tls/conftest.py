"""Certificates made for the tests, and what runs a scenario on fastloop and on asyncio."""

import asyncio
import logging
import ssl
import subprocess

import pytest

import fastloop

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
DEADLINE = 250  # seconds, for a scenario under sanitizers on a loaded machine

REQUEST = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7 -batch "
    "-subj /CN={name} -addext subjectAltName=DNS:{name},IP:127.0.0.1 -out {name}.pem -keyout {name}.key"
)


@pytest.fixture(params=LOOPS)
def loop_factory(request):
    return LOOPS[request.param]


@pytest.fixture
def run(loop_factory):
    """Run a coroutine on a new loop; what its callbacks raise fails the test, unless it takes it."""

    def run(coroutine, *, debug=False):
        unhandled = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: unhandled.append(context))
            return await asyncio.wait_for(coroutine, DEADLINE)

        with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
            result = runner.run(main())
        assert not unhandled
        return result

    return run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """The folder of <name>.pem and <name>.key, each signed by itself."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("localhost", "client"):
        command = REQUEST.format(name=name).split()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(params=VERSIONS)
def tls_version(request):
    return VERSIONS[request.param]


@pytest.fixture
def contexts(certificates):
    """`contexts(version=None)`: an SSLContext of a server and of a client that trusts it."""

    def contexts(version=None):
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificates / "localhost.pem", certificates / "localhost.key")
        client = ssl.create_default_context(cafile=certificates / "localhost.pem")
        for context in (server, client):
            if version is not None:
                context.minimum_version = context.maximum_version = version
        return server, client

    return contexts


@pytest.fixture
def log(caplog):
    """The texts that asyncio's logger was given."""
    caplog.set_level(logging.DEBUG, logger="asyncio")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "asyncio"]


class Recorder(asyncio.Protocol):
    """Notes what a transport calls."""

    def __init__(self):
        self.events, self.data = [], bytearray()
        self.transport = None
        self.changed = asyncio.Event()

    def note(self, *event):
        self.events.append(event[0] if len(event) == 1 else event)
        self.changed.set()

    def connection_made(self, transport):
        self.transport = transport
        self.note("made")

    def data_received(self, data):
        assert type(data) is bytes and data
        self.data += data
        self.changed.set()

    def eof_received(self):
        self.note("eof")

    def pause_writing(self):
        self.note("pause")

    def resume_writing(self):
        self.note("resume")

    def connection_lost(self, exc):
        self.note("lost", type(exc))

    async def until(self, condition):
        while not condition(self):
            self.changed.clear()
            await self.changed.wait()

    async def event(self, name):
        """Wait for an event and return it."""
        await self.until(lambda self: any(e == name or e[0] == name for e in self.events))
        return next(e for e in self.events if e == name or e[0] == name)


@pytest.fixture
def recorder():
    return Recorder


@pytest.fixture
def connect(contexts):
    """`await connect(version, server_protocol=, client_protocol=, **options)`: both ends' protocols.

    `options` go to both create_server() and create_connection().
    """

    async def connect(version=None, server_protocol=Recorder, client_protocol=Recorder, **options):
        loop = asyncio.get_running_loop()
        server_context, client_context = contexts(version)
        ends = []

        def accept():
            ends.append(server_protocol())
            return ends[0]

        server = await loop.create_server(accept, "127.0.0.1", 0, ssl=server_context, **options)
        _, client = await loop.create_connection(
            client_protocol, *server.sockets[0].getsockname(), ssl=client_context,
            server_hostname="localhost", **options,
        )  # fmt: skip
        while not ends or ends[0].transport is None:
            await asyncio.sleep(0)
        server.close()
        return ends[0], client

    return connect
