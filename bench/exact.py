# SPDX-License-Identifier: Apache-2.0
"""Figures of the items that are right or wrong, not fast or slow: C1 addressing, C2 models, C3 accuracy, C4 invariance,
C16 the varlen signature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.inputs import LISTS, batch, have_shared, length_list, skip_reason
from bench.ragged.attention import packed_input
from bench.registry import Unavailable
from edgeops import perf
from edgeops.ragged import RaggedLayout, ragged_attention, varlen_attn
from edgeops.ragged._reference import ragged_attention_fwd_reference
from edgeops.ragged.addressing import Dim, RaggedShape
from edgeops.ragged.flops import activation_ratio, flop_ratios

Figures = dict[str, float]

# The specification's section 9.1, batch 8/32/64/128 padded over ideal, then 32/128 of the three other schemes.
_FLOPS = {
    "RACE": ((1.385, 1.452, 1.465, 1.471), (1.096, 1.100), (1.016, 1.014), (1.108, 1.032)),
    "Wiki512": ((1.265, 1.352, 1.388, 1.416), (1.065, 1.076), (1.007, 1.005), (1.132, 1.037)),
    "SQuAD": ((1.639, 1.977, 2.059, 2.128), (1.148, 1.176), (1.021, 1.018), (1.199, 1.051)),
    "Wiki128": ((1.086, 1.080, 1.126, 1.144), (1.005, 1.009), (1.011, 1.006), (1.050, 1.024)),
    "MNLI": ((1.771, 2.257, 2.457, 2.729), (1.056, 1.086), (1.040, 1.025), (1.258, 1.079)),
    "XNLI": ((1.748, 1.854, 1.843, 1.853), (1.048, 1.048), (1.032, 1.018), (1.168, 1.045)),
    "MRPC": ((1.324, 1.497, 1.589, 1.640), (1.023, 1.031), (1.038, 1.025), (1.112, 1.034)),
    "CoLA": ((1.284, 1.648, 1.829, 2.102), (1.009, 1.016), (1.136, 1.081), (1.134, 1.052)),
}
# Section 9.2, batch 64: ragged over dense activations, with scores stored and without.
_MEMORY = {
    "RACE": (0.676, 0.341),
    "Wiki512": (0.928, 0.425),
    "SQuAD": (0.474, 0.297),
    "Wiki128": (0.990, 0.759),
    "MNLI": (0.332, 0.293),
    "XNLI": (0.585, 0.478),
    "MRPC": (0.467, 0.403),
    "CoLA": (0.353, 0.335),
}
_BATCHES = 50


def _enumerate(dims: Sequence[Dim]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every element of a ragged tensor in storage order with its position, by walking all stored indices."""
    position = 0

    def extent(d: int, index: tuple[int, ...], stored: bool) -> int:
        dim = dims[d]
        size = dim.extent if dim.on is None else dim.extent[index[dim.on]]  # type: ignore[index]
        return -(-size // dim.pad) * dim.pad if stored else int(size)  # type: ignore[operator, arg-type]

    def walk(index: tuple[int, ...], inside: bool) -> Iterator[tuple[tuple[int, ...], int]]:
        nonlocal position
        d = len(index)
        if d == len(dims):
            if inside:
                yield index, position
            position += 1
            return
        for i in range(extent(d, index, True)):
            yield from walk((*index, i), inside and i < extent(d, index, False))

    yield from walk((), True)


def _random_dims(generator: np.random.Generator) -> list[Dim]:
    """One to five dimensions of small extents; each may depend on an outer one and be padded."""
    dims: list[Dim] = []
    longest: list[int] = []
    for d in range(int(generator.integers(1, 6))):
        pad = int(generator.choice([1, 1, 2, 3]))
        on = int(generator.integers(0, d)) if d and generator.random() < 0.5 else None
        sizes = [int(n) for n in generator.integers(0 if d else 1, 4, size=1 if on is None else longest[on])]
        dims.append(Dim(sizes[0], pad=pad) if on is None else Dim(tuple(sizes), on=on, pad=pad))
        longest.append(max([-(-n // pad) * pad for n in sizes], default=0))
    return dims


def addressing(graphs: int = 300) -> Figures:
    """C1."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(graphs):
        dims = _random_dims(generator)
        shape = RaggedShape(dims)
        seen = list(_enumerate(dims))
        if not seen:
            continue
        indices, positions = zip(*seen)
        wrong += not np.array_equal(shape.offsets(np.array(indices)), np.array(positions))
    example = [Dim(2), Dim((1, 2), on=0), Dim(2), Dim((1, 2), on=0)]
    flat = RaggedShape(example).offsets(np.array([index for index, _ in _enumerate(example)]))
    lengths = batch("RACE", 32).values
    scores = RaggedShape([Dim(32), Dim(lengths, on=0), Dim(8), Dim(lengths, on=0)])
    return {
        "random dimension graphs that differ from enumeration": float(wrong),
        "worked example offsets that are not 0..9": float(
            sum(a != b for a, b in itertools.zip_longest(flat, range(10)))
        ),
        "index integers beyond B + 1 for (B, l, H, l)": float(scores.index_size - 33),
    }


def models() -> Figures:
    """C2.

    Raises:
        Unavailable: the real lists are absent; synthetic ones reproduce nothing.
    """
    if not have_shared():
        raise Unavailable(skip_reason())
    flops, memory = 0.0, 0.0
    for name in LISTS:
        lengths = length_list(name).values
        seen = {b: flop_ratios(lengths, b, max_batches=_BATCHES) for b in (8, 32, 64, 128)}
        padded, linear, cora, micro = _FLOPS[name]
        pairs = [*zip((seen[b].padded for b in (8, 32, 64, 128)), padded)]
        for i, b in enumerate((32, 128)):
            pairs += [(seen[b].packed_linear, linear[i]), (seen[b].cora, cora[i])]
            pairs += [(seen[b].sorted_micro_batches, micro[i])]
        flops = max(flops, *(abs(a - b) for a, b in pairs))
        for stored, published in zip((True, False), _MEMORY[name]):
            ratio = activation_ratio(lengths, 64, store_scores=stored, max_batches=_BATCHES)
            memory = max(memory, abs(ratio - published))
    return {"largest deviation from the FLOP ratios": flops, "largest deviation from the memory ratios": memory}


def _leaves(name: str, size: int) -> tuple[list[Tensor], RaggedLayout]:
    data = packed_input(batch(name, size).values, torch.device("cpu"))
    return [x.requires_grad_() for x in (data.q, data.k, data.v)], data.layout


def _errors(name: str, size: int) -> tuple[float, float]:
    """Largest absolute error of the output and largest relative error of a gradient, against float64."""
    leaves, layout = _leaves(name, size)
    cu, longest = layout.cu_seqlens, layout.max_len
    out = ragged_attention(*leaves, cu, cu, longest, longest)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth, _ = ragged_attention_fwd_reference(*exact, cu, cu, scale=leaves[0].shape[2] ** -0.5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, leaves, upstream)
    want = torch.autograd.grad(truth, exact, upstream.double())
    relative = max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, want))
    return float((out.detach() - truth.detach()).abs().max()), relative


def _failures() -> int:
    """gradcheck in float64 and the full opcheck of the forward kernel op on one small batch."""
    generator = torch.Generator().manual_seed(0)
    cu = torch.tensor([0, 3, 3, 8])
    q, k, v = (torch.randn(8, 2, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    failed = 0
    try:
        torch.autograd.gradcheck(lambda *qkv: ragged_attention(*qkv, cu, cu, 5, 5, causal=True), (q, k, v))
    except RuntimeError:
        failed += 1
    small = [x.detach().float() for x in (q, k, v)]
    try:
        torch.library.opcheck(
            torch.ops.edgeops._ragged_attention_fwd.default, (*small, cu, cu, None, 0.5, False, -1, -1)
        )
    except Exception:  # opcheck raises whatever the broken rule raises
        failed += 1
    return failed


def _graphs() -> int:
    """Graphs that `torch.compile(fullgraph=True, dynamic=True)` needs for four batches of different sizes."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, cu, longest: ragged_attention(q, q, q, cu, cu, longest, longest),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    for lengths in ([3, 5], [7, 2, 4], [9, 1, 1, 6], [12, 8]):
        layout = RaggedLayout.from_lengths(lengths)
        compiled(torch.randn(layout.total, 2, 8), layout.cu_seqlens, layout.max_len)
    return int(counter.frame_count)


def accuracy() -> Figures:
    """C3."""
    seen = [_errors(name, 4 if name in ("RACE", "Wiki512", "SQuAD") else 16) for name in LISTS]
    return {
        "largest absolute error of the output": max(out for out, _ in seen),
        "largest relative error of a gradient": max(grad for _, grad in seen),
        "gradcheck and opcheck failures": float(_failures()),
        "graphs compiled for four batches": float(_graphs()),
    }


def _attend(parts: Sequence[tuple[Tensor, Tensor, Tensor]], **options: bool) -> list[Tensor]:
    """Attention over the given sequences as one packed batch, cut apart again."""
    q, k, v = (torch.cat(one) for one in zip(*parts))
    layout = RaggedLayout.from_lengths([len(one[0]) for one in parts])
    cu, longest = layout.cu_seqlens, layout.max_len
    return list(ragged_attention(q, k, v, cu, cu, longest, longest, **options).split(list(layout.lengths)))


def invariance() -> Figures:
    """C4: each sequence of a mixed batch alone, in reversed and shuffled batches, and with two threads."""
    lengths = [n for name in LISTS for n in batch(name, 4).values]
    data = packed_input([*lengths, 1, 2, 7], torch.device("cpu"))
    parts = list(zip(*(x.split(data.lengths) for x in (data.q, data.k, data.v))))
    order = np.random.default_rng(0).permutation(len(parts)).tolist()
    changed = 0
    for causal in (False, True):
        with perf.thread_count(1):
            want = _attend(parts, causal=causal)
            alone = [_attend([one], causal=causal)[0] for one in parts]
            shuffled = _attend([parts[i] for i in order], causal=causal)
        with perf.thread_count(2):
            two = _attend(parts, causal=causal)
        changed += sum(not torch.equal(a, b) for a, b in zip(alone, want))
        changed += sum(not torch.equal(a, want[i]) for a, i in zip(shuffled, order))
        changed += sum(not torch.equal(a, b) for a, b in zip(two, want))
    return {"outputs that change bitwise: alone, reordered, 2 threads": float(changed)}


def _budget(got: Tensor, peer: Tensor, exact: Tensor) -> bool:
    """Whether `got` is at most twice as wrong as plain torch in the same dtype, plus the rounding noise of a result."""
    low = exact.to(got.dtype)
    noise = 2 * (low + 0.3 - 0.3 - low).abs().max().double()
    return bool((got.double() - exact).abs().max() <= 2 * (peer.double() - exact).abs().max() + noise)


def varlen() -> Figures:
    """C16: PyTorch's `varlen_attn` arguments on the CPU: three dtypes, full, causal and window, GQA, autograd."""
    generator = torch.Generator().manual_seed(0)
    cu_q, cu_k = torch.tensor([0, 5, 5, 42, 50]), torch.tensor([0, 9, 12, 40, 51])
    q = torch.randn(50, 4, 16, generator=generator)
    k, v = (torch.randn(51, 2, 16, generator=generator) for _ in range(2))
    upstream = torch.randint(-4, 5, (50, 4, 16), generator=generator) / 4  # exact in every dtype
    failed = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for window in ((-1, -1), (-1, 0), (8, 4), (6, 0)):
            leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
            plain = [x.to(dtype).requires_grad_() for x in (q, k, v)]
            exact = [x.to(dtype).double().requires_grad_() for x in (q, k, v)]
            offsets = (cu_q.int(), cu_k.int())
            try:
                got = varlen_attn(*leaves, *offsets, 37, 28, window_size=window, enable_gqa=True)
            except (NotImplementedError, RuntimeError, ValueError):
                failed += 1
                continue
            peer, _ = ragged_attention_fwd_reference(*plain, *offsets, None, 0.25, False, *window)
            truth, _ = ragged_attention_fwd_reference(*exact, *offsets, None, 0.25, False, *window)
            grads = [
                torch.autograd.grad(one, on, upstream.to(one.dtype))
                for one, on in ((got, leaves), (peer, plain), (truth, exact))
            ]
            fine = _budget(got.detach(), peer.detach(), truth.detach())
            failed += not (fine and all(_budget(*three) for three in zip(*grads)))
    return {"varlen_attn calls that fail or exceed the error budget": float(failed)}
