"""A branch criterion: steps with high influence that the model was unsure of.

    cd examples
    attnrl train attnrl method.branching.criterion=custom_criterion:prefer_uncertain_influence output_dir=../runs/new

High influence says that later steps read a step; high entropy says that the step could have gone another way. A branch
at a step with both changes the rest of the response most.
"""

from __future__ import annotations

import random
from statistics import fmean

from attnrl.method.branching import RolloutSignals, needs, step_tiers
from attnrl.method.ranking import eligible_steps, rank_steps, share_of


@needs("influence", "entropy")
def prefer_uncertain_influence(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the most uncertain of the ``ceil(rho * S)`` steps of highest influence, then lower influence."""
    entropy = [fmean(signals.entropy[start:end]) for start, end in signals.steps.ranges()]
    ranked = rank_steps(signals.influence, eligible_steps(signals.steps))
    candidates = share_of(rho, len(signals.steps))
    return step_tiers(signals.steps, rank_steps(entropy, ranked[:candidates]) + ranked[candidates:])
