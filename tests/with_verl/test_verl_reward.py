"""The example of the grader as a reward, called by verl's own reward manager (verl 0.9.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl", reason="verl is not installed (make test-verl)")

import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

EXAMPLE = Path(__file__).parents[2] / "examples" / "grading_verl.py"


class Characters:
    """A tokenizer with a token per character."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids.tolist()))


def batch(question: str, response: str, ground_truth: Any) -> DataProto:
    ids = torch.tensor([[ord(character) for character in response] + [0, 0]])
    mask = torch.tensor([[1, *[1] * len(response), 0, 0]])
    rows = {
        "data_source": "math",
        "reward_model": {"ground_truth": ground_truth},
        "extra_info": {"question": question},
    }
    return DataProto.from_dict(
        {"prompts": torch.tensor([[1]]), "responses": ids, "attention_mask": mask},
        non_tensors={key: np.array([value], dtype=object) for key, value in rows.items()},
    )


@pytest.mark.parametrize(
    ("question", "response", "ground_truth", "reward"),
    [
        ("What is $10/8+10/8$?", r"So \boxed{\frac{10}{4}}.", "2.5", 1.0),
        ("A root of $(x-5)(x-6)$?", r"\boxed{\sqrt{36}}", ["5", "6"], 1.0),
        ("What is $2+3$?", r"\boxed{2+3}", "5", 0.0),
        ("What is $2+3$?", r"\boxed{4}", "5", 0.0),
    ],
)
def test_verl_calls_the_example(question: str, response: str, ground_truth: Any, reward: float) -> None:
    settings = {
        "custom_reward_function": {"path": str(EXAMPLE), "name": "compute_score"},
        "reward_manager": {"source": "register", "name": "naive"},
    }
    manager = load_reward_manager(OmegaConf.create({"reward": settings}), Characters())
    found = manager.loop.run_until_complete(manager.run_single(batch(question, response, ground_truth)))
    assert found == {"reward_score": reward, "reward_extra_info": {"score": reward, "acc": reward}}
