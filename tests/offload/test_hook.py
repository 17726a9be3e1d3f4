# SPDX-License-Identifier: Apache-2.0
"""The communication hook of DistributedDataParallel that sends gradients through subspaces."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeops.offload import SubspaceHookState, subspace_hook
from edgeops.offload.hook import _Matrix
from edgeops.offload.targets import Target, first_pair
from tests.messages import refused
from tests.offload.processes import both, needs_gloo

distributed = [pytest.mark.slow, needs_gloo]
WAYS = {  # name -> settings; None is plain DDP
    "plain": None,
    "identity": {"projector": "identity"},
    "learned": {"projector": "learned", "fit_steps": 3},
    "random": {"projector": "random"},
    "svd": {"projector": "svd"},
    "rows": {"projector": "rows", "error_feedback": False},
    "bfloat16": {"projector": "learned", "fit_steps": 3, "wire_dtype": torch.bfloat16},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(8 * 6, 24), nn.ReLU(), nn.Linear(24, 16))


def wrap(model: nn.Module, settings: dict[str, Any] | None) -> tuple[nn.Module, SubspaceHookState | None]:
    wrapped = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.004)  # several buckets
    if settings is None:
        return wrapped, None
    state = SubspaceHookState(wrapped, **{"d": 3, "r": 2, "start_iter": 2, "check_every": 3, **settings})
    wrapped.register_comm_hook(state, subspace_hook)
    return wrapped, state


def steps(wrapped: nn.Module, optimizer: torch.optim.Optimizer, rank: int, first: int, last: int) -> None:
    for i in range(first, last):
        x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(i)).chunk(2)[rank]
        wrapped(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _train(rank: int, ways: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, settings in ways.items():
        model = network()
        wrapped, state = wrap(model, settings)
        steps(wrapped, torch.optim.AdamW(model.parameters(), lr=1e-2), rank, 0, 10)
        facts = {} if state is None else {"sent": state.bytes_sent, "plain": state.bytes_plain, **state.state_dict()}
        found[name] = {"model": model.state_dict(), **facts}
    return found


class TestTwoProcesses:
    pytestmark = distributed

    def test_processes_keep_the_same_bits_and_identities_are_plain(self, tmp_path: Path) -> None:
        first, second = both(tmp_path, _train, WAYS)
        size = sum(p.numel() for p in network().parameters()) * 4
        for name in WAYS:
            for key, value in first[name]["model"].items():
                assert torch.equal(value, second[name]["model"][key]), name
                assert torch.equal(value, first["plain"]["model"][key]) == (name in ("plain", "identity")), name
        for name in WAYS.keys() - {"plain", "identity"}:
            assert first[name]["plain"] == 10 * size == second[name]["plain"]
            assert first[name]["sent"] < 0.75 * first[name]["plain"]
            assert set(first[name]["matrices"]) == {"0.weight", "2.weight", "4.weight"}
            learned = {kept["learned"] for kept in first[name]["matrices"].values()}
            assert max(learned) <= 3  # in steps 2, 5 and 8
            assert (min(learned) > 0) == (name != "random")
            for kept in first[name]["matrices"].values():
                assert (kept["residual"] is None) == (name == "rows")
        assert first["identity"]["sent"] == first["identity"]["plain"]
        assert first["bfloat16"]["sent"] < first["learned"]["sent"]

    def test_resuming_is_exact(self, tmp_path: Path) -> None:
        whole, parted, residuals_differ = both(tmp_path, _resume)[0]
        assert residuals_differ
        for a, b in zip(whole, parted, strict=True):
            assert torch.equal(a, b)

    def test_feedback_brings_a_regression_near_plain(self, tmp_path: Path) -> None:
        plain, fed, alone = both(tmp_path, _regression)[0]
        assert fed < 1.5 * plain  # of a loss that begins at 32
        assert alone > 10 * plain

    @pytest.mark.parametrize("seen", [True, False], ids=["sent", "where the pair does not look"])
    def test_a_bad_gradient_is_bad_everywhere_and_comes_not_again(self, seen: bool, tmp_path: Path) -> None:
        for grads, before, after, clean in both(tmp_path, _poisoned, seen):
            assert grads[1]  # every element of the matrix, in both processes
            assert not grads[0]
            assert torch.equal(before, after)
            assert clean

    def test_a_parameter_it_does_not_know_is_refused(self, tmp_path: Path) -> None:
        assert all("the model it is registered with" in text for text in both(tmp_path, _stranger))


def _resume(rank: int) -> tuple[list[Tensor], list[Tensor], bool]:
    settings = {"projector": "learned", "fit_steps": 3}
    model = network()
    wrapped, state = wrap(model, settings)
    steps(wrapped, torch.optim.SGD(model.parameters(), lr=1e-2), rank, 0, 10)
    parted = network()
    wrapped, before = wrap(parted, settings)
    steps(wrapped, torch.optim.SGD(parted.parameters(), lr=1e-2), rank, 0, 7)
    assert state is not None
    assert before is not None
    saved = before.state_dict()
    again = network()
    again.load_state_dict(parted.state_dict())
    wrapped, after = wrap(again, {**settings, "seed": 5})
    assert after is not None
    after.load_state_dict(saved)
    steps(wrapped, torch.optim.SGD(again.parameters(), lr=1e-2), rank, 7, 10)
    own = saved["matrices"]["2.weight"]["residual"]
    other = own.clone()
    torch.distributed.broadcast(other, 0)
    differ = torch.tensor(float(not torch.equal(own, other)))
    torch.distributed.all_reduce(differ)
    assert after.bytes_sent == state.bytes_sent
    ours = [kept["residual"] for kept in after.state_dict()["matrices"].values()]
    theirs = [kept["residual"] for kept in state.state_dict()["matrices"].values()]
    return [*model.parameters(), *theirs], [*again.parameters(), *ours], bool(differ)


def _regression(rank: int) -> list[float]:
    g = torch.Generator().manual_seed(1)
    true, held = torch.randn(32, 32, generator=g), torch.randn(256, 32, generator=g)
    losses = []
    for settings in (None, *({"projector": "random", "check_every": 1, "error_feedback": e} for e in (True, False))):
        torch.manual_seed(0)
        model = nn.Linear(32, 32, bias=False)
        wrapped, _ = wrap(model, settings and {**settings, "d": 16, "r": 4, "start_iter": 0})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        g = torch.Generator().manual_seed(2)
        for _ in range(120):
            x = torch.randn(64, 32, generator=g)
            y = x @ true + 0.5 * torch.randn(64, 32, generator=g)
            part = slice(rank * 32, rank * 32 + 32)
            nn.functional.mse_loss(wrapped(x[part]), y[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            losses.append(float(nn.functional.mse_loss(model(held), held @ true)) + 0.25)
    return losses


def _poisoned(rank: int, seen: bool) -> tuple[list[bool], Tensor, Tensor, bool]:
    """The second process has a gradient that is not finite in one row, in a step that compresses."""
    torch.manual_seed(0)
    model = nn.Linear(32, 32)
    wrapped, state = wrap(model, {"projector": "rows", "d": 4, "start_iter": 0, "check_every": 100})
    assert state is not None
    (entry,) = state._matrices.values()

    def backward(x: Tensor, weights: Tensor) -> None:
        model.zero_grad()
        (wrapped(x) * weights).sum().backward()

    g = torch.Generator().manual_seed(rank)
    for _ in range(3):
        backward(torch.randn(8, 32, generator=g), torch.ones(32))
    assert entry.residual is not None
    before = entry.residual.clone()
    looked = set(entry.target.pair.left.dense().abs().sum(1).nonzero().flatten().tolist())
    row = next(i for i in range(32) if (i in looked) == seen)
    weights = torch.ones(32)
    if rank == 1:
        weights[row] = torch.inf
    backward(torch.randn(8, 32, generator=g), weights)
    weight, bias = model.weight.grad, model.bias.grad
    assert weight is not None
    assert bias is not None
    after = entry.residual.clone()
    bad = [bool((~bias.isfinite()).sum() > 1), bool((~weight.isfinite()).all())]
    backward(torch.randn(8, 32, generator=g), torch.ones(32))
    return bad, before, after, bool(model.weight.grad.isfinite().all() and entry.residual.isfinite().all())


def _stranger(rank: int) -> str:
    model = nn.Linear(32, 32)
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped.register_comm_hook(SubspaceHookState(nn.Linear(32, 32), d=4), subspace_hook)
    try:
        wrapped(torch.ones(2, 32)).sum().backward()
    except ValueError as error:
        return str(error)
    return ""


def test_what_comes_back_is_the_nearest_in_the_subspace() -> None:
    """An orthogonal projection: never larger than the matrix, and itself when sent again."""
    g = torch.Generator().manual_seed(0)
    weight = torch.zeros(40, 24, dtype=torch.float64)
    for d in (4, 20):  # the wider one has columns without entries or that depend on others
        entry = _Matrix(Target("w", weight, nn.Parameter(torch.zeros(0)), None, 0), (40, 24))
        entry.use(first_pair("test", "w", weight, "random", d, 1, g), weight.device)
        grad = torch.randn(40, 24, generator=g, dtype=torch.float64)
        back = entry.expand(entry.compress(grad))
        torch.testing.assert_close(entry.expand(entry.compress(back)), back)
        p, q = entry.target.pair.left.dense(), entry.target.pair.right.dense()
        wanted = p @ torch.linalg.pinv(p) @ grad @ torch.linalg.pinv(q).T @ q.T
        torch.testing.assert_close(back, wanted)
        assert math.isclose(float(entry.compress(grad).norm()), float(back.norm()))


def test_what_is_compressed() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3), nn.Conv2d(8, 16, 3), nn.LayerNorm(64))
    model[0].bias.requires_grad_(False)
    assert SubspaceHookState(model, d=8).compressed == ("0.weight", "2.weight")
    assert SubspaceHookState(model, d=0.25, r=1).compressed == ("0.weight", "1.weight", "2.weight")
    assert SubspaceHookState(model, d=8, min_compression_rate=20).compressed == ("0.weight",)
    assert SubspaceHookState(model, projector="identity").compressed == ()
    assert SubspaceHookState(model, d=8).compression_rate == 1.0


def test_settings_that_are_refused() -> None:
    model = nn.Linear(32, 32)
    who = "SubspaceHookState"
    for settings, rule in (
        ({"d": 64}, "makes 2 times smaller"),
        ({"d": 8, "r": 9}, "r must lie in"),
        ({"d": 8, "start_iter": -1}, "start_iter must not be negative"),
        ({"d": 8, "feedback_decay": 0.0}, r"feedback_decay must lie in \(0, 1\]"),
        ({"d": 8, "min_compression_rate": 0.5}, "min_compression_rate must be at least 1"),
        ({"d": 8, "check_every": 0}, "check_every must be at least 1"),
        ({"d": 8, "projector": "best"}, "projector must be one of"),
    ):
        with refused(ValueError, who, rule, ""):
            SubspaceHookState(model, **settings)  # type: ignore[arg-type]


def test_a_state_of_other_parameters_is_refused_and_nothing_changes() -> None:
    state, other = SubspaceHookState(nn.Linear(32, 32), d=4), SubspaceHookState(nn.Linear(32, 64), d=4)
    state.iteration = 7
    with refused(ValueError, "SubspaceHookState", "the same parameters", re.escape("('weight', [64, 32])")):
        state.load_state_dict(other.state_dict())
    assert state.iteration == 7
    with refused(TypeError, "SubspaceHookState", "cannot be pickled", ""):
        pickle.dumps(state)
