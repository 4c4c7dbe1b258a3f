import asyncio

from . import _core

class Loop(_core.Loop, asyncio.SelectorEventLoop):
    def __init__(self) -> None: ...
