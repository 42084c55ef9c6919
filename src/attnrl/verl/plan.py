"""The output of ``attnrl train ... engine=verl --dry-run``: work and memory of a run, with warnings.

Needs neither verl nor a GPU, neither the model nor the data.
"""

from __future__ import annotations

from math import ceil

from attnrl.config.schema import TrainConfig
from attnrl.verl.memory import (
    ModelShape,
    cached_sequences,
    find_model_shape,
    gpus,
    host_memory,
    longest_row,
    micro_batch_room,
    sampling_memory,
    scoring_memory,
    training_memory,
)


def plan(config: TrainConfig) -> list[str]:
    """Return the lines to print; the last lines are warnings and begin with ``warning:``.

    Raises:
        UserError: the model directory or ``verl.architecture`` does not describe a model.
    """
    shape = find_model_shape(config)
    on_gpus = None if config.device == "cpu" else shape
    lines = [_engine(config), _model(config, shape), _data(config), *_work(config)]
    if on_gpus is not None:
        lines += _memory(config, on_gpus)
    else:
        reason = "the processes run on CPUs" if shape is not None else "the size of the model is unknown"
        lines.append(f"memory      not estimated: {reason}")
    return [*lines, *(f"warning: {fault}" for fault in [*_misfits(config, shape), *_overflows(config, on_gpus)])]


def generations(config: TrainConfig) -> int:
    """Return the number of generations of a run, without evaluations; one_step: one per step and an initial one."""
    if config.method.pipeline == "one_step":
        return config.steps + 1
    return config.steps * (2 if config.method.branching.points else 1)


def most_tokens(config: TrainConfig) -> int:
    """Return the maximal number of sampled tokens of a run, without evaluations and growth of the batch."""
    method, initial_batches = config.method, config.steps + (config.method.pipeline == "one_step")
    responses = method.trunks * initial_batches + (method.leaves - method.trunks) * config.steps
    return config.prompts * responses * config.sampling.max_new_tokens


def evaluations(config: TrainConfig) -> int:
    """Return the number of evaluations: before the first step, every ``eval.every`` steps, after the last step."""
    every = config.eval.every
    return 1 + len({*range(every, config.steps + 1, every), config.steps}) if every else 0


def _engine(config: TrainConfig) -> str:
    verl, everywhere = config.verl, gpus(config)
    return (
        f"engine      verl, {verl.nodes} node{'s' if verl.nodes > 1 else ''} x {verl.gpus_per_node} GPUs; "
        f"sampling: {verl.rollout}, {everywhere // verl.tensor_parallel} engines, each on {verl.tensor_parallel}; "
        f"training: FSDP2 over {everywhere}, a sequence on {verl.sequence_parallel}"
    )


def _model(config: TrainConfig, shape: ModelShape | None) -> str:
    if shape is None:
        return f"model       {config.model} (no local directory, no verl.architecture; {config.dtype})"
    return f"model       {config.model} ({shape.kind}, {shape.parameters:,} parameters, {config.dtype})"


def _data(config: TrainConfig) -> str:
    def named(source: str | tuple[str, ...] | None) -> str:
        return ", ".join([source] if isinstance(source, str) else source or ["nothing"])

    held_out = (config.task or config.data.eval) if config.eval.every else None
    return f"data        {named(config.task or config.data.train)} to train on, {named(held_out)} held out; not read"


def _work(config: TrainConfig) -> list[str]:
    """Return the samples, optimizer steps and forwards per step, per GPU and per run."""
    method, sampling, each_of = config.method, config.sampling, gpus(config)
    responses, mini_batches = config.prompts * method.leaves, config.optimizer.mini_batches
    tokens, at_once = responses * sampling.max_new_tokens, ceil(responses / mini_batches)
    adapts = f"; the batch adapts, to {round(config.prompts * method.adaptive.max_growth)} problems at most"
    scores_all = sampling.score_continuations or method.weighs_steps
    scored = responses if scores_all else config.prompts * method.trunks
    # The GPUs of a sequence-parallel group process the same micro-batches.
    rows = ceil(at_once * config.verl.sequence_parallel / each_of)
    micro_batches = mini_batches * ceil(rows / max(1, micro_batch_room(config) // longest_row(config)))
    ends = f"; the run ends with the step that reaches {_short(config.tokens)}" if config.tokens else ""
    return [
        f"step        {config.prompts} problems x {method.trunks} initial responses, up to {responses:,} responses to "
        f"train on, at most {tokens:,} tokens ({ceil(responses / each_of):,} and {ceil(tokens / each_of):,} a GPU)"
        f"{adapts if method.adaptive.batch_size else ''}",
        f"updates     {mini_batches} optimizer steps a step, each of up to {at_once:,} responses; "
        f"{mini_batches * config.steps:,} in all",
        f"generations {generations(config):,} in all, of at most {_short(most_tokens(config))} tokens{ends}",
        f"evaluations {evaluations(config)} in all, of up to {config.eval.problems} problems x {config.eval.samples}",
        f"forwards    a step at most {scored:,} responses scored, {responses if config.loss.kl else 0:,} by the "
        f"reference, {responses:,} trained on, in up to {micro_batches} micro-batches a GPU",
    ]


def _memory(config: TrainConfig, shape: ModelShape) -> list[str]:
    sequences = f"{cached_sequences(config, shape):,} sequences of {longest_row(config):,} tokens"
    sampling = f"{_itemised(sampling_memory(config, shape))}; the cache of an engine holds {sequences}"
    return [
        f"memory      GiB of each GPU, which has {config.verl.gpu_memory_gib:g}. An estimate: leave a margin",
        f"  training  {_itemised(training_memory(config, shape))}",
        f"  scoring   {_itemised(scoring_memory(config, shape))}",
        f"  sampling  {'on CPUs' if config.verl.rollout == 'transformers' else sampling}",
        f"  host      of a node {_itemised(host_memory(config, shape))}",
    ]


def _misfits(config: TrainConfig, shape: ModelShape | None) -> list[str]:
    """Return a warning for every setting that verl or a rollout engine refuses."""
    found, verl, everywhere, longest = [], config.verl, gpus(config), longest_row(config)
    if longest > micro_batch_room(config):
        found.append(
            f"a prompt and its response can have {longest:,} tokens (sampling.max_prompt_tokens + max_new_tokens), a "
            f"micro-batch has {micro_batch_room(config):,} (optimizer.micro_batch_tokens, times "
            "verl.sequence_parallel): verl refuses longer sequences"
        )
    tensor, node = verl.tensor_parallel, verl.gpus_per_node
    if node % tensor and (tensor % node or everywhere % tensor):
        found.append(f"verl.tensor_parallel={tensor} does not divide the {node} GPUs of a node")
    if everywhere % verl.sequence_parallel:
        found.append(f"verl.sequence_parallel={verl.sequence_parallel} does not divide the {everywhere} GPUs")
    if shape is not None:
        for name, size in (("tensor_parallel", tensor), ("sequence_parallel", verl.sequence_parallel)):
            if shape.heads % size or max(shape.kv_heads, size) % min(shape.kv_heads, size):
                heads = f"{shape.heads} attention heads, {shape.kv_heads} of keys and values"
                found.append(f"verl.{name}={size} does not divide the model's heads ({heads})")
    return found


def _overflows(config: TrainConfig, shape: ModelShape | None) -> list[str]:
    """Return a warning for every phase that does not fit a GPU."""
    if shape is None:
        return []
    found, limit = [], config.verl.gpu_memory_gib
    least = ceil(longest_row(config) / config.verl.sequence_parallel)
    for name, memory in (("training", training_memory), ("scoring", scoring_memory)):
        if (taken := sum(memory(config, shape).values())) > limit:
            found.append(
                f"{name} takes {taken:.1f} GiB of {limit:g}: lower optimizer.micro_batch_tokens (not below {least:,}), "
                "set optimizer.gradient_checkpointing, or take more GPUs"
            )
    if config.verl.rollout != "transformers":
        if (taken := sum(sampling_memory(config, shape).values())) > limit:
            found.append(
                f"sampling takes {taken:.1f} GiB of {limit:g}: lower verl.gpu_memory_utilization, or set verl.offload"
            )
        if not cached_sequences(config, shape):
            found.append(
                "a rollout engine's share of its GPUs does not hold the model and a sequence of "
                f"{longest_row(config):,} tokens: raise verl.gpu_memory_utilization or verl.tensor_parallel"
            )
    return found


def _itemised(memory: dict[str, float]) -> str:
    return f"{sum(memory.values()):.1f}: " + ", ".join(f"{name} {gib:.1f}" for name, gib in memory.items())


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 10**9 else f"{count:,}"
