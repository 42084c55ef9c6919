"""Report of runs as one self-contained HTML file: no network, no server, no library.

Text written by a model is untrusted input. Model text is in the page only as JSON in blocks that no browser executes,
escaped so that no block can be closed early; the script inserts model text as text nodes only; and the content
security policy of the page allows one script and one style sheet, by hash, and no requests.
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
from attnrl.report.html_data import ForestLog, Json, read_run_data, run_names
from attnrl.utils.files import write_atomic

DEFAULT_MEGABYTES = 10.0
#: Parts of the page's one script; later parts use the functions of earlier parts.
SCRIPTS = ("base.js", "charts.js", "forest.js", "attention.js", "page.js")


def write_report(
    runs: Sequence[Path], output: Path, *, max_megabytes: float = DEFAULT_MEGABYTES, attention: bool | None = None
) -> int:
    """Write the report of ``runs`` to one file, and return the size of the file in bytes.

    Args:
        runs: run directories, finished or unfinished.
        output: the file to write.
        max_megabytes: size limit of all forests in MB, divided equally among the runs; the page shows the number of
            forests left out.
        attention: whether to compute step-to-step attention; None computes attention if the newest checkpoint is
            small.

    Raises:
        UserError: a directory holds no run, a file is damaged, or ``output`` cannot be written.
    """
    data: list[Json] = []
    blocks: dict[str, str] = {}
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        entry = {"name": name, "path": str(run), **read_run_data(run)}
        forests = ForestLog(run)
        kept = select_forests(forests, int(max_megabytes * 1e6 / len(runs)))
        blocks |= {f"forests-{index}-{step}": f"[{','.join(texts)}]" for step, texts in kept.items()}
        entry["forests"] = [
            {"step": step, "kept": len(kept.get(step, ())), "of": sum(line.step == step for line in forests.lines)}
            for step in sorted({line.step for line in forests.lines})
        ]
        entry["attention"] = attention_maps(run, forests, attention)
        data.append(entry)
    page = assemble_page({"version": __version__, "megabytes": max_megabytes, "runs": data}, blocks)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    return len(page)


def select_forests(forests: ForestLog, budget: int) -> dict[int, list[str]]:
    """Return the forests that fit in ``budget`` bytes: training step -> inline JSON of forests, in log order."""
    kept = defaultdict(list)
    for line in forests.retention_order():
        text = inline_json(forests.compact(line))
        budget -= len(text)
        if budget < 0:
            break
        kept[line.step].append(text)
    return kept


def inline_json(value: Json) -> str:
    """Return ``value`` as ASCII JSON without ``<``, ``>`` and ``&``, safe inside a ``<script>`` element.

    The three characters occur in JSON only inside strings, where the escapes are equivalent.
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def assemble_page(data: Json, blocks: dict[str, str]) -> bytes:
    """Return the HTML page of ``data``; ``blocks`` (id -> inline JSON) are parsed by the page on demand."""
    page = _asset("page.html")
    style = _asset("style.css")
    script = page_script()
    parts = {
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": _block("data", inline_json(data)) + "".join(_block(*block) for block in blocks.items()),
    }
    # One pass: inserted text is not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page).encode()


def page_script() -> str:
    """Return the JavaScript of the page: the files of :data:`SCRIPTS`, joined in order."""
    return "\n\n".join(_asset(name) for name in SCRIPTS)


def _asset(name: str) -> str:
    return (resources.files("attnrl.report") / "assets" / name).read_text(encoding="utf-8").strip()


def _block(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _hash(text: str) -> str:
    """Return the hash source of an inline script or style sheet for the content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
