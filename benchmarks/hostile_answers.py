"""Hostile answers, and hostile problem texts, for a grader that reads LaTeX: each may take much time, memory or stack.

Name -> (problem text, content of the box). ``#`` stands for a number, so that no two answers of a run are equal and a
cache does not help. No answer has the value of a gold in ``benchmarks/grading.py``, but for a few that are the number
itself under much markup.
"""

from __future__ import annotations

LONG = 2_000  # characters of an answer: longer answers are cut or refused unread


def _nested(left: str, inside: str, right: str, depth: int) -> str:
    return left * depth + inside + right * depth


def _filled(piece: str, end: str = "#") -> str:
    """Repeat a piece up to the length of the longest answer."""
    return piece * ((LONG - len(end)) // len(piece)) + end


def _matrix(rows: int, columns: int, cell: str) -> str:
    body = "\\\\".join("&".join([cell] * columns) for _ in range(rows))
    return f"\\begin{{pmatrix}}{body}\\end{{pmatrix}}"


_LARGE_NUMBERS = {
    "tower of nines": "9^{9^{9^#}}",
    "difference of towers": "9^{9^{9^9}}-9^{9^{9^9}}+#",
    "tower of ten": "10^{10^{10}}+#",
    "negative tower": "10^{-10^{10^{10}}}+#",
    "tower of x": "^".join("x" * 40) + "+#",
    "tower in braces": _nested("2^{", "#", "}", 20),
    "tower in a denominator": "\\frac{1}{10^{10^{10^#}}}",
    "denominators of towers": "1/(1+1/(9^{9^{9^9}}+1/(9^{9^{9^#}})))",
    "small base, huge exponent": "1.0000001^{10^{12}+#}",
    "fractional exponent": "2^{0.5^{-99999}}+#",
    "root of a tower": "\\sqrt[10^{10}]{10^{10^{10}}+#}",
    "root with a huge index": "\\sqrt[999999999#]{2}",
    "million ones": "#" + "1" * 1_000_000,
    "longest number": "#" + "1" * 1_900,
    "longest decimal": "0." + "1" * 1_900 + "#",
    "quotient of long numbers": "\\frac{" + "7" * 950 + "}{" + "3" * 950 + "#}",
    "repeating decimal": "0.\\overline{" + "123456789" * 200 + "#}",
    "scientific with a huge exponent": "1e999999999#",
    "scientific in LaTeX": "1.5 \\times 10^{999999999#}",
    "factorial": "(10^{9}+#)!",
    "factorial of a factorial": "((#00000!)!)!",
    "many factorials": "#" + "!" * 300,
    "exclamation marks": _filled("!"),
    "factorials of a number": _filled("3!", "#"),
    "quotient of factorials": "\\frac{(10^7+#)!}{(10^7)!}",
    "binomial": "\\binom{10^{12}}{10^{11}+#}",
    "binomials nested": _nested("\\binom{", "40", "}{20}", 12) + "+#",
    "sum of binomials": "\\sum_{k=0}^{5000}\\binom{5000}{k}\\binom{5000+#}{k}",
    "gcd": "\\gcd(" + "7" * 900 + "#," + "3" * 900 + ")",
    "gcd of powers": "\\gcd(2^{10^9}-1,2^{10^8}-#)",
    "lcm of many": "\\operatorname{lcm}(" + ",".join(str(n) for n in range(10_007, 10_307)) + ",#)",
    "remainder of a tower": "7^{7^{7^7}} \\bmod 1000000007#",
    "residue of a tower": "3^{3^{3^3}} \\pmod{10^{9999#}}",
    "huge modulus": "5 \\pmod{" + "9" * 1_500 + "#}",
    "unit with a huge power": "5 \\text{ m}^{999999}+#",
    "unit with a tower": "# \\text{ cm}^{10^{10^{10}}}",
    "base of a huge numeral": "1" * 1_900 + "_{#}",
    "percent of percent": "#" + "\\%" * 900,
    "degrees of degrees": "#" + "^\\circ" * 300,
}
_CALCULUS = {
    "sum of powers": "\\sum_{k=#}^{10^{100}} k^k",
    "sum of many terms": "\\sum_{k=1}^{20000} \\frac{1}{k+#}",
    "sums nested": "\\sum_{i=1}^{20000}\\sum_{j=1}^{20000}\\sum_{k=1}^{20000} \\sin(ijk+#)",
    "product": "\\prod_{k=#}^{10^{12}} k",
    "product of many terms": "\\prod_{k=2}^{20000} (1+\\frac{1}{k^2+#})",
    "integral": "\\int_0^{10^{99}} x^{x^{x+#}} dx",
    "integrals nested": "\\int_0^1\\int_0^1\\int_0^1 \\sin(xyz+#) dx dy dz",
    "integral without an end": "\\int_0^\\infty \\frac{\\sin(x^{#})}{x} dx",
    "limit": "\\lim_{x\\to 0} \\frac{\\sin^{50}(x)-\\tan^{50}(x)}{x^{60+#}}",
    "power of a sum": "(x+#)^{1000000}",
    "power of a long sum": "(a+b+c+d+e+f+g+h+k+#)^{60}",
    "product of sums": "".join(f"(x+{n})" for n in range(250)) + "(x+#)",
    "polynomial of a huge degree": "x^{999999999}-x^{999999998}+#",
    "sines": "\\sin^{1000}(x)+\\cos^{999}(x)\\tan^{777}(#x)",
    "functions nested": _nested("\\sin(", "x+#", ")", 60),
    "logarithms nested": _nested("\\ln(", "10^{10^{10}}+#", ")", 20),
    "roots of sums": _nested("\\sqrt{1+", "#", "}", 100),
    "roots as a sum": "+".join(f"\\sqrt{{{n}}}" for n in range(2, 180)) + "+#",
    "equal but for digit 300": "\\sqrt{10^{600}+1}-10^{300}+#",
    "ellipsis": "1+2+3+\\cdots+10^{10^{10}}+#",
    "floor of a huge quotient": "\\lfloor \\frac{10^{100000}}{7^{#}} \\rfloor",
    "absolute values": _nested("|", "x-#", "|", 200),
    "plus and minus": "\\pm 1" * 30 + "+#",
}
_DEEP = {
    "round brackets": _nested("(", "#", ")", 900),
    "square brackets": _nested("[", "#", "]", 900),
    "braces": _nested("{", "#", "}", 900),
    "set braces": _nested("\\{", "#", "\\}", 450),
    "sized brackets": _nested("\\left(", "#", "\\right)", 130),
    "floors": _nested("\\lfloor ", "#", "\\rfloor ", 110),
    "boxes": "\\boxed{" * 10_000 + "#",
    "hundreds of boxes": "#}" + "".join(f" \\boxed{{{n}}}" for n in range(300)) + " \\boxed{#",
    "one box in hundreds": "#}" + " \\boxed{#}" * 300 + " \\boxed{17",
    "boxes closed": _nested("\\boxed{", "#", "}", 240),
    "fractions over": _nested("\\frac{", "#", "}{2}", 190),
    "fractions under": _nested("\\frac{1}{", "#", "}", 190),
    "short fractions": "\\frac1" * 330 + "#",
    "fractions unclosed": "\\frac{" * 330 + "#",
    "fraction without an end": "\\frac{#}{",
    "roots": _nested("\\sqrt{", "#", "}", 280),
    "roots in an index": _nested("\\sqrt[", "3", "]{2}", 180) + "+#",
    "text": _nested("\\text{", "#", "}", 280),
    "text and dollars": _nested("\\text{$", "#", "$}", 210),
    "lines over": _nested("\\overline{", "#", "}", 170),
    "colors": _nested("\\textcolor{red}{", "#", "}", 110),
    "fonts": _nested("{\\bf ", "#", "}", 280),
    "exponents": "x" + "^{x" * 480 + "^#" + "}" * 480,
    "indices": "x" + "_{x" * 480 + "_#" + "}" * 480,
    "overs": _nested("{1 \\over ", "#", "}", 160),
    "matrices": _nested("\\begin{pmatrix}", "#", "\\end{pmatrix}", 65),
    "cases": _nested("\\begin{cases}", "#", "\\end{cases}", 72),
    "tuples": _nested("(1,", "#", ")", 480),
    "sets of sets": _nested("\\{1,", "#", "\\}", 320),
    "mixed kinds": _nested("(\\frac{[\\sqrt{", "#", "}]}{2})", 75),
    "braces unbalanced": "#}}}}}{{{{{#",
    "only left": "\\left(" * 330 + "#",
    "only right": "#" + "\\right)" * 280,
    "brackets crossed": _filled("([)]", "#"),
}
_LONG = {
    "numbers side by side": _filled("1 "),
    "symbols side by side": _filled("x "),
    "letters": _filled("x"),
    "empty brackets": _filled("()"),
    "pairs of brackets": _filled("(x)"),
    "signs": _filled("-"),
    "signs of both kinds": _filled("+-"),
    "plus or minus": _filled("\\pm "),
    "factors of two": _filled("2\\cdot "),
    "slashes": _filled("1/"),
    "fractions side by side": _filled("\\frac12"),
    "mixed numbers": _filled("1\\frac12"),
    "carets": _filled("^"),
    "powers": _filled("x^"),
    "indices of indices": _filled("x_"),
    "primes": "f" + "'" * 1_900 + "(#)",
    "letters of a list": _filled("a,b,c,"),
    "numbers of a list": _filled("#,", "1"),
    "one list twice": ",".join(str(n) for n in range(400)) + ",#",
    "or": _filled("x=1 \\text{ or } "),
    "pluses or minuses of a list": _filled("\\pm#,", "1"),
    "equations": _filled("x=", "#"),
    "equal signs": _filled("="),
    "inequalities": _filled("1<x<"),
    "ratios": _filled("1:", "#"),
    "colons": _filled(":"),
    "commas": _filled(","),
    "thousands": _filled("1,000,"),
    "points": _filled("1."),
    "dots": _filled("\\cdots "),
    "backslashes": _filled("\\", ""),
    "line breaks": _filled("\\\\", "#"),
    "ampersands": _filled("&"),
    "dollars": _filled("$"),
    "dollars around": _filled("$#$"),
    "percent signs": _filled("%"),
    "asterisks": _filled("*"),
    "tildes": _filled("~"),
    "quotation marks": _filled('"'),
    "commands without a meaning": _filled("\\qqq"),
    "spaces": "#" + " " * 1_990 + "1",
    "words": _filled("word "),
    "a long word": _filled("e"),
    "units": "# " + "m s kg " * 280,
    "units in text": "#" + "\\text{ m}" * 200,
    "units divided": "# \\text{" + "m/" * 900 + "s}",
    "wide matrix": _matrix(1, 400, "#"),
    "square matrix": _matrix(30, 30, "#"),
    "determinant": _matrix(12, 12, "x").replace("pmatrix", "vmatrix").replace("x", "y", 1).replace("x", "#", 70),
    "product of matrices": _matrix(4, 4, "x") * 12 + "#",
    "power of a matrix": _matrix(3, 3, "#") + "^{10^{10}}",
    "union of intervals": "\\cup".join(f"({n},{n}.5)" for n in range(140)) + "\\cup(#,999999)",
    "intersections": "\\cap".join(f"(-{n},{n})" for n in range(1, 145)) + "\\cap(#,999999)",
    "differences of sets": "\\setminus".join(f"[{n},9]" for n in range(110)) + "\\setminus\\{#\\}",
    "sets": _filled("\\{#\\},"),
    "null characters": "\x00#\x00" * 300,
    "directions": "\u202e#\u200f\ud83d",
    "combining marks": "#" + "\u0301" * 1_900,
    "full-width": "\uff11" * 1_900 + "#",
    "superscripts": "2" + "\u00b9" * 1_900 + "+#",
    "vulgar fractions": "\u00bd" * 1_900 + "#",
    "root signs": "\u221a" * 1_900 + "#",
}
_SHORT = {name: ("?", answer) for group in (_LARGE_NUMBERS, _CALCULUS, _DEEP, _LONG) for name, answer in group.items()}
_TEXTS = {
    "many formulas": "Compute $2^{10}-#$ and $x^2$. " * 3_500,
    "formulas not closed": "$" * 100_001,
    "one long formula": "Compute $" + "1+" * 50_000 + "1$.",
    "deep formula": "Compute $" + _nested("(", "1", ")", 50_000) + "$.",
    "fractions unclosed in the text": "Compute $" + "\\frac{" * 16_000 + "$.",
    "power in the text": "Compute $9^{9^{9^9}}$ and $(10^9)!$ and $\\sum_{k=1}^{10^{100}} k^k$.",
    "numbers of the text": "Given " + ", ".join(str(n) for n in range(17_000)) + ", find the sum.",
    "backslashes of the text": "\\" * 100_000,
    "brackets of the text": "\\[\\(" * 25_000,
    "words of the text": "word " * 20_000,
    "symbols of the text": "Let $x_{1}, y_{2}$ be real. " * 4_000,
    "null characters of the text": "\x00" * 100_000,
}
HOSTILE: dict[str, tuple[str, str]] = _SHORT | {name: (text, "2^{10}-#-x") for name, text in _TEXTS.items()}


def numbered(name: str, number: int) -> tuple[str, str]:
    """Return (problem text, answer) with a number in place of ``#``."""
    text, answer = HOSTILE[name]
    return text.replace("#", str(number)), answer.replace("#", str(number))
