import concurrent.futures
from collections.abc import Callable
from typing import Any

__all__ = ["ThreadPoolExecutor"]

class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **ctxkwargs: Any,
    ) -> None: ...
