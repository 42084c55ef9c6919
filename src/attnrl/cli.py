"""The command line: ``attnrl train``, ``attnrl eval``, ``attnrl sft``, ``attnrl plot``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from attnrl.config import SftConfig, TrainConfig, dump_config, load_config, recipe_names
from attnrl.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train reasoning language models with attention-guided process-supervised RL (AttnRL).",
)
console = Console()

RECIPES = f"A .yaml file, or one of: {', '.join(recipe_names())}."
OVERRIDES = "Settings to change, as key.path=value (for example: seed=1 method.branching.criterion=random)."


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=RECIPES)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES, metavar="[KEY=VALUE]...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the run, stop.")] = False,
) -> None:
    """Train a model.

    Everything a run writes is in its output_dir: config.yaml, metrics.jsonl, trees.jsonl, samples.jsonl and
    checkpoints/. The same command again continues where the last one stopped (resume=auto). Ctrl-C finishes
    the step and saves; twice leaves at once.

    Keys most used: model, task or data.train, data.eval, steps, prompts, seed, output_dir, checkpoint.every,
    resume. --dry-run shows them all.

    [bold]Examples[/bold]

    attnrl train attnrl output_dir=runs/first

    attnrl train attnrl model=PATH task=null data.train=train.parquet data.eval=test.parquet output_dir=runs/mine

    attnrl train grpo steps=20 --dry-run
    """
    config = load_config(TrainConfig, recipe, overrides or ())  # before torch is imported: a typo is told at once
    from attnrl.report.display import Display
    from attnrl.report.summary import describe, left_out, summarize
    from attnrl.run import prepare
    from attnrl.run import train as run_training

    prepared = prepare(config)
    if dry_run:
        console.print(dump_config(config), highlight=False, markup=False, soft_wrap=True)
        for line in describe(prepared):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    for line in left_out(prepared):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    rows = run_training(prepared, Display(console))
    finished = rows[-1]["step"] >= config.steps
    for line in summarize(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Run directory: {config.output_dir}", highlight=False, markup=False, soft_wrap=True)
    if not finished:
        console.print("Stopped early. The same command continues from here.", highlight=False)


@app.command("eval")
def evaluate_model(
    model: Annotated[str, typer.Argument(help="A checkpoint directory, or the name of a shipped model.")],
    task: Annotated[str | None, typer.Option(help="A procedural task: its held-out problems.")] = None,
    data: Annotated[Path | None, typer.Option(help="A file of problems (parquet, jsonl, json).")] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems, at most.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Responses per problem (k).")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    max_prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
    prompt_suffix: Annotated[str, typer.Option(help="Appended to every problem of --data.")] = "",
    flexible_answers: Annotated[
        bool, typer.Option("--flexible-answers", help="Grade the last number of a response that boxes nothing.")
    ] = False,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    output: Annotated[Path | None, typer.Option(help="Write every response to this .jsonl file.")] = None,
) -> None:
    """Measure a model: avg@k, pass@k, response length.

    [bold]Examples[/bold]

    attnrl eval ledger --task ledger --problems 100

    attnrl eval runs/first/checkpoints/step-000030 --task ledger --output responses.jsonl

    attnrl eval PATH --data aime24.parquet --samples 32 --temperature 0.6 --max-new-tokens 32768
    """
    from attnrl.evaluate import evaluate
    from attnrl.local.engine import build_sampler, choose_device, load_model, load_tokenizer, model_directory
    from attnrl.run import check_length, held_out_problems
    from attnrl.tasks.datasets import load_problems
    from attnrl.tasks.grading import AnswerGrader

    if (task is None) == (data is None):
        raise UserError("give either --task or --data")
    if dtype not in {"float32", "bfloat16"}:
        raise UserError(f"--dtype {dtype}: expected float32 or bfloat16")
    if top_p <= 0:
        raise UserError(f"--top-p {top_p}: expected more than 0")
    directory = model_directory(model)
    if data is not None:
        chosen = load_problems(data, prompt_suffix=prompt_suffix)[:problems]
    else:
        assert task is not None
        chosen = held_out_problems(task, problems)
    tokenizer = load_tokenizer(directory)
    loaded = load_model(directory, device=choose_device(device), dtype=dtype)
    check_length(loaded, max_prompt_tokens + max_new_tokens)
    if output is not None:
        _make_room_for(output)
    with console.status("sampling ...") as status:
        evaluation = evaluate(
            chosen,
            sampler=build_sampler(
                loaded,
                tokenizer,
                temperature=temperature,
                top_p=top_p,
                max_batch=256,
                on_progress=lambda tokens, done: status.update(f"sampling: {done} responses, {tokens:,} tokens"),
            ),
            grader=AnswerGrader(flexible_answers),
            tokenizer=tokenizer,
            samples=samples,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            seed=seed,
        )
    table = Table("problems", f"avg@{samples}", f"pass@{samples}", "mean length", "cut off", title=str(model))
    numbers = evaluation.metrics()
    table.add_row(
        str(len(chosen)),
        f"{numbers['accuracy']:.1%} ± {numbers['standard_error']:.1%}",
        f"{numbers['pass_at_k']:.1%}",
        f"{numbers['response_length']:.0f} tokens",
        f"{numbers['truncated_ratio']:.1%}",
    )
    console.print(table)
    if output is not None:
        rows = "".join(json.dumps(sample.as_dict()) + "\n" for sample in evaluation.samples)
        output.write_text(rows, encoding="utf-8")


@app.command()
def sft(
    recipe: Annotated[str, typer.Argument(help=RECIPES)] = "sft_ledger",
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES, metavar="[KEY=VALUE]...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe, show it, stop.")] = False,
) -> None:
    """Train a small base model from scratch on a procedural task's demonstrations.

    [bold]Examples[/bold]

    attnrl sft sft_ledger

    attnrl sft sft_ledger seed=1 architecture.hidden_size=96 output_dir=runs/wider
    """
    config = load_config(SftConfig, recipe, overrides or ())
    if dry_run:
        console.print(dump_config(config), highlight=False, markup=False, soft_wrap=True)
        return
    import torch
    from rich.progress import Progress

    from attnrl.sft import SftProgress, train_sft

    if config.threads:
        torch.set_num_threads(config.threads)
    with Progress(console=console) as progress:
        bar = progress.add_task("supervised training", total=sum(stage.steps for stage in config.stages))

        def show(step: SftProgress) -> None:
            description = f"{step.stage}: loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s"
            progress.update(bar, completed=step.step, description=description)

        checkpoints = train_sft(config, show)
    for checkpoint in checkpoints:
        console.print(f"Wrote {checkpoint}", highlight=False, soft_wrap=True)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write (.png or .svg).")] = Path(
        "curves.png"
    ),
) -> None:
    """Draw the learning curves of runs: held-out accuracy over tokens sampled and over time.

    Runs whose names differ in a last -NUMBER only (seeds of one recipe) share a colour.

    [bold]Example[/bold]

    attnrl plot runs/attnrl-0 runs/attnrl-1 runs/grpo-0 --output curves.png
    """
    from attnrl.report.curves import draw_curves

    draw_curves(runs, output)
    console.print(f"Wrote {output}", highlight=False, soft_wrap=True)


def _make_room_for(file: Path) -> None:
    """Make the folder of a file to be written, before the work whose result it is to hold."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
    if file.is_dir():
        raise UserError(f"{file}: cannot be written (Is a directory)")


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"attnrl: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("attnrl: interrupted", file=sys.stderr)
        sys.exit(130)
