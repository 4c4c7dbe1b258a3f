"""A grpc.aio server that ends on SIGTERM: no new calls, those under way have 30 seconds."""

import asyncio
import signal
import fastloop
import grpc.aio


async def where(request, context):
    return type(asyncio.get_running_loop()).__module__.encode()


async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(where)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"where": handler})])
    print(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, lambda: asyncio.create_task(server.stop(grace=30))
    )
    await server.wait_for_termination()
    print("stopped")


fastloop.run(main())
