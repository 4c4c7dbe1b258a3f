"""`dask_client.py ADDRESS`: a program that computes on a dask cluster, itself on fastloop."""

import sys
import distributed
import fastloop


async def main(address):
    async with distributed.Client(address, asynchronous=True) as client:
        squares = client.map(pow, range(10), [2] * 10)
        print(await client.submit(sum, squares))


fastloop.run(main(sys.argv[1]))
