"""Signs outside ASCII, replaced by LaTeX or ASCII signs of the same meaning."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    **{"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "∗": "*", "⁄": "/", "∘": "\\circ "},
    **{"×": "\\times ", "✕": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "÷": "\\div ", "∶": ":"},
    **{"√": "\\sqrt ", "∛": "\\sqrt[3] ", "∞": "\\infty ", "°": "^\\circ ", "º": "^\\circ ", "′": "'", "″": "''"},
    **{"≤": "\\le ", "⩽": "\\le ", "≦": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≧": "\\ge ", "≠": "\\ne "},
    **{"±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ", "∖": "\\setminus ", "∅": "\\emptyset "},
    **{"∈": "\\in ", "∨": "\\lor ", "∧": "\\land ", "∠": "\\angle ", "△": "\\triangle ", "≡": "\\equiv "},
    **{"→": "\\to ", "⇒": "\\implies ", "≈": "\\approx ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}"},
    **{"ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "∂": "\\partial ", "∑": "\\sum ", "∏": "\\prod ", "∫": "\\int "},
    **{"⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle "},
    **{"…": "...", "⋯": "...", "’": "'", "‘": "'", "“": '"', "”": '"', "✓": "", "✅": "", "✔": "", "。": "."},
    **{"µ": "\\mu ", "ϕ": "\\varphi ", "ϵ": "\\epsilon ", "ℓ": "\\ell ", "€": "\\euro ", "£": "\\pounds "},
    **{"¥": "\\yen ", "、": ","},
}
_GREEK_LIST = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau
    upsilon phi chi psi omega
"""
_GREEK = _GREEK_LIST.split()
_SIGNS |= {chr(0x3B1 + n): f"\\{name} " for n, name in enumerate(_GREEK)}
_SIGNS |= {chr(0x391 + n): f"\\{name.capitalize()} " for n, name in enumerate(_GREEK)}
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
_INVISIBLE += "\u2061\u2062\u2066\u2067\u2068\u2069\ufeff"
_TABLE = str.maketrans(_SIGNS | dict.fromkeys(_INVISIBLE, ""))
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n")
_VULGAR = re.compile("[¼½¾⅐-⅞↉]")


def undoubled(text: str) -> str:
    r"""Return a text with ``\frac`` for ``\\frac`` if each backslash is doubled, as after escaping twice."""
    if "\\\\" not in text or not re.search(r"\\\\[a-zA-Z]{2}", text):
        return text
    return text if re.search(r"(?<!\\)(?:\\\\)*\\(?!\\)", text) else text.replace("\\\\", "\\")


def plain_characters(text: str) -> str:
    """Return a text with ASCII for other signs: ``^{2}`` for ``²``, ``\\frac{1}{2}`` for ``½``, ``\\pi`` for ``π``."""
    text = undoubled(text)
    if text.isascii():
        return text
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+", lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = _VULGAR.sub(_vulgar_fraction, text).translate(_TABLE)
    return unicodedata.normalize("NFKC", text).translate(_TABLE)


def _vulgar_fraction(sign: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", sign[0]).partition("\u2044")
    return f"\\frac{{{over}}}{{{under}}}"
