"""Problems as a tokenizer is to see them."""

import random
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from attnrl.data.fitting import FittedTask, as_chat, fit_problems
from attnrl.errors import UserError
from attnrl.tasks.ledger import build_tokenizer
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

TEXT = Problem(id="text", prompt="A=1?", answers=("1",))
CHAT = replace(TEXT, id="chat", prompt=({"role": "user", "content": "A=1?"},))
LONG = replace(TEXT, id="long", prompt="A=1; " * 20)


@pytest.fixture
def chatty() -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template that knows only users."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('only users') }}{% endif %}"
        "A{{ m.content }}{% endfor %}"
    )
    return tokenizer


def test_text_is_a_user_message_where_there_is_a_chat_template(
    tokenizer: PreTrainedTokenizerBase, chatty: PreTrainedTokenizerBase
) -> None:
    assert as_chat(TEXT, chatty) == replace(TEXT, prompt=CHAT.prompt)
    assert as_chat(TEXT, chatty, "never") == as_chat(TEXT, tokenizer) == TEXT
    assert as_chat(CHAT, chatty, "never") == CHAT


def test_what_is_too_long_is_left_out(tokenizer: PreTrainedTokenizerBase, chatty: PreTrainedTokenizerBase) -> None:
    assert fit_problems([TEXT, LONG, TEXT], tokenizer, max_prompt_tokens=4) == [TEXT, TEXT]
    assert fit_problems([TEXT], chatty, max_prompt_tokens=4) == []  # the template's own token counts
    assert fit_problems([TEXT], chatty, max_prompt_tokens=5) == [as_chat(TEXT, chatty)]


def test_what_cannot_be_rendered_is_named(tokenizer: PreTrainedTokenizerBase, chatty: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="problem chat"):
        fit_problems([CHAT], tokenizer, max_prompt_tokens=9)
    system = replace(CHAT, prompt=({"role": "system", "content": "S"}, *CHAT.prompt))
    with pytest.raises(UserError, match=r"problem chat.*only users"):
        fit_problems([system], chatty, max_prompt_tokens=9)


def test_a_task_draws_again_what_is_too_long(chatty: PreTrainedTokenizerBase) -> None:
    task = find_task("ledger")
    lengths = [len(chatty(task.draw(random.Random(seed)).prompt)["input_ids"]) + 1 for seed in range(20)]
    limit = sorted(lengths)[10]
    fitted = FittedTask(task, chatty, limit)
    assert fitted.name == "ledger"
    drawn = [fitted.draw(random.Random(seed)) for seed in range(20)]
    assert drawn == [fitted.draw(random.Random(seed)) for seed in range(20)]
    assert len(fit_problems(drawn, chatty, max_prompt_tokens=limit)) == 20
    assert all(problem.prompt[0]["role"] == "user" for problem in drawn)
    with pytest.raises(UserError, match="max_prompt_tokens = 3"):
        FittedTask(task, chatty, 3).draw(random.Random(0))
