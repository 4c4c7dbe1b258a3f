"""Async fixtures of every scope; tests in the loop of their own or of a wider scope."""

import asyncio

import pytest


async def test_function_scope(function_resource):
    assert function_resource.is_open
    assert function_resource.loop is asyncio.get_running_loop()


async def test_each_test_has_a_loop_of_its_own(function_resource):
    assert function_resource.loop is asyncio.get_running_loop()


async def test_fixture_without_teardown(value_without_teardown):
    assert value_without_teardown == "value"


def test_sync_test_with_async_fixture(function_resource):
    assert function_resource.is_open
    assert not function_resource.loop.is_running()


@pytest.mark.asyncio(loop_scope="class")
class TestClassScope:
    loop = None

    async def test_remember(self, class_resource, check_loop):
        check_loop()
        type(self).loop = asyncio.get_running_loop()
        assert class_resource.loop is self.loop

    async def test_same_loop(self, class_resource, check_loop):
        check_loop()
        assert class_resource.loop is asyncio.get_running_loop()
        assert class_resource.is_open


@pytest.mark.asyncio(loop_scope="module")
async def test_module_scope(module_resource, check_loop):
    check_loop()
    assert module_resource.loop is asyncio.get_running_loop()


@pytest.mark.asyncio(loop_scope="package")
async def test_package_scope(package_resource, check_loop):
    check_loop()
    assert package_resource.loop is asyncio.get_running_loop()


@pytest.mark.asyncio(loop_scope="session")
async def test_session_scope(session_resource, check_loop):
    check_loop()
    assert session_resource.loop is asyncio.get_running_loop()


async def test_wider_resource_seen_from_a_function(session_resource, module_resource):
    assert session_resource.is_open and module_resource.is_open
    assert session_resource.loop is not asyncio.get_running_loop()
