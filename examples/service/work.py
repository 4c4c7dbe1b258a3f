"""The CPU-bound part."""


def count_primes(limit):
    """How many primes are there up to and including limit?"""
    sieve = bytearray([1]) * (limit + 1)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            for multiple in range(number * number, limit + 1, number):
                sieve[multiple] = 0
    return sum(sieve[2:])
