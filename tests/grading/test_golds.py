"""True answers that cannot be parsed are found before a run."""

from attnrl.grading.golds import unusable_golds
from attnrl.types import Problem


def test_unusable_golds_are_found_by_row() -> None:
    golds = [("5",), ("\\frac{1}{",), ("",), ("\\frac{1}{", "5"), ("x^2+\\sqrt{y}",), ("{" * 100,)]
    found = unusable_golds([Problem(f"id-{n}", "?", gold) for n, gold in enumerate(golds)], workers=1, deadline=30)
    assert [(bad.row, bad.id, bad.answers) for bad in found] == [(n, f"id-{n}", golds[n]) for n in (1, 2, 5)]
    assert found[0].reason == found[2].reason != found[1].reason  # the second is empty
    assert unusable_golds([]) == []
