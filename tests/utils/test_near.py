"""Suggestions for misspelt names."""

import pytest

from attnrl.utils.near import did_you_mean, near_names


@pytest.mark.parametrize(
    ("name", "near"),
    [("critrion", ["criterion"]), ("PROMPT", ["Prompt"]), ("zebra", []), ("criterion", []), ("c" * 10_000, [])],
)
def test_near_names(name: str, near: list[str]) -> None:
    assert near_names(name, ["criterion", "rho", "Prompt"]) == near


def test_a_suggestion_ends_a_message() -> None:
    assert did_you_mean("rh", ["rho"]) == "; did you mean rho?"
    assert did_you_mean("zebra", ["rho"]) == ""
