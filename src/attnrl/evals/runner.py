"""``attnrl eval``: sample, grade and summarize responses of models to suites, in chunks, with resume.

A chunk is appended to ``samples.jsonl`` as soon as all responses of the chunk are graded; a crash loses at most one
chunk. The seed of a response depends only on the evaluation's seed, the benchmark, the problem and the sample number,
and chunk bounds do not depend on finished responses. A resumed evaluation therefore samples the missing responses in
the same batches, with the same results, as an uninterrupted evaluation.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from attnrl.errors import GraderError, UserError
from attnrl.evals.batching import MAX_BATCH, chunk_size, missing_chunks, rows_that_fit
from attnrl.evals.candidates import Candidate, SuitePlan, open_candidate, sample_seed
from attnrl.evals.directory import EvalDirectory
from attnrl.evals.record import Outcomes, OutcomesByPlan, add_result, finished_outcomes, initial_record, outcome_of
from attnrl.evals.settings import EvalSettings, open_rewards
from attnrl.evals.suites import Suite
from attnrl.evals.summary import Summary, summarize_outcomes
from attnrl.evals.tables import EvalProgress, Report
from attnrl.grading.rewards import RewardManager
from attnrl.inference.sampler import build_sampler, check_cache
from attnrl.local.loading import choose_device
from attnrl.rl.evaluation import respond
from attnrl.utils.console import print_line


class EvaluationRun:
    """One evaluation of models on suites: :meth:`run` samples and grades all responses not in ``output`` yet."""

    def __init__(
        self,
        models: Sequence[str],
        suites: Sequence[Suite],
        settings: EvalSettings,
        *,
        console: Console,
        device: str = "auto",
        output: Path | None = None,
        chunk: int | None = None,
        max_batch: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Open all models but their weights, and read the results in ``output``. Nothing is written.

        Args:
            models: names of models, see :func:`attnrl.local.model_names.find_model`.
            suites: the suites.
            settings: sampling, prompts and grading.
            console: console for progress and notes.
            device: device of sampling.
            output: directory to write to, or to resume from; None writes nothing.
            chunk: responses per chunk; by default about a minute's work of a CPU, or four batches of a GPU.
            max_batch: largest batch size; by default as many rows as fit in memory.
            trust_remote_code: whether Python code in the models' directories may run.

        Raises:
            UserError: a model is given twice or cannot be opened, or ``output`` holds another evaluation.
        """
        if len(set(models)) < len(models):
            raise UserError("the same model is given more than once")
        self.suites = suites
        self.settings = settings
        self.console = console
        self.output = output
        self.chunk = chunk
        self.max_batch = max_batch or MAX_BATCH
        self.device = choose_device(device)
        self.candidates = [open_candidate(model, suites, settings, trust_remote_code) for model in models]
        self.directory = EvalDirectory(output) if output is not None else None
        previous = self.directory.read_results() if self.directory is not None else None
        self.record = initial_record(previous, self.candidates, suites, settings, self.device)
        self.outcomes: OutcomesByPlan = {}
        if self.directory is not None and previous is not None:
            self.outcomes = finished_outcomes(self.directory, self.candidates)
        self.total = sum(len(plan.sample_requests) for candidate in self.candidates for plan in candidate.plans)

    def run(self) -> Report:
        """Sample and grade the missing responses, write samples and results, and return the report.

        Raises:
            UserError: the grader or the first model cannot be loaded (before anything is written), or a later model
                cannot be loaded.
            KeyboardInterrupt: interrupted; all finished chunks are written.
        """
        report = Report([candidate.name for candidate in self.candidates], [(s.name, s.title) for s in self.suites])
        with open_rewards(self.settings) as rewards:
            rewards.probe([problem for suite in self.suites for problem in suite.problems])
            for note in self._notes(rewards):
                print_line(self.console, note)
            loaded = self._load_needed()
            try:
                if self.directory is not None:
                    self.directory.open()
                self._write_record()
                with EvalProgress(self.console, self.total, self._finished()) as progress:
                    for candidate in self.candidates:
                        self._evaluate(candidate, loaded.pop(candidate.name, None), rewards, progress, report)
                        _free_memory(self.device)
                self.record["averages"] = report.averages()
                self.record["complete"] = True
                self._write_record()
            except KeyboardInterrupt:
                print_line(self.console, self._interrupted())
                raise
            finally:
                if self.directory is not None:
                    self.directory.close()
        return report

    def require_judged(self) -> None:
        """Check that every response has a verdict, also the responses of earlier sessions.

        Raises:
            GraderError: with the number of responses without a verdict.
        """
        outcomes = [outcome for of_plan in self.outcomes.values() for outcome in of_plan.values()]
        missing = sum(outcome.verdict == "not_judged" for outcome in outcomes)
        if missing:
            raise GraderError(
                f"{missing:,} of {len(outcomes):,} responses were not judged, because the grader failed; to judge the "
                "responses, evaluate again into another directory"
            )

    def _finished(self) -> int:
        return sum(map(len, self.outcomes.values()))

    def _outcomes_of(self, candidate: Candidate, plan: SuitePlan) -> Outcomes:
        return self.outcomes.setdefault((candidate.name, plan.suite.name), {})

    def _write_record(self) -> None:
        if self.directory is not None:
            self.directory.write_results(self.record)

    def _notes(self, rewards: RewardManager) -> Iterator[str]:
        """Yield remarks on the suites, on problems without usable answer, and on the limits of the models."""
        for suite in self.suites:
            yield from suite.notes
            for gold in rewards.unusable_golds(suite.problems):
                where = suite.problems[gold.row].where
                yield f"{suite.name}, {where}: its true answer {gold.answers[0][:60]!r} {gold.reason}."
        for candidate in self.candidates:
            yield from candidate.notes
            yield from (f"{candidate.name}: {note}" for note in candidate.renderer.notes)
            for plan in candidate.plans:
                name = f"{candidate.name}, {plan.suite.name}"
                yield from (f"{name}: {remark}" for remark in plan.remarks)
                if plan.skipped:
                    yield f"{name}: {len(plan.skipped)} prompts too long for the model; they count as not solved."
                if plan.shortened:
                    yield (
                        f"{name}: the model has {candidate.positions:,} positions, so responses end there and not "
                        f"after {plan.suite.max_new_tokens:,} tokens."
                    )
            first, *more = candidate.renderer.show(self.suites[0].problems[0])
            yield from (f"{candidate.name}, {first}", *more)
        if finished := self._finished():
            yield f"{finished:,} samples are in {self.output} already."

    def _interrupted(self) -> str:
        finished = self._finished()
        if self.output is None:
            return f"Stopped after {finished:,} of {self.total:,} samples; without --output nothing is kept."
        return f"Stopped: {finished:,} of {self.total:,} samples are in {self.output}. The same command resumes."

    def _load_needed(self) -> dict[str, PreTrainedModel]:
        """Load each model with missing responses, so that faulty weights raise before anything is written.

        Returns:
            The first of the models by name; the others are released again and loaded when their turn comes.

        Raises:
            UserError: a model cannot be loaded or sampled.
        """
        needed = [
            candidate
            for candidate in self.candidates
            if any(len(plan.sample_requests) > len(self._outcomes_of(candidate, plan)) for plan in candidate.plans)
        ]
        for candidate in reversed(needed):
            loaded = candidate.load(self.device, self.settings.dtype)
            slower = check_cache(loaded.model)
            for note in (*loaded.notes, *([f"{candidate.name}: {slower}"] if slower else [])):
                print_line(self.console, note)
            if candidate is needed[0]:
                return {candidate.name: loaded.model}
            del loaded
            _free_memory(self.device)
        return {}

    def _evaluate(
        self,
        candidate: Candidate,
        model: PreTrainedModel | None,
        rewards: RewardManager,
        progress: EvalProgress,
        report: Report,
    ) -> None:
        """Sample and grade the missing responses of one model, suite by suite; load ``model`` if needed."""
        for plan in candidate.plans:
            progress.begin(f"{candidate.name} · {plan.suite.title}")
            if len(self._outcomes_of(candidate, plan)) < len(plan.sample_requests):
                if model is None:
                    model = candidate.load(self.device, self.settings.dtype).model
                self._sample(candidate, plan, model, rewards, progress)
            summary = self._summarize(candidate, plan)
            report.add(candidate.name, plan.suite.name, summary)
            add_result(self.record, candidate.name, plan, summary)
            self._write_record()

    def _sample(
        self,
        candidate: Candidate,
        plan: SuitePlan,
        model: PreTrainedModel,
        rewards: RewardManager,
        progress: EvalProgress,
    ) -> None:
        """Sample and grade the missing responses of one plan, and append the samples chunk by chunk."""
        outcomes = self._outcomes_of(candidate, plan)
        batch = min(rows_that_fit(model, plan.sample_requests), self.max_batch)
        sampler = build_sampler(
            model,
            candidate.renderer.tokenizer,
            self.settings.sampling,
            max_batch=batch,
            on_progress=progress.sampled,
        )
        size = self.chunk or chunk_size(model, plan.sample_requests, batch)
        for missing in missing_chunks(plan.sample_requests, size, outcomes):
            samples = respond(missing, sampler=sampler, rewards=rewards, renderer=candidate.renderer)
            for note in rewards.take_notes():
                print_line(self.console, f"{candidate.name}, {plan.suite.name}: {note}")
            key = {"model": candidate.name, "benchmark": plan.suite.name}
            rows = [{**key, **sample.as_dict()} for sample in samples]
            if self.directory is not None:
                self.directory.append(rows)
            outcomes |= {(sample.problem, sample.sample): outcome_of(sample.as_dict()) for sample in samples}
            progress.finished(len(rows), sum(sample.tokens for sample in samples))

    def _summarize(self, candidate: Candidate, plan: SuitePlan) -> Summary:
        """Summarize the outcomes in the order of the requests, independent of the order of completion."""
        outcomes = self._outcomes_of(candidate, plan)
        ordered = [outcomes[sampled.problem.id, sampled.sample] for sampled in plan.sample_requests]
        seed = sample_seed(self.settings.seed, plan.suite.name, "bootstrap", 0)
        return summarize_outcomes(ordered, samples=plan.suite.samples, skipped=len(plan.skipped), seed=seed)


def _free_memory(device: torch.device) -> None:
    """Release the memory of a model without references, before the next model is loaded."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
