"""A splitter: a step per sentence or line, with short steps joined to the next.

    cd examples
    attnrl train attnrl method.steps.splitter=custom_splitter:sentences output_dir=../runs/splitter

The paper splits at blank lines. Models that write long paragraphs then have few steps, and few places to branch. A
splitter gets the text that each token adds, and the settings ``method.steps``.
"""

from __future__ import annotations

from collections.abc import Sequence

from attnrl.method.steps import Steps, StepSettings

ENDS = (".", "?", "!", "\n")
MIN_TOKENS = 6


def sentences(pieces: Sequence[str], settings: StepSettings) -> Steps:
    """End a step after each sentence or line, once the step has at least 6 tokens."""
    starts = [0] if pieces else []
    for token, piece in enumerate(pieces[:-1]):
        if piece.rstrip(" ").endswith(ENDS) and token + 1 - starts[-1] >= MIN_TOKENS:
            starts.append(token + 1)
    before, marker, _ = "".join(pieces).partition(settings.think_marker)
    steps = Steps(tuple(starts), len(pieces))
    if not marker:
        return steps
    length = 0  # the step that holds the last character of the marker
    for token, piece in enumerate(pieces):
        length += len(piece)
        if length >= len(before) + len(marker):
            return Steps(steps.starts, steps.length, think_end=steps.step_of(token))
    return steps
