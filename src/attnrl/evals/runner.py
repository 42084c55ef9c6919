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

from attnrl.errors import GraderError, RunError, UserError, one_line
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


class _ModelError(Exception):
    """A model cannot be loaded or sampled; the message is one line."""


class EvaluationRun:
    """One evaluation of models on suites: :meth:`run` samples and grades all responses not in ``output`` yet.

    Of several models a model that fails is left out, and the evaluation goes on with the others.

    Attributes:
        candidates: the models, without the models that failed.
        failures: message of each model that failed, by name.
    """

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
            UserError: a model is given twice, no model can be opened, or ``output`` holds another evaluation.
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
        self.failures: dict[str, str] = {}
        self.candidates: list[Candidate] = []
        for model in models:
            try:
                self.candidates.append(open_candidate(model, suites, settings, trust_remote_code))
            except UserError as error:
                self.failures[model] = one_line(error)
        if not self.candidates:
            raise UserError(next(iter(self.failures.values())))
        self.directory = EvalDirectory(output) if output is not None else None
        previous = self.directory.read_results() if self.directory is not None else None
        self.record = initial_record(previous, self.candidates, suites, settings, self.device)
        self.record["failures"] = self.failures
        self.outcomes: OutcomesByPlan = {}
        if self.directory is not None and previous is not None:
            self.outcomes = finished_outcomes(self.directory, self.candidates)

    @property
    def total(self) -> int:
        """Return the number of responses to sample and grade, finished responses included."""
        return sum(len(plan.sample_requests) for candidate in self.candidates for plan in candidate.plans)

    def require_all_models(self) -> None:
        """Check that no model failed.

        Raises:
            RunError: names each model that failed, with the reason.
        """
        if self.failures:
            reasons = "; ".join(f"{name} ({message})" for name, message in self.failures.items())
            models = len(self.failures) + len(self.candidates)
            raise RunError(f"{len(self.failures)} of {models} models failed: {reasons}")

    def _leave_out(self, candidate: Candidate, error: _ModelError) -> None:
        """Leave out a model that failed while other models are left.

        Raises:
            UserError: no model is left.
        """
        self.failures[candidate.name] = one_line(error)
        self.candidates.remove(candidate)
        if not self.candidates:
            raise UserError(next(iter(self.failures.values())))
        print_line(self.console, _left_out(candidate.name, self.failures[candidate.name]))

    def run(self) -> Report:
        """Sample and grade the missing responses, write samples and results, and return the report.

        Raises:
            UserError: the grader or every model cannot be loaded. Raised before anything is written.
            KeyboardInterrupt: interrupted; all finished chunks are written.
        """
        report = Report([(suite.name, suite.title) for suite in self.suites])
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
                    for candidate in list(self.candidates):
                        try:
                            self._evaluate(candidate, loaded.pop(candidate.name, None), rewards, progress, report)
                        except _ModelError as error:
                            self._leave_out(candidate, error)
                        _free_memory(self.device)
                self.record["averages"] = report.averages()
                self.record["complete"] = not self.failures
                self._write_record()
            except KeyboardInterrupt:
                print_line(self.console, self._interrupted())
                raise
            finally:
                if self.directory is not None:
                    self.directory.close()
        return report

    def require_judged(self) -> None:
        """Check that the grader failed on no response, also in earlier sessions.

        Raises:
            GraderError: with the number of responses that the grader failed on.
        """
        outcomes = [outcome for of_plan in self.outcomes.values() for outcome in of_plan.values()]
        missing = sum(outcome.fault is not None for outcome in outcomes)
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
        yield from (_left_out(model, message) for model, message in self.failures.items())
        for suite in self.suites:
            yield from suite.notes
            for gold in rewards.unusable_golds(suite.problems):
                where = suite.problems[gold.row].where
                yield f"{suite.name}, {where}: its true answer {gold.answers[0][:60]!r} {gold.reason}."
        for candidate in self.candidates:
            yield from candidate.notes
            yield from (f"{candidate.name}: {note}" for note in (*candidate.renderer.notes, *candidate.remarks))
            for plan in candidate.plans:
                name = f"{candidate.name}, {plan.suite.name}"
                if plan.skipped:
                    first = next(problem.where for problem in plan.suite.problems if problem.id == plan.skipped[0])
                    count = len(plan.skipped)
                    yield f"{name}: {count} prompts too long for the model, first {first}; they count as not solved."
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
            UserError: no model can be loaded and sampled.
        """
        first: dict[str, PreTrainedModel] = {}
        for candidate in reversed(list(self.candidates)):
            if all(len(plan.sample_requests) == len(self._outcomes_of(candidate, plan)) for plan in candidate.plans):
                continue
            first.clear()
            _free_memory(self.device)
            try:
                model, notes = self._load(candidate)
            except _ModelError as error:
                self._leave_out(candidate, error)
                continue
            for note in notes:
                print_line(self.console, note)
            first[candidate.name] = model
            del model
        return first

    def _load(self, candidate: Candidate) -> tuple[PreTrainedModel, list[str]]:
        """Load a model; return the model and remarks of one line each.

        Raises:
            _ModelError: the weights cannot be loaded, or the sampler does not support the model.
        """
        try:
            loaded = candidate.load(self.device, self.settings.dtype)
            slower = check_cache(loaded.model)
        except (UserError, torch.OutOfMemoryError) as error:
            raise _ModelError(one_line(error)) from None
        return loaded.model, [*loaded.notes, *([f"{candidate.name}: {slower}"] if slower else [])]

    def _evaluate(
        self,
        candidate: Candidate,
        model: PreTrainedModel | None,
        rewards: RewardManager,
        progress: EvalProgress,
        report: Report,
    ) -> None:
        """Sample and grade the missing responses of one model, suite by suite; load ``model`` if needed.

        Raises:
            _ModelError: the model cannot be loaded or sampled.
        """
        summaries: dict[str, Summary] = {}
        for plan in candidate.plans:
            progress.begin(f"{candidate.name} · {plan.suite.title}")
            if len(self._outcomes_of(candidate, plan)) < len(plan.sample_requests):
                if model is None:
                    model, _ = self._load(candidate)
                self._sample(candidate, plan, model, rewards, progress)
            summary = summaries[plan.suite.name] = self._summarize(candidate, plan)
            if summary.remark is not None:
                print_line(self.console, f"{candidate.name}, {plan.suite.name}: {summary.remark}")
            add_result(self.record, candidate.name, plan, summary)
            self._write_record()
        report.add(candidate.name, summaries)

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
        try:
            sampler = build_sampler(
                model,
                candidate.renderer.tokenizer,
                self.settings.sampling,
                max_batch=batch,
                on_progress=progress.sampled,
            )
        except UserError as error:
            raise _ModelError(one_line(error)) from None
        size = self.chunk or chunk_size(model, plan.sample_requests, batch)
        for missing in missing_chunks(plan.sample_requests, size, outcomes):
            samples = respond(missing, sampler=sampler, rewards=rewards, renderer=candidate.renderer)
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


def _left_out(model: str, message: str) -> str:
    return f"{model} is left out: {message}"


def _free_memory(device: torch.device) -> None:
    """Release the memory of a model without references, before the next model is loaded."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
