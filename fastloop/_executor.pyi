import concurrent.futures

__all__ = ["ThreadPoolExecutor"]

class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor): ...
