"""Tornado's server, client, websockets and IOLoop on a running loop, and in its older style on the policy's."""

import asyncio
import hashlib
import threading
import time
from contextlib import contextmanager

import pytest

tornado = pytest.importorskip("tornado")
import tornado.httpclient  # noqa: E402
import tornado.httpserver  # noqa: E402
import tornado.ioloop  # noqa: E402
import tornado.iostream  # noqa: E402
import tornado.tcpclient  # noqa: E402
import tornado.tcpserver  # noqa: E402
import tornado.testing  # noqa: E402
import tornado.web  # noqa: E402
import tornado.websocket  # noqa: E402

pytestmark = pytest.mark.ecosystem("tornado")

PATIENCE = {"connect_timeout": 250, "request_timeout": 250}  # seconds, the queue included


def page(number):
    return hashlib.sha256(str(number).encode()).digest() * (1 + number * 3 % 3200)


@contextmanager
def listening(server):
    sock, port = tornado.testing.bind_unused_port()
    server.add_socket(sock)
    yield port
    server.stop()


@pytest.fixture
def application(check_loop):
    class Page(tornado.web.RequestHandler):
        async def get(self, number):
            check_loop()
            for start in range(0, len(page(int(number))), 30_000):
                self.write(page(int(number))[start : start + 30_000])
                await self.flush()

        def post(self, number):
            assert self.request.body == page(int(number))
            self.finish({"length": len(self.request.body)})

    class Thread(tornado.web.RequestHandler):
        async def get(self):
            loop = tornado.ioloop.IOLoop.current()
            name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
            self.write(name)

    class Fail(tornado.web.RequestHandler):
        async def get(self):
            await asyncio.sleep(0)
            raise tornado.web.HTTPError(418)

    class Reverse(tornado.websocket.WebSocketHandler):
        def on_message(self, message):
            self.write_message(message[::-1], binary=isinstance(message, bytes))

    handlers = [(r"/page/(\d+)", Page), ("/thread", Thread), ("/fail", Fail), ("/reverse", Reverse)]
    return tornado.web.Application(handlers, log_function=lambda handler: None)


def test_http(run, application):
    async def main():
        with listening(tornado.httpserver.HTTPServer(application)) as port:
            client = tornado.httpclient.AsyncHTTPClient(force_instance=True, max_clients=50, defaults=PATIENCE)
            base = f"http://127.0.0.1:{port}"

            async def get(number):
                assert (await client.fetch(f"{base}/page/{number}")).body == page(number)

            async def post(number):
                response = await client.fetch(f"{base}/page/{number}", method="POST", body=page(number))
                assert response.body == b'{"length": %d}' % len(page(number))

            await asyncio.gather(*(call(number) for number in range(100) for call in (get, post)))
            assert (await client.fetch(f"{base}/thread")).body != threading.current_thread().name.encode()
            assert (await client.fetch(f"{base}/fail", raise_error=False)).code == 418
            client.close()

    run(main)


def test_websockets(run, application):
    async def talk(port, number):
        connection = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{port}/reverse")
        for n in range(20):
            await connection.write_message(f"{number}-{n}")
            assert await connection.read_message() == f"{number}-{n}"[::-1]
        await connection.write_message(page(number), binary=True)
        assert await connection.read_message() == page(number)[::-1]
        connection.close()
        assert await connection.read_message() is None

    async def main():
        with listening(tornado.httpserver.HTTPServer(application)) as port:
            await asyncio.gather(*(talk(port, number) for number in range(30)))

    run(main)


def test_streams(run, check_loop):
    class Echo(tornado.tcpserver.TCPServer):
        async def handle_stream(self, stream, address):
            check_loop()
            with pytest.raises(tornado.iostream.StreamClosedError):
                while True:
                    await stream.write(await stream.read_until(b"\n"))

    async def talk(port, number):
        stream = await tornado.tcpclient.TCPClient().connect("127.0.0.1", port)
        for n in range(50):
            line = b"%d " % number * (n * 100) + b"\n"
            await stream.write(line)
            assert await stream.read_until(b"\n") == line
        stream.close()

    async def main():
        with listening(Echo()) as port:
            await asyncio.gather(*(talk(port, number) for number in range(30)))

    run(main)


def test_ioloop_calls(run):
    """Callbacks, timeouts, periodic callbacks and calls from other threads arrive on the running loop, in order."""

    async def main():
        loop = tornado.ioloop.IOLoop.current()
        assert loop.asyncio_loop is asyncio.get_running_loop()
        heard, done = [], asyncio.Event()
        loop.add_callback(heard.append, "first")
        loop.add_callback(heard.append, "second")
        loop.call_later(0.02, heard.append, "later")
        gone = loop.add_timeout(loop.time() + 0.01, heard.append, "never")
        loop.remove_timeout(gone)
        await asyncio.sleep(0.05)
        assert heard == ["first", "second", "later"]

        thread = threading.Thread(target=lambda: (time.sleep(0.01), loop.add_callback(done.set)))
        thread.start()
        await done.wait()
        thread.join()

        ticks = []
        periodic = tornado.ioloop.PeriodicCallback(lambda: ticks.append(loop.time()), 5)
        periodic.start()
        while len(ticks) < 5:
            await asyncio.sleep(0.005)
        periodic.stop()
        assert ticks == sorted(ticks)

    run(main)


OLD_STYLE = """
import asyncio, signal, fastloop, tornado.ioloop, tornado.web

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write(type(asyncio.get_running_loop()).__module__)

fastloop.install()
loop = tornado.ioloop.IOLoop(make_current=False)
async def listen():
    server = tornado.web.Application([("/", Hello)]).listen(0, "127.0.0.1")
    port = next(iter(server._sockets.values())).getsockname()[1]
    print(f"http://127.0.0.1:{port}")
loop.add_callback(listen)
loop.add_callback(lambda: loop.asyncio_loop.add_signal_handler(signal.SIGTERM, loop.stop))
loop.start()
loop.close()
print("closed")
"""


@pytest.mark.parametrize("program", [["tornado_server.py"], ["-c", OLD_STYLE]], ids=["run", "ioloop start"])
def test_server_program(start, run, program):
    server = start(*program)
    port = server.port()

    async def main():
        client = tornado.httpclient.AsyncHTTPClient(force_instance=True, defaults=PATIENCE)
        assert (await client.fetch(f"http://127.0.0.1:{port}")).body == b"fastloop.loop"
        client.close()

    run(main)
    assert server.stop().endswith("closed\n")
