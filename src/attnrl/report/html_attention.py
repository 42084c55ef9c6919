"""Step-to-step attention maps of ``attnrl report``: a forward of the newest checkpoint over logged responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.report.html_data import ForestLog, Json, rounded, split_text
from attnrl.runs.directory import RunDirectory

PROBLEMS = 4
MAX_STEPS = 160  # steps per map: a larger map takes megabytes and is finer than a screen
MAX_TOKENS = 16_384
MAX_BYTES = 2 * 1024**3  # largest size of the weights without --attention, so that a report takes seconds


def attention_maps(root: Path, forests: ForestLog, asked: bool | None) -> dict[str, Json]:
    """Return attention maps of the first trunk of up to :data:`PROBLEMS` problems of the newest logged step.

    Args:
        root: the run directory.
        forests: the forest log of the run.
        asked: whether to compute the maps; None computes maps if the checkpoint is small.

    Returns:
        ``note``: the source of the maps or the reason for the absence of maps; ``maps``: the maps.
    """
    if asked is False:
        return _no_attention("left out: --no-attention")
    if not forests.lines:
        return _no_attention("there are no forests to take responses from")
    from attnrl.local.checkpoint import list_checkpoints

    run = RunDirectory(root)
    checkpoints = list_checkpoints(run.checkpoints) if run.checkpoints.is_dir() else []
    if not checkpoints:
        return _no_attention("the run has no checkpoint to compute attention with")
    checkpoint = checkpoints[-1]
    size = sum(path.stat().st_size for path in checkpoint.directory.glob("model*.safetensors"))
    if size > MAX_BYTES and asked is None:
        return _no_attention(
            f"the weights of {checkpoint.directory.name} are {size / 1024**3:.0f} GiB; --attention computes it"
        )
    newest = max(line.step for line in forests.lines)
    rows = [forests.read(line) for line in forests.lines if line.step == newest and line.rank < 4 * PROBLEMS]
    try:
        maps = _maps(checkpoint.directory, rows)
    except UserError as error:
        return _no_attention(str(error))
    # Damaged rows, unsupported architectures, out of memory: the rest of the report does not depend on attention.
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        return _no_attention(f"{type(error).__name__}: {one_line(error)}")
    if not maps:
        return _no_attention(f"no response of step {newest} has two steps")
    return {"note": f"Attention of {checkpoint.directory.name} over responses sampled for step {newest}", "maps": maps}


def _no_attention(reason: str) -> dict[str, Json]:
    return {"note": f"No attention: {reason}.", "maps": []}


def _maps(checkpoint: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Json]]:
    import torch

    from attnrl.fci import step_attention_by_head
    from attnrl.local.loading import choose_device, load_model, load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, tokenizer, device=choose_device("auto"), dtype="float32").model
    maps: list[dict[str, Json]] = []
    for row in rows:
        tree = row["trees"][0]
        starts, response, text = tree["steps"], tree["nodes"][0]["tokens"], tree["nodes"][0]["text"]
        # The logged prompt contains the special tokens.
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        # Attention is causal: truncating a response does not change the attention of the kept steps.
        fitting = sum(end <= MAX_TOKENS for end in [*starts[1:], len(response)])
        kept = min(fitting, MAX_STEPS)
        if kept < 2 or len(maps) == PROBLEMS:
            continue
        ends = [*starts[1:], len(response)]
        ids = torch.tensor([*prompt, *response[: ends[kept - 1]]])
        if int(ids.max()) >= model.get_input_embeddings().num_embeddings or int(ids.min()) < 0:
            raise ValueError("a token id outside of the checkpoint's vocabulary")
        alpha = step_attention_by_head(model, ids, [len(prompt) + start for start in starts[:kept]])
        labels = split_text(text)
        maps.append(
            {
                "problem": str(row["problem"]),
                "steps": kept,
                "of": len(starts),
                "labels": [label.strip()[:160] for label in labels[:kept]] if len(labels) == len(starts) else [],
                "mean": _lower_triangle(alpha.mean(dim=(0, 1))),
                "max": _lower_triangle(alpha.amax(dim=(0, 1))),
            }
        )
    return maps


def _lower_triangle(matrix: Any) -> list[list[float | None]]:
    """Return the rows of a lower triangular matrix, each up to the diagonal."""
    return [[rounded(round(value, 4)) for value in row[: j + 1]] for j, row in enumerate(matrix.tolist())]
