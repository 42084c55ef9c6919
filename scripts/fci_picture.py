"""Draw docs/fci.png: step-to-step attention of one response, and the FCI of its steps.

python scripts/fci_picture.py models/smollm2-135m docs/fci.png
"""

from __future__ import annotations

import sys
from itertools import pairwise

import matplotlib
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnrl.fci import forward_context_influence, influence_by_head, step_attention_by_head
from attnrl.method.steps import split_steps

matplotlib.use("Agg")
from matplotlib import pyplot

PROMPT = (
    "A shop sells pens at 3 dollars and pads at 5 dollars. Ann buys twice as many pens as pads and pays 44 dollars.\n"
)
RESPONSE = """Let p be the number of pads. How many things did she buy in all? That is what we are asked.

Plan: write the pens with p, add up the prices, solve for p, then add both numbers.

Pens: she has twice as many pens as pads, so she has 2p pens.

Cost of the pens: 2p pens at 3 dollars each are 6p dollars.

Cost of the pads: p pads at 5 dollars each are 5p dollars.

Together: 6p + 5p = 11p dollars.

She pays 44 dollars, so 11p = 44.

Divide by 11: p = 4.

So she has 4 pads.

And 2p = 8 pens.

Wait, check the price: 8 pens cost 24 dollars and 4 pads cost 20 dollars.

24 + 20 = 44, as it must be.

The plan said to add both numbers: 8 + 4 = 12.

She bought 12 things."""


def main(model_directory: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    prompt, response = tokenizer(PROMPT).input_ids, tokenizer(RESPONSE, add_special_tokens=False).input_ids
    steps = split_steps([tokenizer.decode([token]) for token in response])
    input_ids = torch.tensor(prompt + response)
    starts = [len(prompt) + start for start in steps.starts]

    fci = forward_context_influence(model, input_ids, starts)
    loudest = influence_by_head(model, input_ids, starts).amax(-1).flatten().argmax()
    layer, head = divmod(int(loudest), model.config.num_attention_heads)
    alpha = step_attention_by_head(model, input_ids, starts, layers=[layer], heads=[head])[0, 0]

    bounds = [*steps.starts, len(response)]
    texts = [tokenizer.decode(response[a:b]).strip() for a, b in pairwise(bounds)]
    labels = [f"{text[:46]}{'...' if len(text) > 46 else ''}  {k}" for k, text in enumerate(texts)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), width_ratios=[1, 1], layout="constrained")
    image = left.imshow(alpha, cmap="magma_r")
    left.set(title=f"Attention from step to step (layer {layer}, head {head})", xlabel="to step", ylabel="from step")
    left.set_xticks(range(len(labels)))
    left.set_yticks(range(len(labels)))
    figure.colorbar(image, ax=left, shrink=0.8, label="mean attention probability")
    right.barh(range(len(labels)), fci, color="#4c72b0")
    right.invert_yaxis()
    right.set_yticks(range(len(labels)), labels, fontsize=8)
    right.set(title="FCI of each step", xlabel="attention from 4 or more steps later")
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
