"""Ledgers: procedural multi-step problems whose plans are looked up by many later steps.

A ledger is a list of labelled lines, worked through one line a step. Accounts are single digits, and all
arithmetic is modulo 10::

    A#47; B=5; C#; D+3; E#; F@83; G=D; H#; I@; J+C?

* A *plan* (``A#47``) says what a symbol means. The first digit gives the direction (even adds, odd
  subtracts), the sum of both the amount: 4 is even and 4 + 7 is 1, so ``#`` adds 1.
* A *start* (``B=5``, ``G=D``) opens a section with a digit or with an earlier line's result.
* An *entry* changes the running result: ``C#`` applies a symbol, ``D+3`` adds a digit, ``J+C`` adds an
  earlier line's result.

The answer is the last line's result. A response copies each line and works it out, one step a line, each
opened by a connective that means nothing; an entry's step says by how much the result changes, looked up where
need be, then the result before and after; some steps only repeat the last result; the last step boxes the
answer::

    so A#47: #+1\n\nthen B=5: 5\n\nnow C#+1: 5=6\n\nand D+3: 6=9\n\n ... thus \\boxed{7}

A wrong plan spoils every later line that looks it up, and nothing local gives it away: that is what process
supervision has to find. Demonstrations for the supervised base model slip there on purpose, at a rate
decided by the plan's first digit (:data:`SLIP_RATE`), so some ledgers are always solved by the base model,
some never, and most now and then. The true dependency graph of each ledger is kept in ``Problem.info``.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnrl.tasks.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYMBOLS = "#@&$"
LABELS = string.ascii_uppercase
CONNECTIVES = ("so ", "now ", "then ", "next ", "well ", "okay ", "thus ", "and ")
RECHECKS = ("hmm ", "wait ")
STEP_END = "\n\n"

# Chance that a demonstration reads the plan's direction wrongly, by the plan's first digit. Even digits are never
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
    """How large ledgers of a task are: inclusive ranges."""

    sections: tuple[int, int]
    entries: tuple[int, int]
    decoy_rate: float


SHAPES = {
    "ledger": Shape(sections=(2, 2), entries=(4, 5), decoy_rate=0.25),
    "ledger_long": Shape(sections=(3, 3), entries=(4, 7), decoy_rate=0.5),
}
# The first stage of supervised training. Without a decoy in every ledger a model learns to look up the last plan
# instead of the symbol's, and hardly unlearns it.
SINGLE_SECTION = Shape(sections=(1, 1), entries=(3, 6), decoy_rate=1.0)
MIN_USES = 3  # entries that look up each plan that is not a decoy


@dataclass(frozen=True)
class Ledger:
    """What a ledger says, before anything is worked out.

    Each line is ``("plan", symbol, first, second)``, ``("start", digit_or_line)``, ``("apply", symbol)``,
    ``("add", digit)`` or ``("ref", line)``; lines are referred to by index.
    """

    lines: tuple[tuple[str, ...], ...]


def plan_meaning(first: int, second: int, *, slip: bool = False) -> tuple[str, int]:
    """Direction and amount of a symbol; a slip reads the direction the wrong way round."""
    adds = (first % 2 == 0) != slip
    return ("+" if adds else "-"), (first + second) % 10


def draw_ledger(shape: Shape, rng: random.Random) -> Ledger:
    """Draw a ledger in which every plan that is not a decoy is looked up by at least three entries."""
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
        own = symbols.pop()
        plans = [own] + ([symbols.pop()] if section == decoy_section else [])
        for symbol in rng.sample(plans, len(plans)):
            lines.append(("plan", symbol, *_plan_digits(rng)))
        known.append(own)
        uses[own] = 0
        start = f"line {rng.choice(results)}" if results else str(rng.randrange(10))
        lines.append(("start", start))
        results.append(len(lines) - 1)
        entries = rng.randint(*shape.entries)
        for _ in range(entries):
            kind = rng.choices(("apply", "add", "ref"), weights=(6, 2, 2))[0]
            if kind == "apply":
                # Earlier plans keep mattering in later sections, at any distance.
                symbol = own if rng.random() < 0.6 else rng.choice(known)
                uses[symbol] += 1
                lines.append(("apply", symbol))
            elif kind == "add":
                lines.append(("add", str(rng.randrange(1, 10))))
            else:
                lines.append(("ref", str(rng.choice(results))))
            results.append(len(lines) - 1)
    enough = all(count >= MIN_USES for count in uses.values())
    return Ledger(tuple(lines)) if enough and len(lines) <= len(LABELS) else None


def _plan_digits(rng: random.Random) -> tuple[str, str]:
    first = rng.randrange(10)
    # An amount of 0 or 5 is the same in both directions: a slip would not show.
    second = rng.choice([digit for digit in range(10) if (first + digit) % 5])
    return str(first), str(second)


def work_out(ledger: Ledger, slips: Sequence[bool] | None = None) -> list[Line]:
    """Work a ledger out line by line; ``slips[i]`` misreads the plan on line i."""
    meaning: dict[str, tuple[int, str, int]] = {}
    values: list[int] = []
    lines: list[Line] = []
    for index, (kind, *args) in enumerate(ledger.lines):
        label = LABELS[index]
        if kind == "plan":
            symbol, first, second = args
            direction, amount = plan_meaning(int(first), int(second), slip=bool(slips and slips[index]))
            meaning[symbol] = (index, direction, amount)
            values.append(-1)
            text = f"{label}{symbol}{first}{second}"
            lines.append(Line(text, f"{text}: {symbol}{direction}{amount}", f"{direction}{amount}", ()))
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
            if kind == "apply":
                plan, direction, amount = meaning[args[0]]
                text, needs = f"{label}{args[0]}", (*needs, plan)
            elif kind == "add":
                direction, amount = "+", int(args[0])
                text = f"{label}+{amount}"
            else:
                source = int(args[0])
                direction, amount = "+", values[source]
                text, needs = f"{label}+{LABELS[source]}", (*needs, source)
            value = (before + amount if direction == "+" else before - amount) % 10
            looked_up = "" if kind == "add" else f"{direction}{amount}"
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
    """A worked response to ``problem``, with deliberate slips in plans at ``slip_rate[first digit]``."""
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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "<pad>", "<eos>", "<unk>", STEP_END, "\\boxed{", "}", ": ", "; ", "?", "+", "-", "=",
        *string.digits, *SYMBOLS, *CONNECTIVES, *RECHECKS, *LABELS,
    ]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    pieces = Regex(r"\n\n|\\boxed\{|[a-z]+ |: |; |.")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


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
