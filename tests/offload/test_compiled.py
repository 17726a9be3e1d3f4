# SPDX-License-Identifier: Apache-2.0
"""`torch.compile` of models that train through subspaces: whole graphs, one more where pairs are learned."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from edgeops.offload import LSPAdamW, Pair, SparseProjector, SubspaceLinear
from edgeops.offload import _compiled as compiled
from edgeops.offload.fit import _lost

pytestmark = [  # torch warns about its own internals while it traces
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
STEPS = 5  # with check_every=2 pairs are looked at in steps 0, 2 and 4


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that counts the graphs it is given."""

    def __init__(self, inner: str = "aot_eager") -> None:
        self.graphs = 0
        self._inner = torch._dynamo.backends.registry.lookup_backend(inner)

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return self._inner(module, inputs)  # type: ignore[no-any-return]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 16, bias=False)).to(dtype)


def train(
    model: nn.Module, run: Callable[[Tensor], Tensor], rows: tuple[int, ...] = (8,), **more: object
) -> list[float]:
    settings = {"lr": 1e-2, "d": 4, "r": 2, "check_every": 2, "fit_steps": 3, "alpha": 1e-3, **more}
    optimizer = LSPAdamW(model, **settings)  # type: ignore[arg-type]
    dtype, losses = next(model.parameters()).dtype, []
    for i in range(STEPS):
        x = torch.randn(2, rows[i % len(rows)], 16, generator=torch.Generator().manual_seed(i)).to(dtype)
        loss = run(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    optimizer.finish()
    if more.get("projector", "learned") not in ("random", "identity"):
        assert all(t.learned == 3 for t in optimizer.targets)
    return losses


def compare(model: nn.Module, other: nn.Module, exact: bool) -> None:
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("projector", "graphs"), [("learned", 2), ("svd", 2), ("rows", 2), ("random", 1), ("identity", 1)]
)
def test_training_is_that_of_eager_in_whole_graphs(projector: str, graphs: int) -> None:
    """Two graphs at most, one where pairs are looked at, however often that is."""
    plain, model, counting = network(), network(), Counting()
    wanted = train(plain, plain, projector=projector)
    run = torch.compile(model, fullgraph=True, backend=counting)
    assert train(model, run, projector=projector) == wanted
    compare(model, plain, exact=True)
    assert counting.graphs == graphs


@pytest.mark.slow
def test_sizes_that_change_cost_one_more_graph_each_way() -> None:
    plain, model, counting = network(), network(), Counting()
    rows = (8, 8, 5, 6, 11)
    wanted = train(plain, plain, rows)
    assert train(model, torch.compile(model, fullgraph=True, backend=counting), rows) == wanted
    compare(model, plain, exact=True)
    assert counting.graphs <= 4


@pytest.mark.slow
def test_a_step_left_out_costs_no_further_graph() -> None:
    model, counting = network(), Counting()
    optimizer = LSPAdamW(model, lr=1e-2, d=4, r=2, check_every=2, fit_steps=3, alpha=1e-3)
    run = torch.compile(model, fullgraph=True, backend=counting)
    for i in range(8):
        run(torch.randn(8, 16)).square().mean().backward()
        if i == 2:
            assert optimizer.targets[0].leaf.grad is not None
            optimizer.targets[0].leaf.grad.fill_(torch.nan)
        optimizer.step()
        optimizer.zero_grad()
    assert [t.skipped for t in optimizer.targets] == [1, 0]
    assert [t.learned for t in optimizer.targets] == [4, 4]
    assert counting.graphs == 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor(dtype: torch.dtype) -> None:
    plain, model, counting = network(dtype), network(dtype), Counting("inductor")
    wanted = train(plain, plain)
    run = torch.compile(model, fullgraph=True, backend=counting)
    assert train(model, run) == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 5e-2)
    if dtype == torch.float32:
        compare(model, plain, exact=False)
    assert counting.graphs == 2


@pytest.mark.slow
def test_autocast() -> None:
    plain, model, counting = network(), network(), Counting()

    def cast(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(x)

        return call

    wanted = train(plain, cast(plain))
    assert train(model, cast(torch.compile(model, fullgraph=True, backend=counting))) == pytest.approx(wanted, rel=1e-3)
    assert counting.graphs == 2


@pytest.mark.slow
def test_overlapped_updates_break_the_graph_and_change_nothing() -> None:
    plain, model = network(), network()
    wanted = train(plain, plain)
    run = torch.compile(model, backend=Counting())
    assert train(model, run, policy="fcfs") == wanted
    compare(model, plain, exact=True)


def test_a_number_belongs_to_one_layer_for_as_long_as_it_lives() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=4, r=2)
    layers = [m for m in model.modules() if isinstance(m, SubspaceLinear)]
    numbers = [layer.number for layer in layers]
    assert len(set(numbers)) == 2
    assert min(numbers) >= 0
    copies = [copy.deepcopy(layers[0]), pickle.loads(pickle.dumps(layers[0]))]
    assert [each.number for each in copies] == [-1, -1]
    assert compiled._layers[numbers[0]] is layers[0]
    optimizer.release()
    del model, optimizer, layers
    gc.collect()
    assert not set(numbers) & set(compiled._layers)


def test_gradients_of_the_fit_are_those_of_autograd() -> None:
    g = torch.Generator().manual_seed(0)
    drawn = [SparseProjector.draw(m, d, r, generator=g, dtype=torch.float64) for m, d, r in ((12, 5, 2), (9, 4, 3))]
    grad = torch.randn(12, 9, generator=g, dtype=torch.float64)
    lost, back = _lost(Pair(*drawn), grad)
    values = [p.value.clone().requires_grad_() for p in drawn]
    dense = [
        torch.zeros(p.rows, p.width, dtype=torch.float64).scatter_add(1, p.index.long(), v)
        for p, v in zip(drawn, values)
    ]
    wanted = torch.linalg.vector_norm(dense[0] @ dense[0].T @ grad @ dense[1] @ dense[1].T - grad)
    torch.testing.assert_close(lost, wanted.detach())
    for ours, theirs in zip(back(), torch.autograd.grad(wanted, values)):
        torch.testing.assert_close(ours, theirs)
