"""A secret in n shares, of which any k give it back and k-1 say nothing (Shamir, 1979).

Byte by byte over GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1: the secret is the value at
0 of a random polynomial of degree k-1, share x its value at x. This is the arithmetic of
SLIP-0039, without its words and checksums: `cloister.broker.backup` authenticates shares.

Multiplication has neither tables nor branches on what it multiplies. Python promises no constant
time nevertheless; shares are made and joined a few times in a store's life, on a machine that
holds the secret anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

MAX_SHARES: Final = 255
"""Points of the field but 0."""

Random = Callable[[int], bytes]


def split(secret: bytes, *, shares: int, threshold: int, random: Random) -> dict[int, bytes]:
    """Shares of `secret` by their numbers, from 1."""
    if not secret or not 1 <= threshold <= shares <= MAX_SHARES:
        raise ValueError("1 <= threshold <= shares <= 255, and a secret is not empty")
    # One polynomial for each byte; the lowest coefficients are the secret's bytes.
    coefficients = [secret, *(random(len(secret)) for _ in range(threshold - 1))]
    return {number: _value(coefficients, number) for number in range(1, shares + 1)}


def join(shares: Mapping[int, bytes]) -> bytes:
    """What `shares` are shares of, if they are as many as the threshold.

    With fewer, or with one that is another's, it is something else, and nobody can tell.
    """
    return interpolate(shares, 0)


def interpolate(shares: Mapping[int, bytes], at: int) -> bytes:
    """The value at `at` of the polynomials of least degree through `shares` (Lagrange)."""
    sizes = {len(value) for value in shares.values()}
    if len(sizes) != 1 or not all(0 < number <= MAX_SHARES for number in shares):
        raise ValueError("shares are of one size, and numbered from 1 to 255")
    result = bytes(sizes.pop())
    for number, value in shares.items():
        weight = 1
        for other in shares:
            if other != number:
                weight = multiply(weight, multiply(at ^ other, invert(number ^ other)))
        result = bytes(
            total ^ multiply(byte, weight) for total, byte in zip(result, value, strict=True)
        )
    return result


def multiply(left: int, right: int) -> int:
    """The product of two elements of the field."""
    product = 0
    for _ in range(8):
        product ^= -(right & 1) & left
        left = (left << 1) ^ (-(left >> 7) & 0x11B)
        right >>= 1
    return product


def invert(element: int) -> int:
    """The element whose product with `element` is 1; 0 for 0. It is the 254th power."""
    result, square = 1, element
    for _ in range(7):
        square = multiply(square, square)
        result = multiply(result, square)
    return result


def _value(coefficients: list[bytes], at: int) -> bytes:
    """Horner's rule, for all bytes at once."""
    value = bytes(len(coefficients[0]))
    for coefficient in reversed(coefficients):
        value = bytes(
            multiply(byte, at) ^ added for byte, added in zip(value, coefficient, strict=True)
        )
    return value
