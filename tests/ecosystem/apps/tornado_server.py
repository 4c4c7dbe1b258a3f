"""A Tornado server that ends on SIGTERM, in Tornado's present style: a coroutine on a running loop."""

import asyncio
import signal
import fastloop
import tornado.httpserver
import tornado.netutil
import tornado.web


class Where(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(0)
        self.write(type(asyncio.get_running_loop()).__module__)


async def main():
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Where)]))
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")  # 0: any free port
    server.add_sockets(sockets)
    print("http://{}:{}".format(*sockets[0].getsockname()))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    server.stop()
    await server.close_all_connections()
    print("closed")


fastloop.run(main())
