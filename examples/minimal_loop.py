"""Train the shipped model with AttnRL, whole in one file: the method from ``attnrl.method`` and ``attnrl.fci``.

    python examples/minimal_loop.py --steps 3

Each equation is one call into :mod:`attnrl.method`; all else is plain PyTorch and transformers: ``model.generate``, one
sequence per forward, no packing, no checkpoints. ``attnrl train attnrl`` runs the same method, faster and resumable.
Three steps of 8 problems take about half a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attnrl.fci import forward_context_influence
from attnrl.method.adaptive import BatchSizeController, RunningMean, choose_trunks, expansion_count, keep_problem
from attnrl.method.branching import CRITERIA, RolloutSignals, branch_points
from attnrl.method.forest import Forest, Node, Tree
from attnrl.method.loss import policy_loss
from attnrl.method.ranking import mask_influence, mean_influence
from attnrl.method.steps import Steps, split_steps
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

TRUNKS, POINTS, SAMPLES = 6, 2, 2  # n, N and T of the paper
MAX_NEW_TOKENS, LEARNING_RATE = 256, 3e-4
Tokens = tuple[int, ...]


@dataclass
class Trunk:
    """An initial response with the log-probs of the policy that sampled its tokens, its steps and their FCI."""

    tokens: Tokens
    logprobs: list[float]
    reward: float
    steps: Steps
    influence: tuple[float, ...]


@dataclass
class Group:
    """A problem, its prompt and its trunks."""

    problem: Problem
    prompt: Tokens
    trunks: list[Trunk]


class Loop:
    """One-step off-policy AttnRL: one generation per training step, with the continuations and the next trunks."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: int, seed: int) -> None:
        self.model, self.tokenizer, self.rng = model, tokenizer, random.Random(seed)
        self.task = find_task("ledger")
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.solved_fci = RunningMean()
        target = prompts * TRUNKS * (1 + POINTS * SAMPLES)
        self.batch = BatchSizeController(batch=prompts, target=target, minimum=1, maximum=4 * prompts)
        self.pending: list[Group] = []

    @torch.no_grad()
    def sample(self, contexts: list[tuple[Tokens, int]]) -> list[Tokens]:
        """Continue each ``(context, budget)`` at temperature 1, up to the end-of-sequence token or the budget."""
        width, end = max(len(context) for context, _ in contexts), self.tokenizer.eos_token_id
        ids = torch.full((len(contexts), width), end)
        for row, (context, _) in enumerate(contexts):
            ids[row, width - len(context) :] = torch.tensor(context)
        mask = torch.arange(width) >= width - torch.tensor([len(context) for context, _ in contexts])[:, None]
        longest = max(budget for _, budget in contexts)
        out = self.model.generate(ids, attention_mask=mask.long(), max_new_tokens=longest, do_sample=True, top_k=0)
        completions = []
        for row, (_, budget) in zip(out[:, width:].tolist(), contexts, strict=True):
            stop = row.index(end) + 1 if end in row else len(row)
            completions.append(tuple(row[: min(stop, budget)]))
        return completions

    def logprobs(self, prompt: Tokens, response: Tokens) -> Tensor:
        """Return the log-probability of each response token, length T."""
        ids = torch.tensor([prompt + response])
        logits = self.model(ids).logits[0, len(prompt) - 1 : -1].float()
        return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1)

    def grade(self, problem: Problem, response: Tokens) -> float:
        """Return 1 if the last box holds the answer, else 0."""
        _, _, boxed = self.tokenizer.decode(response).rpartition("\\boxed{")
        return float(boxed.partition("}")[0] in problem.answers)

    @torch.no_grad()
    def trunk(self, problem: Problem, prompt: Tokens, tokens: Tokens) -> Trunk:
        """Grade and score one initial response: old log-probs, steps, FCI (eq. 4 to 6)."""
        steps = split_steps([self.tokenizer.decode([token]) for token in tokens])
        starts = [len(prompt) + start for start in steps.starts]
        fci = forward_context_influence(self.model, torch.tensor(prompt + tokens), starts).tolist()
        logprobs = self.logprobs(prompt, tokens).tolist()
        return Trunk(tokens, logprobs, self.grade(problem, tokens), steps, mask_influence(fci, steps))

    def plan(self, group: Group) -> dict[int, tuple[int, ...]]:
        """Choose the trunks to expand (eq. 8, 9) and the branch points of each trunk (eq. 7); {} drops the problem."""
        correct = [trunk.reward == 1.0 for trunk in group.trunks]
        fci = mean_influence([trunk.influence for trunk in group.trunks])
        kept, self.solved_fci = keep_problem(correct, fci, self.solved_fci)
        if not kept:
            return {}
        count = expansion_count(sum(correct) / len(correct), len(correct))
        signals = [RolloutSignals(trunk.steps, influence=trunk.influence) for trunk in group.trunks]
        return {
            index: branch_points(signals[index], criterion=CRITERIA["fci"], count=POINTS, rng=self.rng)
            for index in choose_trunks(correct, count, self.rng)
        }

    def step(self) -> dict[str, float]:
        """Take one training step: plan, generate, grade and score, train."""
        plans = [(group, self.plan(group)) for group in self.pending]
        branches = [
            (group, index, at) for group, points in plans for index, ats in points.items() for at in ats * SAMPLES
        ]
        problems = [self.task.draw(self.rng) for _ in range(self.batch.size)]
        prompts = [tuple(self.tokenizer(problem.prompt)["input_ids"]) for problem in problems]
        contexts = [(g.prompt + g.trunks[index].tokens[:at], MAX_NEW_TOKENS - at) for g, index, at in branches]
        completions = self.sample(contexts + [(prompt, MAX_NEW_TOKENS) for prompt in prompts for _ in range(TRUNKS)])
        continuations = list(zip(branches, completions[: len(branches)], strict=True))
        trunks = iter(completions[len(branches) :])
        upcoming = [
            Group(problem, prompt, [self.trunk(problem, prompt, next(trunks)) for _ in range(TRUNKS)])
            for problem, prompt in zip(problems, prompts, strict=True)
        ]
        rows = []
        for group, points in plans:
            rows += self.rows(group, points, [(i, at, tokens) for (g, i, at), tokens in continuations if g is group])
        loss = self.update(rows)
        if self.pending:  # the first step only samples
            self.batch = self.batch.update(len(rows))
        self.pending = upcoming
        accuracy = sum(trunk.reward for group in upcoming for trunk in group.trunks) / (TRUNKS * len(upcoming))
        return {"accuracy of trunks": accuracy, "responses trained": len(rows), "loss": loss}

    @torch.no_grad()
    def rows(
        self, group: Group, points: dict[int, tuple[int, ...]], branches: list[tuple[int, int, Tokens]]
    ) -> list[tuple[Tokens, Tokens, list[float], list[float]]]:
        """Return (prompt, response, old log-probs, advantages) of each path of the expanded trees (eq. 2, 3)."""
        trees, samples = [], []
        for index, trunk in enumerate(group.trunks):
            nodes, own = [Node(None, 0, len(trunk.tokens), trunk.reward)], [(trunk.tokens, trunk.logprobs)]
            for at, tokens in ((at, tokens) for owner, at, tokens in branches if owner == index):
                kept = trunk.tokens[:at]
                nodes.append(Node(0, at, len(tokens), self.grade(group.problem, kept + tokens)))
                own.append((tokens, self.logprobs(group.prompt + kept, tokens).tolist()))
            trees.append(Tree(tuple(nodes), trained=index in points))
            samples.append(own)
        forest = Forest(tuple(trees))
        rows = []
        for path in forest.paths() if forest.has_signal else []:
            if path.trained:
                parts = [(samples[path.tree][node], a, b) for node, a, b in path.spans()]
                response = tuple(token for (tokens, _), a, b in parts for token in tokens[a:b])
                old = [logprob for (_, logprobs), a, b in parts for logprob in logprobs[a:b]]
                rows.append((group.prompt, response, old, path.token_advantages()))
        return rows

    def update(self, rows: list[tuple[Tokens, Tokens, list[float], list[float]]]) -> float:
        """Take one optimizer step on the clipped loss, averaged over all tokens of the batch (eq. 1)."""
        total = sum(len(response) for _, response, _, _ in rows)
        value = 0.0
        for prompt, response, old, advantages in rows:
            new = self.logprobs(prompt, response)
            loss = policy_loss(new, torch.tensor(old), torch.tensor(advantages), denominator=total).loss
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value


def main() -> None:
    """Train the shipped model and print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=8, help="problems per step, before the batch size adapts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    directory = str(files("attnrl") / "models" / "ledger")
    model = AutoModelForCausalLM.from_pretrained(directory)
    loop = Loop(model, AutoTokenizer.from_pretrained(directory), options.prompts, options.seed)
    for step in range(options.steps + 1):
        print(f"step {step}:", ", ".join(f"{name} {value:.4g}" for name, value in loop.step().items()), flush=True)


if __name__ == "__main__":
    main()
