"""``attnrl eval``: models on benchmarks, sampled in chunks, so that a kill loses a chunk and no more.

The seed of a response depends on the evaluation's seed, the benchmark, the problem and the response's number only,
and chunks are cut from all responses, not from those that are left. So an evaluation that was killed and started
again samples what is missing in the very batches, and with the very results, of one that was not.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.data.benchmarks import KNOWN, MAX_NEW_TOKENS, deviations, find_benchmarks
from attnrl.data.datasets import load_problem_set
from attnrl.data.fitting import as_chat
from attnrl.data.run_data import held_out_problems
from attnrl.data.sources import source_name
from attnrl.errors import UserError, one_line
from attnrl.evals.directory import EvalDirectory
from attnrl.evals.summary import EvaluationOutcome, Summary, summarize_outcomes
from attnrl.evals.tables import EvalProgress, Report
from attnrl.grading.answers import AnswerGrader
from attnrl.grading.registry import build_grader, unusable_golds
from attnrl.local.loading import (
    build_sampler,
    choose_device,
    load_model,
    load_model_config,
    load_tokenizer,
    model_directory,
)
from attnrl.local.model_files import check_model_files
from attnrl.rl.evaluation import SampleRequest, respond
from attnrl.tasks.reasoning_gym import ReasoningGymGrader, ReasoningGymTask
from attnrl.tasks.registry import find_task
from attnrl.tokenization import decode, encode_prompt
from attnrl.types import Grader, Problem, Request

MAX_BATCH = 256
CPU_CHUNK_FLOP = 2e12  # about a minute of one or two cores
MEMORY_SHARE = {"cuda": 0.7, "cpu": 0.4}  # for the cache, of what the weights leave


@dataclass(frozen=True)
class Suite:
    """A set of problems and how many responses of which length it asks for.

    Attributes:
        name: what its samples are filed under.
        title: the name for a table's head.
        source: where the problems are from, for the record.
        problems: in order.
        samples: responses to each problem.
        max_new_tokens: of a response, where the model has positions for as many.
        notes: what was left out of the file, and what is odd about it.
        places: file and row of each problem, by its id.
    """

    name: str
    title: str
    source: str
    problems: tuple[Problem, ...]
    samples: int
    max_new_tokens: int
    notes: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalSettings:
    """What decides the samples and their grades, beside the models and the problems.

    ``grader`` is what :func:`attnrl.grading.registry.build_grader` knows, or ``task``: the task's own grader.
    """

    temperature: float
    top_p: float
    seed: int
    dtype: str
    task: str | None
    grader: str
    flexible_answers: bool
    prompt_suffix: str
    max_prompt_tokens: int | None


def read_settings(
    *,
    temperature: float,
    top_p: float,
    seed: int,
    dtype: str,
    task: str | None,
    grader: str | None,
    flexible_answers: bool,
    prompt_suffix: str | None,
    max_prompt_tokens: int | None,
) -> EvalSettings:
    """The settings that the command line's options mean.

    Without a grader that is the task's own, or ``math`` for data; without a suffix that of the paper, none for a task.

    Raises:
        UserError: an option that will not do; it is named.
    """
    if dtype not in {"float32", "bfloat16"}:
        raise UserError(f"--dtype {dtype}: expected float32 or bfloat16")
    if not math.isfinite(temperature):
        raise UserError(f"--temperature {temperature}: expected a finite number")
    if top_p <= 0:
        raise UserError(f"--top-p {top_p}: expected more than 0")
    if prompt_suffix is None:
        prompt_suffix = PROMPT_SUFFIX if task is None else ""
    return EvalSettings(
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
        task=task,
        grader=grader or ("math" if task is None else "task"),
        flexible_answers=flexible_answers,
        prompt_suffix=prompt_suffix,
        max_prompt_tokens=max_prompt_tokens,
    )


@dataclass(frozen=True)
class Work:
    """One model on one suite.

    Attributes:
        draws: every response to be sampled, in order.
        skipped: ids of problems whose prompts are too long for the model.
        shortened: whether the model has too few positions for some response's ``max_new_tokens``.
    """

    suite: Suite
    draws: tuple[SampleRequest, ...]
    skipped: tuple[str, ...]
    shortened: bool


@dataclass(frozen=True)
class Candidate:
    """A model to be measured; its weights are loaded only when there is something to sample.

    Attributes:
        name: as the user gave it.
        fingerprint: tells its weights from others under the same name.
        trust_remote_code: whether code in its directory may run.
    """

    name: str
    directory: Path
    fingerprint: str
    positions: int | None
    tokenizer: PreTrainedTokenizerBase
    work: tuple[Work, ...]
    trust_remote_code: bool = False


TASK_SAMPLES, TASK_TOKENS, TASK_PROBLEMS = 8, 512, 200  # of --task and --data


def load_suites(
    *,
    benchmarks: Sequence[str] = (),
    data_dir: Path | None = None,
    data: str | None = None,
    task: str | None = None,
    problems: int | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    prompt_suffix: str = "",
) -> list[Suite]:
    """The problems that the user asks for, with the protocol that belongs to them where nothing else is said.

    Raises:
        UserError: not exactly one of ``benchmarks``, ``data`` and ``task`` is given, or it cannot be found or read.
    """
    if sum(map(bool, (benchmarks, data, task))) != 1:
        raise UserError("give one of --benchmark, --task and --data")
    if task is not None:
        chosen = tuple(held_out_problems(task, problems or TASK_PROBLEMS))
        return [Suite(task, task, task, chosen, samples or TASK_SAMPLES, max_new_tokens or TASK_TOKENS)]
    first = problems
    if data is not None:
        given = Suite(source_name(data), source_name(data), data, (), TASK_SAMPLES, TASK_TOKENS)
        suites, first = [given], problems or TASK_PROBLEMS
    else:
        found = find_benchmarks(benchmarks, data_dir)
        suites = [Suite(b.name, b.title, str(b.source), (), b.samples, MAX_NEW_TOKENS) for b in found]
    loaded = []
    for suite in suites:
        its = load_problem_set(suite.source, prompt_suffix=prompt_suffix)
        loaded.append(
            replace(
                suite,
                problems=its.problems[:first],
                places=its.places,
                samples=samples or suite.samples,
                max_new_tokens=max_new_tokens or suite.max_new_tokens,
                notes=(*its.notes, *_unexpected(suite.name, len(its.problems))),
            )
        )
    return loaded


def _unexpected(name: str, problems: int) -> Iterator[str]:
    if name in KNOWN and problems != KNOWN[name].problems:
        yield f"{name}: {problems} problems; the paper's has {KNOWN[name].problems}."


def run_evaluation(
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
) -> Report:
    """Sample what is not there yet, grade it and sum up.

    Args:
        models: checkpoint directories or names of shipped models.
        suites: what to measure them on.
        settings: the rest of the protocol.
        console: where progress and notes go.
        device: where to sample.
        output: the directory to write to, and to continue from; None writes nothing.
        chunk: responses between two writes; by default about a minute of a CPU, or four full batches of a GPU.
        max_batch: responses decoded at the same time, at most; by default as many as the memory is good for.
        trust_remote_code: run the code that a model's directory brings.

    Raises:
        UserError: something will not do; all that can be known before sampling is told before anything is written.
    """
    if len(set(models)) < len(models):
        raise UserError("the same model is given more than once")
    where = choose_device(device)
    candidates = [_candidate(model, suites, settings, trust_remote_code) for model in models]
    directory = EvalDirectory(output) if output is not None else None
    before = directory.read_results() if directory is not None else None
    record = _record(before, candidates, suites, settings, where)
    outcomes = _finished(directory, candidates) if directory is not None and before is not None else {}
    total = sum(len(work.draws) for candidate in candidates for work in candidate.work)
    done = sum(map(len, outcomes.values()))
    with open_grader(settings):
        pass  # there is one
    for note in _notes(candidates, suites, settings, output, done):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    report = Report([candidate.name for candidate in candidates], [(s.name, s.title) for s in suites])
    loaded = _load_first(candidates, outcomes, settings, where)
    try:
        if directory is not None:
            directory.open()
            directory.write_results(record)
        with EvalProgress(console, total, done) as progress, open_grader(settings) as grader:
            for candidate in candidates:
                if candidate is not candidates[0]:
                    _free(where)
                for work in _sampled(
                    candidate, loaded, settings, where, grader, outcomes, directory, progress, chunk, max_batch
                ):
                    summary = _summary(work, outcomes[candidate.name, work.suite.name], settings.seed)
                    report.add(candidate.name, work.suite.name, summary)
                    _enter(record, candidate.name, work, summary)
                    if directory is not None:
                        directory.write_results(record)
        record["averages"] = report.averages()
        record["complete"] = True
        if directory is not None:
            directory.write_results(record)
    except KeyboardInterrupt:
        kept = sum(map(len, outcomes.values()))
        if output is not None:
            note = f"Stopped: {kept:,} of {total:,} samples are in {output}. The same command continues from there."
        else:
            note = f"Stopped after {kept:,} of {total:,} samples; without --output nothing is kept."
        console.print(note, highlight=False, markup=False, soft_wrap=True)
        raise
    finally:
        if directory is not None:
            directory.close()
    return report


def protocol_deviations(suites: Sequence[Suite], settings: EvalSettings) -> list[str]:
    """In what an evaluation differs from the paper's; each said once."""
    found = [
        deviation
        for suite in suites
        for deviation in deviations(
            suite.name,
            problems=len(suite.problems),
            samples=suite.samples,
            max_new_tokens=suite.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
    ]
    return list(dict.fromkeys(found))


# --- Before sampling ------------------------------------------------------------------------------------------------


def _candidate(model: str, suites: Sequence[Suite], settings: EvalSettings, trust_remote_code: bool) -> Candidate:
    directory = model_directory(model)
    check_model_files(directory, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    config = load_model_config(directory, trust_remote_code=trust_remote_code)
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    positions = int(limit) if limit else None
    work = tuple(_work(suite, settings, tokenizer, positions) for suite in suites)
    for its in work:
        if not its.draws:
            raise UserError(f"model {model}: every prompt of {its.suite.name} is too long for it")
    fingerprint = _fingerprint(model, directory, with_code=trust_remote_code)
    return Candidate(model, directory, fingerprint, positions, tokenizer, work, trust_remote_code)


def _work(suite: Suite, settings: EvalSettings, tokenizer: PreTrainedTokenizerBase, positions: int | None) -> Work:
    draws: list[SampleRequest] = []
    skipped = []
    shortened = False
    for problem in suite.problems:
        prompt = encode_prompt(tokenizer, as_chat(problem, tokenizer), _ANY_LENGTH)
        room = suite.max_new_tokens if positions is None else min(suite.max_new_tokens, positions - len(prompt))
        if room < 1 or len(prompt) > (settings.max_prompt_tokens or _ANY_LENGTH):
            skipped.append(problem.id)
            continue
        shortened |= room < suite.max_new_tokens
        for sample in range(suite.samples):
            seed = sample_seed(settings.seed, suite.name, problem.id, sample)
            draws.append(SampleRequest(problem, sample, Request(prompt, room, seed)))
    return Work(suite, tuple(draws), tuple(skipped), shortened)


_ANY_LENGTH = 1 << 62


def sample_seed(seed: int, benchmark: str, problem: str, sample: int) -> int:
    """The seed of one response: it depends on nothing else, whatever is sampled before or beside it."""
    text = json.dumps([seed, benchmark, problem, sample])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def require_positions(model: PreTrainedModel, problem: Problem, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Make sure that the model has positions for a response of ``max_new_tokens`` tokens.

    Raises:
        UserError: it has not; the problem is named.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and len(prompt) + max_new_tokens > limit:
        raise UserError(
            f"--max-new-tokens {max_new_tokens}: problem {problem.id} has a prompt of {len(prompt)} tokens, "
            f"and the model {limit} positions"
        )


_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK = 64, 1 << 14


def _fingerprint(model: str, directory: Path, *, with_code: bool) -> str:
    """Tells weights from others: config, and of each weight file its size, its head and blocks all over it.

    Code that the directory brings is part of it where it runs.

    Training changes all weights, so a part of them is enough; reading all would take minutes for a large model.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"model {model}: no .safetensors weights in {directory}")
    try:
        for path in sorted(directory.glob("*.py")) if with_code else ():
            digest.update(f"{path.name}:".encode() + path.read_bytes())
        for path in files:
            with safe_open(path, framework="pt"):
                pass  # its header is sound, and says as many bytes as there are
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for block in range(_FINGERPRINT_BLOCKS):
                    file.seek(block * size // _FINGERPRINT_BLOCKS)
                    digest.update(file.read(_FINGERPRINT_BLOCK))
    except (OSError, SafetensorError) as error:
        raise UserError(f"model {model}: {path} cannot be read ({one_line(error)})") from None
    return digest.hexdigest()[:16]


def _record(
    before: dict[str, Any] | None,
    candidates: Sequence[Candidate],
    suites: Sequence[Suite],
    settings: EvalSettings,
    device: torch.device,
) -> dict[str, Any]:
    """What ``results.json`` holds before the first sample; with all that an earlier command found out.

    Raises:
        UserError: the directory's samples were drawn under other settings, from other weights or to other problems.
    """
    now: dict[str, Any] = {
        "complete": False,
        "settings": asdict(settings),
        "models": {
            c.name: {"directory": str(c.directory.absolute()), "fingerprint": c.fingerprint, "positions": c.positions}
            for c in candidates
        },
        "benchmarks": {
            suite.name: {"source": suite.source, "max_new_tokens": suite.max_new_tokens} for suite in suites
        },
        "results": [],
        "averages": [],
        "versions": _versions(device),
    }
    if before is None:
        return now
    changed = _differences(before["settings"], now["settings"], "")
    for name, mine in now["models"].items():
        theirs = before["models"].get(name, mine)
        if theirs["fingerprint"] != mine["fingerprint"]:
            changed.append(f"the weights of {name} (written {theirs['fingerprint']} -> {mine['fingerprint']})")
    for name, mine in now["benchmarks"].items():
        theirs = before["benchmarks"].get(name, mine)
        changed += _differences(
            {"max_new_tokens": theirs["max_new_tokens"]}, {"max_new_tokens": mine["max_new_tokens"]}, f"{name} "
        )
    if changed:
        raise UserError(
            f"--output: holds samples of another evaluation ({'; '.join(changed)}): choose another directory"
        )
    mine_now = {(c.name, suite.name) for c in candidates for suite in suites}
    return {
        **now,
        "models": before["models"] | now["models"],
        "benchmarks": before["benchmarks"] | now["benchmarks"],
        "results": [row for row in before["results"] if (row["model"], row["benchmark"]) not in mine_now],
    }


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    return [f"{prefix}{key} {before.get(key)!r} -> {now[key]!r}" for key in now if before.get(key) != now[key]]


def _versions(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = {package: metadata.version(package) for package in ("attnrl", "torch", "transformers", "math-verify")}
    return {"python": platform.python_version(), **packages, "device": f"{device.type} ({name})"}


Finished = dict[
    tuple[str, str], dict[tuple[str, int], EvaluationOutcome]
]  # (model, benchmark) -> (problem, sample) -> outcome


def _finished(directory: EvalDirectory, candidates: Sequence[Candidate]) -> Finished:
    """The outcomes of an earlier command that this one needs too.

    Raises:
        UserError: they are of problems with other texts or answers.
    """
    wanted = {
        (candidate.name, work.suite.name, draw.problem.id, draw.sample): (candidate, draw)
        for candidate in candidates
        for work in candidate.work
        for draw in work.draws
    }
    outcomes: Finished = {}
    for row in directory.rows():
        found = wanted.get((row["model"], row["benchmark"], row["problem"], row["sample"]))
        if found is None:
            continue  # of another model, or beyond this command's --samples or --problems
        candidate, draw = found
        same = row["prompt"] == decode(candidate.tokenizer, draw.request.prompt)
        if not same or tuple(row["answers"]) != draw.problem.answers or row["seed"] != draw.request.seed:
            raise UserError(
                f"--output {directory.root}: holds samples of another evaluation "
                f"(another prompt or answer of {row['benchmark']}, problem {row['problem']}): choose another directory"
            )
        outcomes.setdefault((row["model"], row["benchmark"]), {})[row["problem"], row["sample"]] = _outcome(row)
    return outcomes


def _outcome(row: dict[str, Any]) -> EvaluationOutcome:
    return EvaluationOutcome(row["problem"], row["reward"], row["verdict"], row["tokens"], row["finish_reason"])


def _notes(
    candidates: Sequence[Candidate],
    suites: Sequence[Suite],
    settings: EvalSettings,
    output: Path | None,
    done: int,
) -> Iterator[str]:
    for suite in suites:
        yield from suite.notes
        for gold in unusable_golds(suite.problems) if settings.grader == "math" else ():
            place = suite.places.get(gold.id, f"problem {gold.id}")
            yield f"{suite.name}, {place}: its true answer {gold.answers[0][:60]!r} {gold.reason}."
    for candidate in candidates:
        for work in candidate.work:
            name = f"{candidate.name}, {work.suite.name}"
            if work.skipped:
                yield f"{name}: prompts too long for the model, which count as not solved: {len(work.skipped)}."
            if work.shortened:
                yield (
                    f"{name}: the model has {candidate.positions:,} positions, so responses end there and not after "
                    f"{work.suite.max_new_tokens:,} tokens."
                )
    if done:
        yield f"{done:,} samples are in {output} already."


# --- Sampling -------------------------------------------------------------------------------------------------------


def open_grader(settings: EvalSettings) -> AbstractContextManager[Grader]:
    """The grader of that name."""
    if settings.grader == "task" and settings.task is not None:
        task = find_task(settings.task)
        if isinstance(task, ReasoningGymTask):
            return nullcontext(ReasoningGymGrader(task, settings.flexible_answers))
        return nullcontext(AnswerGrader(settings.flexible_answers))
    return build_grader(settings.grader, flexible=settings.flexible_answers)


def _load_first(
    candidates: Sequence[Candidate], outcomes: Finished, settings: EvalSettings, device: torch.device
) -> dict[str, PreTrainedModel]:
    """The first model that is needed, by its name: faulty weights are told before anything is written."""
    for candidate in candidates:
        if any(len(work.draws) > len(outcomes.get((candidate.name, work.suite.name), ())) for work in candidate.work):
            return {candidate.name: _load(candidate, settings, device)}
    return {}


def _load(candidate: Candidate, settings: EvalSettings, device: torch.device) -> PreTrainedModel:
    trusted = candidate.trust_remote_code
    return load_model(candidate.directory, device=device, dtype=settings.dtype, trust_remote_code=trusted)


def _sampled(
    candidate: Candidate,
    loaded: dict[str, PreTrainedModel],
    settings: EvalSettings,
    device: torch.device,
    grader: Grader,
    outcomes: Finished,
    directory: EvalDirectory | None,
    progress: EvalProgress,
    chunk: int | None,
    max_batch: int | None,
) -> Iterator[Work]:
    """Each work of a model as soon as all its responses are there; they are added to ``outcomes``.

    The model is taken out of ``loaded`` if it is there.
    """
    model = loaded.pop(candidate.name, None)
    for work in candidate.work:
        done = outcomes.setdefault((candidate.name, work.suite.name), {})
        progress.begin(f"{candidate.name} · {work.suite.title}")
        if len(done) < len(work.draws):
            if model is None:
                model = _load(candidate, settings, device)
            batch = min(rows_that_fit(model, work.draws), max_batch or MAX_BATCH)
            size = chunk or chunk_size(model, work.draws, batch)
            sampler = build_sampler(
                model,
                candidate.tokenizer,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_batch=batch,
                on_progress=progress.sampled,
            )
            for missing in _chunks(work.draws, size, done):
                samples = respond(missing, sampler=sampler, grader=grader, tokenizer=candidate.tokenizer)
                head = {"model": candidate.name, "benchmark": work.suite.name}
                rows = [{**head, **sample.as_dict()} for sample in samples]
                if directory is not None:
                    directory.append(rows)
                done |= {(sample.problem, sample.sample): _outcome(sample.as_dict()) for sample in samples}
                progress.finished(len(rows), sum(sample.tokens for sample in samples))
        yield work


def _free(device: torch.device) -> None:
    """Give back the memory of a model that is done with, before the next one is loaded."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _chunks(
    draws: Sequence[SampleRequest], size: int, done: dict[tuple[str, int], EvaluationOutcome]
) -> Iterator[list[SampleRequest]]:
    """What is missing of each chunk, of those that miss something."""
    for start in range(0, len(draws), size):
        missing = [draw for draw in draws[start : start + size] if (draw.problem.id, draw.sample) not in done]
        if missing:
            yield missing


def rows_that_fit(model: PreTrainedModel, draws: Sequence[SampleRequest]) -> int:
    """Responses whose keys and values fit the memory even if every one of them gets as long as it may."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(len(draw.request.prompt) + draw.request.max_new_tokens for draw in draws)
    row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * longest
    if model.device.type == "cuda":
        memory: int = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    fitting = int(MEMORY_SHARE[model.device.type] * (memory - weights) / row)
    return max(1, min(MAX_BATCH, fitting))


def chunk_size(model: PreTrainedModel, draws: Sequence[SampleRequest], batch: int) -> int:
    """Responses between two writes: four batches of a GPU; of a CPU as many as take about a minute, 8 at least."""
    if model.device.type == "cuda":
        return 4 * batch
    longest = max(draw.request.max_new_tokens for draw in draws)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return max(8, min(1024, int(CPU_CHUNK_FLOP / (2 * parameters * longest))))


# --- After sampling -------------------------------------------------------------------------------------------------


def _summary(work: Work, done: dict[tuple[str, int], EvaluationOutcome], seed: int) -> Summary:
    # In the order of the draws, so that nothing depends on the order in which they were finished.
    outcomes = [done[draw.problem.id, draw.sample] for draw in work.draws]
    bootstrap = sample_seed(seed, work.suite.name, "bootstrap", 0)
    return summarize_outcomes(outcomes, samples=work.suite.samples, skipped=len(work.skipped), seed=bootstrap)


def _enter(record: dict[str, Any], model: str, work: Work, summary: Summary) -> None:
    row = {"model": model, "benchmark": work.suite.name, **summary.as_dict()}
    record["results"].append({**row, "max_new_tokens": work.suite.max_new_tokens, "shortened": work.shortened})
