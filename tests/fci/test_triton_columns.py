"""The Triton kernel: its sums in the interpreter (on a GPU where there is one), and its machine code without any.

Triton reads TRITON_INTERPRET once and for all when it is imported, which transformers may have done before
this module. So the tests of the sums run in a pytest of their own, which test_in_the_interpreter starts.
"""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed: CPU builds of torch come without it")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from attnrl.fci import triton_columns  # noqa: E402
from attnrl.fci.triton_columns import KernelTile, column_sums, head_parts, kernel_tile  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if CUDA else "cpu"


def test_in_the_interpreter():
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", f"{__file__}::TestSums"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.run(
        command, env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout and "skipped" not in run.stdout


def dense_sums(query, key, lse, weight, lo, hi, scaling, softcap=None) -> Tensor:
    """The definition, in fp64 and from whole T x T matrices."""
    tokens = query.shape[2]
    counts_BTT = (torch.arange(tokens)[:, None] >= lo[:, None]) & (torch.arange(tokens)[:, None] < hi[:, None])
    exponent_BHTT = dense_scores(query, key, scaling, softcap) - lse.double()[..., None]
    probs_BHTT = exponent_BHTT.masked_fill(~counts_BTT[:, None], -torch.inf).exp()
    weighted_BHTT = probs_BHTT * weight.double().masked_fill(~counts_BTT.any(-1), 0)[:, None, :, None]
    return weighted_BHTT.sum(2)


def dense_scores(query, key, scaling, softcap=None) -> Tensor:
    scores = query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT * scaling
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def make_layout(sequences, tokens, delta, window, generator):
    """Weights, intervals and what each query sees [T, T], for one row of packed sequences.

    sequences: for each its length and its step starts. Tokens before the first start, and those after the
    last sequence, are dead.
    """
    weight_T = torch.rand(tokens, generator=generator) * torch.randint(2, (tokens,), generator=generator)
    hi_T = torch.randint(tokens + 1, (tokens,), generator=generator)
    lo_T = hi_T + torch.randint(3, (tokens,), generator=generator)
    sees_qt = torch.zeros(tokens, tokens, dtype=torch.bool)
    first = 0
    for length, starts in sequences:
        end = first + length
        sees_qt[first:end, first:end] = torch.ones(length, length, dtype=torch.bool).tril()
        if window is not None:
            sees_qt[first:end, first:end].triu_(1 - window)
        bounds = [first + start for start in starts] + [end]
        for step, (start, stop) in enumerate(pairwise(bounds)):
            weight_T[start:stop] = 1 / (stop - start)
            for token in range(start, stop):
                lo = max(bounds[min(step + delta, len(starts))], token)
                hi = end if window is None else min(end, token + window)
                lo_T[token], hi_T[token] = (lo, hi) if lo < hi else (hi, hi)
        first = end
    return weight_T, lo_T.int(), hi_T.int(), sees_qt


def make_problem(layouts, heads, key_heads, head_dim, dtype, seed, scaling, softcap=None):
    """Arguments of column_sums for the given rows, with queries and keys laid out as transformers has them."""
    generator = torch.Generator().manual_seed(seed)
    weight_BT, lo_BT, hi_BT, sees_BTT = (torch.stack(parts) for parts in zip(*layouts, strict=True))
    batch, tokens = weight_BT.shape
    query = 2 * torch.randn(batch, tokens, heads, head_dim, generator=generator).to(dtype).transpose(1, 2)
    key = torch.randn(batch, tokens, key_heads, head_dim, generator=generator).to(dtype).transpose(1, 2)
    scores = dense_scores(query, key, scaling, softcap)
    lse_BHT = scores.masked_fill(~sees_BTT[:, None], -torch.inf).logsumexp(-1).float()
    counts_BTT = (torch.arange(tokens)[:, None] >= lo_BT[:, None]) & (torch.arange(tokens)[:, None] < hi_BT[:, None])
    garbage = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0])
    garbage_BHT = garbage[torch.randint(4, (batch, heads, tokens), generator=generator)]
    lse_BHT = torch.where(counts_BTT.any(-1)[:, None], lse_BHT, garbage_BHT)
    return query, key, lse_BHT, weight_BT, lo_BT, hi_BT


def check(problem, scaling, softcap=None) -> Tensor:
    ours = column_sums(*(tensor.to(DEVICE) for tensor in problem), scaling=scaling, softcap=softcap).cpu()
    assert ours.dtype == torch.float32
    # Products of 16-bit numbers are exact in fp32, so they are held to the bound of fp32; but tensor cores add
    # with fewer guard bits.
    rtol = 1e-4 if CUDA and problem[0].dtype != torch.float32 else 1e-5
    torch.testing.assert_close(ours.double(), dense_sums(*problem, scaling, softcap), atol=1e-5, rtol=rtol)
    lo, hi = problem[-2:]
    assert (ours.transpose(1, 2)[lo >= hi] == 0).all()
    return ours


@st.composite
def rows(draw):
    """A few rows of packed sequences, of different steps, and the padded length."""
    batch = draw(
        st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=3), min_size=1, max_size=2), label="lengths"
    )
    tokens = max(map(sum, batch)) + draw(st.integers(0, 20))
    return tokens, [
        [(length, sorted(draw(st.sets(st.integers(0, length - 1), max_size=8)))) for length in lengths]
        for lengths in batch
    ]


class TestSums:
    __test__ = INTERPRETED or CUDA

    # The default tile, which holds whole rows of this size, and small ones that make many blocks of both kinds.
    # Failures are not shrunk, which would take minutes here.
    @settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(
        rows=rows(),
        cut=st.sampled_from([None, KernelTile(16, 16, 4, 2), KernelTile(32, 16, 4, 2), KernelTile(16, 32, 4, 2)]),
        groups=st.sampled_from([(4, 1), (4, 2), (3, 3), (6, 2)]),
        head_dim=st.sampled_from([16, 64, 80, 128]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        delta=st.integers(0, 3),
        window=st.none() | st.integers(1, 70),
        softcap=st.none() | st.sampled_from([2.0, 8.0]),
        seed=st.integers(0, 999),
    )
    def test_any_layout_equals_the_dense_definition(
        self, rows, cut, groups, head_dim, dtype, delta, window, softcap, seed
    ):
        (tokens, batch), generator = rows, torch.Generator().manual_seed(seed)
        layouts = [make_layout(row, tokens, delta, window, generator) for row in batch]
        scaling = head_dim**-0.5
        problem = make_problem(layouts, *groups, head_dim, dtype, seed, scaling, softcap)
        with mock.patch.object(triton_columns, "kernel_tile", return_value=cut or kernel_tile(head_dim, dtype)):
            check(problem, scaling, softcap)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("tokens", [1, 127, 128, 129, 400])
    def test_lengths_around_the_blocks(self, tokens, dtype):
        layout = make_layout([(tokens, range(0, tokens, 7))], tokens, 1, None, torch.Generator().manual_seed(0))
        check(make_problem([layout], 2, 1, 16, dtype, 0, 0.25), 0.25)

    @pytest.mark.parametrize("head_dim", [24, 72, 96, 112, 192, 256])
    def test_head_dimensions_in_two_parts_and_padded(self, head_dim):
        layout = make_layout([(90, range(0, 90, 7))], 90, 1, None, torch.Generator().manual_seed(0))
        scaling = head_dim**-0.5
        check(make_problem([layout], 2, 2, head_dim, torch.bfloat16, 0, scaling), scaling)

    def test_intervals_in_any_order(self):
        generator = torch.Generator().manual_seed(0)
        query, key = torch.randn(2, 2, 4, 150, 16, generator=generator)
        weight_BT = torch.rand(2, 150, generator=generator) + 0.1
        lo_BT, hi_BT = torch.randint(-5, 160, (2, 2, 150), generator=generator).int()
        check((query, key, torch.full((2, 4, 150), 5.0), weight_BT, lo_BT, hi_BT), 0.25)

    def test_any_strides(self):
        layout = make_layout([(70, range(0, 70, 5))], 70, 1, None, torch.Generator().manual_seed(0))
        query, key, *rest = make_problem([layout, layout], 4, 2, 16, torch.float32, 0, 0.25)
        expected = column_sums(*(tensor.to(DEVICE) for tensor in (query, key, *rest)), scaling=0.25)
        for stride in (
            lambda tensor: tensor.contiguous(),
            lambda tensor: tensor.mT.contiguous().mT,  # the last dimension is not contiguous
            lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
            lambda tensor: torch.nn.functional.pad(tensor, (3, 2))[..., 3:-2],  # rows of an odd length
            lambda tensor: torch.nn.functional.pad(tensor, (0, 0, 9, 0)).flip(0)[:, :, 9:].flip(0),
        ):
            others = [stride(tensor.to(DEVICE)) for tensor in (query, key)]
            assert torch.equal(column_sums(*others, *(tensor.to(DEVICE) for tensor in rest), scaling=0.25), expected)
        lse, weight, lo, hi = (tensor.to(DEVICE).mT.contiguous().mT for tensor in rest)
        ours = column_sums(query.to(DEVICE), key.to(DEVICE), lse, weight, lo, hi, scaling=0.25)
        assert torch.equal(ours, expected)

    def test_dead_rows_are_zero_whatever_their_logsumexp(self):
        alive = make_layout([(40, [0, 10, 20])], 40, 1, None, torch.Generator().manual_seed(0))
        dead = make_layout([(40, [])], 40, 1, None, torch.Generator().manual_seed(1))
        ours = check(make_problem([dead, alive, dead], 2, 1, 16, torch.float32, 0, 0.25), 0.25)
        assert (ours[[0, 2]] == 0).all() and (ours[1, :, :10] > 0).all()

    def test_scores_far_beyond_the_softcap_saturate(self):
        layout = make_layout([(40, [0, 10, 20])], 40, 1, None, torch.Generator().manual_seed(0))
        check(make_problem([layout], 2, 1, 16, torch.float32, 0, 500.0, softcap=3.0), 500.0, softcap=3.0)

    def test_nothing_to_sum(self):
        heads, row = torch.zeros(2, 3, 0, 16, device=DEVICE), torch.zeros(2, 0, device=DEVICE)
        ours = column_sums(heads, heads, torch.zeros(2, 3, 0, device=DEVICE), row, row.int(), row.int(), scaling=1.0)
        assert ours.shape == (2, 3, 0)

    def test_unfit_tensors_are_refused(self):
        layout = make_layout([(8, [0, 4])], 8, 1, None, torch.Generator().manual_seed(0))
        problem = [tensor.to(DEVICE) for tensor in make_problem([layout], 2, 1, 16, torch.float32, 0, 0.25)]
        query, key, lse, weight, lo, hi = problem
        for unfit, named in [
            ((query[..., :8], key[..., :8], lse, weight, lo, hi), "head dimension.*8"),
            ((query.double(), key.double(), lse, weight, lo, hi), "dtype"),
            ((query, key.half(), lse, weight, lo, hi), "dtype"),
            ((query, key[:, :, 1:], lse, weight, lo, hi), "shapes"),
            ((query[:, :1], key.repeat(1, 2, 1, 1), lse[:, :1], weight, lo, hi), "shapes"),
            ((query, key, lse.mT, weight, lo, hi), "shapes"),
            ((query, key, lse, weight, lo[0], hi), "weight, lo and hi"),
        ]:
            with pytest.raises(ValueError, match=named):
                column_sums(*unfit, scaling=0.25)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused():
    heads, row = torch.zeros(1, 1, 4, 16), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="CUDA"):
        column_sums(heads, heads, row[:, None], row, row.int(), row.int(), scaling=1.0)


def test_head_parts_hold_the_head():
    for head_dim in range(16, 257):
        first, second = head_parts(head_dim)
        assert first + second >= head_dim
        assert first.bit_count() == 1 and first >= 16
        assert second == 0 or (second.bit_count() == 1 and 16 <= second < first)
    for head_dim in (16, 32, 64, 80, 96, 128, 144, 160, 192, 256):
        assert sum(head_parts(head_dim)) == head_dim


POINTERS = {"bias_ptr": "*fp32", "out_ptr": "*fp32", "lo_ptr": "*i32", "hi_ptr": "*i32"}
H100_REGISTERS, H100_SHARED = 65536, 228 * 1024  # of an SM; each program takes another KiB of the latter


def compile_for(capability: int, head_dim: int, dtype: str, softcap: bool):
    """What a launch on such a device would compile, without having one."""
    kernel, cut = triton_columns._kernel, kernel_tile(head_dim, torch.float32 if dtype == "fp32" else torch.bfloat16)
    first, second = head_parts(head_dim)
    constants = {
        "X": first, "Y": second, "KEYS": cut.keys, "QUERIES": cut.queries, "SOFTCAP": softcap, "UPCAST": False,
    }  # fmt: skip
    types = {**POINTERS, "query_ptr": f"*{dtype}", "key_ptr": f"*{dtype}", "scale": "fp32", "cap": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name.startswith("stride_")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options), cut


def assemble(ptx: str, folder: Path) -> str:
    """What ptxas has to say of the code. Of those that come with Triton, one may be too old for it."""
    (folder / "kernel.ptx").write_text(ptx)
    arch = re.search(r"\.target (\w+)", ptx).group(1)
    report = ""
    for ptxas in sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*")):
        command = [ptxas, "-v", f"-arch={arch}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
        run = subprocess.run(command, capture_output=True, text=True)
        report = run.stdout + run.stderr
        if run.returncode == 0:
            return report
    if not report:
        pytest.skip("this triton comes without ptxas")
    raise AssertionError(report)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("head_dim", "dtype", "softcap"),
    [
        (64, "bf16", False),
        (128, "bf16", False),
        (128, "bf16", True),
        (128, "fp16", False),
        (128, "fp32", False),
        (192, "bf16", False),
        (256, "bf16", True),
    ],
)
def test_machine_code(capability, head_dim, dtype, softcap, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compiled, cut = compile_for(capability, head_dim, dtype, softcap)
    ptx, shared = compiled.asm["ptx"], compiled.metadata.shared
    report = assemble(ptx, tmp_path)
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    print(f"sm_{capability} D={head_dim} {dtype} {cut}: {registers} registers, {shared} bytes of shared memory")

    assert "0 bytes spill stores, 0 bytes spill loads" in report, report
    if dtype != "fp32":  # the tensor cores are in use
        assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in ptx
    if capability == 90 and dtype != "fp32":
        assert 2 * registers * 32 * cut.warps <= H100_REGISTERS and 2 * (shared + 1024) <= H100_SHARED
    if capability == 80:
        assert shared <= 99 * 1024  # the most that a program may have on consumer cards, which run the same code
