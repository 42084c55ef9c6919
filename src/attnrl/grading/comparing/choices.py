"""Comparison of words and of the letters of choices."""

from __future__ import annotations

import re

from attnrl.grading.comparing.comparison import Compare
from attnrl.grading.reading.expressions import Symbol
from attnrl.grading.reading.values import Brackets, Labelled, Listing, Value, Words, phrase


def letters_of_choices(value: Value) -> str:
    """Return the letters of one or several choices (``B``, ``AC``, ``A, C``), ``""`` for another value."""
    if isinstance(value, Symbol) and re.fullmatch("[A-Za-z]", value.name):
        return value.name
    if isinstance(value, Words) and re.fullmatch("[A-J]{2,}", value.text):
        return value.text
    if isinstance(value, Listing | Brackets):
        letters = [letters_of_choices(item) for item in value.items]
        return "".join(letters) if all(len(letter) == 1 for letter in letters) else ""
    return ""


def same_choice(gold: Value, answer: Value, compare: Compare) -> bool | None:
    """Compare the letters of choices; of an answer with letter and value, either may be the true answer."""
    options = compare.statement.options
    if isinstance(answer, Labelled):
        contradicts = answer.label in options and not _is_option(answer.label, answer.value, compare)
        letter = letters_of_choices(gold)
        if letter and _is_choice(letter, compare):
            return letter.upper() == answer.label and not contradicts
        return False if contradicts else compare(gold, answer.value)
    expected, found = letters_of_choices(gold), letters_of_choices(answer)
    if len(expected) == 1 and not found:
        return bool(options.get(expected.upper())) and _is_option(expected.upper(), answer, compare)
    if not expected or len(found) != len(expected):
        return False
    if expected == found:
        return True
    if not _is_choice(expected, compare):
        return False
    if compare.statement.all_that_apply:
        return sorted(expected.upper()) == sorted(found.upper())
    return expected.upper() == found.upper()


def _is_option(letter: str, answer: Value, compare: Compare) -> bool:
    """Return True if an answer has the value of a choice of the problem; a choice without a value agrees with any."""
    values = compare.statement.options[letter]
    return not values or any(compare(value, answer) is True for value in values if not letters_of_choices(value))


def _is_choice(letters: str, compare: Compare) -> bool:
    """Return True if letters name choices of the problem; without choices in the problem, if each is in A to E."""
    if compare.statement.options:
        return compare.statement.options.keys() >= set(letters.upper())
    return set("ABCDE").issuperset(letters) and not compare.statement.symbols & set(letters)


def compare_words(gold: Words, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a word or a phrase: upper and lower case are equal."""
    if isinstance(answer, Words) and phrase(gold.text) == phrase(answer.text):
        return True
    return same_choice(gold, answer, compare)


def compare_labelled(gold: Labelled, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a true answer of letter and value: the letter or the value suffices."""
    if isinstance(answer, Labelled):
        return gold.label == answer.label and compare(gold.value, answer.value)
    letter = letters_of_choices(answer)
    return letter.upper() == gold.label if letter else compare(gold.value, answer)
