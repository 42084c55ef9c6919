"""Capture in a forward that serves another purpose: the numbers of each sequence alone, nothing changed, refusals."""

import copy
from itertools import accumulate, pairwise
from threading import Thread

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from reference import dense_attention
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2MoeConfig
from transformers.masking_utils import create_causal_mask

from attnrl.fci import ATTENTION, Capture, CaptureSpec, FciUnsupportedError, capture, check_attention, columns
from attnrl.fci.interface import CaptureMask, _mask_matches, captured_attention
from attnrl.fci.layout import StepLayout

LENGTHS = [96, 40, 61, 17, 5]
STARTS = [
    [13, 14, 22, 30, 47, 50, 61, 62, 75, 90],
    [3, 9, 12, 20, 21, 39],
    [60],
    [],
    [0, 1, 2, 3, 4],
]
IDS = torch.randint(1, 61, (5, 96), generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(96) < torch.tensor(LENGTHS)[:, None]).long()
IDS = IDS * MASK
SPEC = CaptureSpec(STARTS, LENGTHS, delta=2)
SEQUENCES = [IDS[row, :length] for row, length in enumerate(LENGTHS)]
PACKED = torch.cat(SEQUENCES)[None]
PACKED_SPEC = CaptureSpec(STARTS, LENGTHS, delta=2, packed=True)
RESTARTING = torch.cat([torch.arange(length) for length in LENGTHS])[None]


def run(model, ids=IDS, spec=SPEC, **kwargs):
    with torch.no_grad(), capture(model, spec) as captured:
        model(ids, **{"use_cache": False, **kwargs})
    return captured.influence()


@pytest.fixture(scope="module")
def alone(eager, oracle):
    """The influence of each sequence in a forward of its own with eager attention."""
    known = {}

    def influence(model):
        if id(model) not in known:
            known[id(model)] = [
                oracle(eager(model, ids[None]), starts, 2) for ids, starts in zip(SEQUENCES, STARTS, strict=True)
            ]
        return known[id(model)]

    return influence


def assert_rows(rows, expected, atol=1e-5):
    for ours, alone in zip(rows, expected, strict=True):
        torch.testing.assert_close(ours, alone, atol=atol, rtol=0)
    assert max(row.amax() for row in rows if row.numel()) > 0.1  # flat attention would prove little


def left_padded(width, lefts):
    """Ids, mask and position ids of the sequences behind so much padding each."""
    ids, mask, positions = (torch.zeros(len(SEQUENCES), width, dtype=torch.long) for _ in range(3))
    for row, (sequence, left) in enumerate(zip(SEQUENCES, lefts, strict=True)):
        tokens = slice(left, left + len(sequence))
        ids[row, tokens], mask[row, tokens] = sequence, 1
        positions[row, tokens] = torch.arange(len(sequence))
    return ids, mask, positions


# -- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_padded_rows_equal_rows_alone(model, alone, masked):
    assert_rows(run(model, **({"attention_mask": MASK} if masked else {})), alone(model))


# Without position ids the sequences start at later positions, which rotary embeddings tell apart by rounding only.
@pytest.mark.parametrize("positioned, atol", [(True, 1e-5), (False, 2e-4)])
def test_left_padded_rows_equal_rows_alone(model, alone, positioned, atol):
    lefts = [96 - length for length in LENGTHS]
    ids, mask, positions = left_padded(96, lefts)
    spec = CaptureSpec(STARTS, LENGTHS, delta=2, left_padding=lefts)
    kwargs = {"position_ids": positions} if positioned else {}
    assert_rows(run(model, ids, spec, attention_mask=mask, **kwargs), alone(model), atol)


def test_prompts_padded_left_and_completions_padded_right(model, alone):
    # TRL's layout: the completions of all rows start at the same place.
    prompts = [13, 3, 60, 8, 1]
    lefts = [60 - prompt for prompt in prompts]
    ids, mask, positions = left_padded(60 + 96, lefts)
    spec = CaptureSpec(STARTS, LENGTHS, delta=2, left_padding=lefts)
    assert_rows(run(model, ids, spec, attention_mask=mask, position_ids=positions), alone(model))


def test_packed_sequences_equal_sequences_alone(model, alone, packs):
    if not packs(model):
        with pytest.raises(FciUnsupportedError, match="cu_seq_lens_q"):
            run(model, PACKED, PACKED_SPEC, position_ids=RESTARTING)
    else:
        assert_rows(run(model, PACKED, PACKED_SPEC, position_ids=RESTARTING), alone(model))
    bounds = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)
    told = run(model, PACKED, PACKED_SPEC, position_ids=RESTARTING, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)
    assert_rows(told, alone(model))
    bounds[1] += 1
    with pytest.raises(FciUnsupportedError, match="cu_seq_lens_q"):
        run(model, PACKED, PACKED_SPEC, position_ids=RESTARTING, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)


def test_packed_sequences_of_one_token(models, alone):
    model = models["mistral_window"]
    ids = torch.cat([PACKED, PACKED[:, :2]], 1)
    spec = CaptureSpec([*STARTS, [0], []], [*LENGTHS, 1, 1], delta=2, packed=True)
    *rows, first, second = run(model, ids, spec, position_ids=torch.cat([RESTARTING, torch.zeros(1, 2).long()], 1))
    assert_rows(rows, alone(model))
    assert first.tolist() == [[[0.0]] * 4] * 3 and second.shape == (3, 4, 0)


def test_a_single_packed_sequence_needs_no_positions(models, alone):
    spec = CaptureSpec(STARTS[:1], LENGTHS[:1], delta=2, packed=True)
    assert_rows(run(models["llama"], IDS[:1], spec), alone(models["llama"])[:1])


# -- nothing changes --------------------------------------------------------------------------------------------


def training_step(model, spec, checkpointing=None, **inputs):
    """Logits, gradients and, with a spec, the influence of a training step of a copy of the model."""
    twin = copy.deepcopy(model).train()
    if checkpointing is not None:
        twin.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    captured = None

    def step():
        logits = twin(use_cache=False, **inputs).logits
        if len(logits) == len(MASK):  # what padding sees is nobody's business
            logits = logits * MASK[..., None]
        logits.logsumexp(-1).mul(torch.linspace(0, 1, logits.shape[1])).mean().backward()
        return logits.detach()

    if spec is None:
        logits = step()
    else:
        with capture(twin, spec) as captured:
            logits = step()
    return logits, [parameter.grad for parameter in twin.parameters()], captured and captured.influence()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # its new name is newer
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non-reentrant"])
def test_capture_changes_nothing_in_a_training_step(model, alone, checkpointing):
    logits, gradients, influence = training_step(model, SPEC, checkpointing, input_ids=IDS)
    stock_logits, stock_gradients, _ = training_step(model, None, checkpointing, input_ids=IDS)
    sdpa = model.config._attn_implementation == "sdpa" and getattr(model.config, "sliding_window", None) is None
    # Windows, soft caps and sinks take another way to the same numbers.
    tolerance = {"atol": 0, "rtol": 0} if sdpa else {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(logits, stock_logits, **tolerance)
    for ours, stock in zip(gradients, stock_gradients, strict=True):
        assert (ours is None) == (stock is None)
        if stock is not None:
            torch.testing.assert_close(ours, stock, **tolerance)
    assert not any(row.requires_grad for row in influence)
    assert_rows(influence, alone(model))


def test_capture_changes_nothing_in_a_packed_training_step(model, packs):
    if not packs(model):
        pytest.skip("transformers does not tell its packed sequences apart")
    inputs = {"input_ids": PACKED, "position_ids": RESTARTING}
    logits, gradients, _ = training_step(model, PACKED_SPEC, **inputs)
    stock_logits, stock_gradients, _ = training_step(model, None, **inputs)
    torch.testing.assert_close(logits, stock_logits, atol=2e-5, rtol=1e-5)
    for ours, stock in zip(gradients, stock_gradients, strict=True):
        assert stock is None or torch.allclose(ours, stock, atol=2e-5, rtol=1e-5)


def test_autocast_computes_as_sdpa_would(models):
    model = models["llama"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = model(IDS, use_cache=False).logits
        with capture(model, SPEC) as captured:
            logits = model(IDS, use_cache=False).logits
    assert logits.dtype == stock.dtype and torch.equal(logits, stock)
    half = copy.deepcopy(model).bfloat16()
    for rows in (captured.influence(), run(half)):
        assert all(row.dtype == torch.float32 and row.isfinite().all() for row in rows)


def test_autocast_does_not_reach_the_sums(models, oracle):
    generator = torch.Generator().manual_seed(5)
    query, key = torch.randn(1, 4, 60, 16, generator=generator), torch.randn(1, 2, 60, 16, generator=generator)
    starts = list(range(3, 60, 5))
    captured = Capture(CaptureSpec([starts], [60], delta=1), ["full_attention"])
    captured.begin()
    layer = models["llama"].model.layers[0].self_attn
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, _ = captured_attention(layer, query, key, key, CaptureMask(captured, None, False), scaling=0.5)
        captured.end()
    exact = query.bfloat16().double(), key.bfloat16().double()
    *_, probs = dense_attention(*exact, exact[1], [(0, 0, 60)], 0.5)
    assert output.dtype == torch.bfloat16
    expected = oracle(probs[0], starts, 1).float()
    # In bf16 the sums would be off by thousandths.
    torch.testing.assert_close(captured.influence()[0][0], expected, atol=1e-5, rtol=1e-4)


def test_inference_mode(models, monkeypatch):
    # Modes are a thread's own, and the sums are made by several.
    monkeypatch.setattr(columns, "THREADED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    model = models["llama"]
    expected = run(model, IDS, SPEC)
    with torch.inference_mode(), capture(model, SPEC) as captured:
        model(IDS, use_cache=False)
    assert_rows(captured.influence(), expected)


def test_a_model_is_captured_in_one_thread_at_a_time(models):
    model, problems = models["llama"], []

    def in_another_thread(action):
        def attempt():
            with pytest.raises(FciUnsupportedError, match="thread") as caught:
                action()
            problems.append(caught)

        thread = Thread(target=attempt)
        thread.start()
        thread.join()

    with torch.no_grad(), capture(model, SPEC) as captured:
        in_another_thread(lambda: capture(model, SPEC).__enter__())
        in_another_thread(lambda: model(IDS, use_cache=False))
        model(IDS, use_cache=False)
    assert len(problems) == 2
    assert_rows(captured.influence(), run(model, IDS, SPEC))
    assert model.config._attn_implementation != ATTENTION


def test_a_forward_that_died_has_no_influence(models):
    model = models["llama"]

    def die(*_):
        raise RuntimeError("died")

    hook = model.model.layers[2].register_forward_pre_hook(die)
    try:
        with torch.no_grad(), capture(model, SPEC) as captured:
            with pytest.raises(RuntimeError):
                model(IDS, use_cache=False)
            with pytest.raises(FciUnsupportedError):
                captured.influence()
    finally:
        hook.remove()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_gets_its_implementation_back(models, implementation):
    model = copy.deepcopy(models["qwen3"])
    model.set_attn_implementation(implementation)
    stock = model(IDS, use_cache=False).logits
    with capture(model, SPEC):
        assert model.config._attn_implementation == ATTENTION
    assert model.config._attn_implementation == implementation
    with pytest.raises(IndexError), capture(model, SPEC):
        model(IDS + 1000, use_cache=False)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(IDS, use_cache=False).logits, stock)


def test_generates_before_and_after_but_not_inside(model):
    prompts = {"input_ids": IDS[:2].flip(1), "attention_mask": MASK[:2].flip(1)}  # padded on the left
    settings = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0}
    stock = model.generate(**prompts, **settings)
    spec = CaptureSpec([[], []], LENGTHS[:2], left_padding=[0, 56])
    with pytest.raises(FciUnsupportedError, match="use_cache"), capture(model, spec):
        model.generate(**prompts, **settings)
    assert torch.equal(model.generate(**prompts, **settings), stock)


def test_captures_nest_and_end(models):
    model = models["qwen3"]
    with torch.no_grad(), capture(model, SPEC) as outer:
        with pytest.raises(ZeroDivisionError), capture(model, SPEC) as inner:
            model(IDS, use_cache=False)
            raise ZeroDivisionError
        assert sorted(inner.influence_HS) == [0, 1, 2]
        assert not outer.influence_HS
        assert model.config._attn_implementation == ATTENTION
        model(IDS, use_cache=False)
    model(IDS, use_cache=False)  # after the captures: nothing to fill
    for one, other in zip(outer.influence(), inner.influence(), strict=True):
        assert torch.equal(one, other)


def test_two_models_at_the_same_time(models, alone):
    one, other = models["qwen2"], models["gemma2"]
    with torch.no_grad(), capture(one, SPEC) as first:
        with capture(other, PACKED_SPEC) as second:
            one(IDS, use_cache=False)
            other(PACKED, position_ids=RESTARTING, use_cache=False)
        assert other.config._attn_implementation == "eager"
        assert one.config._attn_implementation == ATTENTION
    assert_rows(first.influence(), alone(one))
    assert_rows(second.influence(), alone(other))


def test_another_model_runs_as_it_is_beside_a_capture(models):
    one, other = models["qwen2"], models["llama"]
    with torch.no_grad():
        stock = other(IDS, use_cache=False).logits
        with capture(one, SPEC) as captured:
            assert torch.equal(other(IDS, use_cache=False).logits, stock)
    assert not captured.influence_HS


# -- multimodal models ------------------------------------------------------------------------------------------

TEXT = dict(
    vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=256, pad_token_id=0,
)  # fmt: skip


def gemma3():
    config = transformers.Gemma3Config(
        text_config={**TEXT, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
            patch_size=14,
        ),
        mm_tokens_per_image=1, image_token_index=60,
    )  # fmt: skip
    ids = IDS[:1].clone().clamp_max(59)
    ids[0, 5] = 60
    return transformers.Gemma3ForConditionalGeneration(config), {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 28, 28),
        "token_type_ids": (ids == 60).long(),
    }


def qwen_vl():
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
            fullatt_block_indexes=[0],
        ),
        image_token_id=60, video_token_id=59, vision_start_token_id=58,
    )  # fmt: skip
    ids = IDS[:1].clone().clamp_max(57)
    ids[0, 4], ids[0, 5:9] = 58, 60
    return transformers.Qwen2_5_VLForConditionalGeneration(config), {
        "input_ids": ids,
        "pixel_values": torch.randn(16, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == 60).int(),
    }


def implementations(model, part):
    return {
        module.config._attn_implementation
        for name, module in model.named_modules()
        if part in name and hasattr(module, "config")
    }


@pytest.mark.parametrize("build, tower", [(gemma3, "vision_tower"), (qwen_vl, "visual")])
def test_of_a_multimodal_model_the_text_decoder_is_captured(build, tower):
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    assert check_attention(model) == {}
    text = {"input_ids": inputs["input_ids"].clamp_max(57)}
    spec = CaptureSpec(STARTS[:1], LENGTHS[:1], delta=2)
    with torch.no_grad():
        stock = model(**text, use_cache=False).logits
        with capture(model, spec) as captured:
            assert implementations(model, tower) == {"sdpa"}
            assert implementations(model, "language_model") == {ATTENTION}
            logits = model(**text, use_cache=False).logits
    assert implementations(model, "") == {"sdpa"}
    torch.testing.assert_close(logits, stock, atol=1e-5, rtol=0)
    decoder = run(model.get_decoder(), text["input_ids"], spec)
    assert torch.equal(captured.influence()[0], decoder[0])


def test_images_are_captured_where_the_mask_stays_causal(oracle):
    torch.manual_seed(0)
    model, inputs = qwen_vl()
    spec = CaptureSpec(STARTS[:1], LENGTHS[:1], delta=2)
    model.eval()
    with torch.no_grad(), capture(model, spec) as captured:
        model(**inputs, use_cache=False)
    ours = captured.influence()[0]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        probs = torch.cat(model(**inputs, use_cache=False, output_attentions=True).attentions)
    torch.testing.assert_close(ours, oracle(probs, STARTS[0], 2), atol=1e-5, rtol=0)


def test_images_that_attend_in_both_directions_are_refused():
    torch.manual_seed(0)
    model, inputs = gemma3()
    inputs["input_ids"][0, 5:7] = 60
    with torch.no_grad(), capture(model.eval(), CaptureSpec(STARTS[:1], LENGTHS[:1])):
        inputs["token_type_ids"] = (inputs["input_ids"] == 60).long()
        inputs["inputs_embeds"] = torch.randn(1, 96, 32)
        del inputs["input_ids"], inputs["pixel_values"]
        with pytest.raises(FciUnsupportedError, match="Gemma3TextConfig"):
            model(**inputs, use_cache=False)


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gpt_oss"])
def test_packed_sequences_without_their_positions_are_refused(models, family):
    shifted = torch.cat([torch.arange(41), *[torch.arange(length) for length in (96 - 1, 40, 61, 17, 5)]])[None, :219]
    for kwargs in ({}, {"position_ids": torch.arange(219)[None]}, {"position_ids": shifted}):
        with pytest.raises(FciUnsupportedError, match=r"cu_seq_lens_q|Config"):
            run(models[family], PACKED, PACKED_SPEC, **kwargs)


@pytest.mark.parametrize("kwargs", [{"use_cache": True}, {"attention_mask": torch.ones(1, 219, dtype=torch.long)}])
def test_packed_sequences_that_transformers_would_not_tell_apart_are_refused(models, kwargs):
    # It looks at the positions neither with a cache nor with a mask.
    with pytest.raises(FciUnsupportedError, match="use_cache"):
        run(models["llama"], PACKED, PACKED_SPEC, position_ids=RESTARTING, **kwargs)


def test_sequences_that_the_spec_does_not_know_as_packed_are_refused(models):
    spec = CaptureSpec([[4, 8]], [219])
    with pytest.raises(FciUnsupportedError, match="LlamaConfig"):
        run(models["llama"], PACKED, spec, position_ids=RESTARTING)


def test_left_padding_must_be_told_and_masked(models):
    lefts = [96 - length for length in LENGTHS]
    ids, mask, _ = left_padded(96, lefts)
    spec = CaptureSpec(STARTS, LENGTHS, left_padding=lefts)
    with pytest.raises(FciUnsupportedError, match="left_padding"):
        run(models["llama"], ids, spec)
    with pytest.raises(FciUnsupportedError, match="left_padding"):
        run(models["llama"], ids, SPEC, attention_mask=mask)
    off_by_one = CaptureSpec(STARTS, LENGTHS, left_padding=[max(left - 1, 0) for left in lefts])
    with pytest.raises(FciUnsupportedError, match="left_padding"):
        run(models["llama"], ids, off_by_one, attention_mask=mask)


def test_a_mask_shorter_than_its_sequence_is_refused(models):
    mask = MASK.clone()
    mask[1, 39] = 0
    with pytest.raises(FciUnsupportedError, match="LlamaConfig"):
        run(models["llama"], attention_mask=mask)


def test_a_ready_made_mask_is_refused(models):
    with pytest.raises(FciUnsupportedError, match=r"LlamaAttention.*Tensor"):
        run(models["llama"], attention_mask=torch.zeros(5, 1, 96, 96))


def test_a_cache_is_refused(models):
    model = models["llama"]
    with torch.no_grad():
        cache = model(IDS[:1, :50]).past_key_values
    with pytest.raises(FciUnsupportedError, match=r"46.*96.*use_cache"):
        run(model, IDS[:1, 50:], CaptureSpec([[4]], [46]), past_key_values=cache)


def test_bidirectional_attention_is_refused(models):
    for family in ("llama", "mistral_window"):
        model = copy.deepcopy(models[family])
        model.config.is_causal = False
        with pytest.raises(FciUnsupportedError, match=type(model.config).__name__):
            run(model)
        with pytest.raises(FciUnsupportedError, match=type(model.config).__name__):
            check_attention(model)


@pytest.mark.parametrize(
    "extra, refused",
    [
        ({}, False),
        # True for any two tokens, but not if it is asked about many at once.
        ({"and_mask_function": lambda b, h, q, k: torch.stack([q + 200, k]).argmax() == 0}, False),
        ({"and_mask_function": lambda b, h, q, k: q - k < 50}, True),
        ({"or_mask_function": lambda b, h, q, k: (q < 7) & (k < 7)}, True),  # a prefix seen both ways
    ],
)
def test_functions_on_top_of_the_causal_mask_are_looked_at(models, extra, refused):
    model = models["llama"]
    with capture(model, SPEC) as captured:
        arguments = dict(config=model.config, inputs_embeds=torch.zeros(5, 96, 64), attention_mask=None)
        arguments |= dict(past_key_values=None, **extra)
        if not refused:
            assert vars(create_causal_mask(**arguments)) == vars(CaptureMask(captured, None, False))
        else:
            with pytest.raises(FciUnsupportedError, match="LlamaConfig"):
                create_causal_mask(**arguments)


def test_dropout_is_refused(models):
    model = copy.deepcopy(models["llama"])
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    run(model)
    with pytest.raises(FciUnsupportedError, match=r"LlamaAttention.*dropout.*0\.1"):
        run(model.train())


@pytest.mark.parametrize("argument", ["position_bias", "indices", "block_indices", "sinks"])
def test_arguments_for_another_attention_are_refused(models, argument):
    layer = models["llama"].model.layers[0].self_attn
    query, sees = torch.randn(1, 4, 6, 16), CaptureMask(Capture(CaptureSpec([[0]], [6]), []), None, False)
    with pytest.raises(FciUnsupportedError, match=rf"LlamaAttention.*\b{argument}\b"):
        captured_attention(layer, query, query, query, sees, **{argument: torch.ones(4)})


def test_layers_that_cannot_be_placed_are_refused(models):
    layer = models["llama"].model.layers[0].self_attn
    query, sees = torch.randn(1, 4, 6, 16), CaptureMask(Capture(CaptureSpec([[0]], [6]), []), None, False)
    with pytest.raises(FciUnsupportedError, match=r"Linear.*layer_idx"):
        captured_attention(nn.Linear(2, 2), query, query, query, sees)
    with pytest.raises(FciUnsupportedError, match=r"LlamaAttention.*mask"):
        captured_attention(layer, query, query, query, None)
    with pytest.raises(FciUnsupportedError, match=r"LlamaAttention.*2.*6"):
        captured_attention(layer, query[:, :, :2], query, query, sees)


def test_a_softmax_of_its_own_without_a_reason_is_refused(models):
    model = copy.deepcopy(models["llama"])
    model.model._supports_sdpa = False  # and no argument of its attention tells why
    with pytest.raises(FciUnsupportedError, match=r"LlamaAttention.*sdpa"):
        check_attention(model)
    # Gemma 2 does without sdpa for its soft cap, and says so even where it has none.
    config = transformers.Gemma2Config(**TEXT, attn_logit_softcapping=None)
    assert check_attention(transformers.Gemma2ForCausalLM(config)) == {}


ENCODER_DECODERS = {
    "T5": lambda: transformers.T5Config(vocab_size=61, d_model=32, d_ff=32, d_kv=8, num_heads=4, num_layers=1),
    "Bart": lambda: transformers.BartConfig(
        vocab_size=61, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_are_refused(name):
    model = transformers.AutoModelForSeq2SeqLM.from_config(ENCODER_DECODERS[name]())
    before = implementations(model, "")
    with pytest.raises(FciUnsupportedError, match=f"{name}ForConditionalGeneration"):
        check_attention(model)
    assert implementations(model, "") == before


def test_chunked_attention_is_refused_by_name():
    # A sequence within one chunk would look causal.
    config = transformers.Llama4TextConfig(
        **{**TEXT, "num_hidden_layers": 4}, intermediate_size_mlp=32, num_local_experts=1, attention_chunk_size=512
    )
    model = transformers.Llama4ForCausalLM(config).eval()
    with pytest.raises(FciUnsupportedError, match=r"Llama4ForCausalLM.*chunked"):
        run(model)
    assert model.config._attn_implementation == "sdpa"


class OwnAttention(nn.Module):
    """As remote code may be: the name is taken, and then not looked at."""

    def __init__(self):
        super().__init__()
        self.config = transformers.LlamaConfig(attn_implementation="eager")
        self.embed = nn.Embedding(61, 4)

    def get_decoder(self):
        return self

    def forward(self, input_ids, use_cache=False):
        return self.embed(input_ids)


def test_models_that_do_not_use_the_interface_are_refused():
    with pytest.raises(FciUnsupportedError, match="Linear"):
        check_attention(nn.Linear(2, 2))
    model = OwnAttention()
    with pytest.raises(FciUnsupportedError, match="AttentionInterface"):
        check_attention(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=4),
        transformers.FalconConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4),
        transformers.MptConfig(vocab_size=61, d_model=32, n_layers=1, n_heads=4),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_add_the_mask_themselves_are_refused(config):
    # They take a mask from the mask interface but attend on their own.
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(FciUnsupportedError):
        check_attention(model)


def test_check_finds_every_layer_and_leaves_the_model(model):
    implementation = model.config._attn_implementation
    assert check_attention(model) == {}
    assert model.config._attn_implementation == implementation


def test_the_name_without_a_capture_is_refused(models):
    model = copy.deepcopy(models["llama"])
    model.set_attn_implementation(ATTENTION)
    with pytest.raises(FciUnsupportedError, match="LlamaConfig"):
        model(IDS)


# -- the check of the mask --------------------------------------------------------------------------------------


@st.composite
def cuts(draw, tokens):
    """Bounds of sequences that fill a row."""
    return [0, *sorted(draw(st.sets(st.integers(1, tokens - 1), max_size=3))), tokens]


@st.composite
def masks(draw):
    """A layout, and a mask as transformers may describe one: of it, or near it."""
    tokens = draw(st.integers(2, 16))
    bounds = draw(cuts(tokens))
    lengths = [stop - start for start, stop in pairwise(bounds)]
    others = bounds if draw(st.booleans()) else draw(cuts(tokens))
    if draw(st.booleans()):
        spec = CaptureSpec([[]] * len(lengths), lengths, packed=True)
    else:  # one sequence between left and right padding
        left = draw(st.integers(0, tokens - 1))
        spec = CaptureSpec([[]], [draw(st.integers(1, tokens - left))], left_padding=[left])
    window = draw(st.none() | st.integers(1, 18))
    other = window if draw(st.booleans()) else draw(st.none() | st.integers(1, 18))
    first = draw(st.just(spec.spans[0].start) | st.integers(0, tokens - 1))
    return spec, tokens, window, others, other, first, draw(st.sampled_from(["causal"] * 3 + ["both", "chunks"]))


@given(masks())
def test_the_check_sees_every_difference_of_masks_as_transformers_makes_them(drawn):
    spec, tokens, window, bounds, other, first, kind = drawn
    q, k = torch.meshgrid(torch.arange(tokens), torch.arange(tokens), indexing="ij")
    segment = torch.bucketize(torch.arange(tokens), torch.tensor(bounds[1:]), right=True)
    seen = (segment[q] == segment[k]) & (k >= first)  # first: padding on the left is masked
    seen &= (q - k).abs() < 5 if kind == "both" else q >= k
    if kind == "chunks":
        seen &= q // 5 == k // 5
    if other is not None:
        seen &= q - k < other
    expected = torch.zeros(tokens, tokens, dtype=torch.bool)
    inside = torch.zeros(tokens, dtype=torch.bool)
    for span in spec.spans:
        expected[span.start : span.stop, span.start : span.stop] = True
        inside[span.start : span.stop] = True
    expected &= q >= k
    if window is not None:
        expected &= q - k < window
    layout = StepLayout.build(spec.spans, 1, tokens, 4)
    same = bool((seen == expected)[inside].all())  # padding may see what it likes
    found = _mask_matches(layout.unbroken, tokens, seen.device, window, lambda rows, queries, keys: seen[queries, keys])
    assert found == same


def test_a_window_of_no_token_is_refused_where_a_layer_uses_it() -> None:
    """Qwen2-MoE asks for the mask of such a window in every forward, and no layer uses the mask."""
    shape = dict(vocab_size=61, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2)
    experts = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16)
    mixture = AutoModelForCausalLM.from_config(Qwen2MoeConfig(**shape, **experts, num_hidden_layers=1))
    assert mixture.config.sliding_window == 0
    assert check_attention(mixture.eval()) == {}
    windowed = AutoModelForCausalLM.from_config(MistralConfig(**shape, num_hidden_layers=1, sliding_window=0))
    with pytest.raises(FciUnsupportedError):
        check_attention(windowed.eval())
