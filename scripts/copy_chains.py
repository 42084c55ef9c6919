"""Write problems for a small language model without training: chains of names, with a reasoning step per name.

Two names of a chain have numbers; every further name has the number of an earlier name, and a step finds the number of
one name. Worked examples before the question show the form. ``docs/findings.md`` measures SmolLM2 on these problems::

    python scripts/copy_chains.py chains.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NAMES = "abcdefghij"
NUMBERS = 3  # names with a number of their own
EXAMPLES = 3
PROBLEMS = 200


def draw_chain(rng: random.Random) -> tuple[str, str, int]:
    """A question, its worked steps and its answer."""
    values = [rng.randint(10, 99) for _ in range(NUMBERS)]
    lines = [f"{name} = {value}" for name, value in zip(NAMES, values, strict=False)]
    work = list(lines)
    for place in range(NUMBERS, len(NAMES)):
        source = rng.randrange(place)
        values.append(values[source])
        lines.append(f"{NAMES[place]} = {NAMES[source]}")
        work.append(f"{lines[place]} = {values[place]}")
    question = f"{'; '.join(lines)}. What is {NAMES[-1]}?"
    return question, "\n\n".join([*work, f"\\boxed{{{values[-1]}}}"]), values[-1]


def main(output: Path) -> None:
    rng = random.Random(7)
    examples = []
    for _ in range(EXAMPLES):
        question, work, _ = draw_chain(rng)
        examples += [{"role": "user", "content": question}, {"role": "assistant", "content": work}]
    with output.open("w", encoding="utf-8") as file:
        for _ in range(PROBLEMS):
            question, _, answer = draw_chain(rng)
            row = {
                "prompt": [*examples, {"role": "user", "content": question}],
                "reward_model": {"ground_truth": str(answer)},
                "data_source": "copy_chains",
            }
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
