# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(fullgraph=True)` and `torch.export` through every public op: no graph break, at most two graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops import ragged
from edgeops.ragged._ops import PUBLIC
from tests.native.more_compiled import more_cases
from tests.peers import offsets_of

pytestmark = [  # torch warns about its own internals while it traces
    pytest.mark.usefixtures("clean_memory"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]
BATCHES = ([2, 0, 4], [5, 3], [1, 7, 2, 6, 3])


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that counts the graphs it is given, forward and backward."""

    def __init__(self) -> None:
        self.graphs = 0
        self._inner = torch._dynamo.backends.registry.lookup_backend("aot_eager")

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return self._inner(module, inputs)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _attention(lengths: list[int], heads: int = 2, kv_heads: int = 2, bias: bool = False) -> tuple[Any, ...]:
    total, cu = sum(lengths), offsets_of(lengths)
    shapes = ((total, heads, 4), (total, kv_heads, 4), (total, kv_heads, 6))
    leaves = tuple(normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))
    extra = (normal(1, heads, 8, 8, seed=4).requires_grad_(),) if bias else ()
    return (*leaves, cu, cu.clone(), max(lengths), *extra)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest: int, **options: Any) -> Any:
    return ragged.ragged_attention(q, k, v, cu_q, cu_k, longest, longest, **options)


def attention_bias(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest: int, bias: Tensor) -> Any:
    return attention(q, k, v, cu_q, cu_k, longest, bias=bias, return_lse=True)


def _rows(lengths: list[int], *vectors: int) -> tuple[Tensor, ...]:
    total = sum(lengths)
    return tuple(normal(*((n,) if n else (total, 5)), seed=i).requires_grad_() for i, n in enumerate(vectors))


def _padded(lengths: list[int]) -> tuple[Any, ...]:
    return normal(len(lengths), max(lengths) + 1, 3).requires_grad_(), offsets_of(lengths), sum(lengths)


def _packed(lengths: list[int]) -> tuple[Any, ...]:
    return normal(sum(lengths), 3).requires_grad_(), offsets_of(lengths), max(lengths) + 1


def _lists(lengths: list[int]) -> tuple[Any, ...]:
    m, n, k = sum(lengths), max(lengths), len(lengths)
    return tuple(normal(*shape).requires_grad_() for shape in ((m, k), (n, m), (k, n), (m, k)))


def _flat(lengths: list[int]) -> tuple[Any, ...]:
    total, sizes = sum(lengths), torch.tensor([(n, 3, 4) for n in lengths])
    return normal(4 * total).requires_grad_(), normal(12 * len(lengths)).requires_grad_(), sizes, 3 * total


def _experts(lengths: list[int]) -> tuple[Any, ...]:
    leaves = tuple(normal(*shape).requires_grad_() for shape in ((sum(lengths), 5), (len(lengths), 5, 4)))
    return (*leaves, offsets_of(lengths)[1:], normal(len(lengths), 4).requires_grad_())


# public op -> functions over it, each with a maker of its arguments from lengths
CASES: list[tuple[str, str, Callable[..., Any], Callable[[list[int]], tuple[Any, ...]]]] = [
    ("ragged_attention", "plain", attention, _attention),
    (
        "ragged_attention",
        "causal, window, groups",
        lambda *a: attention(*a, causal=True, window=(3, -1), scale=0.3),
        lambda n: _attention(n, 4, 2),
    ),
    ("ragged_attention_lse", "bias", attention_bias, lambda n: _attention(n, bias=True)),
    (
        "ragged_attention",
        "varlen_attn",
        lambda q, k, v, cq, ck, m: ragged.varlen_attn(q, k, v, cq, ck, m, m, window_size=(-1, 0)),
        _attention,
    ),
    ("ragged_pack", "function", PUBLIC["ragged_pack"], _padded),
    ("ragged_unpack", "function", PUBLIC["ragged_unpack"], _packed),
    ("ragged_pool", "mean", ragged.ragged_pool, lambda n: (_rows(n, 0)[0], offsets_of(n))),
    ("ragged_pool", "max", lambda x, cu: ragged.ragged_pool(x, cu, "max"), lambda n: (_rows(n, 0)[0], offsets_of(n))),
    ("bias_gelu", "exact", ragged.bias_gelu, lambda n: _rows(n, 0, 5)),
    ("bias_gelu", "tanh", lambda x, b: ragged.bias_gelu(x, b, "tanh"), lambda n: _rows(n, 0, 5)),
    ("add_layer_norm", "plain", ragged.add_layer_norm, lambda n: _rows(n, 0, 0, 5, 5)),
    (
        "add_layer_norm",
        "bias",
        lambda x, r, w, b, a: ragged.add_layer_norm(x, r, w, b, x_bias=a),
        lambda n: _rows(n, 0, 0, 5, 5, 5),
    ),
    ("vgemm", "lists", lambda *both: tuple(ragged.vgemm(both[:2], both[2:])), _lists),
    ("vgemm_packed", "function", ragged.vgemm_packed, _flat),
    ("grouped_mm", "plain", lambda x, w, ends: ragged.grouped_mm(x, w, offs=ends), lambda n: _experts(n)[:3]),
    ("grouped_mm", "bias", lambda x, w, ends, bias: ragged.grouped_mm(x, w, offs=ends, bias=bias), _experts),
    *more_cases(),
]
IDS = [f"{op}, {name}" for op, name, _, _ in CASES]


def results(call: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """Outputs, and gradients in all leaves."""
    out = call(*args)
    outs = out if isinstance(out, tuple) else (out,)
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    loss = sum(torch.where(x.isinf(), 0.0, x).square().sum() for x in outs)
    return [*outs, *torch.autograd.grad(loss, leaves)]


def test_every_public_op_is_compiled() -> None:
    assert {op for op, *_ in CASES} == set(PUBLIC)


@pytest.mark.parametrize(("op", "name", "call", "make"), CASES, ids=IDS)
def test_one_graph_over_all_sizes(
    op: str, name: str, call: Callable[..., Any], make: Callable[[list[int]], tuple[Any, ...]]
) -> None:
    """Full graph forward and backward; three batches of other sizes and numbers of sequences, at most two graphs."""
    backend = Counting()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for lengths in BATCHES:
        torch.testing.assert_close(results(compiled, make(lengths)), results(call, make(lengths)))
    assert 1 <= backend.graphs <= 2


@pytest.mark.parametrize(("op", "name", "call", "make"), CASES, ids=IDS)
def test_without_gradients(
    op: str, name: str, call: Callable[..., Any], make: Callable[[list[int]], tuple[Any, ...]]
) -> None:
    backend = Counting()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for lengths in BATCHES:
            args = make(lengths)
            torch.testing.assert_close(compiled(*args), call(*args))
    assert 1 <= backend.graphs <= 2


def test_through_the_op_itself() -> None:
    """`torch.ops.edgeops.ragged_attention` compiles like the function."""
    backend = Counting()
    compiled = torch.compile(
        lambda q, k, v, cq, ck, m: torch.ops.edgeops.ragged_attention(q, k, v, cq, cq, m, m, causal=True),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    for lengths in BATCHES:
        args = _attention(lengths)
        want = results(lambda *a: attention(*a, causal=True), args)
        torch.testing.assert_close(results(compiled, args), want)
    assert backend.graphs <= 2


@pytest.mark.parametrize("which", ["offsets", "offsets and values"])
def test_self_attention_passes_one_tensor_twice(which: str) -> None:
    def call(x: Tensor, cu: Tensor) -> Any:
        parts = (x, x, x) if which == "offsets and values" else (x, 2 * x, -x)
        return ragged.ragged_attention(*parts, cu, cu, 8, 8)

    backend = Counting()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for lengths in BATCHES:
        args = (normal(sum(lengths), 2, 4).requires_grad_(), offsets_of(lengths))
        torch.testing.assert_close(results(compiled, args), results(call, args))
    assert backend.graphs <= 2


def test_pack_and_unpack_with_a_layout() -> None:
    """The functions of a layout compile too, and another layout does not mean another graph each time."""

    def call(x: Tensor, layout: ragged.RaggedLayout) -> Tensor:
        return ragged.unpack(ragged.pack(x, layout) * 2, layout)

    backend = Counting()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([2, 0, 6, 3], *BATCHES[1:]):  # no two sizes of the first batch agree by chance
        layout = ragged.RaggedLayout.from_lengths(lengths)
        args = (normal(len(lengths), max(lengths), 9).requires_grad_(), layout)
        torch.testing.assert_close(results(compiled, args), results(call, args))
    assert backend.graphs <= 2


def test_autocast_inside_a_graph() -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    args = _attention(BATCHES[0])
    with torch.autocast("cpu", torch.bfloat16):
        out = compiled(*args)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, attention(*args))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, x: Tensor, cu: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (3, 2, 4)).unbind(1)
        return attention(q, k, v, cu, cu, 8).flatten(1)


def test_export_with_a_dynamic_batch() -> None:
    layer = Layer().eval()
    rows, sequences = torch.export.Dim("rows", min=2), torch.export.Dim("sequences", min=2)
    x, cu = normal(6, 8), offsets_of(BATCHES[0])
    program = torch.export.export(layer, (x, cu), dynamic_shapes={"x": {0: rows}, "cu": {0: sequences}})
    assert any("edgeops" in str(node.target) for node in program.graph.nodes)
    lower = program.run_decompositions()
    assert any("_ragged_attention_fwd" in str(node.target) for node in lower.graph.nodes)
    for lengths in BATCHES:
        x, cu = normal(sum(lengths), 8), offsets_of(lengths)
        for exported in (program, lower):
            torch.testing.assert_close(exported.module()(x, cu), layer(x, cu))


@pytest.mark.slow
def test_inductor() -> None:
    """The default backend, forward and backward, over two sizes."""
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for lengths in BATCHES[:2]:
        x, cu = normal(sum(lengths), 8).requires_grad_(), offsets_of(lengths)
        torch.testing.assert_close(results(compiled, (x, cu)), results(layer, (x, cu)))
