"""The capture is right for every decoder with causal softmax attention, and says so where it cannot be."""

import re
from itertools import accumulate, chain
from pathlib import Path

import pytest
import torch
import transformers
from architectures import (
    ARCHITECTURES,
    REFUSED,
    STARTS,
    Architecture,
    Refused,
    build,
    config_of,
    dense_influence,
    eager,
    packing_error,
    parity,
    tokens,
)

from attnrl.fci import FciUnsupportedError, influence_by_head

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "models" / "smollm2-135m"
DOCS = ROOT / "docs" / "fci.md"

# From the method's domain: ten steps, the last of which checks the first.
STEPS = (
    "A bakery sells muffins in boxes of six and in boxes of ten, and a customer wants exactly fifty-two muffins.",
    " How many different ways are there to make up the order from full boxes, and which uses the fewest boxes?\n\n",
    "Let me call the number of small boxes a and the number of large boxes b, so that 6a + 10b = 52.",
    " Every term is even, so I can divide by two and work with 3a + 5b = 26 instead.\n",
    "Now b can be at most 5, because 5 times 6 is 30, which is already more than 26.",
    " If b is 0, then 3a = 26, and 26 is not a multiple of 3, so this gives no solution.\n",
    "If b is 1, then 3a = 21, so a = 7, which is a solution with eight boxes.\n",
    "If b is 2, then 3a = 16, which does not work, and if b is 3, then 3a = 11, which does not work either.\n",
    "If b is 4, then 3a = 6, so a = 2, which is a solution with six boxes.\n",
    "If b is 5, then 3a = 1, and that is impossible.\n\n",
    "Wait, let me check both against the original equation: 6 times 7 plus 10 is 52, and 6 times 2 plus 40 is 52.",
    " Both are right, so I did not lose anything when I divided by two.\n",
    "So there are two ways to make up the order, and the one with the fewest boxes takes two small and four large.",
)


def config_or_skip(architecture: Architecture | Refused):
    config = config_of(architecture)
    if config is None:
        pytest.skip(f"transformers {transformers.__version__} has no {architecture.config}")
    return config


def named(architectures):
    return pytest.mark.parametrize("architecture", architectures, ids=lambda architecture: architecture.name)


@named(ARCHITECTURES)
def test_equals_eager_attention(architecture):
    config = config_or_skip(architecture)
    model = build(config)
    found = parity(model)
    assert found.peak > 0.2  # of nearly uniform attention any wrong influence would be as good
    assert found.error < 1e-5
    assert found.logits_error < 1e-4
    layers = len(found.captured) + len(found.skipped)
    assert layers == config.get_text_config().num_hidden_layers
    assert sorted(found.skipped) == list(architecture.skipped)
    assert not {"full_attention", "sliding_attention", "attention"} & set(found.skipped.values())
    assert model.config._attn_implementation == "eager"  # as it was


@named(ARCHITECTURES)
def test_equals_eager_attention_in_bf16(architecture):
    found = parity(build(config_or_skip(architecture), torch.bfloat16))
    # The first layer gets the very same queries and keys. What is left is eager's rounding: its scores, a few units
    # large, and its probabilities keep 8 bits, ours are fp32. At most 0.0018 was measured.
    assert found.first_error < 0.005
    # Further up the hidden states differ too, by the rounding of each layer before, and an expert that is chosen by
    # a hair changes for good: at most 0.017, of influences up to about 1.
    assert found.error < 0.05


@named(ARCHITECTURES)
def test_packed_sequences_equal_each_alone(architecture):
    model = build(config_or_skip(architecture))
    if architecture.packing == "equal":
        assert packing_error(model) < 1e-6
    elif architecture.packing == "refused":
        with pytest.raises(FciUnsupportedError, match="packed"):
            packing_error(model)
    else:
        with pytest.raises(FciUnsupportedError, match="cu_seq_lens_q"):
            packing_error(model)
    if architecture.packing != "refused":
        assert packing_error(model, told=True) < 1e-6


@named(REFUSED)
def test_refuses_by_name(architecture):
    model = build(config_or_skip(architecture))
    with pytest.raises(FciUnsupportedError, match=architecture.reason):
        influence_by_head(model, tokens(), STARTS)


def test_equals_eager_attention_with_real_weights():
    if not (SMOLLM2 / "config.json").exists():
        pytest.skip("models/smollm2-135m is absent; `make smollm2` makes it")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        SMOLLM2, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    pieces = [tokenizer(step, add_special_tokens=False).input_ids for step in STEPS]
    ids_1T = torch.tensor([[*chain.from_iterable(pieces)]])
    assert ids_1T.shape[1] > 300
    starts = list(accumulate(map(len, pieces)))[1:-1]  # the first two sentences are the prompt
    expected = dense_influence(torch.cat(eager(model, ids_1T)[1]), starts, 4)
    torch.testing.assert_close(influence_by_head(model, ids_1T, starts, delta=4), expected, atol=1e-5, rtol=0)


def test_docs_list_the_same_architectures():
    if not DOCS.exists():
        pytest.skip("docs/fci.md is absent")
    table = re.search(r"<!-- parity -->\n(.*?)<!-- /parity -->", DOCS.read_text(), re.DOTALL)
    assert table, "docs/fci.md has no table between its parity markers; scripts/fci_parity.py prints it"
    rows = [line.split("|")[1].strip() for line in table[1].splitlines() if line.startswith("|")]
    assert rows[2:] == [architecture.name for architecture in ARCHITECTURES]
