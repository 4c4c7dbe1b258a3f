"""TLS 1.3: echo servers and handshakes under the C load generator built with OpenSSL; the limit is the C echo server with OpenSSL."""

import asyncio
import os
import ssl
import subprocess

from bench_network import Echo, echo_stream
from harness import Benchmark, cache_directory, compile_c, register
from servers import loadgen, serve

FLAGS = ("-DWITH_TLS", "-lssl", "-lcrypto")


def certificate():
    """A self-signed certificate and its key, made once."""
    paths = [str(cache_directory() / name) for name in ("certificate.pem", "key.pem")]
    if not all(map(os.path.exists, paths)):
        options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 3650 -batch"
        command = ["openssl", "req", *options.split(), "-out", paths[0], "-keyout", paths[1]]
        subprocess.run(command, check=True, capture_output=True)
    return paths


def server_context():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate())
    return context


async def protocol(loop, sock):
    return await loop.create_server(Echo, sock=sock, backlog=4096, ssl=server_context())


async def stream(loop, sock):
    return await asyncio.start_server(echo_stream, sock=sock, backlog=4096, ssl=server_context())


def echo_limit(fd):
    return [compile_c("echo_limit.c", *FLAGS), str(fd), *certificate()]


def tls(name, server, arguments, unit="messages/s"):
    def open_server(loop_name, options):
        return serve(loop_name, options, "tcp", server, loadgen(arguments, flags=FLAGS), echo_limit)

    register(Benchmark("tls", name, unit, open_server, has_limit=True))


for size, text in ((1024, "1k"), (100 * 1024, "100k")):
    tls(f"protocol_{text}_10", protocol, f"-m {size} -c 10")
    tls(f"stream_{text}_10", stream, f"-m {size} -c 10")
tls("handshake", protocol, "-m 64 -c 10 -r", unit="handshakes/s")
