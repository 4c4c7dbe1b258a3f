"""A Tornado server that ends on SIGTERM, in Tornado's present style: a coroutine on a running loop."""

import asyncio
import signal
import fastloop
import tornado.web


class Where(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(0)
        self.write(type(asyncio.get_running_loop()).__module__)


async def main():
    server = tornado.web.Application([("/", Where)]).listen(0, "127.0.0.1")
    port = next(iter(server._sockets.values())).getsockname()[1]
    print(f"http://127.0.0.1:{port}")
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    server.stop()
    await server.close_all_connections()
    print("closed")


fastloop.run(main())
