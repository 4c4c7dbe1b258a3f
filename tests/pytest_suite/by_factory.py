"""SUITE_CHOICE=by_factory: the suite on loops of two factories, by pytest-asyncio's own hook (1.4 and later)."""

import asyncio

import fastloop


def pytest_asyncio_loop_factories(config, item):
    return {"stock": asyncio.SelectorEventLoop, "fastloop": fastloop.new_event_loop}
