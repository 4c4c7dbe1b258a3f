"""SUITE_CHOICE=by_one_factory: the suite on fastloop alone, by pytest-asyncio's hook (1.4 and later)."""

import fastloop


def pytest_asyncio_loop_factories(config, item):
    return {"fastloop": fastloop.new_event_loop}
