# SPDX-License-Identifier: Apache-2.0
"""Schedules of dynamic graphs: nodes of equal type that are ready together run as one batch (ED-Batch, ICML 2023).

A graph is recorded first, then scheduled, then run. Few batches mean few kernel launches; finding the fewest is NP-hard
(App. A.1), so there are several schedulers and a lower bound to judge them by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime
from edgeops.batching.graph import Graph as Graph
from edgeops.batching.graph import Ints, Longs
from edgeops.batching.policy import FSMPolicy as FSMPolicy

SCHEDULERS = (
    "depth",
    "agenda",
    "agenda_remaining",
    "inline",
    "sufficient",
    "lookahead",
    "fsm-base",
    "fsm-sort",
    "fsm-max",
    "beam",
    "auto",
)
_AUTO_BEAM_NODES = 20_000  # beam search copies what it knows of every node, a few times a batch


@dataclass(frozen=True, eq=False)
class Schedule:
    """A batched order of the nodes of a graph. Batch `i` is `order[start[i]:start[i + 1]]`, all of type `types[i]`.

    `len(schedule)` is the number of batches; iterating gives the nodes of each.
    """

    graph: Graph = field(repr=False)
    order: Ints = field(repr=False)
    start: Longs = field(repr=False)
    scheduler: str
    types: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        firsts = self.order[self.start[:-1]]
        types = self.graph.types[firsts]
        types.flags.writeable = False
        object.__setattr__(self, "types", types)

    def __len__(self) -> int:
        return len(self.start) - 1

    def __iter__(self) -> Iterator[Ints]:
        return iter(np.split(self.order, self.start[1:-1])) if len(self) else iter(())

    def validate(self) -> None:
        """Prove that every node runs once and after its arguments, that a batch has one type and lone nodes run alone.

        Raises:
            ValueError: which of these fails, and where.
        """
        graph, nodes = self.graph, len(self.graph)
        if not np.array_equal(np.sort(self.order), np.arange(nodes)):
            self._fail("every node must run once", f"{len(self.order)} entries for {nodes} nodes")
        if self.start[0] != 0 or self.start[-1] != nodes or np.any(np.diff(self.start) < 1):
            self._fail("batches must be non-empty and cover the order", f"starts {self.start}")
        sizes = np.diff(self.start)
        batch = np.empty(nodes, np.int64)
        batch[self.order] = np.repeat(np.arange(len(self)), sizes)
        mixed = np.flatnonzero(graph.types[self.order] != np.repeat(self.types, sizes))
        if mixed.size:
            self._fail("a batch must have one type", f"batch {batch[self.order[mixed[0]]]} with several")
        crowded = np.flatnonzero(np.isin(self.types, graph.lone) & (sizes > 1))
        if crowded.size:
            self._fail("nodes of lone types must run singly", f"batch {crowded[0]} of {sizes[crowded[0]]} nodes")
        phases = graph.phases[self.order] if graph.phases.size else np.zeros(nodes, np.int32)
        back = np.flatnonzero(np.diff(phases) < 0)
        if back.size:
            at = back[0]
            self._fail("phases must run one after another", f"phase {phases[at + 1]} after phase {phases[at]}")
        if np.any(np.diff(phases)[self._inside()] != 0):
            self._fail("a batch must be of one phase", "one with several")
        consumers = np.repeat(np.arange(nodes), np.diff(graph.arg_start))
        early = np.flatnonzero(batch[graph.args] >= batch[consumers])
        if early.size:
            edge = early[0]
            self._fail("arguments must run before", f"node {consumers[edge]} no later than {graph.args[edge]}")

    def _inside(self) -> npt.NDArray[np.bool_]:
        """Whether a node and the next of the order are of one batch."""
        inside = np.ones(max(len(self.order) - 1, 0), bool)
        inside[self.start[1:-1] - 1] = False
        return inside

    def _fail(self, rule: str, got: str) -> None:
        raise ValueError(message(f"Schedule ({self.scheduler})", rule, got, "Build schedules with schedule()."))


def lower_bound(graph: Graph) -> int:
    """A number of batches that no schedule goes below (App. A.3).

    For every type the longest chain counted in nodes of the type, for a lone type the number of its nodes; their sum.
    Phases are left out: what they ask for only adds batches.

    >>> lower_bound(Graph.of([("a", ()), ("b", (0,)), ("a", (1,)), ("b", ())]))
    3
    """
    return int(graph._native.typed_depths().sum())


def schedule(
    graph: Graph,
    scheduler: str = "sufficient",
    *,
    policy: FSMPolicy | None = None,
    beam_width: int | None = None,
    costs: Sequence[float] | npt.NDArray | None = None,
) -> Schedule:
    """Choose the batches of a graph.

    Every scheduler runs all ready nodes of one type at a time and differs in which type (Alg. 1). Nodes of lone types
    run before anything else. A graph with phases is scheduled phase by phase. Equal graphs give equal schedules, in any
    process.

    * `"depth"`: by depth, then type (TensorFlow Fold).
    * `"inline"`: by the depth that was noted when the node was recorded, then type (ACRoBat): nothing is computed. As
      `"depth"` where no depths are known.
    * `"agenda"`: the type of the smallest average depth over all its nodes (DyNet); ties: the smaller type.
    * `"agenda_remaining"`: the same over nodes that have not run.
    * `"sufficient"`: the type whose nodes without ancestors of their own type are, in the largest share, ready; ties:
      more ready nodes, then the smaller type. A share of 1 is a step of some shortest schedule (Lemma 2.1).
    * `"lookahead"`: as `"sufficient"`, but where no share is 1, types whose batch lowers the lower bound of what is
      left go first.
    * `"fsm-base"`, `"fsm-sort"`, `"fsm-max"`: a learned `policy` of that state; unseen states as `"sufficient"`.
    * `"beam"`: as `"sufficient"`, but where no share is 1 all types are tried; the `beam_width` partial schedules go on
      that are best by the lower bound of what is left plus a quarter of what the shares so far lacked to 1.
    * `"auto"`: the cheapest of sufficient, lookahead, depth, both agendas, the policy if given, and beam on graphs of
      up to 20,000 nodes.

    Args:
        graph: what to run.
        scheduler: one of the above.
        policy: for fsm and auto.
        beam_width: for beam and auto, from 1; default 8.
        costs: for auto, what a batch of each type costs before its first node, at least 0; default 1 each, so that
            batches are counted. What a node costs besides makes no difference: every node runs once.

    Raises:
        TypeError: no graph or no policy where one is needed.
        ValueError: an unknown scheduler, an option that it does not read, a policy for another state.

    >>> leaves, inner = [("leaf", ())] * 3, [("inner", (0, 1)), ("inner", (3, 2))]
    >>> plan = schedule(Graph.of([*leaves, *inner]))
    >>> [batch.tolist() for batch in plan]
    [[0, 1, 2], [3], [4]]
    """
    _check(graph, scheduler, policy, beam_width, costs)
    width = 8 if beam_width is None else beam_width
    if scheduler == "auto":
        return _cheapest(graph, policy, width, costs)
    return _plan(graph, scheduler, policy, width)


def _plan(graph: Graph, scheduler: str, policy: FSMPolicy | None, width: int) -> Schedule:
    native = graph._native
    if policy is not None and scheduler.startswith("fsm"):
        order, start, _ = runtime().schedule_fsm(native, graph.keys, policy._native)
    else:
        order, start = _NATIVE[scheduler](native, width)
    return Schedule(graph, order, start, scheduler)


_NATIVE: dict[str, Callable[[object, int], tuple[Ints, Longs]]] = {
    "depth": lambda graph, width: runtime().schedule_depth(graph),
    "inline": lambda graph, width: runtime().schedule_inline(graph),
    "agenda": lambda graph, width: runtime().schedule_agenda(graph, False),
    "agenda_remaining": lambda graph, width: runtime().schedule_agenda(graph, True),
    "sufficient": lambda graph, width: runtime().schedule_sufficient(graph),
    "lookahead": lambda graph, width: runtime().schedule_lookahead(graph),
    "beam": lambda graph, width: runtime().schedule_beam(graph, width),
}


def _cheapest(
    graph: Graph, policy: FSMPolicy | None, width: int, costs: Sequence[float] | npt.NDArray | None
) -> Schedule:
    """The first of the cheapest schedules; no other is tried once one costs as little as the lower bound."""
    weights = np.ones(len(graph.keys)) if costs is None else np.asarray(costs, np.float64)
    bound = float(graph._native.typed_depths() @ weights)
    names = ["sufficient", "lookahead", "depth", "agenda", "agenda_remaining"]
    if policy is not None:
        names.append(f"fsm-{policy.state}")
    if len(graph) <= _AUTO_BEAM_NODES:
        names.append("beam")
    best, cost = None, float("inf")
    for name in names:
        plan = _plan(graph, name, policy, width)
        own = float(weights[plan.types].sum())
        if best is None or own < cost:
            best, cost = plan, own
        if cost <= bound:
            break
    assert best is not None
    return best


def _check(
    graph: Graph,
    scheduler: str,
    policy: FSMPolicy | None,
    width: int | None,
    costs: Sequence[float] | npt.NDArray | None,
) -> None:
    if not isinstance(graph, Graph):
        raise TypeError(message("schedule", "needs a Graph", describe(graph), "Build one, e.g. with Graph.of(nodes)."))
    if scheduler not in SCHEDULERS:
        raise ValueError(
            message(
                "schedule", f"scheduler must be one of {', '.join(SCHEDULERS)}", repr(scheduler), "Pick one of them."
            )
        )
    fsm = scheduler.startswith("fsm")
    for name, value, read in (
        ("policy", policy, fsm or scheduler == "auto"),
        ("beam_width", width, scheduler in ("beam", "auto")),
        ("costs", costs, scheduler == "auto"),
    ):
        if value is not None and not read:
            raise ValueError(
                message("schedule", f"{scheduler!r} reads no {name}", describe(value), f"Leave {name} out.")
            )
    if (fsm or policy is not None) and not isinstance(policy, FSMPolicy):
        raise TypeError(
            message(
                "schedule", f"{scheduler!r} needs an FSMPolicy", describe(policy), "Train one: FSMPolicy.train(graph)."
            )
        )
    if fsm and policy is not None and scheduler != f"fsm-{policy.state}":
        raise ValueError(
            message("schedule", f"{scheduler!r} needs a policy of that state", f"fsm-{policy.state}", "Train another.")
        )
    if width is not None and (not isinstance(width, int) or not 1 <= width <= 1024):
        raise ValueError(message("schedule", "beam_width must lie in 1..1024", describe(width), "Use e.g. 8."))
    if costs is not None:
        weights = np.asarray(costs)
        if weights.shape != (len(graph.keys),) or not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError(
                message(
                    "schedule",
                    f"costs must be {len(graph.keys)} finite numbers of at least 0, one a type",
                    describe(costs),
                    "Pass what a batch of each type costs before its first node.",
                )
            )
