"""Arguments and options that several commands share, each written once.

Help texts are read by rich: a literal ``[`` is escaped.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from attnrl.config.load import recipe_names

if TYPE_CHECKING:
    from attnrl.evals.settings import EvalSettings

RecipeArgument = Annotated[str, typer.Argument(help=f"A .yaml file, or one of: {', '.join(recipe_names())}.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change, as key.path=value (for example: seed=1 method.branching.criterion=random).",
        metavar="[KEY=VALUE]...",
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(help="A shipped model, a checkpoint or run directory, or OWNER/NAME@REVISION of the Hub.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of all random numbers.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
FlexibleAnswersOption = Annotated[
    bool,
    typer.Option("--flexible-answers", help="Grade the last number of a response without a boxed answer."),
]
WhileThinkingOption = Annotated[
    bool, typer.Option("--while-thinking", help="Accept an answer inside of a <think> that never ends.")
]
TrustRemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code from the model's directory (auto_map).")
]


@dataclass(frozen=True)
class ResponseOptions:
    """Options of every command that samples and grades responses."""

    task: Annotated[
        str | None, typer.Option(help="A task by name or module:object; the held-out problems are used.")
    ] = None
    data: Annotated[
        str | None,
        typer.Option(help="A file or folder of problems (parquet, jsonl, json, csv, tsv), or HUB_ID of a data set."),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(
            help="Names of columns, as prompt=Problem,answer=meta.gold (keys: prompt, answer, system, id). "
            "\\[default: found by the popular spellings]"
        ),
    ] = None
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling: probability mass kept.")] = 1.0
    top_k: Annotated[int, typer.Option(min=0, help="Number of most probable tokens kept; 0: off.")] = 0
    min_p: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Smallest probability kept, as a share of the most probable token's; 0: off."
        ),
    ] = 0.0
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends a response; the text stays in the response. May be given more than once."),
    ] = None
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longer prompts count as not solved. \\[default: the model's positions]"),
    ] = None
    prompt_suffix: Annotated[
        str | None,
        typer.Option(help="Appended to each problem without the suffix. \\[default: the paper's; none for --task]"),
    ] = None
    system_prompt: Annotated[
        str | None, typer.Option(help="System message before every problem without a system message.")
    ] = None
    chat_template: Annotated[
        str,
        typer.Option(
            help="auto: text becomes a user message if the model has a chat template; never: text stays text; or a "
            "file with another template (jinja)."
        ),
    ] = "auto"
    chat_template_kwargs: Annotated[
        str, typer.Option(help="Arguments of the chat template, as in '{enable_thinking: false}' (YAML or JSON).")
    ] = "{}"
    special_tokens: Annotated[
        str, typer.Option(help="Special tokens in the text of a problem. keep: they count; escape: as plain text.")
    ] = "keep"
    grader: Annotated[
        str | None, typer.Option(help="rules, math or module:object. \\[default: the task's own, else math]")
    ] = None
    flexible_answers: FlexibleAnswersOption = False
    while_thinking: WhileThinkingOption = False
    seed: SeedOption = 0
    device: DeviceOption = "auto"
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32 or bfloat16.")] = "float32"
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Responses decoded at the same time. \\[default: as many as memory allows]"),
    ] = None
    trust_remote_code: TrustRemoteCodeOption = False

    def eval_settings(self, temperature: float) -> EvalSettings:
        """Return the settings of sampling and grading.

        Raises:
            UserError: the value of an option is not allowed; the option is named.
        """
        from attnrl.evals.settings import evaluation_settings

        return evaluation_settings(
            temperature=temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            stop=self.stop or (),
            seed=self.seed,
            dtype=self.dtype,
            task=self.task,
            grader=self.grader,
            flexible_answers=self.flexible_answers,
            while_thinking=self.while_thinking,
            prompt_suffix=self.prompt_suffix,
            max_prompt_tokens=self.max_prompt_tokens,
            system_prompt=self.system_prompt,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            special_tokens=self.special_tokens,
        )


def with_response_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` every field of :class:`ResponseOptions` as an option of the command line.

    typer reads a command's options from the signature, so the parameter ``options`` is replaced in the signature by one
    parameter per field. The command receives the values as one :class:`ResponseOptions`.
    """
    hints = get_type_hints(ResponseOptions, include_extras=True)
    names = [field.name for field in fields(ResponseOptions)]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = ResponseOptions(**{name: values.pop(name) for name in names})
        command(**values, options=options)

    own = inspect.signature(command, eval_str=True).parameters
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(ResponseOptions)
    ]
    parameters = [*(parameter for name, parameter in own.items() if name != "options"), *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
