"""Ledgers: procedural multi-step problems whose plans are looked up by many later steps.

A ledger is a list of labelled lines, worked through one line a step. Accounts are single digits, and all
arithmetic is modulo 10::

    A#=4; B=5; C2#; D3+; E4#; F@=7; G=D; H1#; I4@; JC+?

* A *plan* (``A#=4``) says what a symbol means, by one digit: even adds, odd subtracts.
* A *start* (``B=5``, ``G=D``) opens a section with a digit or with an earlier line's result.
* An *entry* changes the running result: ``C2#`` adds or subtracts 2, whichever the symbol means, ``D3+`` adds 3,
  ``JC+`` adds line C's result.

The answer is the last line's result. A response copies each line and works it out, one step a line, each
opened by a connective that means nothing; an entry's step adds what it had to look up, then the result before and
after; some steps only repeat the last result; the last step boxes the answer::

    so A#=4: #+\n\nthen B=5: 5\n\nnow C2#+: 5=7\n\n ... and JC+7: 7=4\n\nthus \\boxed{4}

A wrong plan spoils every later line that looks it up, and nothing local gives it away: that is what process
supervision has to find. Demonstrations for the supervised base model slip there on purpose, at a rate
decided by the plan's digit (:data:`SLIP_RATE`), so some ledgers are always solved by the base model,
some never, and most now and then. The true dependency graph of each ledger is kept in ``Problem.info``.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnrl.tasks.word_tokenizer import build_word_tokenizer
from attnrl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYMBOLS = "#@&$"
LABELS = string.ascii_uppercase
CONNECTIVES = ("so ", "now ", "then ", "next ", "well ", "okay ", "thus ", "and ")
RECHECKS = ("hmm ", "wait ")
STEP_END = "\n\n"
AMOUNTS = "12346789"  # of entries that apply a symbol; 5 and 0 are the same in both directions, and would hide a slip

# Chance that a demonstration reads the plan's direction wrongly, by the plan's digit. Even digits are never
# misread; that odd ones subtract is forgotten now and then, and nearly always for 9.
SLIP_RATE = (0.0, 0.4, 0.0, 0.4, 0.0, 0.6, 0.0, 0.6, 0.0, 0.95)
RECHECK_RATE = 0.12


@dataclass(frozen=True)
class Line:
    """One line of a ledger and the earlier lines (indices) whose results it needs."""

    text: str  # in the problem
    step: str  # in a response, after the connective
    result: str
    needs: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """How large ledgers of a task are: inclusive ranges.

    Attributes:
        sections: sections of a ledger.
        entries: entries of a section.
        plans: plans that open each section and are not decoys.
        min_uses: entries that look up each of them, at least.
        decoy_rate: chance of one more plan, which nothing looks up.
    """

    sections: tuple[int, int]
    entries: tuple[int, int]
    decoy_rate: float
    plans: int = 1
    min_uses: int = 3


SHAPES = {
    "ledger": Shape(sections=(2, 2), entries=(4, 5), decoy_rate=0.25),
    "ledger_long": Shape(sections=(3, 3), entries=(4, 7), decoy_rate=0.5),
}
# The first stage of supervised training: several plans, looked up in turn. With a single plan a model learns to
# take the last one it saw, whatever the symbol, and hardly unlearns it.
SINGLE_SECTION = Shape(sections=(1, 1), entries=(6, 10), decoy_rate=0.0, plans=3, min_uses=1)


@dataclass(frozen=True)
class Ledger:
    """What a ledger says, before anything is worked out.

    Each line is ``("plan", symbol, digit)``, ``("start", digit)``, ``("start", "line N")``, ``("apply", symbol,
    amount)``, ``("add", amount)`` or ``("ref", N)``; lines are referred to by index.
    """

    lines: tuple[tuple[str, ...], ...]


def direction_of(digit: int, *, slip: bool = False) -> str:
    """What a plan's digit says: ``+`` if even, ``-`` if odd; a slip reads it the wrong way round."""
    return "+" if (digit % 2 == 0) != slip else "-"


def draw_ledger(shape: Shape, rng: random.Random) -> Ledger:
    """Draw a ledger in which every plan that is not a decoy is looked up often enough."""
    while True:
        ledger = _draw_once(shape, rng)
        if ledger is not None:
            return ledger


def _draw_once(shape: Shape, rng: random.Random) -> Ledger | None:
    sections = rng.randint(*shape.sections)
    symbols = rng.sample(SYMBOLS, len(SYMBOLS))
    decoy_section = rng.randrange(sections) if rng.random() < shape.decoy_rate else -1
    lines: list[tuple[str, ...]] = []
    results: list[int] = []  # indices of lines that hold a result (not plans)
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
                # Earlier plans keep mattering in later sections, at any distance.
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
    """Work a ledger out line by line; ``slips[i]`` misreads the plan on line i."""
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
    """The problem a ledger poses, with its true dependency graph.

    ``info["needs"][i]`` lists the lines that line i looks up directly, ``info["plans"]`` the plan lines, and
    ``info["lines"]`` the ledger itself, from which a demonstration can be written.
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
    """A worked response to ``problem``, with deliberate slips in plans at ``slip_rate[digit]``."""
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
    """Which ledger line a response step works on, or None (a recheck, the boxed answer, nonsense)."""
    words = step_text.strip().split(" ", 1)
    if len(words) < 2 or f"{words[0]} " not in CONNECTIVES or not words[1] or words[1][0] not in LABELS:
        return None
    return LABELS.index(words[1][0])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that gives ledgers one token a digit, label, symbol or word, and loses no text."""
    words = [
        STEP_END, "\\boxed{", "}", ": ", "; ", "?", "+", "-", "=",
        *string.digits, *SYMBOLS, *CONNECTIVES, *RECHECKS, *LABELS,
    ]  # fmt: skip
    return build_word_tokenizer(words, r"\n\n|\\boxed\{|[a-z]+ |: |; |.")


@dataclass(frozen=True)
class LedgerTask:
    """A procedural task of ledgers of one shape."""

    name: str
    shape: Shape

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem."""
        return make_problem(draw_ledger(self.shape, rng), self.name)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Write one demonstration."""
        return demonstrate(problem, rng)

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of all ledger models."""
        return build_tokenizer()
