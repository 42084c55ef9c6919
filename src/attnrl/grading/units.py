"""Units of measurement."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measurement.

    Attributes:
        factor: size of the unit in the base units of its dimension.
        dimension: pairs of a base dimension and its exponent, sorted: area is ``(("length", 2),)``.
    """

    factor: Fraction
    dimension: tuple[tuple[str, int], ...]
