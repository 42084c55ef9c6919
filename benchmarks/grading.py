"""Answers graded per second, by spelling and by the comparison of values in worker processes.

    python benchmarks/grading.py --answers 100000 --data ../shared/data/dapo_math_train.parquet

Prints JSON. The mix: half of the responses box the true answer as it is written, a quarter another problem's answer,
a tenth nothing, and the rest the true answer in other words (a fraction of twice it, with a unit, as an equation). In
the mixed run one in a hundred is hostile (``hostile_answers.py``). The baseline ``math_verify_in_process`` is plain
``verify(parse(gold), parse(response))`` in this process without any deadline, on the start of the same mix without
hostile answers (the baseline never returns from a hostile answer).
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hostile_answers import HOSTILE, numbered

from attnrl.data.datasets import load_problems
from attnrl.grading.registry import build_grader
from attnrl.grading.worker_pool import WorkerPool
from attnrl.types import Problem

BATCH = 4_096  # responses handed to the grader at once: a training step's, about


def built_in_problems() -> list[Problem]:
    golds = [str(n) for n in range(85)]
    golds += [
        "\\frac{3}{7}",
        "2\\sqrt{5}",
        "x^2-4x+4",
        "(3,\\frac{\\pi}{2})",
        "\\frac{\\sqrt{3}}{2}",
        "[0,1)",
        "12\\pi",
    ]
    golds += [
        "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
        "y=2x+3",
        "3,-3",
        "45^\\circ",
        "\\text{even}",
        "1+2i",
        "0.25",
        "A",
    ]
    return [Problem(f"built-in:{n}", "?", (gold,)) for n, gold in enumerate(golds)]


def realistic_mix(problems: Sequence[Problem], count: int, seed: int = 0) -> tuple[list[Problem], list[str]]:
    rng = random.Random(seed)
    chosen = rng.choices(problems, k=count)
    return chosen, [_response(rng, problem, problems) for problem in chosen]


def _response(rng: random.Random, problem: Problem, problems: Sequence[Problem]) -> str:
    gold, kind = problem.answers[0], rng.random()
    if kind < 0.5:
        answer = gold
    elif kind < 0.75:
        answer = rng.choice(problems).answers[0]
    elif kind < 0.85:
        return "<think>It is hard.</think> I do not know."
    elif gold.isdigit():
        n = rng.randrange(2, 1000)
        answer = rng.choice([f"\\frac{{{n * int(gold)}}}{{{n}}}", f"x = {gold}", f"{gold} \\text{{ cm}}"])
    else:
        answer = rng.choice([f"{gold} + {rng.randrange(9)}", f"x = {gold}", f"1 \\cdot {gold}"])
    return f"<think>Let me see. \\boxed{{1}}?</think> So it is $\\boxed{{{answer}}}$."


def with_hostile(
    problems: Sequence[Problem], responses: Sequence[str], every: int = 100
) -> tuple[list[Problem], list[str]]:
    """Return problems and responses with one in ``every`` replaced by a hostile answer, each kind in turn."""
    names, mixed = list(HOSTILE), list(zip(problems, responses, strict=True))
    for n in range(0, len(mixed), every):
        text, answer = numbered(names[n // every % len(names)], n)
        mixed[n] = (replace(mixed[n][0], prompt=text), f"\\boxed{{{answer}}}")
    return [problem for problem, _ in mixed], [response for _, response in mixed]


def measure(name: str, workers: int, problems: Sequence[Problem], responses: Sequence[str]) -> dict[str, object]:
    verdicts: Counter[str] = Counter()
    slowest = worker_rss = 0.0
    with build_grader(name, workers=workers) as grader:
        # The workers' start is not counted: it is once a run.
        grader.grade([Problem(str(n), "?", (str(n),)) for n in range(64)], [f"\\boxed{{{n}+0}}" for n in range(64)])
        started = time.perf_counter()
        for start in range(0, len(responses), BATCH):
            batch_started = time.perf_counter()
            grades = grader.grade(problems[start : start + BATCH], responses[start : start + BATCH])
            slowest = max(slowest, time.perf_counter() - batch_started)
            verdicts.update(grade.verdict for grade in grades)
            worker_rss = max([worker_rss, *map(_peak_rss_mb, worker_ids(grader))])
        seconds = time.perf_counter() - started
    return {
        "answers": len(responses),
        "seconds": round(seconds, 2),
        "answers_per_second": round(len(responses) / seconds, 1),
        "slowest_batch_seconds": round(slowest, 2),
        "largest_worker_mb": round(worker_rss),
        "verdicts": dict(verdicts),
        "without_verdict": len(responses) - sum(verdicts.values()),
    }


def worker_ids(grader: object) -> list[int]:
    pool = getattr(grader, "pool", None)
    return [worker.process.pid for worker in pool._workers] if pool else []


def _peak_rss_mb(process: int) -> float:
    """Of a worker alive at a batch's end; not the resource module's, which counts the parent's before the exec."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def math_verify_in_process(problems: Sequence[Problem], responses: Sequence[str]) -> dict[str, object]:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    started, correct = time.perf_counter(), 0
    for problem, response in zip(problems, responses, strict=True):
        gold = parse(f"\\boxed{{{problem.answers[0]}}}", parsing_timeout=None)
        correct += verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None)
    seconds = time.perf_counter() - started
    return {
        "answers": len(responses),
        "seconds": round(seconds, 2),
        "answers_per_second": round(len(responses) / seconds, 1),
        "correct": correct,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000, help="of the mixed run")
    parser.add_argument("--clean", type=int, default=10_000, help="of the runs without hostile answers")
    parser.add_argument("--baseline", type=int, default=1_500, help="of the baseline")
    parser.add_argument("--data", type=Path, help="problems whose true answers are used; else a built-in hundred")
    arguments = parser.parse_args()
    known = load_problems(arguments.data) if arguments.data else built_in_problems()
    problems, responses = realistic_mix(known, arguments.answers)
    clean = problems[: arguments.clean], responses[: arguments.clean]
    short = problems[: arguments.baseline], responses[: arguments.baseline]
    report: dict[str, object] = {"data": str(arguments.data or "built-in"), "default_workers": WorkerPool().size}
    report["rules"] = measure("rules", 1, problems, responses)
    for workers in (1, 2):
        report[f"math_{workers}_workers"] = measure("math", workers, *clean)
    baseline, same = math_verify_in_process(*short), measure("math", 2, *short)
    report["math_verify_in_process"] = baseline
    report["math_2_workers_on_the_same"] = same
    report["ratio_to_math_verify_in_process"] = round(float(baseline["seconds"]) / float(same["seconds"]), 2)  # type: ignore[arg-type]
    report["mixed_1_percent_hostile_2_workers"] = measure("math", 2, *with_hostile(problems, responses))
    report["parent_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
