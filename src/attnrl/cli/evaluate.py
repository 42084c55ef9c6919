"""Commands that measure: ``attnrl eval`` and ``grade``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from attnrl.cli.console import console, echo
from attnrl.cli.options import FlexibleAnswersOption, ResponseOptions, WhileThinkingOption, with_response_options
from attnrl.config.columns import GRADE_KEYS, parse_columns
from attnrl.data.benchmarks import DATA_DIR_VARIABLE, KNOWN, TEMPERATURE


@with_response_options
def evaluate(
    *,
    models: Annotated[
        list[str], typer.Argument(help="Shipped models, checkpoint or run directories, OWNER/NAME@REVISION of the Hub.")
    ],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help=f"Names, separated by commas: {', '.join(KNOWN)}, or NAME=PATH, or NAME=HUB_ID."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"Directory of the benchmarks' files. \\[default: ${DATA_DIR_VARIABLE}]")
    ] = None,
    problems: Annotated[
        int | None, typer.Option(min=1, help="The first N problems only. \\[default: all of a benchmark, else 200]")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Responses per problem (k). \\[default: 32 of AIME and AMC, 4 of other benchmarks, else 8]"
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy. \\[default: 0.6 for benchmarks, else 1.0]")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest response, in tokens; the model's positions are a further limit. "
            "\\[default: 32768 for benchmarks, else 512]",
        ),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Responses between two writes. \\[default: about a minute's work]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory for samples.jsonl and results.json; an evaluation there is continued."),
    ] = None,
    options: ResponseOptions,
) -> None:
    """Measure models: avg@k with confidence intervals, pass@k, response length, truncation.

    Benchmarks follow the paper's protocol unless an option says otherwise. With --output, the same command again
    continues after a Ctrl-C or a kill and repeats no response. Of several models, a model that fails is left out, and
    the exit code is 1.

    [bold]Examples[/bold]

    attnrl eval ledger --task ledger --problems 100

    attnrl eval BASE runs/mine/checkpoints/step-000500 --benchmark aime24,math500 --data-dir DIR --output evals/mine

    attnrl eval PATH --data test.parquet --samples 4 --temperature 0.6 --output evals/test
    """
    from attnrl.evals.runner import EvaluationRun
    from attnrl.evals.suites import load_suites, protocol_deviations

    if temperature is None:
        temperature = TEMPERATURE if benchmark else 1.0
    settings = options.eval_settings(temperature)
    suites = load_suites(
        benchmarks=benchmark or (),
        data_dir=data_dir,
        data=options.data,
        task=options.task,
        problems=problems,
        samples=samples,
        max_new_tokens=max_new_tokens,
        columns=parse_columns(options.columns),
        answers=settings.answers,
    )
    evaluation = EvaluationRun(
        models,
        suites,
        settings,
        console=console,
        device=options.device,
        output=output,
        chunk=chunk,
        max_batch=options.max_batch,
        trust_remote_code=options.trust_remote_code,
    )
    report = evaluation.run()
    report.print(console, protocol_deviations(suites, settings))
    if output is not None:
        echo(f"Written to {output}")
    evaluation.require_judged()
    evaluation.require_all_models()


def grade(
    file: Annotated[Path, typer.Argument(help="Rows of response and answer (jsonl, json, csv, tsv, parquet).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .jsonl file to write.")],
    grader: Annotated[str, typer.Option(help="rules, math or module:object.")] = "math",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of grader math. \\[default: one per core, at most 8]")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Time limit for the comparison of one answer, in seconds.")] = 5.0,
    flexible_answers: FlexibleAnswersOption = False,
    while_thinking: WhileThinkingOption = False,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Names of columns, as response=text,answer=meta.gold (keys: response, answer, prompt). "
            "\\[default: found by the popular spellings]"
        ),
    ] = None,
) -> None:
    """Grade responses: each row gets a verdict, the extracted answer and the reward.

    A row has response (text) and answer (text, or a list of accepted answers). If a row has prompt as well, a boxed
    answer that only repeats the problem is not accepted. Popular names (completion, expected_answer) are found, and
    the columns taken are printed. Verdicts: correct, wrong, no_answer, timeout, error, bad_gold;
    not_judged, with reward null, if the grader failed for a reason outside of the response.

    [bold]Example[/bold]

    attnrl grade responses.jsonl --output graded.jsonl --workers 2
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from attnrl.config.reward import RewardConfig
    from attnrl.data.remarks import Remarks
    from attnrl.evals.grade_file import Columns, grade_file
    from attnrl.grading.registry import build_grader
    from attnrl.grading.rewards import RewardManager

    named = parse_columns(columns, GRADE_KEYS)
    total = file.stat().st_size if file.is_file() else None
    bars = (TextColumn("grading"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    built = build_grader(grader, flexible=flexible_answers, workers=workers, deadline=deadline)
    with (
        RewardManager(built, RewardConfig(while_thinking=while_thinking)) as rewards,
        Progress(*bars, TimeRemainingColumn(), console=console) as progress,
    ):
        bar = progress.add_task("grading", total=total, rate="")

        def show(rows: int, size: int) -> None:
            rate = rows / (progress.tasks[0].elapsed or 1)
            progress.update(bar, completed=size, rate=f"{rows:,} rows, {rate:,.0f}/s")

        taken: Counter[Columns] = Counter()
        remarks = Remarks()
        verdicts = grade_file(file, output, rewards, show, taken, named=named, remarks=remarks)
    for found, count in taken.items():
        echo(f"{found} ({count:,} rows)")
    for remark, count in remarks.others.items():
        echo(f"{remark} ({count:,} {'time' if count == 1 else 'times'})")
    rows = sum(verdicts.values())
    for verdict, count in verdicts.most_common():
        echo(f"{verdict:<10} {count:>9,} {count / rows:>7.1%}")
    echo(f"Wrote {rows:,} rows to {output}")
    rewards.require_few_faults(0.0)
