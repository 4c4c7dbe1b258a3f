"""The pytest plugin: `pytest --fastloop`, or `fastloop = true` in pytest's ini file, runs a suite on fastloop.

While pytest runs, asyncio's event loop policy is fastloop's. All of pytest-asyncio, pytest-aiohttp, anyio's plugin and
unittest.IsolatedAsyncioTestCase make their loops through the policy, unless the suite itself says otherwise: an
`event_loop_policy` fixture, loop factories, backend options, or a conftest.py that sets a policy of its own are left as
they are.

pytest loads this file wherever fastloop is installed. Not asked for, it imports neither fastloop's core nor asyncio.
`-p no:fastloop` keeps it from being loaded.
"""

import pytest


def pytest_addoption(parser):
    """Declare the two options and the ini setting."""
    group = parser.getgroup("fastloop")
    group.addoption(
        "--fastloop",
        action="store_true",
        default=None,
        help="Run asyncio code on fastloop's event loop",
    )
    group.addoption(
        "--no-fastloop",
        action="store_false",
        dest="fastloop",
        help="Leave the event loop alone, whatever the ini file says",
    )
    parser.addini(
        "fastloop",
        type="bool",
        default=False,
        help="Run asyncio code on fastloop's event loop, as --fastloop does",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Put the policy in place before a conftest.py can, so that the suite has the last word."""
    option = early_config.known_args_namespace.fastloop
    if early_config.getini("fastloop") if option is None else option:
        early_config.pluginmanager.register(_OnFastloop(), "fastloop-policy")


class _OnFastloop:
    """The event loop policy, from pytest's start to its end; registered only when asked for."""

    def __init__(self):
        from asyncio import events

        from . import policy

        self.events, self.set_policy = events, policy._set_policy
        self.before = events._event_loop_policy  # None: nobody has asked for it yet
        policy.install()
        self.ours = events._event_loop_policy

    def pytest_report_header(self):
        """Name the loop that asyncio makes now that every initial conftest.py is loaded."""
        from . import __version__

        current = self.events._event_loop_policy
        if current is self.ours:
            return f"event loop: fastloop.Loop (fastloop {__version__})"
        other = "asyncio's default" if current is None else repr(current)
        return f"event loop: not fastloop's: a conftest.py or plugin has set the policy to {other}"

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self):
        """Give back the policy that was there before, but not in place of the suite's own."""
        if self.events._event_loop_policy is self.ours:
            self.set_policy(self.before)
