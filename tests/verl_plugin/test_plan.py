"""What a dry run with ``engine=verl`` says, against counts by hand; verl is not needed for it."""

import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attnrl.config.load import load_config, recipe_names
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.verl import memory
from attnrl.verl.memory import GIB, OTHER_GIB, ModelShape, cached_sequences, find_model_shape
from attnrl.verl.plan import evaluations, generations, most_tokens, plan

SMALL, LARGE = "verl/r1_distill_qwen_1.5b_8xh100", "verl/r1_distill_qwen_7b_3x8xh100"
GRPO, TREERL = "verl/grpo_r1_distill_qwen_1.5b_8xh100", "verl/treerl_r1_distill_qwen_1.5b_8xh100"
MEMORY = {"training": memory.training_memory, "scoring": memory.scoring_memory, "sampling": memory.sampling_memory}


def load(*overrides: str, recipe: str = SMALL) -> TrainConfig:
    return load_config(TrainConfig, recipe, overrides)


def shape_of(config: TrainConfig) -> ModelShape:
    shape = find_model_shape(config)
    assert shape is not None
    return shape


def taken(phase: str, *overrides: str, recipe: str = SMALL) -> dict[str, float]:
    config = load(*overrides, recipe=recipe)
    return MEMORY[phase](config, shape_of(config))


def total(phase: str, *overrides: str) -> float:
    return sum(taken(phase, *overrides).values())


def warnings(*overrides: str, recipe: str = SMALL) -> list[str]:
    lines = plan(load(*overrides, recipe=recipe))
    assert all("\n" not in line for line in lines)
    found = [line for line in lines if line.startswith("warning: ")]
    assert lines[len(lines) - len(found) :] == found, "warnings come last"
    return found


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("verl/")])
def test_the_shipped_recipes_fit_without_a_warning(name: str) -> None:
    assert warnings(recipe=name) == []


def test_the_plan_of_the_small_run_line_by_line() -> None:
    assert plan(load()) == [
        "engine      verl, 1 node x 8 GPUs; sampling: vllm, 8 engines, each on 1; "
        "training: FSDP2 over 8, a sequence on 1",
        "model       deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B (qwen2, 1,777,088,000 parameters, bfloat16)",
        "data        agentica-org/DeepScaleR-Preview-Dataset to train on, HuggingFaceH4/MATH-500[test] held out; "
        "not read",
        # 64 * 6 * 5 responses of 8,192 tokens; over 8 GPUs
        "step        64 problems x 6 initial responses, up to 1,920 responses to train on, at most 15,728,640 tokens "
        "(240 and 1,966,080 a GPU); the batch adapts, to 256 problems at most",
        "updates     2 optimizer steps a step, each of up to 960 responses; 1,000 in all",
        "generations 501 in all, of at most 7.9B tokens",
        "evaluations 26 in all, of up to 500 problems x 4",
        # Of a GPU's 240 rows of 9,216 tokens four fill a micro-batch.
        "forwards    a step at most 1,920 responses scored, 1,920 by the reference, 1,920 trained on, in up to 60 "
        "micro-batches a GPU",
        "memory      GiB of each GPU, which has 80. An estimate: leave a margin",
        "  training  47.3: weights 0.8, gradients 0.8, AdamW 1.7, gathered 2.2, activations 6.5, logits 31.3, "
        "other 4.0",
        "  scoring   41.1: weights 0.8, AdamW 1.7, gathered 0.9, activations 2.2, logits 31.3, FCI 0.3, other 4.0",
        "  sampling  70.5: weights 3.3, workspace 2.0, cache 58.7, training 2.5, other 4.0; the cache of an "
        "engine holds 238 sequences of 9,216 tokens",
        "  host      of a node 6.6: reference 6.6, offloaded 0.0",
    ]


def test_generations_and_tokens_of_a_run() -> None:
    assert generations(load()) == 500 + 1
    assert most_tokens(load()) == 64 * 8192 * (6 * 501 + 24 * 500)
    assert generations(load("method.branching.points=0")) == 500 + 1
    assert generations(load(recipe=TREERL)) == 2 * 800
    assert generations(load(recipe=GRPO)) == 800
    assert most_tokens(load(recipe=TREERL)) == most_tokens(load(recipe=GRPO)) == 64 * 30 * 8192 * 800


@pytest.mark.parametrize(("every", "steps", "times"), [(20, 500, 26), (300, 500, 3), (7, 7, 2), (0, 500, 0), (9, 5, 2)])
def test_held_out_problems_are_sampled_before_the_run_now_and_then_and_at_its_end(
    every: int, steps: int, times: int
) -> None:
    assert evaluations(load(f"eval.every={every}", f"steps={steps}")) == times


def test_what_a_step_is_on_more_gpus_and_with_other_settings() -> None:
    unscored = ["sampling.score_continuations=false", "verl.rollout=transformers"]
    text = "\n".join(plan(load("verl.nodes=3", "loss.kl=0", "tokens=1000000", *unscored)))
    assert "(80 and 655,360 a GPU)" in text and "up to 20 micro-batches a GPU" in text
    assert "384 responses scored, 0 by the reference, 1,920 trained on" in text  # 64 * 6
    assert re.search(r"the run ends .*1,000,000", text)
    spread = "\n".join(plan(load("verl.sequence_parallel=2", recipe=GRPO)))
    assert "8 engines, each on 1; training: FSDP2 over 8, a sequence on 2" in spread
    assert "up to 60 micro-batches a GPU" in spread  # twice the rows, twice the room


def test_parameters_are_counted() -> None:
    small, large = shape_of(load()), shape_of(load(recipe=LARGE))
    assert round(small.parameters / 1e9, 3) == 1.777 and round(large.parameters / 1e9, 3) == 7.616
    # By hand: embedding and head, then q, o, k, v (three with biases), the MLP, two norms of each layer, the last norm.
    hidden, narrow, mlp, words = 1536, 2 * 128, 8960, 151_936
    layer = 2 * hidden**2 + 2 * hidden * narrow + hidden + 2 * narrow + 3 * hidden * mlp + 2 * hidden
    assert small.parameters == 2 * words * hidden + 28 * layer + hidden
    assert small.unit == words * hidden and large.unit == 152_064 * 3584
    assert shape_of(load("verl.architecture.vocab_size=1000")).unit == layer


def test_memory_by_hand() -> None:
    parameters, tokens = 1_777_088_000, 36_864
    training, scoring, sampling = (taken(phase) for phase in MEMORY)
    assert training["weights"] == training["gradients"] == scoring["weights"] == 4 * parameters / 8 / GIB
    assert training["AdamW"] == scoring["AdamW"] == 8 * parameters / 8 / GIB
    assert training["logits"] == scoring["logits"] == tokens * 151_936 * (2 + 4) / GIB
    assert training["gathered"] == 151_936 * 1536 * (2 + 2 + 2 + 4) / GIB
    assert sampling["weights"] == 2 * parameters / GIB and sampling["training"] == 12 * parameters / 8 / GIB
    assert sampling["weights"] + sampling["workspace"] + sampling["cache"] == pytest.approx(0.8 * 80)
    # Keys and values of 28 layers, 2 heads of 128, 2 bytes each.
    assert cached_sequences(load(), shape_of(load())) == int(sampling["cache"] * GIB / (2 * 28 * 2 * 128 * 2 * 9216))
    assert training["other"] == OTHER_GIB


def test_activations_are_what_autograd_keeps_of_a_layer() -> None:
    """Measured on a small model: of one layer in bf16, without flash attention's blocks, on a CPU."""
    tokens = 512
    sizes = dict(hidden_size=192, num_attention_heads=3, num_key_value_heads=3, intermediate_size=640, vocab_size=64)
    config = load(
        f"optimizer.micro_batch_tokens={tokens}",
        "optimizer.gradient_checkpointing=false",
        *(f"verl.architecture.{name}={size}" for name, size in {**sizes, "num_hidden_layers": 1}.items()),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.verl.architecture)).bfloat16()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    states = torch.randn(1, tokens, 192, dtype=torch.bfloat16, requires_grad=True)
    positions = model.model.rotary_emb(states, torch.arange(tokens)[None])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](states, position_embeddings=positions)
    measured = sum(storage.nbytes() for storage in kept.values())
    assert memory.training_memory(config, shape_of(config))["activations"] * GIB == pytest.approx(measured, rel=0.05)


def test_more_gpus_hold_less_each_in_training_and_scoring() -> None:
    for phase in ("training", "scoring"):
        by_nodes = [total(phase, f"verl.nodes={nodes}") for nodes in (1, 2, 4, 16)]
        assert by_nodes == sorted(by_nodes, reverse=True) and len(set(by_nodes)) == 4


@pytest.mark.parametrize(
    ("phase", "less", "more"),
    [
        ("training", "optimizer.micro_batch_tokens=9216", "optimizer.micro_batch_tokens=18432"),
        ("training", "optimizer.gradient_checkpointing=true", "optimizer.gradient_checkpointing=false"),
        ("training", "dtype=bfloat16", "dtype=float32"),
        ("scoring", "verl.offload=true", "verl.offload=false"),
        ("scoring", "dtype=bfloat16", "dtype=float32"),
        ("sampling", "verl.offload=true", "verl.offload=false"),
        ("sampling", "verl.gpu_memory_utilization=0.5", "verl.gpu_memory_utilization=0.6"),
    ],
)
def test_what_saves_memory(phase: str, less: str, more: str) -> None:
    assert total(phase, less) < total(phase, more)


def test_what_only_some_runs_hold() -> None:
    assert "FCI" in taken("scoring") and "FCI" not in taken("scoring", recipe=GRPO)
    awake = taken("training", "verl.set=[actor_rollout_ref.rollout.free_cache_engine=False]")
    assert awake["rollout"] == pytest.approx(0.8 * 80) and "rollout" not in taken("training")
    config = load("verl.offload=true", "loss.kl=0", "verl.nodes=2")
    host = memory.host_memory(config, shape_of(config))
    assert host == {"reference": 0, "offloaded": 12 * 1_777_088_000 / 2 / GIB}
    assert taken("sampling", "verl.tensor_parallel=2")["weights"] == taken("sampling")["weights"] / 2


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["optimizer.micro_batch_tokens=9215"], ["9,216 tokens", "9,215", "optimizer.micro_batch_tokens"]),
        (["sampling.max_new_tokens=40000"], ["41,024 tokens", "36,864", "verl.sequence_parallel"]),
        (["verl.tensor_parallel=3", "verl.nodes=3"], ["verl.tensor_parallel=3", "8 GPUs of a node"]),
        (["verl.tensor_parallel=8"], ["verl.tensor_parallel=8", "12 attention heads"]),
        (["optimizer.micro_batch_tokens=80000"], ["training takes", "of 80", "not below 9,216"]),
        (["optimizer.micro_batch_tokens=200000"], ["scoring takes"]),
        (["verl.gpu_memory_gib=40"], ["training takes 47.3 GiB of 40"]),
        (["verl.gpu_memory_utilization=0.95"], ["sampling takes 82.5 GiB of 80", "verl.offload"]),
        (["verl.gpu_memory_utilization=0.06"], ["does not hold the model", "verl.tensor_parallel"]),
    ],
)
def test_what_will_go_wrong_is_a_warning(overrides: list[str], named: list[str]) -> None:
    assert any(all(part in warning for part in named) for warning in warnings(*overrides))


def test_sequences_over_several_gpus_have_more_room_and_must_divide_gpus_and_heads() -> None:
    assert warnings("optimizer.micro_batch_tokens=4608", "verl.sequence_parallel=2", recipe=GRPO) == []
    assert len(warnings("optimizer.micro_batch_tokens=4607", "verl.sequence_parallel=2", recipe=GRPO)) == 1
    (heads,) = warnings("verl.sequence_parallel=8", recipe=GRPO)
    assert "verl.sequence_parallel=8" in heads and "12 attention heads" in heads
    assert "verl.sequence_parallel=3 does not divide the 8 GPUs" in " ".join(
        warnings("verl.sequence_parallel=3", recipe=GRPO)
    )


def test_an_engine_over_whole_nodes_is_no_fault() -> None:
    assert not any("GPUs of a node" in warning for warning in warnings("verl.nodes=4", "verl.tensor_parallel=16"))
    assert any("GPUs of a node" in warning for warning in warnings("verl.nodes=3", "verl.tensor_parallel=16"))


def test_a_model_at_hand_is_looked_at_itself(tiny_checkpoint: Path) -> None:
    config = load(f"model={tiny_checkpoint}")
    assert shape_of(config).parameters == AutoModelForCausalLM.from_pretrained(tiny_checkpoint).num_parameters()
    assert shape_of(load("model=ledger")).hidden == 64
    assert plan(config)[1].startswith(f"model       {tiny_checkpoint} (llama, ")


def test_a_model_of_unknown_size_is_said_to_be_one() -> None:
    lines = plan(load("model=some/model", "verl.architecture=null", "verl.architecture={}"))
    assert re.match(r"model       some/model .*verl\.architecture.*bfloat16", lines[1])
    assert lines[-1].startswith("memory      not estimated")


def test_on_cpus_no_memory_is_estimated() -> None:
    assert plan(load("device=cpu"))[-1].startswith("memory      not estimated")
    sampling = [line for line in plan(load("verl.rollout=transformers")) if line.startswith("  sampling")]
    assert sampling == ["  sampling  on CPUs"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["verl.architecture={hidden_size: 8}"], "verl.architecture: "),
        (["verl.architecture.model_type=qwen17"], "verl.architecture: "),
        (["verl.architecture.num_attention_heads=many"], "verl.architecture: "),
        (["verl.architecture={model_type: vit}"], "verl.architecture: "),
        (["model=empty"], "model empty: has no config.json"),
    ],
)
def test_an_architecture_that_makes_no_model_is_refused_in_one_line(
    overrides: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        plan(load(*overrides))
    assert str(caught.value).startswith(named) and "\n" not in str(caught.value)


def test_neither_verl_nor_the_data_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("verl", "ray", "datasets", "hydra", "tensordict"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it is an ImportError
    assert plan(load())
