"""Runs as one HTML file that needs nothing else: no network, no server, no library.

What a model wrote is hostile here. It is in the page only as JSON in blocks that no browser executes, escaped so
that it cannot end its block; the script shows it as text; and the page's policy allows this one script and style
sheet by their hashes and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from attnrl import __version__
from attnrl.errors import UserError
from attnrl.report.html_attention import attention_maps
from attnrl.report.html_data import Forests, Json, read_run, run_names
from attnrl.utils.files import write_atomic

DEFAULT_MEGABYTES = 10.0


def write_report(
    runs: Sequence[Path], output: Path, *, max_megabytes: float = DEFAULT_MEGABYTES, attention: bool | None = None
) -> int:
    """Write the report of some runs to one file, and return its size in bytes.

    Args:
        runs: run directories, finished or not.
        output: the file to write.
        max_megabytes: of forests, shared by the runs; the page says what was left out.
        attention: compute step-to-step attention (True), do not (False), or do where the newest checkpoint is
            small (None).

    Raises:
        UserError: a directory that holds no run, a damaged file, or ``output`` cannot be written.
    """
    data: list[Json] = []
    blocks: dict[str, str] = {}
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        entry = {"name": name, "path": str(run), **read_run(run)}
        forests = Forests(run)
        kept = keep_forests(forests, int(max_megabytes * 1e6 / len(runs)))
        blocks |= {f"forests-{index}-{step}": f"[{','.join(texts)}]" for step, texts in kept.items()}
        entry["forests"] = [
            {"step": step, "kept": len(kept.get(step, ())), "of": sum(line.step == step for line in forests.lines)}
            for step in sorted({line.step for line in forests.lines})
        ]
        entry["attention"] = attention_maps(run, forests, attention)
        data.append(entry)
    page = assemble({"version": __version__, "megabytes": max_megabytes, "runs": data}, blocks)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    return len(page)


def keep_forests(forests: Forests, budget: int) -> dict[int, list[str]]:
    """As many forests as ``budget`` bytes hold, as inline JSON by their step, in the order of the log."""
    kept = defaultdict(list)
    for line in forests.most_telling_first():
        text = inline_json(forests.compact(line))
        budget -= len(text)
        if budget < 0:
            break
        kept[line.step].append(text)
    return kept


def inline_json(value: Json) -> str:
    """JSON that can stand inside a ``<script>`` element: ASCII, and without any character that HTML looks at.

    Such characters can only be inside JSON strings, where an escape means the same.
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def assemble(data: Json, blocks: dict[str, str]) -> bytes:
    """The page of ``data``, with ``blocks`` of inline JSON by their id, which are parsed when they are looked at."""
    folder = resources.files("attnrl.report") / "assets"
    page, style, script = (
        (folder / f"report.{kind}").read_text(encoding="utf-8").strip() for kind in ("html", "css", "js")
    )
    parts = {
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": _block("data", inline_json(data)) + "".join(_block(*block) for block in blocks.items()),
    }
    # In one pass: what is put in is not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page).encode()


def _block(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
