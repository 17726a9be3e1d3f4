# SPDX-License-Identifier: Apache-2.0
"""The helpers of the suite can fail: the error budget, the message check, the poisoned memory, the padded peer."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.budget import assert_within_budget
from tests.messages import refused
from tests.peers import offsets_of, padded_attention


def test_budget_measures_against_the_peer() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    peer = torch.tensor([1.0 + 1e-4, 2.0])
    assert_within_budget("twice", torch.tensor([1.0, 2.0 + 1.9e-4]), peer, exact)
    with pytest.raises(AssertionError, match=r"worse: max error 0\.00025, torch 0\.0001"):
        assert_within_budget("worse", torch.tensor([1.0, 2.0 + 2.5e-4]), peer, exact)
    with pytest.raises(AssertionError, match="dtype"):
        assert_within_budget("double", peer.double(), peer, exact)
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget("row", peer[None], peer[None], exact)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_budget_refuses_what_is_not_finite(bad: float) -> None:
    exact = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    assert_within_budget("lse", exact.float(), exact.float(), exact)
    with pytest.raises(AssertionError):
        assert_within_budget("first", torch.tensor([bad, -torch.inf]), exact.float(), exact)
    with pytest.raises(AssertionError, match="infinities or NaN differ"):
        assert_within_budget("second", torch.tensor([1.0, abs(bad)]), exact.float(), exact)


@pytest.mark.parametrize(
    "text",
    ["op: rule; got x.", "op: rule. Do it.", "other: rule; got x. Do it.", "op: rule; got y. Do it.", "rule"],
)
def test_message_check_wants_four_parts(text: str) -> None:
    with pytest.raises(AssertionError), refused(ValueError, "op", "rule", "x"):
        raise ValueError(text)
    with refused(ValueError, "op", "rule", "x"):
        raise ValueError("op: rule; got x. Do it.")


def _maker(name: str) -> Callable[[], list[torch.Tensor]]:
    """A function of a module of that name that makes uninitialised tensors in three ways."""
    module = types.ModuleType(name)
    code = "import torch\ndef make():\n    x = torch.empty(3)\n    return [x, torch.empty_like(x), x.new_empty(2)]"
    exec(code, module.__dict__)
    make: Callable[[], list[torch.Tensor]] = module.__dict__["make"]
    return make


def test_memory_of_the_package_is_poisoned() -> None:
    assert all(x.isnan().all() for x in _maker("edgeops.ragged.anything")())


def test_memory_of_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills of a foreign module's tensors would hide its own bugs: they must not happen."""
    filled: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "fill_", lambda self, value: filled.append(self) or self)
    _maker("somebody.else")()
    assert not filled
    _maker("edgeops.ragged.anything")()
    assert len(filled) == 3


def test_padded_peer_is_a_loop_of_sdpa() -> None:
    lengths = [3, 0, 5]
    cu = offsets_of(lengths)
    q, k, v = (torch.randn(8, 2, 4, dtype=torch.float64) for _ in range(3))
    out, lse = padded_attention(q, k, v, cu, cu)
    for b, n in enumerate(lengths):
        rows = slice(int(cu[b]), int(cu[b + 1]))
        heads_first = [x[rows].transpose(0, 1) for x in (q, k, v)]
        if n:
            want = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(0, 1)
            torch.testing.assert_close(out[rows], want)
            scores = heads_first[0] @ heads_first[1].transpose(1, 2) / 2
            torch.testing.assert_close(lse[rows], torch.logsumexp(scores, -1).T)


def test_shared_data_is_found_or_skipped(shared_data: Callable[[str], Path]) -> None:
    with pytest.raises(pytest.skip.Exception, match="needs shared/data/no such thing beside the checkout"):
        shared_data("no such thing")
