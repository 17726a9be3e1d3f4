# SPDX-License-Identifier: Apache-2.0
"""Every model, inside a session and outside: losses, all gradients, flushes; on drawn and on real instances."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.batching.instances import MODELS
from bench.registry import Unavailable
from edgeops import batching
from edgeops.batching.models import Model
from edgeops.batching.programs import drive
from tests.batching.instances import drawn

NAMES = list(MODELS)
DECIDING = [name for name, entry in MODELS.items() if entry.decides]
WIDTH = 6


def made(name: str, dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    return MODELS[name].model(WIDTH).to(dtype)


def instances(name: str, kind: str, count: int) -> list[Any]:
    if kind == "drawn":
        return drawn(name, count)
    try:
        return MODELS[name].instances(count)
    except Unavailable as reason:
        pytest.skip(str(reason))


def batched(model: Model, given: list[Any]) -> tuple[Tensor, batching.Session]:
    with batching.session() as s:
        loss = model(given)
    return loss, s


@pytest.mark.parametrize("kind", ["drawn", "real"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_equal_eager(name: str, dtype: torch.dtype, tolerance: float, kind: str) -> None:
    model, given = made(name, dtype), instances(name, kind, 10 if name in DECIDING else 5)
    ours, _ = batched(model, given)
    theirs = model(given)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    names, parameters = zip(*model.named_parameters())
    got, want = torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)
    for at, a, b in zip(names, got, want):
        assert b.abs().max() > 0, at
        # entries that nearly cancel are as exact as the largest are
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()), msg=lambda m, at=at: at + m
        )


@pytest.mark.filterwarnings("ignore:.*one at a time stop batching")  # alone, nothing else can be done
@pytest.mark.parametrize("name", NAMES)
def test_instances_run_together(name: str) -> None:
    model, given = made(name), drawn(name, 8)
    _, together = batched(model, given)
    alone = [batched(model, [each])[1].report for each in given]
    nodes = [report.nodes for report in alone]
    assert max(nodes) < together.report.nodes <= sum(nodes)  # equal calls of several are one
    assert {site.split(":")[0] for site in together.report.sites} == {__file__}  # not PyTorch's
    assert together.report.batches < sum(report.batches for report in alone) / 2


def decisions(model: Model, instance: Any) -> tuple[int, int]:
    """How often an instance asks for a value, and in how many rounds."""
    asked = []

    def answer(wanted: list[Any]) -> list[Any]:
        asked.append(len(wanted))
        return wanted

    drive([model.program(instance)], answer)
    return sum(asked), len(asked)


@pytest.mark.parametrize("kind", ["drawn", "real"])
@pytest.mark.parametrize("name", DECIDING)
def test_flushes_are_at_most_the_longest_instances_decisions(name: str, kind: str) -> None:
    model, given = made(name), instances(name, kind, 24)
    counts, rounds = zip(*(decisions(model, each) for each in given))
    with batching.session() as s:
        s.run(model.program(each) for each in given)
    assert {site.split(":")[0] for site in s.report.sites} == {__file__}
    assert s.report.flushes == max(rounds) <= max(counts) < sum(counts)
    assert len(set(counts)) > 2  # they do differ
    assert batched(model, given)[1].report.flushes <= max(rounds) + 1  # what is recorded after the last decision


def test_branches_of_one_instance_go_on_together() -> None:
    model = made("DRNN")
    counts, rounds = zip(*(decisions(model, each) for each in drawn("DRNN", 20)))
    assert max(counts) > max(rounds)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_copies_and_states(name: str, copied: Any) -> None:
    model, given = made(name), drawn(name, 4)
    want, _ = batched(model, given)
    again = copied(model)
    other = MODELS[name].model(WIDTH).double()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    for each in (again, other):
        torch.testing.assert_close(batched(each, given)[0], want)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DECIDING])
def test_models_learn_in_sessions(name: str) -> None:
    model, given = made(name, torch.float32), drawn(name, 6)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(25):
        loss, _ = batched(model, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_no_instance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batching.models.TreeLSTM: needs at least one instance; got none"):
        made("TreeLSTM")([])
