"""The CPU-bound part. The pool's processes import this module and nothing else of the service."""

import signal


def prepare_process():
    """In each of the pool's processes: Ctrl-C and SIGTERM may reach all of the service; only its main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def count_primes(limit):
    """How many primes are there up to and including limit?"""
    sieve = bytearray([1]) * (limit + 1)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            for multiple in range(number * number, limit + 1, number):
                sieve[multiple] = 0
    return sum(sieve[2:])
