"""Some hundred hostile inputs for all that reads what others wrote; ``scripts/fuzz.py`` tries many more."""

from __future__ import annotations

import pytest
from hostile import TARGETS
from hypothesis import HealthCheck, given, settings

EXAMPLES = {"config": 100, "data": 200, "steps": 300, "grader": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_handled(name: str) -> None:
    limits = settings(max_examples=EXAMPLES[name], suppress_health_check=list(HealthCheck))
    limits(given(TARGETS[name].inputs)(TARGETS[name].check))()
