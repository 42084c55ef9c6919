"""Graders: rules, the comparison by type in worker processes, and graders of the user.

A response is graded from top to bottom (the rules: docs/grading.md). The modules from ``worker`` on run in the worker
processes; sympy, mpmath and math-verify are imported there only, inside functions.

=====================  ================================================================================
registry               the table of graders by name, ``build_grader``
standalone             ``grade`` and ``grade_batch``, for other projects
base, rules, custom    the base class; equal spelling; graders of the user
rewards                rewards of a run: grader, reward functions, truncation, overlong penalty
functions, calls       signatures and arguments of reward functions; calls under a time limit
not_judged             the line on responses without a reward, with the most frequent reasons
golds                  the search for true answers without a meaning, before a run
answers                boxes, the text after ``</think>``, true answers of data sets
math                   the ``math`` grader in the parent: equal spelling, plain numbers, jobs, cache
worker_pool, jobs      processes, deadlines, memory; the records of jobs and results
worker, judge          the loop of a worker; read both texts -> compare by type -> guards
reading/               text to typed values
  spelling             equality without mathematics
  characters, commands, tokens, letters       signs, LaTeX commands, tokens; functions, words and variables
  reader, sides, sums, factors, atoms, brackets, functions, words, cursor    one level of the grammar each
  expressions, values                         the trees of expressions; the types of answers
  units, unit_table                           units of measurement
  statement, formulas, rewriting              facts and expressions of the problem; substitution
comparing/             by the type of the true answer
  compare              the table ``COMPARISONS``: type -> function
  same_number, quantities, equations, relations, regions, listings, choices, notations    one kind of type each
  comparison, signs, derivatives              item by item; both signs of plus-minus; primes and quotients
  algebra, expression_size                    math-verify, and its limits
arithmetic/            values of expressions
  evaluation           equality: exact, numeric at growing precision, at pseudo-random points
  exact, rationals, numeric, points, limits   parts of an evaluation, and the budget of work
guards/                answers of the right value without the work
  guesses              the question of the judge: all guards, on each expression of an answer
  copies, identities   copies of the problem, work left; identities that restate an expression
  forms                forms that a problem asks for: factored, expanded, lowest terms, percent
  normal_form, terms, literals                forms without order and brackets; literal numbers
=====================  ================================================================================

The public names are imported on first use (PEP 562): a worker process imports the package without the grader.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnrl.grading.standalone import grade, grade_batch

__all__ = ["grade", "grade_batch"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("attnrl.grading.standalone"), name)
