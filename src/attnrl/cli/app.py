"""The command line ``attnrl``: the table of commands, and the exit codes.

Commands import torch and other heavy modules inside their functions, so that ``attnrl --help`` starts fast.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from attnrl import __version__
from attnrl.cli import evaluate, experiments, report, train
from attnrl.cli.console import echo, replace_unencodable
from attnrl.errors import GraderError, RunError, UserError

INTERRUPTED = 130  # exit code of a command ended by Ctrl-C
# Raised on wrong flags and arguments. typer does not export the class, and its package differs between versions.
UsageFault: Any = typer.BadParameter.__base__

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.command()(train.train)
app.command()(experiments.compare)
app.command("eval")(evaluate.evaluate)
app.command()(experiments.disrupt)
app.command()(experiments.point)
app.command()(train.sft)
app.command()(evaluate.grade)
app.command()(report.plot)
app.command()(report.timeline)
app.command()(report.report)
app.command()(train.export)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(__version__)
        raise typer.Exit


@app.callback()
def attnrl(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train reasoning language models with attention-guided process-supervised RL (AttnRL)."""


def _check_environment() -> None:
    """Check the environment variables that end the import of huggingface_hub with a traceback.

    Raises:
        UserError: the value is not a whole number.
    """
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise UserError(f"environment variable {name} is {value!r}: a whole number of seconds expected")


def main() -> None:
    """Run the command line.

    Exit codes: 0 success; 1 a run cannot go on (:class:`RunError`); 2 bad input (:class:`UserError` or wrong flags);
    3 the work is done, but the grader failed on responses (:class:`GraderError`); 130 Ctrl-C. Codes 1 to 3 come with
    one line on stderr, without a traceback.
    """
    replace_unencodable()
    words = [_expand_home(word) for word in sys.argv[1:]]
    if "--version" in words:  # before or after a command
        words = ["--version"]
    try:
        _check_environment()
        code = app(args=words or ["--help"], standalone_mode=False)
    except RunError as error:
        _end(str(error), 1)
    except UsageFault as error:
        command = error.ctx.command_path if error.ctx is not None else "attnrl"
        _end(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except UserError as error:
        _end(str(error), 2)
    except GraderError as error:
        _end(str(error), 3)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("attnrl: interrupted", file=sys.stderr)
    sys.exit(code or 0)


def _expand_home(argument: str) -> str:
    """Return ``--option=~/path`` with the home directory for ``~``; shells expand ``~`` only at the start of a word."""
    option, equals, value = argument.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and option.startswith("--") else argument


def _end(message: str, code: int) -> NoReturn:
    # Joined to one line: a line break inside a path or key would look like a second message.
    print(f"attnrl: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)
