"""Step-to-step attention for ``attnrl report``: the newest checkpoint of a run reads some of its responses again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.report.html_data import Forests, Json, pieces, rounded
from attnrl.runs.directory import RunDirectory

PROBLEMS = 4
MAX_STEPS = 160  # of a response: a map of more is megabytes in the page, and finer than a screen
MAX_TOKENS = 16_384
MAX_BYTES = 2 * 1024**3  # of weights, unless attention is asked for: a report is to take seconds


def attention_maps(root: Path, forests: Forests, asked: bool | None) -> dict[str, Json]:
    """Heat maps of the first trunk of a few problems of the newest kept step.

    Args:
        root: the run directory.
        forests: its forests.
        asked: compute them (True), do not (False), or do where the checkpoint is small (None).

    Returns:
        ``note``, which says what the maps are or why there are none, and the ``maps``.
    """
    if asked is False:
        return _none("left out: --no-attention")
    if not forests.lines:
        return _none("there are no forests to take responses from")
    from attnrl.local.checkpoint import list_checkpoints

    run = RunDirectory(root)
    checkpoints = list_checkpoints(run.checkpoints) if run.checkpoints.is_dir() else []
    if not checkpoints:
        return _none("the run has no checkpoint to compute attention with")
    checkpoint = checkpoints[-1]
    size = sum(path.stat().st_size for path in checkpoint.directory.glob("model*.safetensors"))
    if size > MAX_BYTES and asked is None:
        return _none(
            f"the weights of {checkpoint.directory.name} are {size / 1024**3:.0f} GiB; --attention computes it"
        )
    newest = max(line.step for line in forests.lines)
    rows = [forests.read(line) for line in forests.lines if line.step == newest and line.rank < 4 * PROBLEMS]
    try:
        maps = _maps(checkpoint.directory, rows)
    except UserError as error:
        return _none(str(error))
    # Damaged rows, models whose attention cannot be captured, memory: the rest of the report does not need this.
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        return _none(f"{type(error).__name__}: {one_line(error)}")
    if not maps:
        return _none(f"no response of step {newest} has two steps")
    return {"note": f"{checkpoint.directory.name} reads responses that were sampled for step {newest}", "maps": maps}


def _none(reason: str) -> dict[str, Json]:
    return {"note": f"No attention: {reason}.", "maps": []}


def _maps(checkpoint: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Json]]:
    import torch

    from attnrl.fci import step_attention
    from attnrl.local.loading import choose_device, load_model, load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, device=choose_device("auto"), dtype="float32")
    maps: list[dict[str, Json]] = []
    for row in rows:
        tree = row["trees"][0]
        starts, response, text = tree["steps"], tree["nodes"][0]["tokens"], tree["nodes"][0]["text"]
        # The log keeps the prompt's text, special tokens included, so that none are to be added again.
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        # Attention is causal: a response cut short has the same attention as far as it goes.
        fitting = sum(end <= MAX_TOKENS for end in [*starts[1:], len(response)])
        kept = min(fitting, MAX_STEPS)
        if kept < 2 or len(maps) == PROBLEMS:
            continue
        ends = [*starts[1:], len(response)]
        ids = torch.tensor([*prompt, *response[: ends[kept - 1]]])
        if int(ids.max()) >= model.get_input_embeddings().num_embeddings or int(ids.min()) < 0:
            raise ValueError("a token that the checkpoint's model has not")
        alpha = step_attention(model, ids, [len(prompt) + start for start in starts[:kept]])
        labels = pieces(text)
        maps.append(
            {
                "problem": str(row["problem"]),
                "steps": kept,
                "of": len(starts),
                "labels": [label.strip()[:160] for label in labels[:kept]] if len(labels) == len(starts) else [],
                "mean": _lower(alpha.mean(dim=(0, 1))),
                "max": _lower(alpha.amax(dim=(0, 1))),
            }
        )
    return maps


def _lower(matrix: Any) -> list[list[float | None]]:
    """Row j up to its diagonal; the rest is zero."""
    return [[rounded(round(value, 4)) for value in row[: j + 1]] for j, row in enumerate(matrix.tolist())]
