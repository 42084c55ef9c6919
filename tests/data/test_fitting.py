"""Problems as a tokenizer is to see them."""

import random
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from attnrl.data.fitting import FittedTask, fit_problems
from attnrl.errors import UserError
from attnrl.prompts.renderer import PromptRenderer
from attnrl.prompts.settings import PromptSettings
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
    renderer, never = PromptRenderer(chatty), PromptRenderer(chatty, PromptSettings(chat_template="never"))
    assert renderer.asked(TEXT) == replace(TEXT, prompt=CHAT.prompt)
    assert never.asked(TEXT) == PromptRenderer(tokenizer).asked(TEXT) == TEXT
    assert never.asked(CHAT) == CHAT


def test_what_is_too_long_is_left_out(tokenizer: PreTrainedTokenizerBase, chatty: PreTrainedTokenizerBase) -> None:
    plain, renderer = PromptRenderer(tokenizer), PromptRenderer(chatty)
    assert fit_problems([TEXT, LONG, TEXT], plain, max_prompt_tokens=4).problems == (TEXT, TEXT)
    assert fit_problems([TEXT], renderer, max_prompt_tokens=4).problems == ()  # the template's own token counts
    assert fit_problems([TEXT], renderer, max_prompt_tokens=5).problems == (renderer.asked(TEXT),)


def test_what_cannot_be_rendered_is_named(chatty: PreTrainedTokenizerBase) -> None:
    tool = replace(CHAT, prompt=(*CHAT.prompt, {"role": "tool", "content": "S"}), place="data file f, line 7")
    with pytest.raises(UserError, match=r"f, line 7\b.*only users"):
        fit_problems([tool], PromptRenderer(chatty), max_prompt_tokens=9)


def test_remarks_are_counted_with_the_first_places(tokenizer: PreTrainedTokenizerBase) -> None:
    chats = [replace(CHAT, id=str(row), place=f"data file f, line {row}") for row in range(5)]
    (remark,) = fit_problems([TEXT, *chats], PromptRenderer(tokenizer), max_prompt_tokens=9).remarks
    assert remark.startswith("5 prompts ") and "line 0; data file f, line 1" in remark and "line 4" not in remark


def test_a_task_draws_again_what_is_too_long(chatty: PreTrainedTokenizerBase) -> None:
    task = find_task("ledger")
    lengths = [len(chatty(task.draw(random.Random(seed)).prompt)["input_ids"]) + 1 for seed in range(20)]
    limit = sorted(lengths)[10]
    fitted = FittedTask(task, PromptRenderer(chatty), limit)
    assert fitted.name == "ledger"
    drawn = [fitted.draw(random.Random(seed)) for seed in range(20)]
    assert drawn == [fitted.draw(random.Random(seed)) for seed in range(20)]
    assert len(fit_problems(drawn, PromptRenderer(chatty), max_prompt_tokens=limit).problems) == 20
    assert all(problem.prompt[0]["role"] == "user" for problem in drawn)
    with pytest.raises(UserError, match="max_prompt_tokens = 3"):
        FittedTask(task, PromptRenderer(chatty), 3).draw(random.Random(0))
