# SPDX-License-Identifier: Apache-2.0
"""A population on the GPU: decisions of the CPU, and states that go on to the bit."""

from __future__ import annotations

import pytest
import torch

from bench.drift.population import Streams, differing, population

pytestmark = pytest.mark.gpu


def test_decisions_are_those_of_the_cpu() -> None:
    assert differing(300, 100, 60, "cuda", None) == 0


def test_a_population_that_is_put_back_goes_on_to_the_bit() -> None:
    streams = Streams(64, "cuda")
    given = [streams() for _ in range(30)]
    first, second = population(64, "cuda", None), population(64, "cuda", None)
    for x, y in given[:20]:
        first.observe(x, y)
    second.load_state_dict(first.state_dict())
    for x, y in given[20:]:
        assert torch.equal(first.predict(x), second.predict(x))
        assert torch.equal(first.observe(x, y), second.observe(x, y))
    assert first.device.type == "cuda"
    assert first.report() == second.report()
