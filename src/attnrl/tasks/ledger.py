"""Ledgers: procedural multi-step problems with plans that many later steps look up.

A ledger is a list of labelled lines. A response works through one line per step. Results are single digits, and all
arithmetic is modulo 10::

    A#=4; B=5; C2#; D3+; E4#; F@=7; G=D; H1#; I4@; JC+?

* A *plan* (``A#=4``) defines a symbol by a digit: even means add, odd means subtract.
* A *start* (``B=5``, ``G=D``) opens a section with a digit or with the result of an earlier line.
* An *entry* changes the running result: ``C2#`` adds or subtracts 2 according to the symbol, ``D3+`` adds 3, ``JC+``
  adds the result of line C.

The answer is the result of the last line. A response copies and solves each line in one step. Each step starts with a
meaningless connective. The step of an entry appends the value looked up, then the result before and after. Some steps
only repeat the last result. The last step boxes the answer::

    so A#=4: #+\n\nthen B=5: 5\n\nnow C2#+: 5=7\n\n ... and JC+7: 7=4\n\nthus \\boxed{4}

A wrong plan spoils every later line that looks up the plan, and no local sign marks the error: process supervision
has to find the plan. Demonstrations for the supervised base model slip in plans on purpose, with a probability given
by the digit of the plan (:data:`SLIP_RATE`). The base model therefore always solves some ledgers, never solves others,
and sometimes solves most. ``Problem.info`` holds the true dependency graph of the ledger.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnrl.tasks.base import DemonstratedTask
from attnrl.tasks.word_tokenizer import build_word_tokenizer
from attnrl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYMBOLS = "#@&$"
LABELS = string.ascii_uppercase
CONNECTIVES = ("so ", "now ", "then ", "next ", "well ", "okay ", "thus ", "and ")
RECHECKS = ("hmm ", "wait ")
STEP_END = "\n\n"
AMOUNTS = "12346789"  # amounts of entries with a symbol; without 0 and 5, which give equal results in both directions

# Probability that a demonstration misreads the direction of a plan, by the digit of the plan. Even digits are never
# misread, odd digits sometimes, 9 nearly always.
SLIP_RATE = (0.0, 0.4, 0.0, 0.4, 0.0, 0.6, 0.0, 0.6, 0.0, 0.95)
RECHECK_RATE = 0.12


@dataclass(frozen=True)
class Line:
    """One line of a ledger.

    Attributes:
        text: the line in the problem.
        step: the step in a response, after the connective.
        result: the result of the line: a digit, or the direction of a plan.
        needs: indices of the earlier lines that the line looks up.
    """

    text: str
    step: str
    result: str
    needs: tuple[int, ...]


@dataclass(frozen=True)
class LedgerShape:
    """The size of the ledgers of a task; ranges are inclusive.

    Attributes:
        sections: range of the number of sections of a ledger.
        entries: range of the number of entries of a section.
        decoy_rate: probability of an additional plan that no entry looks up.
        plans: plans per section, without decoys.
        min_uses: smallest number of entries that look up a plan.
    """

    sections: tuple[int, int]
    entries: tuple[int, int]
    decoy_rate: float
    plans: int = 1
    min_uses: int = 3


#: The tasks by name. ``ledger_single`` is the first stage of supervised training: several plans, each looked up at
#: least once. With a single plan, a model learns to copy the last plan whatever the symbol, and hardly unlearns that.
SHAPES = {
    "ledger_single": LedgerShape(sections=(1, 1), entries=(6, 10), decoy_rate=0.0, plans=3, min_uses=1),
    "ledger": LedgerShape(sections=(2, 2), entries=(4, 5), decoy_rate=0.25),
    "ledger_long": LedgerShape(sections=(3, 3), entries=(4, 7), decoy_rate=0.5),
}


@dataclass(frozen=True)
class Ledger:
    """The content of a ledger, without results.

    Each line is ``("plan", symbol, digit)``, ``("start", digit)``, ``("start", "line N")``, ``("apply", symbol,
    amount)``, ``("add", amount)`` or ``("ref", N)``; ``N`` is the index of a line.
    """

    lines: tuple[tuple[str, ...], ...]


def direction_of(digit: int, *, slip: bool = False) -> str:
    """Return the direction of a plan: ``+`` for an even digit, ``-`` for an odd digit; reversed for a slip."""
    return "+" if (digit % 2 == 0) != slip else "-"


def draw_ledger(shape: LedgerShape, rng: random.Random) -> Ledger:
    """Draw ledgers until every plan but decoys is looked up at least ``shape.min_uses`` times; return the ledger."""
    while True:
        ledger = _draw_once(shape, rng)
        if ledger is not None:
            return ledger


def _draw_once(shape: LedgerShape, rng: random.Random) -> Ledger | None:
    sections = rng.randint(*shape.sections)
    symbols = rng.sample(SYMBOLS, len(SYMBOLS))
    decoy_section = rng.randrange(sections) if rng.random() < shape.decoy_rate else -1
    lines: list[tuple[str, ...]] = []
    results: list[int] = []  # indices of the lines with a digit as result (all but plans)
    known: list[str] = []
    uses: dict[str, int] = {}
    for section in range(sections):
        own = [symbols.pop() for _ in range(shape.plans)]
        plans = own + ([symbols.pop()] if section == decoy_section else [])
        for symbol in rng.sample(plans, len(plans)):
            lines.append(("plan", symbol, str(rng.randrange(10))))
        known += own
        uses |= dict.fromkeys(own, 0)
        start = f"line {rng.choice(results)}" if results else str(rng.randrange(10))
        lines.append(("start", start))
        results.append(len(lines) - 1)
        entries = rng.randint(*shape.entries)
        for _ in range(entries):
            kind = rng.choices(("apply", "add", "ref"), weights=(6, 2, 2))[0]
            if kind == "apply":
                # Later sections look up plans of earlier sections too, at any distance.
                symbol = rng.choice(own if rng.random() < 0.6 else known)
                uses[symbol] += 1
                lines.append(("apply", symbol, rng.choice(AMOUNTS)))
            elif kind == "add":
                lines.append(("add", str(rng.randrange(1, 10))))
            else:
                lines.append(("ref", str(rng.choice(results))))
            results.append(len(lines) - 1)
    enough = all(count >= shape.min_uses for count in uses.values())
    return Ledger(tuple(lines)) if enough and len(lines) <= len(LABELS) else None


def work_out(ledger: Ledger, slips: Sequence[bool] | None = None) -> list[Line]:
    """Solve a ledger line by line; ``slips[i]`` misreads the plan on line i."""
    meaning: dict[str, tuple[str, int]] = {}  # direction, and the line of the plan
    values: list[int] = []
    lines: list[Line] = []
    for index, (kind, *args) in enumerate(ledger.lines):
        label = LABELS[index]
        if kind == "plan":
            symbol, digit = args
            direction = direction_of(int(digit), slip=bool(slips and slips[index]))
            meaning[symbol] = direction, index
            values.append(-1)
            text = f"{label}{symbol}={digit}"
            lines.append(Line(text, f"{text}: {symbol}{direction}", direction, ()))
            continue
        if kind == "start":
            by_reference = args[0].startswith("line ")
            source = int(args[0].removeprefix("line "))
            value = values[source] if by_reference else source
            text = f"{label}={LABELS[source]}" if by_reference else f"{label}={source}"
            needs: tuple[int, ...] = (source,) if by_reference else ()
            step = f"{text}: {value}"
        else:
            before = values[-1]
            needs = (index - 1,)
            direction = "+"
            if kind == "apply":
                direction, plan = meaning[args[0]]
                amount = int(args[1])
                text, looked_up, needs = f"{label}{amount}{args[0]}", direction, (*needs, plan)
            elif kind == "add":
                amount = int(args[0])
                text, looked_up = f"{label}{amount}+", ""
            else:
                source = int(args[0])
                amount = values[source]
                text, looked_up, needs = f"{label}{LABELS[source]}+", str(amount), (*needs, source)
            value = (before + amount if direction == "+" else before - amount) % 10
            step = f"{text}{looked_up}: {before}={value}"
        values.append(value)
        lines.append(Line(text, step, str(value), needs))
    return lines


def make_problem(ledger: Ledger, source: str) -> Problem:
    """Return the problem of a ledger, with the true dependency graph.

    ``info["needs"][i]`` lists the lines that line i looks up directly, ``info["plans"]`` the plan lines, and
    ``info["lines"]`` the lines of the :class:`Ledger`, needed for demonstrations.
    """
    lines = work_out(ledger)
    prompt = "; ".join(line.text for line in lines) + "?"
    info = {
        "lines": ledger.lines,
        "needs": tuple(line.needs for line in lines),
        "plans": tuple(i for i, line in enumerate(ledger.lines) if line[0] == "plan"),
    }
    return Problem(id=f"{source}:{prompt}", prompt=prompt, answers=(lines[-1].result,), source=source, info=info)


def demonstrate(problem: Problem, rng: random.Random, *, slip_rate: Sequence[float] = SLIP_RATE) -> str:
    """Return a worked response to ``problem``, with deliberate slips in plans at ``slip_rate[digit]``."""
    ledger = Ledger(problem.info["lines"])
    slips = [line[0] == "plan" and rng.random() < slip_rate[int(line[2])] for line in ledger.lines]
    steps: list[str] = []
    lines = work_out(ledger, slips)
    for index, line in enumerate(lines):
        steps.append(f"{rng.choice(CONNECTIVES)}{line.step}")
        if rng.random() < RECHECK_RATE and ledger.lines[index][0] != "plan":
            steps.append(f"{rng.choice(RECHECKS)}{LABELS[index]}: {line.result}")
    steps.append(f"{rng.choice(CONNECTIVES)}\\boxed{{{lines[-1].result}}}")
    return STEP_END.join(steps)


def line_of_step(step_text: str) -> int | None:
    """Return the index of the ledger line that a step solves; None for a recheck, the boxed answer, or nonsense."""
    words = step_text.strip().split(" ", 1)
    if len(words) < 2 or f"{words[0]} " not in CONNECTIVES or not words[1] or words[1][0] not in LABELS:
        return None
    return LABELS.index(words[1][0])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a lossless tokenizer for ledgers: one token per digit, label, symbol and word."""
    words = [
        STEP_END, "\\boxed{", "}", ": ", "; ", "?", "+", "-", "=",
        *string.digits, *SYMBOLS, *CONNECTIVES, *RECHECKS, *LABELS,
    ]  # fmt: skip
    return build_word_tokenizer(words, r"\n\n|\\boxed\{|[a-z]+ |: |; |.")


@dataclass(frozen=True)
class LedgerTask(DemonstratedTask):
    """A procedural task of ledgers with one :class:`LedgerShape`."""

    name: str
    shape: LedgerShape
    fits_prompts = False
    knows_dependencies = True

    def draw(self, rng: random.Random) -> Problem:
        """Return one problem with a true dependency graph."""
        return make_problem(draw_ledger(self.shape, rng), self.name)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Return a worked response, with deliberate slips."""
        return demonstrate(problem, rng)

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer of all ledger models."""
        return build_tokenizer()
