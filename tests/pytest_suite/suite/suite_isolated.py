"""unittest.IsolatedAsyncioTestCase: it takes its loop from the policy."""

import asyncio
import unittest


class TestIsolated(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.loop = asyncio.get_running_loop()
        self.addAsyncCleanup(asyncio.sleep, 0)

    async def test_set_up_and_test_share_a_loop(self):
        assert asyncio.get_running_loop() is self.loop
        assert await asyncio.to_thread(lambda: 1) == 1

    async def test_context_manager(self):
        async with asyncio.timeout(20):
            await asyncio.sleep(0)
