"""SUITE_CHOICE=by_policy: the suite on asyncio's and on fastloop's event loop policy, by the event_loop_policy fixture."""

import asyncio
import warnings

import pytest

import fastloop

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.14+: policies are on their way out
    POLICIES = {"stock": asyncio.DefaultEventLoopPolicy(), "fastloop": fastloop.EventLoopPolicy()}


@pytest.fixture(scope="session", params=POLICIES)
def event_loop_policy(request):
    return POLICIES[request.param]
