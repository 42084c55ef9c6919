"""Hostile input for everything that reads what others wrote, and what has to come of it.

Each of :data:`TARGETS` draws inputs and checks one: it raises on a fault. ``tests/test_fuzz.py`` tries some hundred of
them, always the same; ``scripts/fuzz.py`` tries new ones for as long as it is told to.
"""

from __future__ import annotations

import io
import json
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import yaml
from hypothesis import strategies as st
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from attnrl.config.base import Strict
from attnrl.config.load import dump_config, load_config
from attnrl.config.schema import TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.data.datasets import leave_out_duplicates, load_problem_set, note_conflicts
from attnrl.errors import UserError
from attnrl.experiments.comparison.config import Comparison, load_comparison, plan_runs
from attnrl.grading.math import MathGrader
from attnrl.grading.rules import RulesGrader
from attnrl.local.loading import load_tokenizer
from attnrl.local.model_names import find_model
from attnrl.method.steps import Steps, StepSettings, split_steps
from attnrl.tokenization import decode, response_steps, step_texts
from attnrl.types import Grade, Problem, Verdict

Strategy = st.SearchStrategy[Any]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=12),
)


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        inputs: draws one input.
        check: handles one, and raises where what has to come of it does not.
        seconds: that it may take, on a busy machine.
    """

    inputs: Strategy
    check: Callable[[Any], None]
    seconds: float = 20.0


# --- Bytes ----------------------------------------------------------------------------------------------------------

YAML_PIECES = ["&a ", "*a", "<<: *a", "!!python/object/apply:os.system ", "!!binary ", "!!bool ", "!!set ", "? ", "- "]
YAML_PIECES += ["---\n", "|\n", ">", "%YAML 9.9\n", "\t", "\0", '"\\0"', '"\\ud800"', ".nan", "-.inf", "1e999", "0x_"]
YAML_PIECES += ["2020-13-45", "9" * 400, "0x" + "f" * 400, "12:30:45", "~", "null", "{", "}", "[", "]", ": ", "#", "\r"]
JSON_PIECES = ["{", "}", "[", "]", ",", ":", '"', "null", "NaN", "-Infinity", "1e999", "9" * 400, "9" * 5000, "\\ud800"]
JSON_PIECES += ["[" * 300, "]" * 300, '"prompt"', '"answer"', '""', "\n", "\u2028", "\ufeff", "\0", "\\u0000"]
ANY_BYTES = [b"\xff", b"\xff\xfe", b"\0\0\0\0", b"\x80" * 8, b"PAR1", b"\xef\xbb\xbf"]


@st.composite
def mutated(draw: Any, originals: list[bytes], pieces: list[str]) -> bytes:
    """One of some sound files with a few things removed, put in, doubled or changed."""
    content = bytearray(draw(st.sampled_from(originals)))
    inserted = st.one_of(st.sampled_from([*(piece.encode() for piece in pieces), *ANY_BYTES]), st.binary(max_size=8))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 2, 8, 64, 1 << 20])))
        change = draw(st.sampled_from(["remove", "insert", "double", "replace"]))
        if change == "double":
            content[start:start] = content[start:end]
        else:
            content[start:end] = b"" if change == "remove" else draw(inserted)
            if change == "insert":
                content[start:start] = draw(inserted)
    return bytes(content)


@contextmanager
def file_of(content: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def require_one_line(error: UserError, named: str) -> None:
    message = str(error)
    assert message.splitlines() == [message], f"not one line: {message!r}"
    assert named in message, f"does not name {named}: {message!r}"


# --- Config ---------------------------------------------------------------------------------------------------------

RECIPES = {
    "train": [f"attnrl.recipes/{name}" for name in ("attnrl", "grpo", "math", "smollm2_135m")],
    "sft": [f"attnrl.recipes/{name}" for name in ("sft_ledger", "sft_ledger_long")],
    "compare": [f"attnrl.comparisons/{name}" for name in ("quick", "chain_sum")],
}


def shipped(name: str) -> bytes:
    package, _, file = name.partition("/")
    return resources.files(package).joinpath(f"{file}.yaml").read_bytes()


def key_paths(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from key_paths(inner, f"{prefix}{name}.")


PATHS = sorted({path for kind in (TrainConfig, SftConfig, Comparison) for path in key_paths(kind)})
SCALARS = st.one_of(
    PLAIN,
    st.dates(),
    st.sampled_from(["ledger", "tiny", "fci", "rows.jsonl", "auto", "steps=3", "grpo", "tree", "nan"]),
)


def nested(keys: Strategy, scalars: Strategy = SCALARS) -> Strategy:
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
        max_leaves=20,
    )


KEYS = st.one_of(st.sampled_from(sorted({path.rpartition(".")[2] for path in PATHS})), st.text(max_size=6))
VALUES = st.one_of(
    nested(KEYS).map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
    st.lists(st.sampled_from([*YAML_PIECES, "a", "1", " ", ", "]), max_size=6).map("".join),
    st.text(max_size=12),
)


def settings_files() -> Strategy:
    """(which command, its recipe, overrides)."""

    def of(command: str) -> Strategy:
        originals = [shipped(name) for name in RECIPES[command]]
        top = st.dictionaries(st.one_of(st.sampled_from(PATHS), KEYS), nested(KEYS), max_size=8)
        changed = st.tuples(st.sampled_from(originals).map(yaml.safe_load), top).map(lambda pair: pair[0] | pair[1])
        recipe = st.one_of(
            mutated(originals, YAML_PIECES),
            changed.map(lambda settings: yaml.safe_dump(settings).encode()),
            st.lists(st.sampled_from([*YAML_PIECES, *PATHS[:20], "\n", "\n  "]), max_size=12)
            .map("".join)
            .map(str.encode),
            st.sampled_from(originals),
        )
        override = st.one_of(
            st.tuples(st.one_of(st.sampled_from(PATHS), KEYS), VALUES).map("=".join), st.text(max_size=20)
        )
        return st.tuples(st.just(command), recipe, st.lists(override, max_size=3))

    return st.sampled_from(sorted(RECIPES)).flatmap(of)


def check_settings(value: tuple[str, bytes, list[str]]) -> None:
    """A recipe gives a config that can be written and read again, or one line that names it or the override."""
    command, recipe, overrides = value
    with file_of(recipe, "mine.yaml") as path:
        try:
            config: Strict
            if command == "compare":
                config = comparison = load_comparison(str(path), overrides)
                if len(comparison.seeds) * len(comparison.arms) <= 16:
                    plan_runs(comparison)
            else:
                config = load_config(TrainConfig if command == "train" else SftConfig, str(path), overrides)
        except UserError as error:
            require_one_line(error, "override" if str(error).startswith("override") else "")
            assert str(error).startswith(("recipe ", "comparison ", "override ", "arm ")), error
            return
        path.write_text(dump_config(config), encoding="utf-8")
        again = load_comparison(str(path)) if command == "compare" else load_config(type(config), str(path))
        assert again == config


# --- Data -----------------------------------------------------------------------------------------------------------

SOUND_ROWS: list[dict[str, Any]] = [
    {"prompt": "1+1?", "answer": "2"},
    {"problem": "What is $x$ if $2x=3$?", "solution": "So \\boxed{\\frac32}.", "level": "Level 1"},
    {"question": "How many?", "answer": "5 * 3 = 15\n#### 15"},
    {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "2+2?"}],
        "reward_model": {"ground_truth": "4", "style": "rule"},
        "data_source": "numbers",
        "extra_info": {"index": 3, "tags": ["a", "b"]},
    },
]
FIELDS = ["prompt", "problem", "question", "answer", "solution", "reward_model", "ground_truth", "data_source"]
FIELDS += ["role", "content", "extra_info"]
HALVES = st.sampled_from(["\ud800", "a\udc00b"])
JSON_VALUES = nested(
    st.one_of(st.sampled_from(FIELDS), st.text(max_size=5)),
    st.one_of(
        PLAIN,
        st.sampled_from(["\\boxed{", "#### ", "user", "system", " ", "\u2028"]),
        HALVES,
    ),
)
ROW_VALUES = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=5),
    st.sampled_from(SOUND_ROWS),
    st.tuples(st.sampled_from(SOUND_ROWS), st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=2)).map(
        lambda pair: pair[0] | pair[1]
    ),
    JSON_VALUES,
)
COLUMN_TYPES = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.binary(),
    pyarrow.int64(),
    pyarrow.float64(),
    pyarrow.bool_(),
    pyarrow.timestamp("us"),
    pyarrow.timestamp("ns", "Mars/Olympus"),
    pyarrow.date32(),
    pyarrow.time64("ns"),
    pyarrow.duration("us"),
    pyarrow.list_(pyarrow.string()),
    pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})),
    pyarrow.struct({"ground_truth": pyarrow.string()}),
    pyarrow.map_(pyarrow.string(), pyarrow.int64()),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.null(),
]


def table_bytes(table: pyarrow.Table, suffix: str) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink) if suffix == ".parquet" else pyarrow.csv.write_csv(table, sink)
    return sink.getvalue()


@st.composite
def parquet_tables(draw: Any) -> bytes:
    """A whole file of columns of any types, some of whose values Python has no name for."""
    rows = draw(st.integers(0, 3))
    columns = {}
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4, unique=True)):
        kind = draw(st.sampled_from(COLUMN_TYPES))
        if pyarrow.types.is_temporal(kind):
            bits = draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=rows, max_size=rows))
            wide = kind.bit_width == 64
            whole = pyarrow.array(
                [bit << 31 if wide else bit for bit in bits], pyarrow.int64() if wide else pyarrow.int32()
            )
            columns[name] = whole.view(kind)
        elif kind == pyarrow.binary():
            columns[name] = pyarrow.array(draw(st.lists(st.binary(max_size=6), min_size=rows, max_size=rows)), kind)
        else:
            values = {
                "int64": st.integers(-(2**63), 2**63 - 1),
                "double": st.floats(),
                "bool": st.booleans(),
                "null": st.none(),
            }.get(str(kind), st.text(st.characters(codec="utf-8"), max_size=8))
            made = draw(st.lists(st.one_of(st.none(), values), min_size=rows, max_size=rows))
            columns[name] = _column(made, kind)
    return table_bytes(pyarrow.table(columns), ".parquet")


def _column(values: list[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    def wrapped(value: Any) -> Any:
        if pyarrow.types.is_list(kind):
            return [{"role": "user", "content": value}] if pyarrow.types.is_struct(kind.value_type) else [value, "b"]
        if pyarrow.types.is_struct(kind):
            return {"ground_truth": value}
        return [(value, 1), (value, 2)] if pyarrow.types.is_map(kind) else value

    return pyarrow.array([None if value is None else wrapped(value) for value in values], kind)


def data_files() -> Strategy:
    """(suffix, content)."""
    plain = pyarrow.table({"prompt": ["1+1?", "2+2?"] * 20, "answer": ["2", "4"] * 20, "n": list(range(40))})
    chats = pyarrow.Table.from_pylist([SOUND_ROWS[3]] * 3)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in SOUND_ROWS)
    rows = st.lists(ROW_VALUES, max_size=4)
    return st.one_of(
        st.tuples(st.just(".jsonl"), mutated([lines], JSON_PIECES)),
        st.tuples(st.just(".json"), mutated([json.dumps(SOUND_ROWS, indent=1).encode()], JSON_PIECES)),
        st.tuples(
            st.just(".csv"), mutated([table_bytes(plain.slice(0, 3), ".csv")], ['"', ",", "\n", "\r", ",,", '""'])
        ),
        st.tuples(st.just(".parquet"), mutated([table_bytes(plain, ".parquet"), table_bytes(chats, ".parquet")], [])),
        st.tuples(st.just(".parquet"), parquet_tables()),
        st.tuples(st.just(".json"), rows.map(json.dumps).map(str.encode)),
        st.tuples(st.just(".jsonl"), rows.map(lambda made: "".join(json.dumps(r) + "\n" for r in made).encode())),
        st.tuples(st.sampled_from([".csv", ".json", ".jsonl", ".parquet"]), st.binary(max_size=60)),
    )


def check_data(value: tuple[str, bytes]) -> None:
    """A data file gives problems that can be trained on, or one line that names it."""
    suffix, content = value
    with file_of(content, f"mine{suffix}") as path:
        try:
            data = load_problem_set(path)
        except UserError as error:
            require_one_line(error, f"mine{suffix}")
            return
    ids = [problem.id for problem in data.problems]
    assert len(set(ids)) == len(ids)
    for problem in data.problems:
        texts = (
            [problem.prompt] if isinstance(problem.prompt, str) else [message["content"] for message in problem.prompt]
        )
        for text in (*texts, *problem.answers, problem.source, problem.id, problem.place):
            text.encode()
        assert any(text.strip() for text in texts) and problem.answers and all(a.strip() for a in problem.answers)
        json.dumps(problem.info, allow_nan=False)
    done = leave_out_duplicates(note_conflicts(data))
    assert 0 < len(done.problems) <= len(data.problems)
    assert all(note.splitlines() == [note] for note in done.notes)


# --- Steps ----------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["", "\n", "\n\n", "\n\n\n\n", "a", " ", "a\n", "\nb", "</think>", "</thi", "nk>", "\r\n", "\u2028"]
)


@cache
def ledger_tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(find_model("ledger").directory)


@cache
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A token for each byte, so that most characters take several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def responses() -> Strategy:
    """Pieces of text with a chunk size, or (tokenizer, token ids, whether the last of them ends the sequence)."""
    pieces = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=40)

    def tokens(name: str) -> Strategy:
        tokenizer = ledger_tokenizer() if name == "ledger" else byte_tokenizer()
        newline = tokenizer("\n")["input_ids"] or [0]
        ids = st.one_of(st.integers(0, len(tokenizer) - 1), st.sampled_from(newline))
        return st.tuples(st.just(name), st.lists(ids, max_size=40), st.booleans())

    return st.one_of(st.tuples(pieces, st.integers(1, 70)), st.sampled_from(["ledger", "bytes"]).flatmap(tokens))


def check_steps(value: Any) -> None:
    """Steps cover a response in order, whatever it says and however it is cut into tokens."""
    if len(value) == 2:
        pieces, chunk = value
        _require_cover(split_steps(pieces, StepSettings(chunk_tokens=chunk)), len(pieces), "".join(pieces), chunk)
        return
    name, tokens, ended = value
    tokenizer = ledger_tokenizer() if name == "ledger" else byte_tokenizer()
    if ended:
        tokens = [*tokens, tokenizer.eos_token_id]
    steps = response_steps(tokenizer, tokens, ended=ended)
    _require_cover(steps, len(tokens), decode(tokenizer, tokens), 64)
    if name == "ledger":  # no character takes two of its tokens
        assert "".join(step_texts(tokenizer, tokens, steps)) == decode(tokenizer, tokens)


def _require_cover(steps: Steps, length: int, text: str, chunk: int) -> None:
    assert steps.length == length == sum(steps.lengths)
    assert list(steps.starts) == sorted(set(steps.starts)) and all(0 <= start < length for start in steps.starts)
    assert (steps.starts[:1] == (0,)) if length else not steps.starts
    assert "\n" in text or len(steps) == -(-length // chunk)
    assert steps.think_end is None or ("</think>" in text and 0 <= steps.think_end < len(steps))


# --- Grader ---------------------------------------------------------------------------------------------------------

MATHS = ["\\boxed{", "\\boxed ", "\\fbox{", "}", "{", "(", ")", "[", "]", "\\", "$", "\\frac", "\\sqrt", "\\text{", "^"]
MATHS += ["_", "!", "1", "10", "x", "=", "+", "-", "/", "*", ",", ".", " ", "\n", "</think>", "\\pi", "%", "\\%", "or"]
MATHS += [
    "\\cup",
    "\\infty",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "&",
    "\\\\",
    "\\left",
    "\\right",
    "\\{",
    "\\sum_{n=1}^",
]
MATHS += [
    "9" * 30,
    "10^{10^{10}}",
    "99999!",
    "\\int",
    "e",
    "E",
    "i",
    "\0",
    "\ud800",
    "∞",
    "−",
    "٣",
    "\u200b",
    "1,000",
    "1e9",
]
MATH_TEXT = st.one_of(
    st.lists(st.sampled_from(MATHS), max_size=16).map("".join),
    st.text(max_size=20),
    st.text(string.digits + "+-*/^()!=.", max_size=12),
    st.tuples(st.sampled_from(MATHS), st.sampled_from([50, 2_000, 30_000])).map(lambda pair: pair[0] * pair[1]),
)


def graded_responses() -> Strategy:
    """(prompt, true answers, response, whether to look for answers outside of boxes)."""
    response = st.one_of(
        MATH_TEXT,
        MATH_TEXT.map(lambda text: f"So \\boxed{{{text}}}."),
        st.tuples(MATH_TEXT, MATH_TEXT).map(lambda pair: f"{pair[0]}</think>\\boxed{{{pair[1]}}}{pair[0][:9]}"),
    )
    return st.tuples(MATH_TEXT, st.lists(MATH_TEXT, max_size=3), response, st.booleans())


@cache
def math_graders() -> dict[bool, MathGrader]:
    """One for each way; their workers end with this process."""
    return {flexible: MathGrader(flexible=flexible, workers=1, deadline=1.0) for flexible in (False, True)}


def check_grades(value: tuple[str, list[str], str, bool]) -> None:
    """Whatever the answer and the true answer are, there is a grade in the end."""
    prompt, answers, response, flexible = value
    problems = [Problem("0", prompt, tuple(answers))]
    by_rules = RulesGrader(flexible).grade(problems, [response])
    by_math = math_graders()[flexible].grade(problems, [response])
    for grade in (*by_rules, *by_math):
        assert isinstance(grade, Grade) and grade.verdict in get_args(Verdict)
        assert grade.reward == (None if grade.verdict == "bad_gold" else float(grade.verdict == "correct"))
        assert grade.answer is None or isinstance(grade.answer, str)


TARGETS = {
    "config": Target(settings_files(), check_settings),
    "data": Target(data_files(), check_data),
    "steps": Target(responses(), check_steps),
    "grader": Target(graded_responses(), check_grades, seconds=90.0),  # eight boxes, and a new worker for each
}
