"""Commands that make models: ``attnrl train``, ``sft`` and ``export``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from attnrl.cli.console import console, echo
from attnrl.cli.options import OverridesArgument, RecipeArgument, TrustRemoteCodeOption
from attnrl.config.load import dump_config, load_config
from attnrl.config.schema import TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.errors import UserError


def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the run, stop.")] = False,
) -> None:
    """Train a model with reinforcement learning.

    A run writes to its output_dir: config.yaml, model.json, metrics.jsonl, timeline.jsonl, trees.jsonl, samples.jsonl
    and checkpoints/. The same command again resumes the run (resume=auto). Ctrl-C finishes the current phase and
    saves a checkpoint; a second Ctrl-C exits at once.

    Settings used most: model, task or data.train, data.eval, steps, prompts, seed, output_dir, checkpoint.every,
    resume. --dry-run shows all settings.

    [bold]Examples[/bold]

    attnrl train attnrl output_dir=runs/first

    attnrl train attnrl model=PATH task=null data.train=train.parquet data.eval=test.parquet output_dir=runs/mine

    attnrl train grpo steps=20 --dry-run

    attnrl train verl/r1_distill_qwen_1.5b_8xh100 --dry-run
    """
    config = load_config(TrainConfig, recipe, overrides or ())  # before the import of torch: errors appear at once
    if config.engine == "verl":
        _train_with_verl(config, dry_run)
        return
    from attnrl.runs.display import Display
    from attnrl.runs.prepare import prepare
    from attnrl.runs.session import train as run_training
    from attnrl.runs.summary import describe_run, run_warnings, summarize_run

    prepared = prepare(config)
    if dry_run:
        echo(dump_config(config))
        for line in describe_run(prepared):
            echo(line)
        return
    resumed = [f"Continues from {prepared.checkpoint.directory}"] if prepared.checkpoint else []
    for line in [*run_warnings(prepared), *resumed, *prepared.data.first_prompt()]:
        echo(line)
    rows = run_training(prepared, Display(console))
    finished = config.is_over(int(rows[-1]["step"]), rows[-1].get("tokens/total", 0.0))
    for line in summarize_run(rows):
        echo(line)
    echo(f"Run directory: {config.output_dir}")
    if not finished:
        # Not resume=PATH: the run's own newest checkpoint is now ahead of PATH.
        settings = [setting for setting in overrides or () if not setting.startswith("resume=")]
        echo(f"Stopped early. To continue: {shlex.join(['attnrl', 'train', recipe, *settings])}")
    prepared.rewards.require_few_faults(config.reward.max_not_judged)


def _train_with_verl(config: TrainConfig, dry_run: bool) -> None:
    from attnrl.runs.summary import summarize_run
    from attnrl.verl.launch import check_model, show_prompts, try_to_compose
    from attnrl.verl.launch import train as run_training
    from attnrl.verl.plan import plan

    if dry_run:
        echo(dump_config(config))
        lines = [try_to_compose(config), *check_model(config), *plan(config), *show_prompts(config)]
    else:
        lines = [*summarize_run(run_training(config, echo)), f"Run directory: {config.output_dir}"]
    for line in lines:
        echo(line)


def sft(
    recipe: RecipeArgument = "sft_ledger",
    overrides: OverridesArgument = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe, show the settings, stop.")] = False,
) -> None:
    """Train a small base model from scratch on demonstrations of a procedural task.

    [bold]Examples[/bold]

    attnrl sft sft_ledger

    attnrl sft sft_ledger seed=1 architecture.hidden_size=96 output_dir=runs/wider
    """
    config = load_config(SftConfig, recipe, overrides or ())
    import torch
    from rich.progress import Progress

    from attnrl.runs.sft import SftProgress, prepare_sft, train_sft

    if config.threads:
        torch.set_num_threads(config.threads)
    prepared = prepare_sft(config)
    if dry_run:
        echo(dump_config(config))
    for note in prepared.start.notes:
        echo(note)
    if dry_run:
        return
    with Progress(console=console) as progress:
        bar = progress.add_task("supervised training", total=sum(stage.steps for stage in config.stages))

        def show(step: SftProgress) -> None:
            description = f"{step.stage}: loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s"
            progress.update(bar, completed=step.step, description=description)

        checkpoints = train_sft(prepared, show)
    for checkpoint in checkpoints:
        echo(f"Wrote {checkpoint}")


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A directory global_step_N; or a verl run or its checkpoints directory: the newest checkpoint; or a "
            "model directory whose tensor names have the prefix of a wrapper; or a LoRA adapter."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The directory to create.")],
    trust_remote_code: TrustRemoteCodeOption = False,
) -> None:
    """Convert a checkpoint of verl (FSDP2, any number of GPUs) into a checkpoint of the local engine, or clean a model.

    verl need not be installed. attnrl eval reads the result, and attnrl train resume=OUTPUT continues from the result
    with weights, optimizer and trainer state. A checkpoint of another trainer than attnrl's gives the model only.

    Of a model directory with names such as _orig_mod.lm_head.weight (written from a model inside torch.compile, DDP,
    FSDP or PEFT) a copy is written without the prefix, with all files that the model needs.

    A LoRA adapter of PEFT is merged with the base model that the adapter names (needs the package peft).

    [bold]Examples[/bold]

    attnrl export runs/mine/checkpoints/global_step_500 exported

    attnrl export models/compiled models/compiled-clean

    attnrl export models/lora models/merged
    """
    from attnrl.local.adapter import is_adapter, merge_adapter
    from attnrl.local.clean_copy import is_model_directory, write_clean_copy

    if not checkpoint.is_dir():
        raise UserError(
            f"checkpoint {checkpoint}: no such directory (a checkpoint of verl, a model or a LoRA adapter expected)"
        )
    if is_adapter(checkpoint):
        base = merge_adapter(checkpoint, output, trust_remote_code=trust_remote_code, say=echo)
        echo(f"Wrote {base} with the adapter {checkpoint} to {output}.")
        echo(f"To use the model: model={output}")
        return
    if is_model_directory(checkpoint):
        copied = write_clean_copy(checkpoint, output, trust_remote_code=trust_remote_code, say=echo)
        removed = ", ".join(f"{prefix} of {count}" for prefix, count in copied.prefixes.items())
        echo(f"Wrote {checkpoint} to {output}: {copied.tensors} tensors, names without the prefix {removed}.")
        if copied.left_out:
            echo(f"Not copied: {', '.join(copied.left_out)}")
        echo(f"To use the model: model={output}")
        return
    from attnrl.verl.export import export as export_checkpoint

    done = export_checkpoint(checkpoint, output, trust_remote_code=trust_remote_code, say=echo)
    if done.missing:
        echo(f"Wrote the model of {done.source} to {output}, and the model only: there is no {done.missing}.")
        echo(f"To use the model: model={output}")
    else:
        echo(f"Wrote {done.source} to {output}: training step {done.step}, optimizer step {done.updates}.")
        echo(f"To continue training: attnrl train RECIPE resume={output} output_dir=NEW")
