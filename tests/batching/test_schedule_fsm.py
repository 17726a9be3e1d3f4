# SPDX-License-Identifier: Apache-2.0
"""Learned policies: what they reach on real graphs, how they travel, where they fall back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.batching import graphs as real
from edgeops.batching.policy import STATES, FSMPolicy
from edgeops.batching.schedule import Graph, lower_bound, schedule
from tests.batching.graphs import two_phases
from tests.messages import refused

needs_trees = pytest.mark.skipif(not real.have("trees"), reason=real.skip_reason("trees"))


@needs_trees
@pytest.mark.parametrize("state", STATES)
def test_trees_reach_the_bound_within_100_iterations_and_generalise(state: str) -> None:
    graph = real.tree("train", 32)
    policy = FSMPolicy.train(graph, state)
    assert policy.iterations <= 100
    assert policy.batches == lower_bound(graph) == 20
    unseen = real.tree("dev", 128)
    assert len(schedule(unseen, f"fsm-{state}", policy=policy)) == lower_bound(unseen) == 21


@needs_trees
def test_sort_states_on_trees_of_two_kinds() -> None:
    graph = real.tree2("train", 32)
    policy = FSMPolicy.train(graph)
    assert len(schedule(graph, "fsm-sort", policy=policy)) == policy.batches <= 29
    assert len(schedule(graph, "auto", policy=policy)) == 28


def test_taggers_reach_the_bound_within_100_iterations() -> None:
    graph = real.tagger([12, 40, 25, 7, 31])
    policy = FSMPolicy.train(graph)
    assert policy.iterations <= 100
    assert policy.batches == lower_bound(graph)


@pytest.mark.parametrize("state", STATES)
def test_phases_solve_the_two_phase_graph(state: str) -> None:
    graph = two_phases()
    name = f"fsm-{state}"
    blind = len(schedule(graph, name, policy=FSMPolicy.train(graph, state)))
    aware = len(schedule(graph, name, policy=FSMPolicy.train(graph, state, phases=2)))
    assert aware == len(schedule(graph)) == lower_bound(graph) < blind


_OTHER_PROCESS = """
import sys
from edgeops.batching.policy import FSMPolicy
from edgeops.batching.schedule import Graph, schedule

types, starts, args, keys = map(eval, sys.argv[1:5])
graph = Graph(types, starts, args, keys=keys)
for path in sys.argv[5:]:
    policy = FSMPolicy.load(path)
    plan = schedule(graph, f"fsm-{policy.state}", policy=policy)
    print(policy.unseen(graph), [batch.tolist() for batch in plan])
"""


def test_another_process_reads_policies_whatever_its_numbering(tmp_path: Path) -> None:
    graph = two_phases()
    want = []
    for state in STATES:
        policy = FSMPolicy.train(graph, state, phases=2)
        policy.save(tmp_path / state)
        want.append(f"0 {[batch.tolist() for batch in schedule(graph, f'fsm-{state}', policy=policy)]}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(STATES)
    last = len(graph.keys) - 1
    numbered = [(last - graph.types).tolist(), graph.arg_start.tolist(), graph.args.tolist(), list(graph.keys[::-1])]
    paths = [str(tmp_path / state) for state in STATES]
    command = [sys.executable, "-c", _OTHER_PROCESS, *map(str, numbered), *paths]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == want


def test_equal_seeds_learn_equal_tables() -> None:
    graph = two_phases()
    one, two = (FSMPolicy.train(graph, seed=3, iterations=100).to_json() for _ in range(2))
    assert one == two == FSMPolicy.from_json(one).to_json()


def test_unseen_states_and_unknown_keys_fall_back_to_sufficient() -> None:
    policy = FSMPolicy.train(Graph.of([("a", ()), ("b", (0,))]))
    graph = two_phases()
    plan = schedule(graph, "fsm-sort", policy=policy)
    assert policy.unseen(graph) == len(plan)
    assert np.array_equal(plan.order, schedule(graph).order)


def test_train_refuses() -> None:
    graph = two_phases()
    who = "FSMPolicy.train"
    with refused(TypeError, who, "needs a Graph", "None"):
        FSMPolicy.train(None)  # type: ignore[arg-type]
    with refused(ValueError, who, "state must be one of base, sort, max", "'fsm-sort'"):
        FSMPolicy.train(graph, "fsm-sort")
    with refused(ValueError, who, r"seed must lie in 0\.\.", "-1"):
        FSMPolicy.train(graph, seed=-1)
    with refused(ValueError, who, r"phases must lie in 1\.\.", "0"):
        FSMPolicy.train(graph, phases=0)
    with refused(ValueError, who, r"iterations must lie in 1\.\.", "2.5"):
        FSMPolicy.train(graph, iterations=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "2"},
        {"state": "all"},
        {"phases": 0},
        {"phases": "1"},
        {"keys": ["zz"]},
        {"keys": ["61", "61"]},
        {"table": [[[0], 1]]},
        {"table": [[[9], 9]]},
        {"table": [[[0]]]},
        {"table": 3},
    ],
)
def test_from_json_refuses(change: dict) -> None:
    facts = json.loads(FSMPolicy.train(Graph.of([("a", ()), ("b", (0,))])).to_json())
    with pytest.raises(
        ValueError, match=r"^FSMPolicy.from_json: needs a text of 'edgeops fsm policy 1'; got .+\. Write"
    ):
        FSMPolicy.from_json(json.dumps(facts | change))
    with pytest.raises(ValueError, match=r"^FSMPolicy.from_json: needs a text"):
        FSMPolicy.from_json("{")
    with pytest.raises(ValueError, match=r"^FSMPolicy.from_json: needs a text"):
        FSMPolicy.from_json("[]")
