# SPDX-License-Identifier: Apache-2.0
"""The op that runs programs refuses what does not fit, whatever the integers say."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.batching.batches import SESSIONS, calls
from edgeops import _native, batching
from edgeops.batching.cells import Embedding
from tests.messages import refused

RUN = torch.ops.edgeops._batches_run.default


def test_ids_outside_of_a_table() -> None:
    words = Embedding(10, 4)
    for word in (10, -1, 2**40):
        with batching.session() as s:
            x = words.look_up(word)
        with refused(ValueError, "batching cell Embedding.look_up", "ids must lie in 0..9", str(word)):
            s.tensor(x)


def changed(call: tuple[Any, ...], place: int, at: int, value: int) -> tuple[Any, ...]:
    array = call[place].clone()
    array[at] = value
    return (*call[:place], array, *call[place + 1 :])


@given(st.sampled_from(sorted(SESSIONS)), st.integers(0, 4), st.data())
def test_broken_programs_are_errors_or_run(session: str, section: int, data: st.DataObject) -> None:
    """Any integer of any array may be anything: memory outside of the tensors is never touched."""
    call = calls(session)[section]
    place = data.draw(st.sampled_from([i for i in range(8) if call[i].numel()]))
    at = data.draw(st.integers(0, call[place].numel() - 1))
    small = st.integers(-3, 12)
    wide = st.sampled_from([2**31 - 1, -(2**31)] if call[place].dtype == torch.int32 else [2**62, -(2**62), 2**33])
    try:
        RUN(*changed(call, place, at, data.draw(small | wide)))
    except RuntimeError as error:
        assert "programs must fit" in str(error) or "must lie in 0.." in str(error)  # noqa: PT017


def test_refusals() -> None:
    call = calls("TreeLSTM")[1]
    for place, value, kind, rule in (
        (0, call[0].int(), ValueError, "code must be a dense vector of Long"),
        (4, call[4].long(), ValueError, "rows must be a dense vector of Int"),
        (8, call[8].int(), ValueError, "reached must be a dense vector of Byte"),
        (10, 5, ValueError, "section must be 0, 1, 2, 3 or 4"),
        (12, 10**6, ValueError, "begin and end must be batches of the flush"),
    ):
        with refused(kind, "batches_run", rule):
            try:
                RUN(*call[:place], value, *call[place + 1 :])
            except RuntimeError as error:
                raise _native.translate(error) from None
