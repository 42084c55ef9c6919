"""Print the table of docs/fci.md: the difference between captured influence and the influence of eager attention.

``python scripts/fci_parity.py`` measures tiny random models of the architectures in tests/fci/test_architectures.py.
Copy the output between the markers of docs/fci.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fci"))

from architectures import ARCHITECTURES, Architecture, build, config_of, packing_error, parity

from attnrl.fci import FciUnsupportedError

HEADER = (
    "| architecture | exercises | layers captured / skipped | error fp32 | error bf16 | packed |",
    "| --- | --- | --- | --- | --- | --- |",
)


def packing(architecture: Architecture, model: PreTrainedModel) -> str:
    if architecture.packing == "refused":
        return "refused"
    told = architecture.packing == "cu_seq_lens"
    if packing_error(model, told=told) >= 1e-6:
        raise SystemExit(f"{architecture.name}: packed sequences differ from those alone")
    return "with cu_seq_lens" if told else "yes"


def row(architecture: Architecture) -> str:
    config = config_of(architecture)
    if config is None:
        measured = [f"not captured under transformers {transformers.__version__}", "", "", ""]
    else:
        model = build(config)
        single = parity(model)
        half = parity(build(config, torch.bfloat16))
        measured = [
            f"{len(single.captured)} / {len(single.skipped)}",
            f"{single.error:.0e}",
            f"{half.error:.3f}",
            packing(architecture, model),
        ]
    return "| " + " | ".join([architecture.name, architecture.exercises, *measured]) + " |"


def main() -> None:
    transformers.logging.set_verbosity_error()
    print(*HEADER, sep="\n")
    for architecture in ARCHITECTURES:
        try:
            print(row(architecture))
        except FciUnsupportedError as error:
            raise SystemExit(f"{architecture.name}: {error}") from error


if __name__ == "__main__":
    main()
