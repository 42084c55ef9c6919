"""Numeric evaluation of expressions at a chosen precision, with mpmath.

An evaluation records how many bits cancellation and small arguments may hide (``spread``), so that a caller can choose
a precision beyond the smallest term: ``sqrt(2) (1 - 2^{-600})`` needs more than 600 bits to differ from ``sqrt(2)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from attnrl.grading.arithmetic.exact import pi_multiple, series_range
from attnrl.grading.arithmetic.limits import MAX_FACTORIAL, TooLarge, Undefined, Work
from attnrl.grading.arithmetic.points import random_value
from attnrl.grading.arithmetic.rationals import bits
from attnrl.grading.reading.expressions import HYPERBOLIC, INVERSE, TRIGONOMETRIC, Expression, Number, Symbol

MAX_LOG2 = 10_000_000  # of the absolute value of a result
MAX_SPREAD = 10_000  # bits
SMALL_NUMBER = 32  # bits of a rational number that every precision tells from its neighbours
ARGUMENT_BITS = 83  # after the binary point of an argument of an unknown function: 25 digits


class Evaluation:
    """An evaluation of folded expressions at one precision.

    Attributes:
        context: mpmath's context, at the precision of the evaluation.
        bits: the precision.
        real: a part without a real value makes the whole undefined.
        work: the budget of the evaluation.
        spread: bits between the largest and the smallest magnitude that meet in a sum or an argument.
    """

    def __init__(self, bits: int, values: Mapping[str, Fraction | complex], work: Work, real: bool = False) -> None:
        self.context = _context()
        self.context.prec = bits
        self.bits = bits
        self.real = real
        self.work = work
        self.spread = 0
        self._constants: dict[str, Any] = {}
        self._values = values

    def value(self, expression: Expression) -> Any:
        """Return the value of a folded expression as mpmath's real or complex number.

        Raises:
            TooLarge: if the value, or the work, is beyond the limits.
            Undefined: if a part has no value, or no real value although only real values are allowed.
        """
        if isinstance(expression, Number):
            if bits(expression.value) > SMALL_NUMBER:
                self.widen(_odd_bits(expression.value))
            return self.rational(expression.value)
        if isinstance(expression, Symbol):
            return self._symbol(expression.name)
        self.work.spend(5 + (self.bits**2 >> 21))
        name = expression.name
        if name in _SPECIAL:
            return self.checked(_SPECIAL[name](self, expression.operands))
        if name not in _NUMERIC:
            raise Undefined(f"{name} has no numeric evaluation")
        operands = [self.value(operand) for operand in expression.operands]
        return self.checked(_NUMERIC[name](self, *operands))

    def rational(self, value: Fraction) -> Any:
        """Return a rational number at the precision of the evaluation."""
        number = self.context.mpf(value.numerator)
        return number if value.denominator == 1 else number / value.denominator

    def _symbol(self, name: str) -> Any:
        if name not in self._constants:
            self._constants[name] = self._new_symbol(name)
        return self._constants[name]

    def _new_symbol(self, name: str) -> Any:
        value = self._values.get(name)
        if isinstance(value, complex):
            return self.context.mpc(value)
        if value is not None:
            return self.rational(value)
        if name == "pi":
            return +self.context.pi
        if name == "e":
            return +self.context.e
        if name == "i":
            return self.checked(self.context.mpc(0, 1))
        raise Undefined(f"no value of {name}")

    def series(self, operands: tuple[Expression, ...]) -> list[Any]:
        """Return the terms of a finite sum or product.

        Raises:
            Undefined: if a bound is not an integer.
        """
        body, index, first, last = operands
        indices = series_range(first, last)
        if indices is None or not isinstance(index, Symbol):
            raise Undefined("a series without integer bounds")
        outer, terms = self._constants.get(index.name), []
        for number in indices:
            self._constants[index.name] = self.context.mpf(number)
            terms.append(self.value(body))
        self._constants[index.name] = outer
        if outer is None:
            self._constants.pop(index.name)
        return terms

    def checked(self, value: Any) -> Any:
        """Return a value without the noise of a vanishing real or imaginary part."""
        context = self.context
        if is_complex(value):
            shift = 3 * self.bits // 4
            if context.mag(value.imag) < context.mag(value.real) - shift or not value.imag:
                value = value.real
            elif self.real:
                raise Undefined("a value that is not real")
            elif context.mag(value.real) < context.mag(value.imag) - shift:
                value = context.mpc(0, value.imag)
        if not context.isfinite(value):
            raise Undefined("a value that is not finite")
        if value and context.mag(value) > MAX_LOG2:
            raise TooLarge("a number beyond the limits")
        return value

    def widen(self, spread: int) -> None:
        """Record that magnitudes are ``spread`` bits apart.

        Raises:
            TooLarge: if the bits exceed ``MAX_SPREAD``.
        """
        if spread > self.spread:
            if spread > MAX_SPREAD:
                raise TooLarge("magnitudes too far apart")
            self.spread = spread

    def argument(self, value: Any) -> Any:
        """Return an argument of a function, after its magnitude is recorded and the work is spent."""
        self.work.spend(10 + (self.bits**2 >> 13))
        if value:
            self.widen(2 * abs(self.context.mag(value)))
        return value

    def near_integer(self, value: Any) -> int | None:
        """Return the integer that equals a real value up to noise, or None."""
        if is_complex(value) or self.context.mag(value) > self.bits // 2:
            return None
        nearest = int(self.context.nint(value))
        return nearest if abs(value - nearest) <= self.context.ldexp(1, -3 * self.bits // 4) else None

    def vanishes(self, value: Any, scale: int = 0) -> bool:
        """Return True if a value is 0 up to noise, relative to ``2**scale``."""
        return not value or self.context.mag(value) < scale + 16 - self.bits


def is_complex(value: Any) -> bool:
    """Return True for a complex number of mpmath, and False for a real number."""
    return hasattr(value, "_mpc_")


def _odd_bits(value: Fraction) -> int:
    """Return the bits of the odd part of the numerator or denominator of a rational number, whichever has more."""
    parts = abs(value.numerator), value.denominator
    return max((part >> max(0, (part & -part).bit_length() - 1)).bit_length() for part in parts)


@functools.cache
def _context() -> Any:
    import mpmath

    return mpmath.MPContext()


def _sum(run: Evaluation, *terms: Any) -> Any:
    magnitudes = [run.context.mag(term) for term in terms if term]
    if magnitudes:
        run.widen(max(magnitudes) - min(magnitudes))
    return run.context.fsum(terms)


def _product(run: Evaluation, *factors: Any) -> Any:
    return run.context.fprod(factors)


def _quotient(run: Evaluation, dividend: Any, divisor: Any) -> Any:
    if not divisor:
        raise Undefined("division by 0")
    return dividend / divisor


def _power(run: Evaluation, operands: tuple[Expression, ...]) -> Any:
    base, exponent = run.value(operands[0]), run.value(operands[1])
    exact = operands[1].value if isinstance(operands[1], Number) else None
    return _raise(run, base, exponent, exact)


def _raise(run: Evaluation, base: Any, exponent: Any, exact: Fraction | None) -> Any:
    """Return a power; ``exact`` is the exponent if the exponent is rational.

    The power of a negative base is real if the denominator of the exponent is odd, otherwise the principal value.
    """
    context = run.context
    if not base:
        if not exponent:
            return context.mpf(1)
        if context.re(exponent) < 0:
            raise Undefined("a negative power of 0")
        return context.mpf(0)
    if exponent:
        run.widen(2 * abs(context.mag(exponent)))
    whole = _integer_exponent(run, exponent, exact)
    if whole is not None and abs(whole) * (1 + abs(context.mag(base))) <= MAX_LOG2:
        run.work.spend(2 + (run.bits**2 >> 18) * whole.bit_length())
        return context.power(base, whole)
    run.work.spend(20 + (run.bits**2 >> 12))
    if abs(context.re(exponent * context.ln(base))) > MAX_LOG2 * context.ln2:
        raise TooLarge("a power beyond the limits")
    if whole is not None:
        return context.power(base, whole)
    if exact is not None and exact.denominator % 2 and not is_complex(base) and base < 0:
        size = context.power(-base, exponent)
        return -size if exact.numerator % 2 else size
    return context.power(base, exponent)


def _integer_exponent(run: Evaluation, exponent: Any, exact: Fraction | None) -> int | None:
    if exact is None:
        return run.near_integer(exponent)
    return exact.numerator if exact.denominator == 1 else None


def _root(run: Evaluation, operands: tuple[Expression, ...]) -> Any:
    base, index = run.value(operands[0]), run.value(operands[1])
    if not index:
        raise Undefined("a root of index 0")
    if index == 2:
        run.work.spend(10 + (run.bits**2 >> 18))
        return run.context.sqrt(base)
    exact = 1 / operands[1].value if isinstance(operands[1], Number) else None
    return _raise(run, base, 1 / index, exact)


def _by_mpmath(name: str, run: Evaluation, value: Any) -> Any:
    """Return the value of a function of mpmath with one complex or real argument."""
    try:
        return getattr(run.context, name)(run.argument(value))
    except (ValueError, ZeroDivisionError):
        raise Undefined(f"{name} outside its domain") from None


def _trigonometric(name: str) -> Callable[..., Any]:
    """Return an operation for a function with poles; a pole is a divisor of 0 up to noise."""
    above, below = {"tan": ("sin", "cos"), "cot": ("cos", "sin"), "sec": ("", "cos"), "csc": ("", "sin")}[name]

    def apply(run: Evaluation, operands: tuple[Expression, ...]) -> Any:
        turns = pi_multiple(operands[0])
        if turns is not None and (turns - (Fraction(1, 2) if below == "cos" else 0)).denominator == 1:
            raise Undefined(f"a pole of {name}")
        value = run.argument(run.value(operands[0]))
        divisor = getattr(run.context, below)(value)
        if run.vanishes(divisor, max(0, run.context.mag(value))):
            raise Undefined(f"a pole of {name}")
        return (getattr(run.context, above)(value) if above else 1) / divisor

    return apply


def _hyperbolic(name: str) -> Callable[..., Any]:
    def apply(run: Evaluation, value: Any) -> Any:
        if abs(run.context.re(value)) > MAX_SPREAD:
            raise TooLarge("an exponent beyond the limits")
        run.widen(3 * int(abs(run.context.re(value))))
        return _by_mpmath(name, run, value)

    return apply


def _exponential(run: Evaluation, value: Any) -> Any:
    return _raise(run, run.context.e, value, None)


def _natural_logarithm(run: Evaluation, value: Any) -> Any:
    if not value:
        raise Undefined("the logarithm of 0")
    return run.context.ln(run.argument(value))


def _logarithm(run: Evaluation, value: Any, base: Any = 10) -> Any:
    return _quotient(run, _natural_logarithm(run, value), _natural_logarithm(run, run.context.convert(base)))


def _rounded(upwards: bool) -> Callable[..., Any]:
    def apply(run: Evaluation, value: Any) -> Any:
        value = run.argument(value)
        nearest = run.near_integer(value)
        if nearest is not None:
            return run.context.mpf(nearest)
        return run.context.ceil(value) if upwards else run.context.floor(value)

    return apply


def _remainder(run: Evaluation, dividend: Any, modulus: Any) -> Any:
    return dividend - modulus * _rounded(False)(run, _real(_quotient(run, dividend, modulus)))


def _factorial(run: Evaluation, value: Any) -> Any:
    if is_complex(value):
        raise Undefined("a factorial of a complex number")
    whole = run.near_integer(value)
    if whole is not None and whole < 0:
        raise Undefined("a factorial of a negative integer")
    if abs(value) > MAX_FACTORIAL:
        raise TooLarge("factorial of a large number")
    run.work.spend(50 + (run.bits**2 >> 11))
    return run.context.factorial(value if whole is None else whole)


def _double_factorial(run: Evaluation, value: Any) -> Any:
    whole = run.near_integer(value)
    if whole is None or whole < -1:
        raise Undefined("a double factorial of a number that is not natural")
    if whole > MAX_FACTORIAL:
        raise TooLarge("factorial of a large number")
    return run.context.fprod(range(whole, 1, -2))


def _binomial(run: Evaluation, above: Any, below: Any) -> Any:
    return _factorial(run, above) / (_factorial(run, below) * _factorial(run, above - below))


def _real(value: Any) -> Any:
    if is_complex(value):
        raise Undefined("an order of complex numbers")
    return value


def _phase(run: Evaluation, value: Any) -> Any:
    if not value:
        raise Undefined("the phase of 0")
    return run.context.arg(value)


def _unknown(run: Evaluation, operands: tuple[Expression, ...]) -> Any:
    """Return a pseudo-random value that depends on the function's name and 25 decimals of each argument."""
    function, *arguments = operands
    key = [repr(function)]
    for argument in arguments:
        value = run.context.convert(run.value(argument))
        for part in (value.real, value.imag):
            if part:
                run.widen(2 * max(0, run.context.mag(part)))
            key.append(hex(int(run.context.nint(run.context.ldexp(part, ARGUMENT_BITS)))))
    return run.rational(random_value(" ".join(key)))


_NUMERIC: dict[str, Callable[..., Any]] = {
    "add": _sum,
    "multiply": _product,
    "negate": lambda run, value: -value,
    "divide": _quotient,
    "abs": lambda run, value: abs(value),
    "floor": lambda run, value: _rounded(False)(run, _real(value)),
    "ceil": lambda run, value: _rounded(True)(run, _real(value)),
    "factorial": _factorial,
    "double_factorial": _double_factorial,
    "binomial": _binomial,
    "mod": _remainder,
    "max": lambda run, *values: max(map(_real, values)),
    "min": lambda run, *values: min(map(_real, values)),
    "exp": _exponential,
    "ln": _natural_logarithm,
    "log": _logarithm,
    "degrees": lambda run, value: value * run.context.pi / 180,
    "percent": lambda run, value: value / 100,
    "conjugate": lambda run, value: run.context.conj(value),
    "re": lambda run, value: run.context.re(value),
    "im": lambda run, value: run.context.im(value),
    "arg": _phase,
    "sin": functools.partial(_by_mpmath, "sin"),
    "cos": functools.partial(_by_mpmath, "cos"),
    **{name: _hyperbolic(name) for name in HYPERBOLIC},
    **{name: functools.partial(_by_mpmath, name.replace("arc", "a")) for name in INVERSE},
}

#: Operations that need their operands as expressions.
_SPECIAL: dict[str, Callable[[Evaluation, tuple[Expression, ...]], Any]] = {
    "power": _power,
    "root": _root,
    "sum": lambda run, operands: _sum(run, *run.series(operands)),
    "product": lambda run, operands: _product(run, *run.series(operands)),
    "apply": _unknown,
    **{name: _trigonometric(name) for name in TRIGONOMETRIC if name not in ("sin", "cos")},
}
