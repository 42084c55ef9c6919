"""Trees of mathematical values: spellings of a value, and single changes that give another value.

A tree is a :class:`Node`; :func:`spell` writes a tree as text, and ``pick`` chooses among the spellings of each part.
:func:`changes` lists the trees with one digit, sign, letter or bound changed, :func:`same` compares two trees by value.
In a spelling, a space may be dropped or replaced by another white space; ``␣`` is a space that has to stay, and ``⟦ ⟧``
are square brackets without a size command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

Pick = Callable[[Sequence[str]], str]
Order = Callable[[int], list[int]]


@dataclass(frozen=True)
class Node:
    """A part of a value; ``parts`` holds nodes, texts and flags as the kind needs."""

    kind: str
    parts: tuple[Any, ...] = ()


PI, IMAGINARY = Node("constant", ("pi",)), Node("constant", ("i",))
INFINITY = Node("constant", ("infinity",))
LETTERS = "abcknpqrtuvwxyzABCKMNPRTX"
POINTS = [
    {letter: mpmath.mpf(number * 7 % 53 + 3) / 11 + shift for number, letter in enumerate(LETTERS)}
    for shift in (0, mpmath.mpf(2) / 7)
]


def num(value: int) -> Node:
    return Node("negate", (num(-value),)) if value < 0 else Node("int", (str(value),))


def dec(text: str) -> Node:
    return Node("negate", (dec(text[1:]),)) if text.startswith("-") else Node("decimal", (text,))


def frac(over: Node | int, under: Node | int) -> Node:
    return Node(
        "divide", (num(over) if isinstance(over, int) else over, num(under) if isinstance(under, int) else under)
    )


def symbol(name: str) -> Node:
    return Node("symbol", (name,))


def add(*terms: Node) -> Node:
    return terms[0] if len(terms) == 1 else Node("add", terms)


def mul(*factors: Node) -> Node:
    return factors[0] if len(factors) == 1 else Node("multiply", factors)


def negate(node: Node) -> Node:
    return node.parts[0] if node.kind == "negate" else Node("negate", (node,))


def power(base: Node, exponent: Node | int) -> Node:
    return Node("power", (base, num(exponent) if isinstance(exponent, int) else exponent))


def root(radicand: Node | int, index: int = 2) -> Node:
    return Node("root", (num(radicand) if isinstance(radicand, int) else radicand, num(index)))


# --- Value ----------------------------------------------------------------------------------------------------------


def value(node: Node, point: dict[str, Any]) -> Any:
    """Return the value of an expression with 40 digits; ``point`` gives the values of the symbols."""
    parts = node.parts
    match node.kind:
        case "int" | "decimal":
            number = Fraction(parts[0])
            return mpmath.mpf(number.numerator) / number.denominator
        case "constant":
            return {"pi": mpmath.pi, "i": mpmath.mpc(0, 1), "infinity": mpmath.inf}[parts[0]] + 0
        case "symbol":
            return point[parts[0]]
        case "mixed":
            return value(parts[0], point) + value(parts[1], point) / value(parts[2], point)
        case "repeating":
            return value(parts[0], point) + value(parts[1], point) / value(parts[2], point)
        case "base":
            return mpmath.mpf(int(parts[0], parts[1]))
        case "scientific":
            return value(parts[0], point) * mpmath.mpf(10) ** value(parts[1], point)
    inner = [value(part, point) for part in parts if isinstance(part, Node)]
    match node.kind:
        case "negate":
            return -inner[0]
        case "add":
            return sum(inner)
        case "multiply":
            return mpmath.fprod(inner)
        case "divide":
            return inner[0] / inner[1]
        case "power":
            return inner[0] ** inner[1]
        case "root":
            return inner[0] ** (1 / inner[1])
        case "percent":
            return inner[0] / 100
        case "degrees":
            return inner[0]
        case "function":
            return {"sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "ln": mpmath.log, "exp": mpmath.exp}[
                parts[0]
            ](inner[0])
    raise ValueError(f"{node.kind} has no single value")


@lru_cache(maxsize=4096)
def key(node: Node) -> Any:
    """Return a key that two trees share if and only if both have the same value."""
    parts = node.parts
    match node.kind:
        case "list":
            return ("list", tuple(sorted(map(key, parts))))
        case "set":
            return ("set", tuple(sorted(set(map(key, parts)))))
        case "tuple":
            return ("tuple", tuple(map(key, parts)))
        case "matrix":
            return ("matrix", tuple(tuple(map(key, row)) for row in parts))
        case "interval":
            return ("interval", parts[0], parts[3], key(parts[1]), key(parts[2]))
        case "union":
            return ("union", tuple(sorted(map(key, parts))))
        case "equation":
            return ("equation", parts[0], key(parts[1]))
        case "unit":
            name, scale = UNITS[parts[1]][1:]
            return ("unit", name, key(Node("multiply", (parts[0], dec(scale)))))
        case "ratio":
            return ("ratio", tuple(Fraction(int(part.parts[0]), int(parts[0].parts[0])) for part in parts))
        case "residue":
            number, modulus = (int(value(part, {})) for part in parts)
            return ("residue", number % modulus, modulus)
        case "words" | "choice":
            return (node.kind, parts[0].lower())
    with mpmath.workdps(40):
        numbers = [mpmath.mpc(value(node, point)) for point in POINTS]
        return tuple(mpmath.nstr(part, 20, strip_zeros=False) for number in numbers for part in _rounded(number))


def _rounded(number: Any) -> tuple[Any, Any]:
    """Return (real, imaginary); a part that is only rounding noise becomes 0."""
    size = abs(number) * mpmath.mpf(10) ** -25
    return tuple(
        part if mpmath.isinf(part) or abs(part) > size else mpmath.mpf(0) for part in (number.real, number.imag)
    )


def same(one: Node, other: Node) -> bool:
    return bool(one.kind == other.kind or not {one.kind, other.kind} & COLLECTIONS) and key(one) == key(other)


COLLECTIONS = {"list", "set", "tuple", "matrix", "interval", "union", "equation", "unit", "words", "choice"}
COLLECTIONS |= {"ratio", "residue"}
#: Unit -> (spellings, dimension, size). Sizes of one dimension convert exactly.
UNITS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "cm": (("cm", "centimeters"), "length", "0.01"),
    "m": (("m", "meters"), "length", "1"),
    "km": (("km", "kilometers"), "length", "1000"),
    "kg": (("kg", "kilograms"), "mass", "1"),
    "g": (("g", "grams"), "mass", "0.001"),
    "minutes": (("minutes", "min"), "time", "60"),
    "hours": (("hours", "hours"), "time", "3600"),
    "seconds": (("seconds", "s"), "time", "1"),
    "dollars": (("dollars", "dollars"), "dollars", "1"),
    "cents": (("cents", "cents"), "dollars", "0.01"),
    "euros": (("euros", "euros"), "euros", "1"),
}


#: (kind, position of a part): parts that :func:`changes` leaves as written.
FIXED = {("root", 1), ("repeating", 1), ("repeating", 2), ("residue", 1)}


# --- Single changes -------------------------------------------------------------------------------------------------


def changes(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield (name of the change, changed tree) for every single change; some leave the value as before."""
    parts = node.parts
    match node.kind:
        case "int" | "decimal":
            for position, digit in enumerate(parts[0]):
                for step in (1, 4, 7) if digit.isdigit() else ():
                    text = f"{parts[0][:position]}{(int(digit) + step) % 10}{parts[0][position + 1 :]}"
                    if not (text[0] == "0" and text[1:2].isdigit()) and float(text):
                        yield "digit", Node(node.kind, (text,))
        case "base":
            digits, base = parts
            for position in range(len(digits)):
                digit = str((int(digits[position]) + 1) % base)
                if position or digit != "0":
                    yield "digit", Node("base", (digits[:position] + digit + digits[position + 1 :], base))
            yield "base", Node("base", (digits, base + 1))
        case "symbol":
            yield "letter", symbol(LETTERS[(LETTERS.index(parts[0]) + 5) % len(LETTERS)])
            if parts[0].swapcase() in LETTERS:
                yield "case", symbol(parts[0].swapcase())
        case "interval":
            yield (
                "bracket",
                Node("interval", (not parts[0], *parts[1:]))
                if parts[1].kind != "negate" or _finite(parts[1])
                else node,
            )
            yield "bracket", Node("interval", (*parts[:3], not parts[3])) if _finite(parts[2]) else node
        case "words" | "choice":
            for word in parts[1]:
                yield "word", Node(node.kind, (word, parts[1]))
        case "list":
            yield "element dropped", Node("list", parts[1:]) if len(parts) > 2 else node
            yield "element repeated", Node("list", (*parts, parts[0]))
            yield "element added", Node("list", (*parts, num(97)))
        case "set":
            yield "element dropped", Node("set", parts[1:]) if len(parts) > 2 else node
            yield "element added", Node("set", (*parts, num(97)))
        case "tuple":
            yield "order", Node("tuple", parts[::-1])
            yield "element dropped", Node("tuple", parts[1:]) if len(parts) > 2 else node
        case "ratio":
            yield "order", Node("ratio", parts[::-1])
            yield "element added", Node("ratio", (*parts, num(97)))
        case "residue":
            yield "modulus", Node("residue", (parts[0], num(int(parts[1].parts[0]) + 1)))
        case "unit":
            yield from (("unit", Node("unit", (parts[0], name))) for name in UNITS if name != parts[1])
        case "scientific":
            yield "sign", Node("scientific", (parts[0], negate(parts[1])))
        case "add":
            for position, term in enumerate(parts):
                yield "sign", Node("add", (*parts[:position], negate(term), *parts[position + 1 :]))
    if node.kind not in {*COLLECTIONS, "negate"}:
        yield "sign", negate(node)
    if node.kind == "negate":
        yield "sign", parts[0]
    if node.kind == "matrix":
        for row, column in ((r, c) for r, cells in enumerate(parts) for c in range(len(cells))):
            for name, cell in changes(parts[row][column]):
                cells = (*parts[row][:column], cell, *parts[row][column + 1 :])
                yield name, Node("matrix", (*parts[:row], cells, *parts[row + 1 :]))
        return
    for position, part in enumerate(parts):
        if isinstance(part, Node) and _finite(part) and (node.kind, position) not in FIXED:
            for name, inner in changes(part):
                if name != "sign" or node.kind in {*COLLECTIONS, "add", "negate", "power"} - {"ratio"}:
                    yield name, Node(node.kind, (*parts[:position], inner, *parts[position + 1 :]))


def _finite(node: Node) -> bool:
    return node not in (INFINITY, Node("negate", (INFINITY,)))


# --- Spelling -------------------------------------------------------------------------------------------------------

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Speller:
    """Writes trees.

    Attributes:
        pick: chooses among spellings of a part, the plainest first.
        order: for a number of terms, factors, elements or sets in any order, their order.
        plain: write without LaTeX commands (``sqrt(2)/3``).
    """

    pick: Pick
    order: Order
    plain: bool = False

    def spell(self, node: Node, tight: int = 0) -> str:
        """Return a spelling; ``tight``: 0 for a term, 1 for a factor, 2 for a quotient, 3 for the base of a power."""
        text, binding = self._spell(node)
        return f"({text})" if binding < tight else text

    def _spell(self, node: Node) -> tuple[str, int]:
        """Return (text, binding): 0 for a sum, 1 for a product, 2 for a quotient in one piece, 3 for an atom."""
        parts, pick, plain = node.parts, self.pick, self.plain
        match node.kind:
            case "int" | "symbol":
                return parts[0], 3
            case "decimal":
                return pick([parts[0], parts[0] + "0"] + ([parts[0][1:]] if parts[0].startswith("0.") else [])), 3
            case "constant":
                texts = {"pi": "\\pi", "i": "i", "infinity": "\\infty"}
                return parts[0] if plain else texts[parts[0]], 3
            case "mixed":
                whole, over, under = map(self.spell, parts)
                if plain:
                    return f"{whole}␣{over}/{under}", 1
                return pick([f"{whole}\\frac{{{over}}}{{{under}}}", f"{whole} \\frac{{{over}}}{{{under}}}"]), 1
            case "scientific":
                return self._scientific(*parts)
            case "degrees":
                inside = self.spell(parts[0])
                return pick(
                    [f"{inside}^\\circ", f"{inside}^{{\\circ}}", f"{inside}°", f"{inside} \\text{{ degrees}}"]
                ), 3
            case "base":
                return pick([f"{parts[0]}_{{{parts[1]}}}", f"{parts[0]}_{parts[1]}", f"({parts[0]})_{parts[1]}"]), 3
            case "repeating":
                whole, period, nines = (part.parts[0] for part in parts)
                period = period.zfill(len(nines))
                marked = pick([f"\\overline{{{period}}}", f"\\overline{{{period}}}", f"\\bar{{{period}}}"])
                return f"{whole}.{marked}", 3
            case "percent":
                inside = self.spell(parts[0], 2)
                return pick([inside + "\\%", inside + " \\%", inside + "%", inside + "\\text{ percent}"]), 3
            case "negate":
                return "-" + self.spell(parts[0], 1), 0
            case "add":
                return self._sum(node), 0
            case "multiply":
                return self._product(node), 1
            case "divide":
                return self._quotient(*parts)
            case "power":
                return self._power(*parts), 2
            case "root":
                return self._root(*parts)
            case "function":
                return self._function(parts[0], parts[1])
        return self._collection(node), 0

    def _scientific(self, mantissa: Node, exponent: Node) -> tuple[str, int]:
        before, after = self.spell(mantissa), self.spell(exponent)
        if self.plain:
            return self.pick([f"{before}e{after}", f"{before}E{after}", f"{before}*10^({after})"]), 1
        times = self.pick([" \\times ", " \\cdot ", "×", "·"])
        ten = self.pick([f"10^{{{after}}}", f"10^{{{after}}}", "10" + after.translate(SUPERSCRIPTS)])
        return f"{before}{times}{ten}", 1

    def _sum(self, node: Node) -> str:
        text = ""
        for position in self.order(len(node.parts)):
            term = node.parts[position]
            minus = term.kind == "negate"
            inside = self.spell(term.parts[0] if minus else term, 1)
            text += (" - " if minus else " + ") + inside if text else ("-" if minus else "") + inside
        return text

    def _product(self, node: Node) -> str:
        text = ""
        for position in self.order(len(node.parts)):
            factor = self.spell(node.parts[position], 2 if node.parts[position].kind == "divide" and self.plain else 1)
            if node.parts[position].kind in {"negate", "add"} and not factor.startswith("("):
                factor = f"({factor})"
            joints = [" * "] if self.plain else [" \\cdot ", " \\times ", "·", " * "]
            if text and self._may_touch(text, factor):
                joints = ["", "", " ", *joints]
            joint = self.pick(joints) if text else ""
            if joint in ("", " ") and text and text[-1].isalpha() and "\\" in text[-9:] and factor[0].isalpha():
                joint = "␣"
            text += joint + factor
        return text

    def _may_touch(self, text: str, factor: str) -> bool:
        """Return True if a factor may follow without a sign: no digits after digits, no argument of a function."""
        if self.plain:
            return text[-1].isdigit() and factor[0].isalpha() and text[-2:-1] != "^"
        if factor[0] == "(" and (text[-1].isalpha() or text.endswith("}")):
            return False
        touching = text[-1].isdigit() or text[-1] in ")}" or text[-1].isalpha()
        return touching and not factor[0].isdigit() and not factor.startswith("\\frac") and text[-1] not in "⁰¹²³⁴⁵⁶⁷⁸⁹"

    def _quotient(self, over: Node, under: Node) -> tuple[str, int]:
        above, below = self.spell(over), self.spell(under)
        slash = f"{self.spell(over, 2)}/{self.spell(under, 3)}"
        if self.plain:
            return slash, 1
        texts = [f"\\frac{{{above}}}{{{below}}}", f"\\frac {{{above}}} {{{below}}}", f"{{{above}␣\\over␣{below}}}"]
        if len(above) == len(below) == 1:
            texts += [f"\\frac{above}{below}" if above.isdigit() else f"\\frac␣{above}{below}"]
        chosen = self.pick([*texts, slash])
        return chosen, 1 if chosen == slash else 2

    def _power(self, base: Node, exponent: Node) -> str:
        below, above = self.spell(base, 3), self.spell(exponent)
        if base.kind == "negate":
            below = f"({self.spell(base)})"
        if self.plain:
            above = above if len(above) == 1 else f"({above})"
            return self.pick([f"{below}^{above}", f"{below}**{above}"])
        texts = [f"{below}^{{{above}}}"] + ([f"{below}^{above}"] if len(above) == 1 else [])
        return self.pick(texts + ([below + above.translate(SUPERSCRIPTS)] if above.isdigit() else []))

    def _root(self, radicand: Node, index: Node) -> tuple[str, int]:
        inside, order = self.spell(radicand), self.spell(index)
        if order != "2":
            text = f"({inside})^(1/{order})" if self.plain else f"\\sqrt⟦{order}⟧{{{inside}}}"
            return text, 2 if self.plain else 3
        if self.plain:
            return f"sqrt({inside})", 3
        short = [f"\\sqrt{inside}", f"\\sqrt␣{inside}"] if len(inside) == 1 and inside.isdigit() else []
        sign = [f"√{inside}"] if inside.isdigit() else []
        chosen = self.pick([f"\\sqrt{{{inside}}}", *short, *sign, f"({inside})^{{1/2}}"])
        return chosen, 2 if chosen.startswith("(") else 3

    def _function(self, name: str, argument: Node) -> tuple[str, int]:
        inside = self.spell(argument)
        if self.plain:
            return f"{name}({inside})", 3
        if name == "exp":
            return self.pick([f"e^{{{inside}}}", f"\\exp({inside})"]), 2
        simple = argument.kind in {"int", "symbol"} or (argument.kind == "multiply" and inside.isalnum())
        loose = [f"\\{name} {inside}" if inside[0].isdigit() else f"\\{name}␣{inside}"] if simple else []
        return self.pick([f"\\{name}({inside})", f"\\{name}{{({inside})}}", *loose]), 1

    def _collection(self, node: Node) -> str:
        parts, pick = node.parts, self.pick
        match node.kind:
            case "list":
                items = [self.spell(parts[position]) for position in self.order(len(parts))]
                return pick([", ", ", ", " \\text{ and } ", " \\text{ or } ", "; "]).join(items)
            case "set":
                return "\\{" + ", ".join(self.spell(parts[position]) for position in self.order(len(parts))) + "\\}"
            case "tuple":
                return "(" + ", ".join(map(self.spell, parts)) + ")"
            case "interval":
                return self._interval(*parts)
            case "union":
                sets = [self.spell(parts[position]) for position in self.order(len(parts))]
                bracketed = all(text[0] in "([" for text in sets)
                return (" \\cup " if bracketed else pick([" \\text{ or } ", " \\lor "])).join(sets)
            case "matrix":
                return self._matrix(parts)
            case "equation":
                return f"{parts[0]} = {self.spell(parts[1])}"
            case "unit":
                amount, (names, *_) = self.spell(parts[0]), UNITS[parts[1]]
                name = pick(names)
                signs = [f"\\${amount}", f"\\$ {amount}", f"{amount}\\$"] if parts[1] == "dollars" else []
                texts = [f"{amount} \\text{{ {name}}}", f"{amount}\\,\\mathrm{{{name}}}", f"{amount}\\text{{{name}}}"]
                return pick([*signs, *texts])
            case "ratio":
                words = [" \\text{ to } "] if len(parts) == 2 else []
                return pick([":", " : ", " \\colon ", *words]).join(map(self.spell, parts))
            case "residue":
                number, modulus = map(self.spell, parts)
                name = pick(["", "", "x \\equiv␣"])
                commands = [f" \\pmod{{{modulus}}}", f" \\bmod␣{modulus}", f" \\mod␣{modulus}"]
                words = [f"␣(\\text{{mod }} {modulus})", f"␣(\\operatorname{{mod}}␣{modulus})", f"␣(mod␣{modulus})"]
                return f"{name}{number}{pick([*commands, *words])}"
            case "choice":
                letter = parts[0]
                return pick(
                    [letter, f"({letter})", f"\\text{{{letter}}}", f"\\text{{({letter})}}", f"\\textbf{{({letter})}}"]
                )
            case "words":
                word = pick([parts[0], parts[0].lower(), parts[0].upper(), parts[0].capitalize()])
                return pick(
                    [f"\\text{{{word}}}", word, f"\\mathrm{{{word}}}", f"\\textbf{{{word}}}", f"\\mbox{{{word}}}"]
                )
        raise ValueError(node.kind)

    def _interval(self, left_closed: bool, low: Node, high: Node, right_closed: bool) -> str:
        below, above = self.spell(low), self.spell(high)
        left, right = "[" if left_closed else "(", "]" if right_closed else ")"
        plain = f"{left}{below}, {above}{right}"
        if not (left_closed or right_closed) and _finite(low) and _finite(high):
            return plain  # (1, 2) may be a point as well: no inequality
        lesser, greater = " \\le " if left_closed else " < ", " \\le " if right_closed else " < "
        if not _finite(low):
            inequality = pick_two(self.pick, f"x{greater}{above}", f"{above}{flip(greater)}x")
        elif not _finite(high):
            inequality = pick_two(self.pick, f"x{flip(lesser)}{below}", f"{below}{lesser}x")
        else:
            inequality = pick_two(
                self.pick, f"{below}{lesser}x{greater}{above}", f"{above}{flip(greater)}x{flip(lesser)}{below}"
            )
        french = f"{'⟦' if left_closed else '⟧'}{below}, {above}{'⟧' if right_closed else '⟦'}"
        return self.pick([plain, inequality, f"x \\in␣{plain}", french])

    def _matrix(self, rows: Sequence[Sequence[Node]]) -> str:
        body = " \\\\ ".join(" & ".join(map(self.spell, row)) for row in rows)
        columns = "c" * len(rows[0])
        return self.pick(
            [
                f"\\begin{{pmatrix}} {body} \\end{{pmatrix}}",
                f"\\begin{{bmatrix}} {body} \\end{{bmatrix}}",
                f"\\left⟦\\begin{{array}}{{{columns}}} {body} \\end{{array}}\\right⟧",
            ]
        )


def pick_two(pick: Pick, one: str, other: str) -> str:
    return pick([one, other])


def flip(sign: str) -> str:
    return {" < ": " > ", " \\le ": " \\ge "}[sign]


# --- Changes of a whole text that keep the value --------------------------------------------------------------------

UNICODE = {"\\pi": "π", "\\infty": "∞", "\\cup": "∪", "\\cdot": "·", "\\times": "×", "\\le": "≤", "\\ge": "≥", "-": "−"}
WIDE = str.maketrans("0123456789", "０１２３４５６７８９")


def finish(text: str) -> str:
    """Return a spelling as an answer has it, with plain spaces and brackets."""
    return text.replace("␣", " ").replace("⟦", "[").replace("⟧", "]")


def _sized(text: str, left: str, right: str) -> str:
    for bracket, command in {"\\{": left, "(": left, "[": left, "\\}": right, ")": right, "]": right}.items():
        text = text.replace(bracket, command + bracket)
    return text


def _in_unicode(text: str) -> str:
    for command, sign in sorted(UNICODE.items(), key=lambda item: -len(item[0])):
        if command == "\\le":
            text = text.replace("\\le ", "≤ ").replace("\\le␣", "≤ ")
        elif command == "\\ge":
            text = text.replace("\\ge ", "≥ ").replace("\\ge␣", "≥ ")
        else:
            text = text.replace(command, sign)
    return text


#: Name -> change of the notation. Each takes a spelling of any value but words.
NOTATIONS: dict[str, Callable[[str], str]] = {
    "as written": lambda text: text,
    "no spaces": lambda text: text.replace(" ", "") if "\\text" not in text and "\\l" not in text else text,
    "wide spaces": lambda text: text.replace(" ", "  "),
    "thin spaces": lambda text: text.replace(" + ", "\\,+\\,").replace(" = ", "\\;=\\;").replace(", ", ",\\,"),
    "tildes": lambda text: text.replace(" + ", "~+~").replace(", ", ",~"),
    "dfrac": lambda text: text.replace("\\frac", "\\dfrac"),
    "tfrac": lambda text: text.replace("\\frac", "\\tfrac"),
    "left and right": lambda text: _sized(text, "\\left", "\\right"),
    "big": lambda text: _sized(text, "\\big", "\\big"),
    "bigl and bigr": lambda text: _sized(text, "\\bigl", "\\bigr"),
    "Bigg": lambda text: _sized(text, "\\Bigg", "\\Bigg"),
    "Unicode": _in_unicode,
    "full-width digits": lambda text: text.translate(WIDE),
}
#: Name -> text around an answer (``@``). None changes the value.
WRAPPERS = {
    "nothing": "@",
    "braces": "{@}",
    "dollars": "$@$",
    "round delimiters": "\\(@\\)",
    "full stop": "@.",
    "dollars and full stop": "$@$.",
    "spaces": "  @ ",
    "tildes around": "~@~",
    "line break": "@\\\\",
    "display style": "\\displaystyle @",
    "bold symbol": "\\boldsymbol{@}",
    "bold math": "\\mathbf{@}",
    "bf": "{\\bf @}",
    "color": "\\color{red}{@}",
    "text color": "\\textcolor{blue}{@}",
    "underline": "\\underline{@}",
    "large": "\\large @",
    "thin space": "\\,@\\,",
    "negative space": "\\!@",
    "quad": "\\quad @",
    "asterisks": "**@**",
    "check mark": "@ \\checkmark",
}
