"""Normal form of expressions: equal for two expressions that differ in order, brackets and neutral elements only.

A normal form serves the detection of copies (:mod:`attnrl.grading.guards.copies`), not the comparison of values: sums
and products of literals are folded, powers, roots and functions of literals are never evaluated.

The form is a sum of terms (:mod:`attnrl.grading.guards.terms`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction

from attnrl.grading.arithmetic.evaluation import real_float
from attnrl.grading.guards.terms import (
    LongNumberError,
    Monomial,
    Terms,
    atom_terms,
    checked,
    is_short,
    number_text,
    scaled,
    short,
    single_atom,
    sum_terms,
    text_of,
    without_powers,
)
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, free_symbols, is_operation

_ONE = Fraction(1)
_MOST_FACTORS, _MOST_TERMS = 6, 64  # of a product of sums that is multiplied out
_INTEGER_OPERATIONS = frozenset(
    {"add", "multiply", "negate", "abs", "floor", "ceil", "factorial", "binomial", "gcd", "lcm", "max", "min"}
)


def normal_form(expression: Expression, *, fold: bool = True, distribute: bool = False) -> Hashable:
    """Return a form of an expression without order, brackets, double negations and neutral elements.

    Args:
        fold: fold literals of sums and products into one rational number, collect like terms and equal bases, and drop
            wrappers without effect (``max(x, 0)``, the absolute value of a positive number). Without folding, the form
            holds the terms and factors as written. Numbers of more than 10,000 bits are never folded.
        distribute: expand each product of exactly one sum and a monomial; without variables, each product of sums.
            Factors of a coefficient join a power of the same literal (``2 * 2^7`` is ``2^8``).
    """
    if fold:
        try:
            forms = _Forms(fold=True, distribute=distribute, numeric=distribute and not free_symbols(expression))
            return forms.text(expression)
        except LongNumberError:
            pass
    return _Forms(fold=False, distribute=False, numeric=False).text(expression)


class _Forms:
    """Forms of the parts of one expression.

    Attributes:
        numeric: multiply out products of several sums, because the expression has no variables.
        sums: terms of each atom that stands for a sum.
        literals: number of each atom that stands for the literal base of a power.
        powers: text of the base, and exponent, of each atom that stands for a power.
        logarithms: text of the base, and argument, of each atom that stands for a logarithm.
        bound: name by position of each bound symbol (the index of a sum, the variable of an integral).
    """

    def __init__(self, *, fold: bool, distribute: bool, numeric: bool) -> None:
        self.fold, self.distribute, self.numeric = fold, distribute, numeric
        self.sums: dict[str, Terms] = {}
        self.literals: dict[str, int] = {}
        self.powers: dict[str, tuple[str, Terms]] = {}
        self.logarithms: dict[str, tuple[str, Terms]] = {}
        self.bound: dict[str, str] = {}

    def text(self, expression: Expression) -> str:
        return text_of(self.expanded(self.terms(expression)))

    def terms(self, expression: Expression) -> Terms:
        if isinstance(expression, Number):
            return self.number(expression.value)
        if isinstance(expression, Symbol):
            return atom_terms(self.bound.get(expression.name, f"symbol {expression.name}"))
        name, operands = expression.name, expression.operands
        match name:
            case "add":
                return sum_terms(self.terms(operand) for operand in operands)
            case "negate":
                return scaled(self.terms(operands[0]), -_ONE)
            case "multiply":
                return self.product([self.terms(operand) for operand in operands])
            case "divide":
                return self.product([self.terms(operands[0]), self.raised(self.terms(operands[1]), -1)])
            case "power":
                return self.power(*operands)
            case "root":
                return self.power(operands[0], Operation("divide", (Number(_ONE), operands[1])))
            case "exp":
                return self.power(Symbol("e"), operands[0])
            case "degrees":
                return scaled(self.product([self.terms(operands[0]), self.terms(Symbol("pi"))]), Fraction(1, 180))
            case "percent":
                return scaled(self.terms(operands[0]), Fraction(1, 100))
            case "ln":
                return self.logarithm(operands[0], Symbol("e"))
            case "log":
                return self.logarithm(operands[0], operands[1] if len(operands) == 2 else Number(Fraction(10)))
            case "abs":
                return self.absolute(operands[0])
            case "floor" | "ceil":
                return self.rounded(name, operands[0])
            case "max" | "min" | "gcd" | "lcm":
                return self.selection(name, operands)
            case "ellipsis":
                return self.series(operands)
            case "sum" | "product" | "integral" | "limit":
                return self.binder(name, operands)
        return self.function(name, operands)

    def number(self, value: Fraction) -> Terms:
        if value == 0:
            return {}
        if value == 1 or (self.fold and is_short(value)):
            return {(): value}
        return atom_terms(number_text(value))

    def function(self, name: str, operands: Sequence[Expression]) -> Terms:
        return atom_terms(f"{name}({', '.join(map(self.text, operands))})")

    def expanded(self, terms: Terms) -> Terms:
        """Replace each sum with a sign, and each product that `distribute` asks for, by the terms of the sum."""
        results: list[Terms] = []
        for monomial, coefficient in terms.items():
            sums = [(atom, exponent) for atom, exponent in monomial if atom in self.sums]
            signed = len(monomial) == 1 and abs(coefficient) == 1
            single = len(sums) == 1 and sums[0][1] == 1 and (signed or self.distribute)
            if single or (sums and self.numeric and self._is_small_product(sums)):
                product: Terms = {tuple(pair for pair in monomial if pair not in sums): coefficient}
                for factor in [self.sums[atom] for atom, exponent in sums for _ in range(exponent)]:
                    product = self.multiplied_out(product, factor)
                results.append(product)
            else:
                results.append(self.monomial(coefficient, monomial))
        return sum_terms(results)

    def _is_small_product(self, sums: Sequence[tuple[str, int]]) -> bool:
        if any(not 0 < exponent <= _MOST_FACTORS for _, exponent in sums):
            return False
        return math.prod(len(self.sums[atom]) for atom, exponent in sums for _ in range(exponent)) <= _MOST_TERMS

    def multiplied_out(self, one: Terms, other: Terms) -> Terms:
        return sum_terms(
            self.monomial(first * second, [*left, *right])
            for left, first in one.items()
            for right, second in other.items()
        )

    def monomial(self, coefficient: Fraction, pairs: Iterable[tuple[str, int]]) -> Terms:
        """Return one term, with equal atoms collected."""
        exponents: dict[str, int] = {}
        for atom, exponent in pairs:
            exponents[atom] = exponents.get(atom, 0) + exponent
        for atom in [atom for atom in exponents if atom in self.literals]:
            base = self.literals[atom]
            if self.distribute and exponents[atom]:
                coefficient, times = without_powers(coefficient, base)
                exponents[atom] += times
            if abs(exponents[atom]) == 1:
                coefficient *= Fraction(base) ** exponents.pop(atom)
        return {tuple(sorted(pair for pair in exponents.items() if pair[1])): checked(coefficient)}

    def product(self, factors: Sequence[Terms]) -> Terms:
        coefficient = _ONE
        pairs: list[tuple[str, int]] = []
        sums: list[Terms] = []
        for factor in factors:
            terms = self.expanded(factor) if len(factor) > 1 else factor
            if not terms:
                return {}
            if len(terms) > 1:
                sums.append(terms)
                continue
            ((monomial, number),) = terms.items()
            coefficient = checked(coefficient * number)
            pairs.extend(monomial)
        ((monomial, coefficient),) = self.monomial(coefficient, pairs).items()
        if len(sums) == 1 and not monomial and abs(coefficient) == 1:
            return scaled(sums[0], coefficient)
        atoms = [self.sum_atom(terms) for terms in sums]
        sign = math.prod(sign for _, sign in atoms)
        return self.monomial(coefficient * sign, [*monomial, *((atom, 1) for atom, _ in atoms)])

    def sum_atom(self, terms: Terms) -> tuple[str, int]:
        """Return the atom of a sum whose first term, in the order of monomials, is positive, and the sign taken out."""
        sign = 1 if terms[min(terms)] > 0 else -1
        terms = scaled(terms, Fraction(sign))
        atom = f"[{text_of(terms)}]"
        self.sums[atom] = terms
        return atom, sign

    def raised(self, terms: Terms, exponent: int) -> Terms:
        """Return an integer power; a literal base is kept as an atom, but for the exponent -1."""
        terms = self.expanded(terms) if len(terms) > 1 else terms
        if exponent == 1:
            return terms
        if not terms:
            return {} if exponent > 0 else {(("zero", exponent),): _ONE}
        if len(terms) > 1:
            atom, sign = self.sum_atom(terms)
            return {((atom, exponent),): Fraction(sign if exponent % 2 else 1)}
        ((monomial, number),) = terms.items()
        pairs = [(atom, power * exponent) for atom, power in monomial]
        checked(Fraction(max((abs(power) for _, power in pairs), default=0)))
        if exponent == -1:
            return self.monomial(1 / number, pairs)
        for base, power in ((abs(number.numerator), exponent), (number.denominator, -exponent)):
            if base != 1:
                atom = number_text(Fraction(base))
                self.literals[atom] = base
                pairs.append((atom, power))
        return self.monomial(Fraction(-1 if number < 0 and exponent % 2 else 1), pairs)

    def power(self, base: Expression, exponent: Expression) -> Terms:
        powers = self.expanded(self.terms(exponent))
        terms = self.terms(base)
        if terms == {(): _ONE} or (not powers and terms):
            return {(): _ONE}
        times = powers[()] if powers.keys() == {()} else None
        if times is not None and times.denominator == 1 and (self.fold or abs(times) == 1):
            return self.raised(terms, times.numerator)
        base_text = text_of(self.expanded(terms))
        of_base, argument = self.logarithms.get(single_atom(powers), ("", terms))
        if self.fold and of_base == base_text:
            return argument
        outer = 1  # a^(-n) is 1/a^n, a^(2n) is (a^n)^2
        if len(powers) == 1:
            ((monomial, number),) = powers.items()
            outer, powers = number.numerator, {monomial: Fraction(1, number.denominator)}
        elif powers:
            _, outer = self.sum_atom(powers)
            powers = scaled(powers, Fraction(outer))
        atom = short(f"({base_text})^({text_of(powers)})")
        self.powers[atom] = (base_text, powers)
        return {((atom, outer),): _ONE}

    def logarithm(self, operand: Expression, base: Expression) -> Terms:
        argument, base_text = self.expanded(self.terms(operand)), self.text(base)
        if self.fold and len(argument) == 1:
            ((monomial, number),) = argument.items()
            of_base, exponent = self.powers.get(monomial[0][0] if len(monomial) == 1 else "", ("", argument))
            if of_base == base_text and number == 1:
                return scaled(exponent, Fraction(monomial[0][1]))
        terms = atom_terms(f"log({text_of(argument)}, {base_text})")
        self.logarithms[single_atom(terms)] = (base_text, argument)
        return terms

    def absolute(self, operand: Expression) -> Terms:
        terms = self.expanded(self.terms(operand))
        sign = _sign(operand)
        if self.fold and sign:
            return scaled(terms, Fraction(sign))
        if len(terms) == 1:
            terms = {monomial: abs(number) for monomial, number in terms.items()}
        elif terms:
            terms = scaled(terms, Fraction(self.sum_atom(terms)[1]))
        return atom_terms(f"abs({text_of(terms)})") if terms else {}

    def rounded(self, name: str, operand: Expression) -> Terms:
        terms = self.expanded(self.terms(operand))
        if self.fold and (_is_integer(operand) or (terms.keys() <= {()} and terms.get((), _ONE).denominator == 1)):
            return terms
        return atom_terms(f"{name}({text_of(terms)})")

    def selection(self, name: str, operands: Sequence[Expression]) -> Terms:
        """Return the form of a maximum, minimum, gcd or lcm; operands without effect are dropped."""
        choices = {text_of(terms): terms for operand in operands for terms in [self.expanded(self.terms(operand))]}
        if self.fold:
            literals = {text: terms.get((), Fraction(0)) for text, terms in choices.items() if terms.keys() <= {()}}
            if name in ("gcd", "lcm"):
                neutral = 0 if name == "gcd" else 1
                dropped = {text for text, number in literals.items() if number == neutral}
            elif len(literals) == len(choices):
                best = max(literals.values()) if name == "max" else min(literals.values())
                dropped = {text for text, number in literals.items() if number != best}
            else:
                dropped = set(literals) if len(choices) - len(literals) == 1 else set()
            if dropped != set(choices):
                choices = {text: terms for text, terms in choices.items() if text not in dropped}
        if len(choices) == 1:
            return next(iter(choices.values()))
        return atom_terms(f"{name}({', '.join(sorted(choices))})")

    def series(self, operands: Sequence[Expression]) -> Terms:
        """Return the form of ``a + b + ... + z``: the sum if the terms are literals of an arithmetic series."""
        terms = [self.expanded(self.terms(operand)) for operand in operands]
        if self.fold and all(term.keys() <= {()} for term in terms):
            numbers = [term.get((), Fraction(0)) for term in terms]
            step = numbers[1] - numbers[0] if len(numbers) > 2 else _ONE
            steps = (numbers[-1] - numbers[0]) / step if step else Fraction(-1)
            arithmetic = all(number == numbers[0] + n * step for n, number in enumerate(numbers[:-1]))
            if arithmetic and steps.denominator == 1 and steps >= 0:
                return self.number(checked((steps + 1) * (numbers[0] + numbers[-1]) / 2))
        return atom_terms(f"ellipsis({', '.join(map(text_of, terms))})")

    def binder(self, name: str, operands: Sequence[Expression]) -> Terms:
        """Return the form of a sum, product, integral or limit; the bound symbol is named by position."""
        body, symbol, *bounds = operands
        limits = [self.expanded(self.terms(bound)) for bound in bounds]
        index = symbol.name if isinstance(symbol, Symbol) else ""
        is_bound = bool(bounds)  # an indefinite integral depends on the variable
        outside = self.bound
        if is_bound:
            self.bound = {**outside, index: f"index {len(outside)}"}
        inside = self.expanded(self.terms(body))
        variable = self.bound.get(index, index)
        self.bound = outside
        linear: Monomial = ((variable, 1),)
        if (
            self.fold
            and name == "sum"
            and inside.keys() <= {(), linear}
            and all(term.keys() <= {()} for term in limits)
        ):
            first, last = (term.get((), Fraction(0)) for term in limits)
            count = last - first + 1
            if first.denominator == last.denominator == 1 and count >= 0:  # an arithmetic series
                total = inside.get((), Fraction(0)) + inside.get(linear, Fraction(0)) * (first + last) / 2
                return self.number(checked(count * total))
        return atom_terms(f"{name}({', '.join(map(text_of, [inside, *limits]))}; {'' if is_bound else index})")


# ---------------------------------------------------------------------------------------------------------------------
# Properties of expressions
# ---------------------------------------------------------------------------------------------------------------------


def _is_integer(expression: Expression) -> bool:
    """Return True if an expression of integer literals surely is an integer."""
    if is_operation(expression, "power"):
        base, exponent = expression.operands
        return _is_integer(base) and isinstance(exponent, Number) and exponent.value.denominator == 1
    if isinstance(expression, Operation):
        return expression.name in _INTEGER_OPERATIONS and all(map(_is_integer, expression.operands))
    return isinstance(expression, Number) and expression.value.denominator == 1


def _sign(expression: Expression) -> int:
    """Return 1 or -1 for an expression of literals with a known sign, else 0."""
    value = real_float(expression)
    return 0 if value is None else (value > 0) - (value < 0)
