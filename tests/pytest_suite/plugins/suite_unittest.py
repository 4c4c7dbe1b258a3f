"""A suite of unittest's own."""

import unittest

import pytest


class TestIsolated(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def take_check(self, check):
        self.check = check

    async def asyncSetUp(self):
        self.check()

    async def test_loop(self):
        self.check()
