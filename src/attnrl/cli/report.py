"""Commands that draw finished and unfinished runs: ``attnrl plot``, ``timeline`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnrl.cli.console import echo


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write (.png or .svg).")] = Path(
        "curves.png"
    ),
) -> None:
    """Draw the learning curves of runs: held-out accuracy over tokens sampled and over time.

    Runs whose names differ only in a final -NUMBER (seeds of one recipe) share a colour.

    [bold]Example[/bold]

    attnrl plot runs/attnrl-0 runs/attnrl-1 runs/grpo-0 --output curves.png
    """
    from attnrl.report.curves import draw_curves

    draw_curves(runs, output)
    echo(f"Wrote {output}")


def timeline(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    step: Annotated[int | None, typer.Option(min=1, help="The training step. \\[default: the last one]")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write (.png or .svg).")] = Path(
        "timeline.png"
    ),
) -> None:
    """Draw one training step: the busy times of sampler, grader and policy.

    [bold]Example[/bold]

    attnrl timeline runs/attnrl --step 12 --output timeline.png
    """
    from attnrl.report.timeline import draw_timeline

    drawn = draw_timeline(run, output, step)
    echo(f"Wrote step {drawn} to {output}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")] = Path("report.html"),
    max_mb: Annotated[
        float,
        typer.Option(
            "--max-mb", min=0.0, max=100_000.0, help="Limit on the forests, in megabytes; the page lists what is cut."
        ),
    ] = 10.0,
    attention: Annotated[
        bool | None,
        typer.Option(help="Draw attention maps with the newest checkpoint. \\[default: if it is below 2 GiB]"),
    ] = None,
) -> None:
    """Write runs as one HTML page: learning curves side by side, time, forests, FCI, attention maps.

    The page is self-contained: no network, no other files. Any browser opens the page.

    [bold]Examples[/bold]

    attnrl report runs/attnrl

    attnrl report runs/attnrl-0 runs/grpo-0 --output compared.html --max-mb 30 --no-attention
    """
    from attnrl.report.html import write_report

    size = write_report(runs, output, max_megabytes=max_mb, attention=attention)
    echo(f"Wrote {output} ({size / 1e6:.1f} MB)")
