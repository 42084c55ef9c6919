"""Demonstrations of reasoning-gym's chain_sum, and the small model trained on them."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnrl.errors import UserError
from attnrl.grading.answers import extract_boxed
from attnrl.local.model_names import find_model
from attnrl.tasks.chain_sum import (
    ENDING,
    QUESTION,
    SLIP_RATE,
    build_tokenizer,
    demonstrate,
    read_terms,
)
from attnrl.tasks.ledger import CONNECTIVES, STEP_END
from attnrl.tasks.registry import find_demonstrated_task, find_task

SHIPPED = "reasoning_gym:chain_sum?min_terms=8&max_terms=12&min_digits=1&max_digits=1"
OTHERS = ["reasoning_gym:chain_sum", "reasoning_gym:chain_sum?allow_negation=true&max_digits=2&min_terms=1"]
NEVER = (0.0,) * 10
ALWAYS = (1.0,) * 10

digits = st.lists(st.integers(-9, 9), min_size=2, max_size=12)
seeds = st.integers(0, 2**32)


def prompt_of(terms: list[int]) -> str:
    return QUESTION + str(terms[0]) + "".join(f" {'-' if t < 0 else '+'} {abs(t)}" for t in terms[1:]) + ENDING


@given(digits)
def test_the_terms_of_a_prompt(terms: list[int]) -> None:
    assert read_terms(prompt_of(terms)) == terms
    assert read_terms(f"{QUESTION}4 - -7 + -12{ENDING}") == [4, 7, -12]


@given(digits, seeds)
def test_a_demonstration_without_slips_keeps_the_running_total(terms: list[int], seed: int) -> None:
    opening, *working, boxed = demonstrate(terms, random.Random(seed), slip_rate=NEVER).split(STEP_END)
    assert opening.partition(" ")[2] == str(terms[0])
    for number, step in enumerate(working, start=1):
        connective, _, equation = step.partition(" ")
        left, _, right = equation.partition("=")
        assert f"{connective} " in CONNECTIVES
        assert left == f"{sum(terms[:number])}{terms[number]:+d}"
        assert int(right) == sum(terms[: number + 1])
    assert len(working) == len(terms) - 1
    assert extract_boxed(boxed) == str(sum(terms))


@given(digits, seeds)
def test_a_slip_loses_the_sign_of_a_total_that_falls_below_zero_and_all_goes_on_from_it(
    terms: list[int], seed: int
) -> None:
    total = terms[0]
    for term in terms[1:]:
        total = abs(total + term) if total >= 0 else total + term
    assert extract_boxed(demonstrate(terms, random.Random(seed), slip_rate=ALWAYS)) == str(total)


def test_slips_come_at_the_rate_of_the_term() -> None:
    rng = random.Random(0)
    for term in range(1, 10):
        slipped = sum(demonstrate([term - 1, -term], rng).endswith("{1}") for _ in range(400))
        assert slipped / 400 == pytest.approx(SLIP_RATE[term], abs=0.08)
    assert not any(demonstrate([3, -3, 9, -9], rng).endswith("-0}") for _ in range(20))


@settings(max_examples=50)
@given(digits, seeds)
def test_text_goes_through_the_tokenizer_and_back(terms: list[int], seed: int) -> None:
    tokenizer = build_tokenizer()
    prompt, response = prompt_of(terms), demonstrate(terms, random.Random(seed))
    for text in [prompt, response, prompt + response]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert (
        tokenizer(prompt + response)["input_ids"] == tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"]
    )


def test_what_is_fixed_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for piece in [QUESTION, ENDING, STEP_END, "\\boxed{", "}", " + ", " - ", "-", *CONNECTIVES]:
        assert len(tokenizer(piece)["input_ids"]) == 1
    assert len(tokenizer) < 50
    assert tokenizer.unk_token_id in tokenizer("State it: ")["input_ids"]  # what it cannot say is not lost silently


@pytest.mark.parametrize("name", [SHIPPED, *OTHERS])
def test_demonstrations_of_the_task_itself(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    from attnrl.tasks.reasoning_gym import ReasoningGymGrader, ReasoningGymTask

    task, plain = find_demonstrated_task(name), find_task(name)
    assert task.name == name and isinstance(plain, ReasoningGymTask)
    tokenizer = task.build_tokenizer()
    for seed in range(50):
        problem = task.draw(random.Random(seed))
        assert problem == plain.draw(random.Random(seed))
        assert isinstance(problem.prompt, str)
        response = demonstrate(read_terms(problem.prompt), random.Random(seed), slip_rate=NEVER)
        (grade,) = ReasoningGymGrader(plain).grade([problem], [response])
        assert (grade.reward, grade.verdict) == (1.0, "correct")
        for text in [problem.prompt, task.demonstrate(problem, random.Random(seed))]:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
        if name == SHIPPED:
            assert len(tokenizer(problem.prompt)["input_ids"]) <= 25
            assert 9 <= len(response.split(STEP_END)) <= 13
            assert len(tokenizer(response)["input_ids"]) < 160


def test_which_tasks_have_demonstrations() -> None:
    assert find_demonstrated_task("ledger") == find_task("ledger")
    with pytest.raises(UserError, match="chain_sum"):
        find_demonstrated_task("chain_sum")
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match="reasoning_gym:word_ladder"):
        find_demonstrated_task("reasoning_gym:word_ladder")


def test_the_shipped_model_solves_some_problems_always_and_some_now_and_then() -> None:
    """Ten sums, four responses each; the easy ones are those whose total never falls below zero."""
    directory = find_model("chain_sum").directory
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    rng = random.Random(11)
    easy: list[list[int]] = []
    hard: list[list[int]] = []
    while len(easy) < 5 or len(hard) < 5:
        terms = [rng.randrange(10)] + [rng.choice((-1, 1)) * rng.randrange(10) for _ in range(rng.randint(7, 11))]
        falls = sum(sum(terms[:n]) >= 0 > sum(terms[: n + 1]) for n in range(1, len(terms)))
        (hard if falls else easy).append(terms)
    torch.manual_seed(0)
    solved = []
    for problems in (easy[:5], hard[:5]):
        inputs = tokenizer([prompt_of(terms) for terms in problems] * 4, return_tensors="pt", padding=True)
        width = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            outputs = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=0,
                max_new_tokens=160,
            )
        responses = tokenizer.batch_decode(outputs[:, width:], skip_special_tokens=True)
        answers = [str(sum(terms)) for terms in problems] * 4
        solved.append(
            sum(extract_boxed(response) == answer for response, answer in zip(responses, answers, strict=True))
        )
    assert solved[0] > 14 and 0 < solved[1] < 14
