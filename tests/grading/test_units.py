"""Units of measurement: spellings, sizes, the units that a problem names, and words of scale."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.grading.reading.unit_table import UNITS
from attnrl.grading.reading.units import Unit, is_spelled_unit, read_unit, scale_of, units_in

LENGTH, AREA, VOLUME = ((("length", power),) for power in (1, 2, 3))
SPEED = (("length", 1), ("time", -1))
METRE = Unit(Fraction(1), LENGTH)
FOOT = Fraction(3048, 10000)


def size(text: str) -> Fraction:
    unit = read_unit(text)
    assert unit is not None
    return unit.factor


@pytest.mark.parametrize(
    ("text", "factor", "dimension"),
    [
        ("cm", Fraction(1, 100), LENGTH),
        (" cm ", Fraction(1, 100), LENGTH),
        ("cm.", Fraction(1, 100), LENGTH),
        ("Feet", FOOT, LENGTH),
        ("in", FOOT / 12, LENGTH),
        ("cm^2", Fraction(1, 10**4), AREA),
        ("cm^{2}", Fraction(1, 10**4), AREA),
        ("cm**2", Fraction(1, 10**4), AREA),
        ("cm²", Fraction(1, 10**4), AREA),
        ("\\text{ cm}^2", Fraction(1, 10**4), AREA),
        ("square feet", FOOT**2, AREA),
        ("sq. ft.", FOOT**2, AREA),
        ("sq in", (FOOT / 12) ** 2, AREA),
        ("inches^2", (FOOT / 12) ** 2, AREA),
        ("cubic centimetres", Fraction(1, 10**6), VOLUME),
        ("cu. in.", (FOOT / 12) ** 3, VOLUME),
        ("fl oz", 231 * (FOOT / 12) ** 3 / 128, VOLUME),
        ("ft/s", FOOT, SPEED),
        ("km / h", Fraction(1000, 3600), SPEED),
        ("\\frac{\\text{km}}{\\text{h}}", Fraction(1000, 3600), SPEED),
        ("miles per hour", 5280 * FOOT / 3600, SPEED),
        ("m s^{-1}", Fraction(1), SPEED),
        ("m s⁻¹", Fraction(1), SPEED),
        ("m/s^2", Fraction(1), (("length", 1), ("time", -2))),
        ("m/s/s", Fraction(1), (("length", 1), ("time", -2))),
        ("meters per second squared", Fraction(1), (("length", 1), ("time", -2))),
        ("feet per minute per second", FOOT / 60, (("length", 1), ("time", -2))),
        ("per second", Fraction(1), (("time", -1),)),
        ("kg m^{-3}", Fraction(1), (("length", -3), ("mass", 1))),
        ("\\mathrm{~kg} \\cdot \\mathrm{m}^{-3}", Fraction(1), (("length", -3), ("mass", 1))),
        ("kcal/(mol h)", Fraction(4184, 3600), (("amount", -1), ("length", 2), ("mass", 1), ("time", -3))),
        ("kcal/mol h", Fraction(4184, 3600), (("amount", -1), ("length", 2), ("mass", 1), ("time", -3))),
        ("{\\rm km}", Fraction(1000), LENGTH),
        ("\\mu\\mathrm{m}", Fraction(1, 10**6), LENGTH),
        ("light-years", Fraction(299792458) * 86400 * Fraction(1461, 4), LENGTH),
        ("dollars", Fraction(1), (("dollar", 1),)),
        ("\\$", Fraction(1), (("dollar", 1),)),
        ("¢", Fraction(1, 100), (("dollar", 1),)),
        ("cents per mile", Fraction(1, 100) / (5280 * FOOT), (("dollar", 1), ("length", -1))),
        ("square units", Fraction(1), (("unit", 2),)),
        ("^\\circ", Fraction(1), (("degree", 1),)),
        ("^{\\circ}\\mathrm{C}", Fraction(1), (("celsius", 1),)),
        ("degrees Fahrenheit", Fraction(1), (("fahrenheit", 1),)),
        ("arcseconds", Fraction(1, 3600), (("degree", 1),)),
        ("cents per dollar", Fraction(1, 100), ()),
    ],
)
def test_a_spelling_gives_size_and_dimension(
    text: str, factor: Fraction, dimension: tuple[tuple[str, int], ...]
) -> None:
    assert read_unit(text) == Unit(factor, dimension)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "is wrong",
            "apples",
            "million",
            "thousand",
            "pm",
            "p.m.",
            "a",
            "x",
            "ab",
            "%",
            "\\%",
            "5 cm",
            "in the",
        ),
        *("per", "square", "square hours", "square cm^2", "cm^", "cm^{", "cm^{2", "cm^0", "cm^10", "cm/", "km/(h", "-"),
        *(
            "Cm",
            "KM",
            "feet wrong",
            "cm + 1",
            "cm" + " cm" * 99,
            "\\text",
            "\\frac{cm}",
            "\\sqrt{m}",
            "/",
            "(m)",
            "m(s)",
        ),
    ],
)
def test_text_that_is_no_unit_is_refused(text: str) -> None:
    assert read_unit(text) is None
    assert not is_spelled_unit(text)


def test_letter_case_matters_for_abbreviations_only() -> None:
    assert size("MW") == 10**9 * size("mW")
    assert read_unit("K") != read_unit("k")
    assert read_unit("M") is None
    assert read_unit("MILES") == read_unit("Miles") == read_unit("miles") == read_unit("mi")


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("mile", "feet", 5280),
        ("yard", "inches", 36),
        ("km", "mm", 10**6),
        ("gallon", "fluid ounces", 128),
        ("gallon", "cups", 16),
        ("quarts", "pints", 2),
        ("tablespoon", "teaspoons", 3),
        ("litre", "cm^3", 1000),
        ("hectare", "square meters", 10**4),
        ("square mile", "acres", 640),
        ("ton", "pounds", 2000),
        ("pound", "ounces", 16),
        ("tonne", "kg", 1000),
        ("week", "hours", 168),
        ("century", "months", 1200),
        ("dollar", "cents", 100),
        ("kWh", "joules", 3600000),
        ("N m", "J", 1),
        ("W s", "J", 1),
        ("V A", "W", 1),
        ("C V", "J", 1),
        ("V/A", "ohms", 1),
        ("N/m^2", "Pa", 1),
        ("m/s", "mph", Fraction(3125, 1397)),
    ],
)
def test_sizes_agree_with_each_other(one: str, other: str, ratio: Fraction) -> None:
    first, second = read_unit(one), read_unit(other)
    assert first is not None and second is not None
    assert first.dimension == second.dimension
    assert first.factor == ratio * second.factor


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("degrees", "radians"),
        ("month", "days"),
        ("dollars", "euros"),
        ("°C", "K"),
        ("°C", "°F"),
        ("m", "m^2"),
        ("m", "unit"),
    ],
)
def test_units_without_an_exact_ratio_have_other_dimensions(one: str, other: str) -> None:
    first, second = read_unit(one), read_unit(other)
    assert first is not None and second is not None
    assert first.dimension != second.dimension


def test_each_name_of_the_table_stands_once_and_is_read() -> None:
    names = [name.replace("_", " ") for row in UNITS for column in row[:3] for name in column.split()]
    assert len(names) == len(set(names))
    assert all(read_unit(name) is not None for name in names)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "cm",
            "km",
            "mm",
            "kg",
            "ft",
            "mph",
            "feet",
            "hours",
            "Minutes",
            "seconds",
            "cents",
            "degrees",
            "kWh",
            "¢",
            "€",
        ),
        *("sq in", "km/h", "m per second", "cm^2", "kg m^{-3}", "square units"),
    ],
)
def test_a_spelled_unit_needs_no_markup(text: str) -> None:
    assert is_spelled_unit(text)


@pytest.mark.parametrize(
    "text", ["m", "s", "h", "g", "L", "mi", "mg", "hr", "nm", "mL", "eV", "in", "m/s", "m s^{-1}", "A"]
)
def test_a_unit_like_variables_needs_markup(text: str) -> None:
    assert read_unit(text) is not None
    assert not is_spelled_unit(text)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Find the area in square meters.", ["m^2"]),
        ("How many cents does each pay?", ["cents"]),
        ("A rope is 5 cm long.", ["cm"]),
        ("A rope is $5$ cm long.", ["cm"]),
        ("A rope is $5\\text{ cm}$ long, or $x\\text{ m}$.", ["cm", "m"]),
        ("A rope is $5 \\frac{1}{2}$ m long.", ["m"]),
        ("It costs \\$3.50.", ["dollar"]),
        ("It costs 3 dollars or $3$ euros.", ["dollar", "euro"]),
        ("a $6$-inch pizza at 30 miles per hour", ["inch", "mph"]),
        ("the speed in $\\mathrm{~km} / \\mathrm{h}$", ["km/h"]),
        ("Give the weight in g/mole", ["g/mol"]),
        ("5 in by 7 in", ["inch", "inch"]),
        ("at $30^\\circ$, in degrees", ["degrees", "degrees"]),
        ("one second and the second term", ["s"]),
        ("$10$ square units", ["square units"]),
        ("10 Newtons and Newton's method, the Pascal triangle", ["N"]),
        ("The units digit of a polynomial of degree 3 in the unit circle", []),
        ("He put 5 in the box.", []),
        ("Let $5 m + 3 s = 2h$ and $h = 7 g$.", []),
        ("5 m + 3 s + 2", []),
        ("in the 1990s", []),
        ("Point $\\mathrm{A}$ and $\\operatorname{deg}(P)$", []),
        ("Alice has $3 and 5 apples of $4", []),
        ("[asy] size(5 cm); [/asy] Find x.", []),
    ],
)
def test_units_of_a_problem(text: str, units: list[str]) -> None:
    assert units_in(text) == [read_unit(unit) for unit in units]


@pytest.mark.parametrize(
    ("word", "factor"),
    [
        *[("hundred", 100), ("thousand", 1000), ("Million", 10**6), ("millions", 10**6), ("billion", 10**9)],
        *[("trillion", 10**12), ("dozen", 12), ("dozens", 12), ("cm", None), ("", None), ("s", None), ("milli", None)],
    ],
)
def test_words_of_scale(word: str, factor: int | None) -> None:
    assert scale_of(word) == factor


@given(st.text(alphabet="cmskgh/^{}()-2 per.·\\$", max_size=40))
def test_any_text_is_read_without_an_error(text: str) -> None:
    unit = read_unit(text)
    assert unit is None or unit.factor > 0
    assert is_spelled_unit(text) <= (unit is not None)
    assert all(found.factor > 0 for found in units_in(text))


NAMES = st.sampled_from([name for row in UNITS for column in row[:2] for name in column.split() if "_" not in name])


@given(NAMES, NAMES, st.integers(1, 9), st.integers(-9, -1))
def test_products_and_powers_are_exact(above: str, below: str, power: int, negative: int) -> None:
    assert size(f"{above}^{power}/{below}") == size(above) ** power / size(below)
    assert size(f"{above} \\cdot {below}^{{{negative}}}") == size(above) * size(below) ** negative
    assert size(f"{above} per {below}") == size(above) / size(below)
