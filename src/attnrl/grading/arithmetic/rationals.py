"""Operations on rational numbers, with limits that hold before a large number is computed.

Each function takes the operands and the budget, and returns the value, or None if the value is not rational or not
defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from attnrl.grading.arithmetic.limits import MAX_BITS, MAX_FACTORIAL, TooLarge, Work

MAX_FACTORS = 1_000  # of a binomial coefficient of a number that is not an integer
MAX_LOG_DENOMINATOR = 64  # of a rational logarithm

ZERO, ONE = Fraction(0), Fraction(1)


def bits(value: Fraction) -> int:
    """Return the bits of the numerator or denominator, whichever has more."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def log2(value: Fraction) -> float:
    """Return log2 of the absolute value of a rational number that is not 0."""
    return math.log2(abs(value.numerator)) - math.log2(value.denominator)


def add(numbers: list[Fraction], work: Work) -> Fraction:
    """Return the sum of one or more rational numbers."""
    total = numbers[0]
    for number in numbers[1:]:
        work.spend(4 + (bits(total) * bits(number) >> 18))
        total += number
    return total


def multiply(numbers: list[Fraction], work: Work) -> Fraction:
    """Return the product of one or more rational numbers."""
    total = numbers[0]
    for number in numbers[1:]:
        size = bits(total), bits(number)
        if sum(size) > 2 * MAX_BITS:
            raise TooLarge("a number of too many bits")
        work.spend(4 + (size[0] * size[1] >> 18))
        total *= number
    return total


def _divide(numbers: list[Fraction], work: Work) -> Fraction | None:
    dividend, divisor = numbers
    work.spend(4 + (bits(dividend) * bits(divisor) >> 18))
    return dividend / divisor if divisor else None


def _power(numbers: list[Fraction], work: Work) -> Fraction | None:
    base, exponent = numbers
    if base == 1 or exponent == 0:
        return ONE
    if base == 0:
        return ZERO if exponent > 0 else None
    root: Fraction | None = base
    if exponent.denominator != 1:
        root = exact_root(base, exponent.denominator, work)
    if root is None:
        return None
    count = exponent.numerator
    if root == -1:
        return ONE if count % 2 == 0 else root
    if (
        abs(count).bit_length() > 64
        or abs(count) * max(math.log2(abs(root.numerator) or 1), math.log2(root.denominator)) > MAX_BITS
    ):
        raise TooLarge("a power of too many bits")
    work.spend(1 + ((bits(root) * abs(count)) ** 2 >> 20))
    return root**count


def exact_root(value: Fraction, index: int, work: Work) -> Fraction | None:
    """Return the real root of a rational number if the root is rational, otherwise None."""
    if value < 0:
        positive = exact_root(-value, index, work) if index % 2 else None
        return None if positive is None else -positive
    if value in (0, 1):
        return value
    if index > bits(value):  # a root other than 1 needs a power of at least 2
        return None
    work.spend(1 + (bits(value) ** 2 >> 16))
    numerator, denominator = integer_root(value.numerator, index), integer_root(value.denominator, index)
    if numerator**index == value.numerator and denominator**index == value.denominator:
        return Fraction(numerator, denominator)
    return None


def integer_root(value: int, index: int) -> int:
    """Return the floor of the ``index``-th root of a positive integer, by Newton's iteration from above."""
    if index == 2:
        return math.isqrt(value)
    guess = 1 << -(-value.bit_length() // index)
    while True:
        better = ((index - 1) * guess + value // guess ** (index - 1)) // index
        if better >= guess:
            return guess
        guess = better


def _root(numbers: list[Fraction], work: Work) -> Fraction | None:
    value, index = numbers
    if index.denominator != 1 or index < 1:
        return _power([value, 1 / index], work) if index else None
    return exact_root(value, index.numerator, work)


def _factorial(numbers: list[Fraction], work: Work) -> Fraction | None:
    size = _natural(numbers[0], work)
    return None if size is None else Fraction(math.factorial(size))


def _double_factorial(numbers: list[Fraction], work: Work) -> Fraction | None:
    size = _natural(numbers[0], work)
    return None if size is None else Fraction(math.prod(range(size, 1, -2)))


def _natural(number: Fraction, work: Work) -> int | None:
    if number.denominator != 1 or number < 0:
        return None
    if number > MAX_FACTORIAL:
        raise TooLarge("factorial of a large number")
    size = number.numerator
    work.spend(1 + (size * size >> 13))
    return size


def _binomial(numbers: list[Fraction], work: Work) -> Fraction | None:
    above, below = numbers
    if below.denominator != 1 or (above.denominator != 1 and below > MAX_FACTORS):
        return None
    count = below.numerator
    if count < 0:
        return ZERO
    if above.denominator == 1 and above >= 0:
        count = min(count, above.numerator - count)
        if count < 0:
            return ZERO
    if count > MAX_BITS or count * (bits(above) - math.log2(count or 1) + 2) > MAX_BITS:
        raise TooLarge("a binomial coefficient of too many bits")
    work.spend(1 + ((count * bits(above)) ** 2 >> 20))
    if above.denominator == 1:
        if above >= 0:
            return Fraction(math.comb(above.numerator, count))
        return Fraction((-1) ** count * math.comb(count - 1 - above.numerator, count))
    return math.prod((above - step for step in range(count)), start=ONE) / math.factorial(count)


def _mod(numbers: list[Fraction], work: Work) -> Fraction | None:
    dividend, modulus = numbers
    if modulus == 0:
        return None
    work.spend(1 + (bits(dividend) * bits(modulus) >> 18))
    return dividend - modulus * math.floor(dividend / modulus)


def _integers(combine: Callable[..., int]) -> Callable[[list[Fraction], Work], Fraction | None]:
    def apply(numbers: list[Fraction], work: Work) -> Fraction | None:
        if any(number.denominator != 1 for number in numbers):
            return None
        total = numbers[0].numerator
        for number in numbers:
            work.spend(1 + (total.bit_length() * number.numerator.bit_length() >> 18))
            total = combine(total, number.numerator)
            if total.bit_length() > MAX_BITS:
                raise TooLarge("a number of too many bits")
        return Fraction(total)

    return apply


def _logarithm(numbers: list[Fraction], work: Work) -> Fraction | None:
    value, base = numbers if len(numbers) == 2 else (numbers[0], Fraction(10))
    if value <= 0 or base <= 0 or base == 1:
        return None
    if value == 1:
        return ZERO
    estimate = Fraction(log2(value) / (log2(base) or math.inf)).limit_denominator(MAX_LOG_DENOMINATOR)
    above, below = estimate.numerator, estimate.denominator
    if not above or abs(above) * bits(base) > 2 * MAX_BITS or below * bits(value) > 2 * MAX_BITS:
        return None
    work.spend(1 + ((abs(above) * bits(base)) ** 2 >> 20) + ((below * bits(value)) ** 2 >> 20))
    return estimate if base**above == value**below else None


def _ellipsis(numbers: list[Fraction], work: Work) -> Fraction | None:
    """Return the sum of an arithmetic or geometric series from two or more first terms and the last term."""
    *given, last = numbers
    if len(given) < 2:
        return None
    work.spend(1 + (max(map(bits, numbers)) ** 2 >> 16))
    first, step = given[0], given[1] - given[0]
    if step and all(after - before == step for before, after in pairwise(given)):
        steps = (last - first) / step
        if steps.denominator == 1 and steps >= 0:
            return (first + last) * (steps + 1) / 2
    ratio = given[1] / first if first else ZERO
    if ratio in (-1, 0, 1) or any(after != before * ratio for before, after in pairwise(given)):
        return None
    if last == 0:
        return None
    count = round(log2(last / first) / (log2(ratio) or math.inf))
    if count < 0 or count * bits(ratio) > 2 * MAX_BITS or first * ratio**count != last:
        return None
    return (last * ratio - first) / (ratio - 1)


def _signed(function: Callable[[Fraction], Fraction | int | None]) -> Callable[[list[Fraction], Work], Fraction | None]:
    def apply(numbers: list[Fraction], work: Work) -> Fraction | None:
        value = function(numbers[0])
        return None if value is None else Fraction(value)

    return apply


#: Name of an operation -> function of rational operands: the value, or None if not rational or not defined.
RATIONAL_OPERATIONS: dict[str, Callable[[list[Fraction], Work], Fraction | None]] = {
    "add": add,
    "multiply": multiply,
    "negate": _signed(lambda value: -value),
    "divide": _divide,
    "power": _power,
    "root": _root,
    "abs": _signed(abs),
    "floor": _signed(math.floor),
    "ceil": _signed(math.ceil),
    "factorial": _factorial,
    "double_factorial": _double_factorial,
    "binomial": _binomial,
    "mod": _mod,
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
    "max": lambda numbers, work: max(numbers),
    "min": lambda numbers, work: min(numbers),
    "exp": _signed(lambda value: None if value else 1),
    "ln": _signed(lambda value: 0 if value == 1 else None),
    "log": _logarithm,
    "percent": _signed(lambda value: value / 100),
    "conjugate": _signed(lambda value: value),
    "re": _signed(lambda value: value),
    "im": _signed(lambda value: 0),
    "arg": _signed(lambda value: 0 if value > 0 else None),
    "ellipsis": _ellipsis,
}
