"""Write docs/settings.md, the table of all settings, from the configuration classes.

python scripts/settings_page.py
"""

from __future__ import annotations

from pathlib import Path

from attnrl.config.reference import Setting, SettingGroup, setting_groups
from attnrl.config.schema import TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.experiments.comparison.config import Comparison

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
INTRODUCTION = """# Settings

<!-- Written by scripts/settings_page.py from the configuration classes: edit their descriptions, not this page. -->

Every setting of a recipe or comparison, by its dotted name. A recipe is a YAML file with one level of nesting per dot;
on the command line a setting is `name=value`, and the value is parsed as YAML (`null` is YAML's word for no value):

    attnrl train attnrl seed=1 method.branching.criterion=random sampling.stall_seconds=null

`attnrl train RECIPE --dry-run` prints all settings of a run with their values.
"""
SECTIONS = (
    ("Training: `attnrl train`", TrainConfig),
    ("Supervised training: `attnrl sft`", SftConfig),
    ("Comparison: `attnrl compare`", Comparison),
)


def page() -> str:
    """Return the Markdown text of the page."""
    parts = [INTRODUCTION]
    for title, kind in SECTIONS:
        first, *groups = setting_groups(kind)
        parts.append(f"## {title}\n\n{markdown(first.title)}\n\n{table(first)}")
        parts.extend(f"### `{group.name}`\n\n{markdown(group.title)}\n\n{table(group)}" for group in groups)
    return "\n".join(parts)


def table(group: SettingGroup) -> str:
    """Return the Markdown table of a group."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|", *map(row, group.settings)]
    return "\n".join(rows) + "\n"


def row(setting: Setting) -> str:
    """Return the row of a setting."""
    default = "required" if setting.default is None else f"`{setting.default}`"
    cells = (f"`{setting.name}`", setting.type, default, setting.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def markdown(docstring: str) -> str:
    """Return the first paragraph of a docstring as Markdown."""
    return docstring.replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}")
