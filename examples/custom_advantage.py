"""An advantage: the gain of each segment over the segment's parent only, without the gain over the problem's mean.

    cd examples
    attnrl train attnrl method.advantage=custom_advantage:gain_over_parent output_dir=../runs/advantage

Equation 3 of the paper sums two gains: V(s) - V(root) and V(s) - V(parent(s)). The first gain rewards each token of a
response that ends well, whatever the token did. The second gain rewards the step that changed the outcome.
"""

from __future__ import annotations

import math

from attnrl.method.forest import Forest


def gain_over_parent(forest: Forest) -> list[list[float]]:
    """Return ``(V(s) - V(parent(s))) / sqrt(leaves below s)`` for every token of every path."""
    advantages = []
    for path in forest.paths():
        tokens = list[float]()
        for segment in path.segments:
            gain = (segment.value - segment.parent_value) / math.sqrt(segment.leaves)
            tokens += [gain] * segment.length
        advantages.append(tokens)
    return advantages
