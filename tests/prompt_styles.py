"""Tokenizers with chat templates in the styles of public models, each template written here, and tiny models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import helpers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2 = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helper.<|im_end|>\n{% endif %}" + CHATML
QWEN3 = CHATML.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<|User|>{{ m.content }}{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
VICUNA = (
    "A talk of a user and a helper. {% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% else %}{{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """A chat template with special tokens.

    Attributes:
        template: the template; None for a base model.
        special: special tokens of the template.
        bos: the start token; None without a start token.
        adds_bos: whether the tokenizer puts the start token before text.
        eos: the end-of-sequence token.
    """

    template: str | None
    special: tuple[str, ...] = ()
    bos: str | None = None
    adds_bos: bool = False
    eos: str = "<eos>"


STYLES = {
    "base": Style(None),
    "base_bos": Style(None, bos="<s>", adds_bos=True),
    "chatml": Style(CHATML, ("<|im_start|>", "<|im_end|>")),
    "qwen2": Style(QWEN2, ("<|im_start|>", "<|im_end|>")),
    "qwen3": Style(QWEN3, ("<|im_start|>", "<|im_end|>")),
    "llama3": Style(
        LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), bos="<|begin_of_text|>", adds_bos=True
    ),
    "r1": Style(R1, ("<|User|>", "<|Assistant|>", "<|end|>"), bos="<|begin|>", adds_bos=True),
    "mistral": Style(MISTRAL, ("[INST]", "[/INST]"), bos="<s>", adds_bos=True, eos="</s>"),
    "gemma": Style(GEMMA, ("<start_of_turn>", "<end_of_turn>"), bos="<bos>", adds_bos=True),
    "vicuna": Style(VICUNA, bos="<s>", adds_bos=True, eos="</s>"),
}


def tokenizer_of(style: str | Style) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of one token per byte, with the style's special tokens and template."""
    chosen = STYLES[style] if isinstance(style, str) else style
    named = [token for token in (chosen.eos, chosen.bos, "<pad>") if token is not None]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*named, *chosen.special])
    if chosen.adds_bos and chosen.bos is not None:
        start = (chosen.bos, tokenizer.token_to_id(chosen.bos))
        tokenizer.post_processor = TemplateProcessing(f"{chosen.bos} $A", special_tokens=[start])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=chosen.eos, bos_token=chosen.bos, pad_token="<pad>"
    )
    fast.chat_template = chosen.template
    return fast


def save_model(directory: Path, style: str | Style, **shape: object) -> Path:
    """Write a tiny random model with the tokenizer of the style."""
    tokenizer = tokenizer_of(style)
    settings = {"eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 1024, **shape}
    helpers.tiny_model(vocab_size=len(tokenizer), **settings).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
