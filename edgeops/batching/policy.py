# SPDX-License-Identifier: Apache-2.0
"""The finite-state-machine policy of ED-Batch: which types are ready decides which type runs (section 2.3)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime
from edgeops.batching.graph import Graph

STATES = ("base", "sort", "max")
_FORMAT = "edgeops fsm policy 1"
_serials = itertools.count()


class FSMPolicy:
    """A learned table from states to the type that runs next. Made by `train` or `load`; it does not change.

    States hold types by the content of their keys, so a policy serves any graph, numbering and process that has these
    keys. For a state that it never saw, or a key that it does not know, `schedule` does as `"sufficient"` does.

    Attributes:
        state: `"base"`, the set of ready types; `"sort"`, the same, most ready nodes first; `"max"`, the set and the
            most common one.
        phases: into how many equal parts the run of a graph is divided; which part it is in belongs to the state.
        iterations: of training; 0 for a loaded policy.
        batches: of the graph it was trained on; 0 for a loaded policy.
    """

    def __init__(self, native: Any, iterations: int = 0, batches: int = 0) -> None:
        self._native = native
        self.state = STATES[native.kind]
        self.phases: int = native.phases
        self.iterations = iterations
        self.batches = batches
        self._serial = next(_serials)  # tells policies apart in plan caches

    @classmethod
    def train(
        cls, graph: Graph, state: str = "sort", seed: int = 1, *, phases: int = 1, iterations: int = 1000
    ) -> FSMPolicy:
        """Learn on one graph, typically that of a mini-batch of 32 random inputs.

        Tabular Q-learning; a decision's reward is `-1 + |ready nodes of the type| / |nodes of the type without
        ancestors of their own type|`, its return the sum of ten rewards. Every 50 iterations the greedy schedule is
        tried; training ends early within 1 % of the lower bound. The best table is kept.

        Args:
            graph: what to learn on.
            state: `"base"`, `"sort"` or `"max"`.
            seed: of the exploration, from 0.
            phases: 1 to leave how far the graph has run out of the state; more where the right choice changes
                midway (App. A.4).
            iterations: at most so many.

        Raises:
            TypeError: no graph.
            ValueError: an unknown state or a number out of range.

        >>> from edgeops.batching.schedule import schedule
        >>> graph = Graph.of([("leaf", ()), ("leaf", ()), ("inner", (0, 1)), ("out", (0,)), ("out", (2,))])
        >>> policy = FSMPolicy.train(graph)
        >>> len(schedule(graph, "fsm-sort", policy=policy)), policy.iterations
        (3, 50)
        """
        who = "FSMPolicy.train"
        if not isinstance(graph, Graph):
            raise TypeError(message(who, "needs a Graph", describe(graph), "Build one, e.g. with Graph.of(nodes)."))
        if state not in STATES:
            raise ValueError(
                message(who, f"state must be one of {', '.join(STATES)}", describe(state), "Pick one of them.")
            )
        for name, value, least, most in (
            ("seed", seed, 0, 2**64 - 1),
            ("phases", phases, 1, 2**20),
            ("iterations", iterations, 1, 10**6),
        ):
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(
                    message(who, f"{name} must lie in {least}..{most}", describe(value), f"Use e.g. {least}.")
                )
        native, done, batches = runtime().train_fsm(
            graph._native, graph.keys, STATES.index(state), phases, iterations, seed
        )
        return cls(native, done, batches)

    def __len__(self) -> int:
        """Number of states."""
        return len(self._native)

    def __repr__(self) -> str:
        return f"FSMPolicy({self.state!r}, {len(self)} states, {len(self._native.keys)} types, phases={self.phases})"

    def unseen(self, graph: Graph) -> int:
        """How many decisions about this graph fall outside the table."""
        return int(runtime().schedule_fsm(graph._native, graph.keys, self._native)[2])

    def to_json(self) -> str:
        """The policy as text; keys in hexadecimal, states as lists of indices of keys."""
        facts = {
            "format": _FORMAT,
            "state": self.state,
            "phases": self.phases,
            "keys": [key.hex() for key in self._native.keys],
            "table": self._native.table,
        }
        return json.dumps(facts, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FSMPolicy:
        """The policy that `to_json` wrote.

        Raises:
            ValueError: text that is none.
        """
        try:
            return cls(_parsed(json.loads(text)))
        except (ValueError, TypeError, KeyError) as reason:
            raise ValueError(
                message("FSMPolicy.from_json", f"needs a text of {_FORMAT!r}", f"{reason}", "Write it with to_json().")
            ) from reason

    def save(self, path: str | Path) -> None:
        """Write the policy to a file, at once or not at all."""
        path = Path(path)
        new = path.with_name(path.name + ".new")
        new.write_text(self.to_json(), encoding="ascii")
        new.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> FSMPolicy:
        """Read the policy that `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no policy.
        """
        return cls.from_json(Path(path).read_text(encoding="ascii"))


def _parsed(facts: dict) -> Any:
    if facts["format"] != _FORMAT:
        raise ValueError(f"format {facts['format']!r}")
    keys = [bytes.fromhex(key) for key in facts["keys"]]
    phases = facts["phases"]
    if keys != sorted(set(keys)) or not isinstance(phases, int) or phases < 1:
        raise ValueError("keys out of order or no phases")
    for state, action in facts["table"]:
        symbols = state[1:] if phases > 1 else state
        if action not in symbols or not all(isinstance(s, int) and 0 <= s < len(keys) for s in symbols):
            raise ValueError(f"state {state} with action {action}")
    return runtime().Policy(STATES.index(facts["state"]), phases, keys, [tuple(row) for row in facts["table"]])
