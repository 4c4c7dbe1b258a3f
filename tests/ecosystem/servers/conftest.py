"""Real servers for the tests of their clients: each on a free port, in a temporary folder, started once a session.

The programs are Debian's packages: postgresql, mariadb-server, redis-server, nats-server, rabbitmq-server. A
program that is not installed skips its tests, and fails them in CI. supervise.py sees to it that no server
outlives the tests.
"""

import contextlib
import functools
import glob
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import fastloop

HERE = Path(__file__).parent
# PostgreSQL, MariaDB and RabbitMQ's scripts refuse to run, or warn, as root.
USER = "nobody" if os.getuid() == 0 else ""
PASSWORD = "fastloop tests"


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config, item):
    """pytest-asyncio's tests, which are test_service.py's, run on fastloop."""
    return {"fastloop": fastloop.new_event_loop}


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:  # the first test of a server waits for its start, some start it again
            item.add_marker(pytest.mark.timeout(900))


def program(name, package):
    """The path of a server's program; Debian keeps some of them off the ordinary PATH."""
    places = [*glob.glob("/usr/lib/postgresql/*/bin"), "/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin"]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if not found:
        pytest.skip(f"needs {name} (Debian package {package})")
    return found


class Server:
    """A server in a folder of its own; may be killed as by a crash and started again on the same data and port."""

    def __init__(self, stack, ready, stop="SIGKILL", user=USER, **environment):
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastloop-server-")))
        if user:
            os.chown(self.folder, pwd.getpwnam(user).pw_uid, -1)
        self.ready, self.stopped_by, self.user = ready, stop, user
        self.environment = os.environ | {"HOME": str(self.folder), "LC_ALL": "C.UTF-8"} | environment
        self.port = self.free_port(stack)
        self.log = stack.enter_context(open(self.folder / "log", "w+"))
        self.supervisor = self.command = None
        stack.callback(self.stop)

    def free_port(self, stack):
        """A port of 127.0.0.1 that stays bound here, so that nothing but a server that listens on it can have it."""
        holder = stack.enter_context(socket.socket())
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]

    def prepare(self, *command):
        """Run a program to its end before the start: initdb and the like."""
        who = {"user": self.user, "group": "nogroup", "extra_groups": []} if self.user else {}
        output = {"stdout": self.log, "stderr": self.log}
        done = subprocess.run(command, cwd=self.folder, env=self.environment, **output, **who)
        if done.returncode:
            self.fail(command[0])

    def start(self, *command):
        """Return when the server is ready, by its own word. Without a command: the same as before."""
        self.command = command or self.command
        self.supervisor = subprocess.Popen(
            [sys.executable, HERE / "supervise.py", self.user, self.stopped_by, self.ready, *self.command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,  # a time limit's SIGTERM to our process group must not reach who cleans up
        )
        self.pid = int(self.supervisor.stdout.readline())
        if self.supervisor.stdout.readline() != "ready\n":
            self.fail(self.command[0])

    def fail(self, path):
        self.log.seek(0)
        raise RuntimeError(f"{path} failed:\n{self.log.read()}")

    def kill(self):
        """End it as a crash would, every connection included."""
        os.kill(self.pid, signal.Signals[self.stopped_by])
        self.stop()

    def stop(self):
        if self.supervisor:
            self.supervisor.communicate()
            self.supervisor = None

    @contextlib.contextmanager
    def killable(self):
        """For a test that kills the server: it is up again afterwards, whatever happens."""
        try:
            yield self
        finally:
            if not self.supervisor:
                self.start()


def make_certificate(server):
    """A self-signed certificate and its key in one file; server.tls() makes a client's context that trusts it."""
    path = server.folder / "certificate.pem"
    server.prepare(
        *[program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        *["-noenc", "-days", "7", "-subj", "/CN=fastloop", "-addext", "subjectAltName=IP:127.0.0.1"],
        *["-keyout", path, "-out", server.folder / "public.pem"],
    )
    with open(path, "a") as file:
        file.write((server.folder / "public.pem").read_text())
    server.tls = functools.partial(ssl.create_default_context, cafile=server.folder / "public.pem")
    return path


@pytest.fixture(scope="session")
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def postgres(stack):
    initdb = program("initdb", "postgresql")
    # SIGQUIT ends it at once, with all its processes and shared memory; SIGKILL would leave both.
    server = Server(stack, "database system is ready to accept connections", "SIGQUIT")
    (server.folder / "password").write_text(PASSWORD)
    login = ["--username=tester", f"--pwfile={server.folder}/password", "--auth=scram-sha-256"]
    server.prepare(initdb, "--no-sync", "--encoding=UTF8", *login, "--pgdata=data")
    certificate = make_certificate(server)
    settings = {
        "ssl": "on",
        "ssl_cert_file": certificate,
        "ssl_key_file": certificate,
        "listen_addresses": "127.0.0.1",
        "port": server.port,
        "unix_socket_directories": server.folder,
        "max_connections": 60,
        "fsync": "off",
    }
    server.start(
        initdb.replace("initdb", "postgres"),
        *["-D", "data"],
        *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
    )
    server.login = {"host": "127.0.0.1", "port": server.port, "user": "tester", "password": PASSWORD}
    return server


@pytest.fixture(scope="session")
def mariadb(stack):
    install = program("mariadb-install-db", "mariadb-server")
    server = Server(stack, "ready for connections")
    server.prepare(
        *[install, "--no-defaults", f"--datadir={server.folder}/data", "--skip-test-db"],
        *["--auth-root-authentication-method=normal", "--skip-name-resolve"],
    )
    certificate = make_certificate(server)
    server.start(
        *[program("mariadbd", "mariadb-server"), "--no-defaults", f"--datadir={server.folder}/data"],
        *["--bind-address=127.0.0.1", f"--port={server.port}", f"--socket={server.folder}/socket"],
        *[f"--ssl-cert={certificate}", f"--ssl-key={certificate}"],
        *["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2", f"--pid-file={server.folder}/pid"],
    )
    server.login = {"host": "127.0.0.1", "port": server.port, "user": "root", "password": ""}
    return server


@pytest.fixture(scope="session")
def redis_server(stack):
    path = program("redis-server", "redis-server")
    server = Server(stack, "eady to accept connections")
    files = ["--dir", server.folder, "--save", "", "--appendonly", "yes", "--appendfsync", "no"]
    server.start(path, "--bind", "127.0.0.1", "--port", str(server.port), *files)
    server.url = f"redis://127.0.0.1:{server.port}"
    return server


@pytest.fixture(scope="session")
def nats_server(stack):
    path = program("nats-server", "nats-server")
    server = Server(stack, "Server is ready")
    server.start(path, "--addr", "127.0.0.1", "--port", str(server.port))
    server.url = f"nats://127.0.0.1:{server.port}"
    return server


@pytest.fixture(scope="session")
def rabbitmq(stack):
    path = program("rabbitmq-server", "rabbitmq-server").replace("/sbin/", "/lib/rabbitmq/bin/")
    # Erlang's port mapper would stay behind as a daemon; here it is a server like the others.
    names = Server(stack, "entering the main select() loop")
    names.start(
        program("epmd", "erlang-base"), "-d", "-d", "-port", str(names.port), "-address", "127.0.0.1"
    )
    server = Server(stack, "Server startup complete", ERL_EPMD_PORT=str(names.port))
    server.environment |= {
        "RABBITMQ_NODENAME": "fastloop@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(server.port),
        "RABBITMQ_DIST_PORT": str(server.free_port(stack)),
        "RABBITMQ_MNESIA_BASE": str(server.folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(server.folder),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(server.folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(server.folder / "plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false",
    }
    server.start(path)
    server.url = f"amqp://guest:guest@127.0.0.1:{server.port}/"
    return server


@pytest.fixture(scope="session")
def mongo_server(stack):
    server = Server(stack, "ready for drivers", user="")
    server.start(sys.executable, HERE / "mongo_server.py", str(server.port))
    return server
