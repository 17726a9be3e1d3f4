# SPDX-License-Identifier: Apache-2.0
"""Memory layout of static cells: batched operations find their operands in place. ED-Batch (ICML 2023), section 3.

Inside a cell (an LSTM step, a tree node) operations of one type run as one. Their results are variables in one piece of
memory, and a batch reads or writes an operand without a copy where its variables stand one after another, in the same
order as the batch's other operands. A PQ tree holds all orders that do this; where no order does it for every operand,
the cheapest operands are given up. The result is checked operand by operand before it is returned.

Weights are not laid out: store those of one batch as one tensor (views give the single ones), which no order can beat.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from edgeops._common import describe, message
from edgeops.batching._runtime import runtime

EXTERNAL = -1
"""A tensor from outside that is stored as its batch reads it, such as fused weights. Lower ids (-2, -3, ...) are single
tensors from outside, such as the inputs of a cell."""

MAX_VARIABLES = 65_536
"""What `plan_layout` takes; cells have tens."""

MAX_OPS = 512
"""What `plan_cell` takes; cells have tens."""

# Elementary steps of the search, about 20 ns each on a 2.5 GHz core: bounds the time, the same result everywhere.
_EFFORT = 1_000_000

_REASONS = (
    ("in_place", ""),
    ("broadcast", "all members are the same tensor: read it with stride 0"),
    ("external", "from outside, nothing to lay out"),
    ("copy", "external: different tensors from outside, or variables among them"),
    ("copy", "repeated: some members are the same tensor"),
    ("copy", "adjacency: the variables are not consecutive"),
    ("copy", "alignment: consecutive, but in another order than the operands in place"),
)


class Verdict(NamedTuple):
    """How a batch reaches one operand: `kind` is `"in_place"`, `"broadcast"`, `"external"` or `"copy"`."""

    kind: str
    reason: str
    start: int | None
    """Position of the first variable of an operand in place, or of the one that is broadcast."""


@dataclass(frozen=True)
class Layout:
    """One order of variables, and what it means for each batch. Made by `plan_layout`."""

    order: tuple[int, ...]
    """Variables as they stand in memory."""
    position: tuple[int, ...]
    """Where each variable stands: the inverse of `order`."""
    members: tuple[tuple[int, ...], ...]
    """Per batch its members as they stand in memory: entry t of an operand in place, at `start + t`, is member
    `members[batch][t]`."""
    verdicts: tuple[tuple[Verdict, ...], ...]
    """Per batch and operand, result first."""
    copies: int
    """Operands that need a copy (a gather before the batch; for a result, a scatter after it)."""
    copied_elements: int
    """Variables in those operands."""
    minimal: bool
    """Proven: no order needs fewer copies. False where the search ended before it knew."""


def plan_layout(variables: int, batches: Sequence[Sequence[Sequence[int]]]) -> Layout:
    """Order variables so that batched operations find their operands in place.

    Args:
        variables: their number N, at most `MAX_VARIABLES`; ids are 0..N-1.
        batches: per batch its operands, the result first; an operand has one id per member of the batch. Negative ids
            are tensors from outside: -1 (`EXTERNAL`) is stored as its batch reads it, -2 and below are single tensors
            (equal ids are the same tensor).

    Returns:
        The order with the fewest copies that was found, then the fewest copied elements. An operand with one member is
        always in place. Operands that repeat one tensor are broadcast; those that mix variables with tensors from
        outside, or repeat some variables, are copied whatever the order.

    Raises:
        TypeError: an argument is not made of integers.
        ValueError: an id is not below N, operands of a batch differ in length, a batch has no operands, or N is not in
            0..`MAX_VARIABLES`.

    The example of the paper, with x1..x8 as 0..7: `[x4, x5] = [x1, x3] * [x2, x1]`, then
    `[x8, x6, x7] = f([x3, x4, x5])`. In the order of the labels three operands would be copied.

    >>> layout = plan_layout(8, [[[3, 4], [0, 2], [1, 0]], [[7, 5, 6], [2, 3, 4]]])
    >>> layout.copies, layout.minimal
    (0, True)
    >>> sorted(layout.position[v] for v in (2, 3, 4)) == list(range(layout.position[2], layout.position[2] + 3))
    True
    >>> judge_order(range(8), [[[3, 4], [0, 2], [1, 0]], [[7, 5, 6], [2, 3, 4]]]).copies
    3
    """
    who = "plan_layout"
    count = _number(who, "variables", variables)
    checked = _batches(who, batches, count)
    return _layout(runtime().plan_layout(count, checked, _EFFORT), checked)


def judge_order(order: Sequence[int], batches: Sequence[Sequence[Sequence[int]]]) -> Layout:
    """What a given order of variables means for each batch: the verdicts of `plan_layout` without its search.

    Args:
        order: every variable 0..N-1 once, as they stand in memory.
        batches: as for `plan_layout`.

    Raises:
        TypeError: an argument is not made of integers.
        ValueError: `order` does not name each variable once, or as for `plan_layout`.

    >>> judge_order([0, 2, 1], [[[0, 1], [2, 2]]]).verdicts
    ((Verdict(kind='copy', reason='adjacency: the variables are not consecutive', start=None),
      Verdict(kind='broadcast', reason='all members are the same tensor: read it with stride 0', start=1)),)
    """
    who = "judge_order"
    ids = _ids(who, "order", order)
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(
            message(who, "order must name each variable 0..N-1 once", describe(order), "Give a permutation.")
        )
    _number(who, "the length of order", len(ids))
    checked = _batches(who, batches, len(ids))
    return _layout(runtime().judge_order(ids, checked), checked)


def _number(who: str, name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(message(who, f"{name} must be an integer", describe(value), "Give their number."))
    number = operator.index(value)
    if not 0 <= number <= MAX_VARIABLES:
        raise ValueError(
            message(who, f"{name} must be in 0..{MAX_VARIABLES}", str(number), "Lay out one static cell at a time.")
        )
    return number


def _ids(who: str, name: str, values: Sequence[int]) -> list[int]:
    try:
        return [operator.index(v) for v in values]
    except TypeError:
        raise TypeError(
            message(who, f"{name} must be a sequence of integers", describe(values), "Give variable ids.")
        ) from None


def _batches(who: str, batches: Sequence[Sequence[Sequence[int]]], variables: int) -> list[list[list[int]]]:
    result = []
    for b, batch in enumerate(_sequence(who, "batches", batches)):
        operands = [_ids(who, f"an operand of batch {b}", o) for o in _sequence(who, f"batch {b}", batch)]
        if not operands:
            raise ValueError(message(who, "a batch needs operands", f"none in batch {b}", "Give at least its result."))
        if len({len(o) for o in operands}) != 1:
            lengths = [len(o) for o in operands]
            rule = "operands of a batch must have equal lengths"
            raise ValueError(message(who, rule, f"{lengths} in batch {b}", "Give one variable per member."))
        bad = next((v for o in operands for v in o if not -(2**31) <= v < variables), None)
        if bad is not None:
            rule = f"ids must be below the number of variables, {variables}"
            raise ValueError(message(who, rule, f"{bad} in batch {b}", "Number the variables from 0."))
        result.append(operands)
    return result


_T = TypeVar("_T")


def _sequence(who: str, name: str, value: Sequence[_T]) -> list[_T]:
    try:
        return list(value)
    except TypeError:
        rule = f"{name} must be a sequence"
        raise TypeError(message(who, rule, describe(value), "Nest them: batches, operands, ids.")) from None


_Planned = tuple[list[int], list[list[int]], list[list[int]], int, int, bool]


def _layout(native: _Planned, batches: Sequence[Sequence[Sequence[int]]]) -> Layout:
    order, members, codes, copies, copied, minimal = native
    position = [0] * len(order)
    for place, variable in enumerate(order):
        position[variable] = place
    verdicts = []
    for batch, batch_codes in zip(batches, codes):
        row = []
        for operand, code in zip(batch, batch_codes):
            kind, reason = _REASONS[code]
            placed = kind in ("in_place", "broadcast") and len(operand) > 0 and operand[0] >= 0
            row.append(Verdict(kind, reason, min(position[v] for v in operand) if placed else None))
        verdicts.append(tuple(row))
    return Layout(tuple(order), tuple(position), tuple(map(tuple, members)), tuple(verdicts), copies, copied, minimal)
