"""suite/ is run by test_pytest_asyncio.py in a pytest of its own."""

collect_ignore = ["suite"]
