# SPDX-License-Identifier: Apache-2.0
"""LSPAdamW as an optimizer: against AdamW, accumulation, resuming, schedulers, memory, bad input."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeops.offload import LSPAdamW, SubspaceLinear
from tests.messages import refused


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 32), nn.LayerNorm(32), nn.Linear(32, 4)).to(dtype)


def data(count: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 24, generator=g).to(dtype), torch.randn(count, 4, generator=g).to(dtype)


def backward(model: nn.Module, x: Tensor, y: Tensor) -> float:
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return float(loss.detach())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for i in range(first, first + steps):
        losses.append(backward(model, *data(seed=1 + i % 4)))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def parameters(model: nn.Module) -> list[Tensor]:
    return [v for k, v in model.state_dict().items()]


def test_identity_is_adamw() -> None:
    """Item 2: P = I, Q = I, 100 steps, to 1e-6; and the same of parameters alone."""
    ours, theirs, by_hand = network(), network(), network()
    optimizers = [
        LSPAdamW(ours, lr=1e-3, weight_decay=0.1, projector="identity", d=4),
        torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1),
    ]
    matrices = [p for p in by_hand.parameters() if p.dim() == 2]
    rest = [p for p in by_hand.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "d": 4, "projector": "identity"}, {"params": rest}]
    optimizers.append(LSPAdamW(groups, lr=1e-3, weight_decay=0.1))
    for model, optimizer in zip((ours, theirs, by_hand), optimizers):
        train(model, optimizer, 100)
    for a, b, c in zip(parameters(ours), parameters(theirs), parameters(by_hand)):
        assert float((a - b).abs().max()) <= 1e-6
        assert float((c - b).abs().max()) <= 1e-6


@pytest.mark.parametrize("projector", ["learned", "random", "svd", "rows"])
def test_every_projector_trains(projector: str) -> None:
    model = network()
    before = copy.deepcopy(parameters(model))
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2, projector=projector, check_every=10)
    losses = train(model, optimizer, 60)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters(model)))
    assert len(optimizer.targets) == 2  # the last layer is too narrow for d = 8
    assert all(t.learned == 0 for t in optimizer.targets) == (projector == "random")


def test_parameters_alone_give_the_same_as_the_model() -> None:
    """Whole gradients that are compressed in a hook, and gradients that were never whole."""
    results = []
    for whole in (False, True):
        model = network()
        if whole:
            weights = [model[0].weight, model[2].weight]
            rest = [p for p in model.parameters() if not any(p is w for w in weights)]
            optimizer = LSPAdamW([{"params": weights, "d": 8, "r": 2}, {"params": rest}], lr=1e-2)
        else:
            optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
        train(model, optimizer, 10)
        assert model[0].weight.grad is None
        results.append(parameters(model))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_accumulation_is_one_large_batch() -> None:
    """Item 5."""
    x, y = data(32)
    results = []
    for parts in (1, 4):
        model = network(dtype=torch.float64)
        optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2, projector="random")
        for _ in range(3):
            for xs, ys in zip(x.double().chunk(parts), y.double().chunk(parts)):
                (nn.functional.mse_loss(model(xs), ys) / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(parameters(model))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("projector", ["learned", "svd", "rows", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_resuming_is_exact(projector: str, dtype: torch.dtype) -> None:
    """Item 6: save in the middle, through a file, into a fresh process's objects: the same bits."""

    def build(seed: int) -> tuple[nn.Module, LSPAdamW]:
        model = network(seed).to(dtype)
        return model, LSPAdamW(model, lr=1e-2, d=8, r=2, projector=projector, check_every=4, seed=3)

    def run(model: nn.Module, optimizer: LSPAdamW, steps: range) -> None:
        for i in steps:
            backward(model, *data(seed=i, dtype=dtype))
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = build(0)
    run(model, optimizer, range(7))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    run(model, optimizer, range(7, 13))
    other, resumed = build(5)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    run(other, resumed, range(7, 13))
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), parameters(other)))


def test_resuming_of_half_precision_parameters_is_exact() -> None:
    """torch casts a loaded state like its parameter; the moments must not be rounded."""

    def build() -> tuple[nn.Parameter, LSPAdamW]:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(12, 16).bfloat16())
        return weight, LSPAdamW([{"params": [weight], "d": 4, "r": 2}], lr=1e-2)

    def run(weight: nn.Parameter, optimizer: LSPAdamW, count: int) -> None:
        for i in range(count):
            (weight * torch.linspace(-1, i + 1, 16).bfloat16()).square().sum().backward()
            optimizer.step()

    weight, optimizer = build()
    run(weight, optimizer, 3)
    saved = copy.deepcopy((weight.data, optimizer.state_dict()))
    run(weight, optimizer, 3)
    other, resumed = build()
    other.data.copy_(saved[0])
    resumed.load_state_dict(saved[1])
    run(other, resumed, 3)
    assert torch.equal(weight, other)


def test_projectors_move_and_cast_with_their_layer() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
    model.double()
    assert model[0].subspace.dtype == torch.float64
    backward(model, *data(dtype=torch.float64))
    optimizer.step()
    model, half = network(), network()
    optimizer, halved = LSPAdamW(model, d=8, r=2), LSPAdamW(half, d=8, r=2)
    half.bfloat16()
    assert half[0].subspace.dtype == torch.float32
    backward(half, *data(dtype=torch.bfloat16))
    halved.step()
    assert halved.targets[0].pair is half[0].pair


def test_schedulers_and_clipping_work_unmodified() -> None:
    """Item 7."""
    model = network()
    optimizer = LSPAdamW(model, lr=1.0, d=8, r=2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    backward(model, *data())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert float(norm) > 1e-3
    left = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(left) == pytest.approx(1e-3, rel=1e-4)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[1]["lr"])
    assert optimizer.param_groups[0]["lr"] < 1.0


def test_grad_scaler_skips_and_reports() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2, projector="random")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    before = copy.deepcopy(parameters(model))
    x, y = data()
    x[0, 0] = torch.inf
    scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**3
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model)))


def test_a_gradient_that_is_not_finite_is_left_out_and_counted() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2, check_every=1)
    train(model, optimizer, 2)
    target = optimizer.targets[0]
    before = target.weight.clone()
    backward(model, *data())
    moments = optimizer.state[target.leaf]["exp_avg"].clone()
    target.leaf.grad.fill_(torch.nan)
    optimizer.step()
    assert target.skipped == 1
    assert torch.equal(target.weight, before)
    assert torch.equal(optimizer.state[target.leaf]["exp_avg"], moments)
    assert optimizer.targets[1].skipped == 0
    x, y = data()
    optimizer.zero_grad()
    x[0] = torch.nan  # where the pair is due to be looked at
    backward(model, x, y)
    optimizer.step()
    assert bool(target.weight.isfinite().all())
    assert target.skipped == 2


def test_a_first_gradient_that_is_not_finite_leaves_the_pair_to_the_next() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
    x, y = data()
    backward(model, x * torch.nan, y)
    optimizer.step()
    optimizer.zero_grad()
    assert [(t.due, t.learned, t.skipped) for t in optimizer.targets] == [(True, 0, 1)] * 2
    train(model, optimizer, 1)
    assert [(t.due, t.learned, t.skipped) for t in optimizer.targets] == [(False, 1, 1)] * 2


def test_state_dict_of_the_model_stays_and_release_gives_it_back() -> None:
    model, plain = network(), network()
    keys = list(plain.state_dict())
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
    assert isinstance(model[0], SubspaceLinear)
    assert list(model.state_dict()) == keys
    model.load_state_dict(plain.state_dict())
    again = copy.deepcopy(model)
    assert torch.equal(again(data()[0]), model(data()[0]))
    train(model, optimizer, 1)
    optimizer.release()
    assert type(model[0]) is nn.Linear
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    backward(model, *data())
    assert model[0].weight.grad.shape == (40, 24)


def test_no_whole_gradient_is_ever_made_outside_the_check() -> None:
    """Item 17: no result of a target's shape while a step runs that does not look at its pair."""
    model = nn.Sequential(nn.Linear(56, 72), nn.ReLU(), nn.Linear(72, 88))
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2, check_every=3)
    shapes = {(72, 56), (56, 72), (88, 72), (72, 88)}

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **kwargs or {})
            kept = [x for x in args if isinstance(x, Tensor)]
            for x in result if isinstance(result, (tuple, list)) else [result]:
                whole = isinstance(x, Tensor) and tuple(x.shape) in shapes and x._base is None
                if whole and not any(x.data_ptr() == k.data_ptr() for k in kept):
                    self.seen.add(str(function))
            return result

    def step() -> set[str]:
        with Watch() as watch:
            model(torch.randn(10, 56)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return watch.seen

    found = [bool(step()) for _ in range(6)]
    assert found == [True, False, False, True, False, False]


def test_only_the_projected_input_is_kept_for_backward() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    LSPAdamW(model, d=8, r=2, projector="random")
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(torch.randn(100, 64))
    assert sorted(kept) == [8 * 100, 64 * 64]


def test_checkpointing_and_a_layer_used_twice() -> None:
    from torch.utils.checkpoint import checkpoint

    def build() -> tuple[nn.Module, LSPAdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(24, 24)
        return layer, LSPAdamW(nn.Sequential(layer), lr=1e-2, d=8, r=2, check_every=2)

    results = []
    for again in (False, True):
        layer, optimizer = build()
        for i in range(4):
            x = data(seed=i)[0].requires_grad_()
            hidden = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
            layer(hidden.relu()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(parameters(layer))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bf16_weights_move_by_chance_where_rounding_would_lose_them() -> None:
    """Item 13 in small: updates far below the spacing of bfloat16."""
    moved = []
    for chance in (True, False):
        model = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
        with torch.no_grad():
            model[0].weight.fill_(1.0)
        before = model[0].weight.clone()
        optimizer = LSPAdamW(
            model, lr=1e-4, weight_decay=0.0, d=16, r=4, projector="random", stochastic_rounding=chance
        )
        for i in range(10):
            model(torch.randn(8, 64, generator=torch.Generator().manual_seed(i)).bfloat16()).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        moved.append(float((model[0].weight - before).detach().abs().sum()))
    assert moved[0] > 0
    assert moved[1] == 0


def test_learn_on_a_calibration_batch() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
    biases = optimizer.learn(lambda: backward(model, *data(seed=9)))
    assert sorted(biases) == ["0.weight", "2.weight"]
    assert all(0 < b < 1 for b in biases.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(not t.due and t.learned == 1 for t in optimizer.targets)
    backward(model, *data())
    with refused(ValueError, "LSPAdamW", "learn needs a moment without pending gradients"):
        optimizer.learn(lambda: None)


def test_frozen_and_added_in_mid_run() -> None:
    model = network()
    optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
    train(model, optimizer, 1)
    model[0].subspace.requires_grad_(False)
    frozen = model[0].weight.clone()
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra]})
    train(model, optimizer, 2)
    assert torch.equal(model[0].weight, frozen)
    extra.sum().backward()
    optimizer.step()
    assert float(extra.detach()[0]) != 1.0
    late = nn.Parameter(torch.randn(12, 12))
    optimizer.add_param_group({"params": [late], "d": 4, "r": 2})
    late.square().sum().backward()
    optimizer.step()
    assert len(optimizer.targets) == 3
    with refused(ValueError, "LSPAdamW", "a weight that is trained through its subspace cannot be added again"):
        optimizer.add_param_group({"params": [model[2].weight]})


BAD: list[tuple[str, Callable[[], Any], type[Exception], str, str]] = [
    ("d", lambda: LSPAdamW(network(), d=30, targets=["*"]), ValueError, r"d must lie in \[1, 24\] for 0.weight", "30"),
    ("r", lambda: LSPAdamW(network(), d=4, r=5), ValueError, r"r must lie in \[1, d\], d = 4", "5"),
    ("none", lambda: LSPAdamW(network(), d=99), ValueError, "needs at least one weight", "1 groups"),
    ("pattern", lambda: LSPAdamW(network(), d=4, targets=["head"]), ValueError, "every pattern in targets", "'head'"),
    ("kind", lambda: LSPAdamW(network(), d=4, projector="dct"), ValueError, "projector must be one of", "'dct'"),
    ("every", lambda: LSPAdamW(network(), d=4, check_every=0), ValueError, "check_every must be at least 1", "0"),
    ("change", lambda: LSPAdamW(network(), d=4, on_change="x"), ValueError, "on_change must be one of", "'x'"),
    (
        "vector",
        lambda: LSPAdamW([{"params": [nn.Parameter(torch.ones(3))], "d": 2}]),
        TypeError,
        "must be a matrix",
        "3",
    ),
    (
        "integers",
        lambda: LSPAdamW([{"params": [nn.Parameter(torch.ones(3, 3).int(), requires_grad=False)], "d": 2}]),
        ValueError,
        "must require a gradient",
        "frozen",
    ),
]


@pytest.mark.parametrize("case", BAD, ids=[b[0] for b in BAD])
def test_refuses(case: tuple[str, Callable[[], Any], type[Exception], str, str]) -> None:
    _, call, kind, rule, got = case
    with refused(kind, "LSPAdamW", rule, got):
        call()


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("LSPAdamW", "d must lie in", {"d": 28, "targets": ["2", "4"]}),
    ("LSPAdamW", "fit_steps must not be negative", {"d": 8, "fit_steps": -1}),
    ("LSPAdamW", "accumulation_steps must be at least 1", {"d": 8, "policy": "fcfs", "accumulation_steps": 0}),
    ("Policy", "kind must be one of", {"d": 8, "policy": "fastest"}),
]


@pytest.mark.parametrize(("who", "rule", "settings"), REFUSED, ids=[r[1] for r in REFUSED])
def test_a_refused_model_is_left_as_it_was(who: str, rule: str, settings: dict[str, Any]) -> None:
    model = network()
    with refused(ValueError, who, rule):
        LSPAdamW(model, **settings)
    assert all(type(m) is not SubspaceLinear for m in model)
    assert model[2].weight.requires_grad


def test_tied_and_sparse() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head, self.mid = nn.Embedding(20, 16, sparse=True), nn.Linear(16, 20), nn.Linear(16, 16)
            self.head.weight = self.embed.weight

    with refused(ValueError, "LSPAdamW", "head.weight must not be shared", "a tied weight"):
        LSPAdamW(Tied(), d=4, targets=["head"])
    model = Tied()
    optimizer = LSPAdamW(model, d=4)
    assert [t.name for t in optimizer.targets] == ["mid.weight"]
    before = model.mid.weight.clone()
    model.mid(model.embed(torch.tensor([1]))).sum().backward()
    with refused(TypeError, "LSPAdamW", "needs dense gradients", "a sparse one"):
        optimizer.step()
    assert torch.equal(model.mid.weight, before)


def test_resuming_with_another_model_is_refused() -> None:
    model = network()
    optimizer = LSPAdamW(model, d=8, r=2)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    other = LSPAdamW(nn.Sequential(nn.Linear(24, 41), nn.Linear(41, 32)), d=8, r=2)
    pair = other.targets[0].pair
    with refused(ValueError, "LSPAdamW", "of the same weights, shapes and dtypes", "40, 24"):
        other.load_state_dict(saved)
    assert other.targets[0].pair is pair
    half = LSPAdamW(network(dtype=torch.bfloat16), d=8, r=2)
    with refused(ValueError, "LSPAdamW", "of the same weights, shapes and dtypes", "float32"):
        half.load_state_dict(saved)
    with refused(ValueError, "LSPAdamW", "needs the state of an LSPAdamW"):
        optimizer.load_state_dict(torch.optim.AdamW(network().parameters()).state_dict())
