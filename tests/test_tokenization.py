"""Between text and tokens: a tokenizer of each kind, and the texts that trouble it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from attnrl.tasks.ledger import build_tokenizer
from attnrl.tokenization import UNFINISHED, decode, response_steps, step_texts, token_pieces

CORPUS = [
    "So the answer is 42.\n\nWait, let me check it.\n\nIt is.\n\n" * 3,
    "世界 你好 — 👩‍🚀 👍🏽 émigré ∑ \\boxed{7} " * 3,
    "the cat sat on the mat and that was that " * 3,
]


def byte_level() -> PreTrainedTokenizerFast:
    """As in Qwen and Llama 3: tokens are bytes and merges of bytes, across characters, words and lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def metaspace() -> PreTrainedTokenizerFast:
    """As in SentencePiece models: a word's token holds the space before it, which decoding drops at the start."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=["<unk>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As in Llama 2: a metaspace, and bytes for what the vocabulary lacks."""
    words = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh.0123456789", "▁a", "ab"]
    merges = [("▁", "a"), ("a", "b")]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    "ledger": build_tokenizer(),
    "byte_level": byte_level(),
    "metaspace": metaspace(),
    "byte_fallback": byte_fallback(),
}
every_kind = pytest.mark.parametrize("kind", TOKENIZERS)
texts = st.text(
    st.sampled_from("abcth .\n0世界👩🚀\u200d👍🏽é∑▁�") | st.characters(exclude_categories=["Cs"]), max_size=25
)


def check_pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == decode(tokenizer, ids)
    return pieces


def test_the_tokenizers_are_as_difficult_as_they_should_be() -> None:
    byte, meta = TOKENIZERS["byte_level"], TOKENIZERS["metaspace"]
    ids = byte("🚗")["input_ids"]
    assert len(ids) > 1 and UNFINISHED in decode(byte, ids[:1])
    assert any(".\n\n" in decode(byte, [token]) for token in byte("It is.\n\n")["input_ids"])
    ids = meta("the cat")["input_ids"]
    assert "".join(decode(meta, [token]) for token in ids) == "thecat" != decode(meta, ids) == "the cat"
    assert len(TOKENIZERS["byte_fallback"]("世")["input_ids"]) == 4


@every_kind
@given(text=texts)
def test_pieces_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    check_pieces(tokenizer, tokenizer(text)["input_ids"])


@pytest.mark.parametrize("kind", ["ledger", "byte_level", "metaspace"])
@given(data=st.data())
def test_pieces_of_any_tokens_join_to_their_text(kind: str, data: st.DataObject) -> None:
    """A policy samples whatever it likes: halves of characters, special tokens, the same token again and again."""
    tokenizer = TOKENIZERS[kind]
    check_pieces(tokenizer, data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30)))


@given(texts, st.integers(0, 30))
def test_a_response_cut_inside_a_character_keeps_its_text(text: str, end: int) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    check_pieces(tokenizer, tokenizer(text)["input_ids"][:end])


def test_the_token_that_completes_a_character_adds_it() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.convert_tokens_to_ids(["a", "ð", "Ł", "ĳ", "©", "b"])  # between the letters the bytes of 👩
    assert check_pieces(tokenizer, ids) == ["a", "", "", "", "👩", "b"]


def test_spaces_of_words_belong_to_the_word_they_precede() -> None:
    assert check_pieces(TOKENIZERS["metaspace"], TOKENIZERS["metaspace"]("the cat the")["input_ids"]) == [
        "the",
        " cat",
        " the",
    ]


def test_the_work_grows_with_the_text_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
        decoded.append(len(tokens))
        return decode(tokenizer, tokens)

    monkeypatch.setattr("attnrl.tokenization.decode", counting)
    tokenizer = TOKENIZERS["byte_level"]
    for ids in [tokenizer("世é 👩🏽‍🚗 ∑" * 200)["input_ids"], tokenizer.convert_tokens_to_ids(["ð"]) * 2_000]:
        decoded.clear()
        check_pieces(tokenizer, ids)
        assert sum(decoded) < 30 * len(ids)


def test_no_tokens_have_no_pieces() -> None:
    assert token_pieces(TOKENIZERS["byte_level"], []) == []


def test_special_tokens_are_text_too(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [*tokenizer("so A: 1\n\n")["input_ids"], tokenizer.eos_token_id]
    assert check_pieces(tokenizer, ids) == ["so ", "A", ": ", "1", "\n\n", "<eos>"]


def test_the_end_of_the_sequence_is_no_step_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = (*tokenizer("1\n\n2\n\n")["input_ids"], tokenizer.eos_token_id)
    steps = response_steps(tokenizer, tokens, ended=True)
    assert (steps.starts, steps.length) == ((0, 2), 5)
    assert step_texts(tokenizer, tokens, steps) == ["1\n\n", "2\n\n<eos>"]
    assert response_steps(tokenizer, tokens, ended=False).starts == (0, 2, 4)
