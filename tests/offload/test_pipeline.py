# SPDX-License-Identifier: Apache-2.0
"""The pipeline: the bits of the serial loop under every policy, the order of the queues, failures, misuse."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import threading
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeops.offload.emulate import EmulatedLink
from edgeops.offload.pipeline import OffloadError, Pipeline
from tests.offload.tasks import Adam, boom

LAYERS = 6
POLICIES = ("serial", "zero", "fcfs", "zero_layerwise", "lcfs", "transition:3", "auto")


def train(pipeline: Pipeline, steps: int = 5, layers: int = LAYERS) -> list[Adam]:
    """A chain of layers: the next one's input, and so every gradient, depends on all weights before it."""
    tasks = [Adam(layer) for layer in range(layers)]
    for _ in range(steps):
        x, seen = torch.full((5,), 0.5), []
        for task in tasks:
            pipeline.wait(task.layer)
            x = torch.tanh(x * task.weight)
            seen.append(x)
        grad = torch.ones(5)
        for task, out in zip(reversed(tasks), reversed(seen)):
            grad = grad * (1 - out.square())
            pipeline.submit(task.gradient(grad))
            grad = grad * task.weight
    pipeline.finish()
    return tasks


def serial(steps: int = 5) -> list[Adam]:
    with Pipeline(LAYERS, "serial") as pipeline:
        return train(pipeline, steps)


@pytest.mark.parametrize("slots", [None, 1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_the_bits_of_the_serial_loop(policy: str, slots: int | None) -> None:
    with Pipeline(LAYERS, policy, slots=slots) as pipeline:
        tasks = train(pipeline)
        assert pipeline.pending == ()
    for got, want in zip(tasks, serial()):
        assert torch.equal(got.weight, want.weight)
        assert torch.equal(got.v, want.v)
        assert got.done == ["down", "update", "up", "apply"] * 5


def test_a_throttled_link_changes_no_bit_and_counts_what_it_moves() -> None:
    link = EmulatedLink(1e6, 2e6, latency_s=1e-5)
    with Pipeline(LAYERS, "lcfs", link=link) as pipeline:
        tasks = train(pipeline)
    assert all(torch.equal(got.weight, want.weight) for got, want in zip(tasks, serial()))
    assert link.moved_down == link.moved_up == 5 * LAYERS * 20


def test_delayed_is_one_step_stale() -> None:
    with Pipeline(1, "delayed") as pipeline:
        task = Adam(0)
        start = task.weight.clone()
        pipeline.submit(task.gradient(torch.ones(5)))
        assert pipeline.wait(0) is None
        assert torch.equal(task.weight, start)
        pipeline.submit(Adam(0).gradient(torch.ones(5)))
        assert pipeline.wait(0) is not None
        assert not torch.equal(task.weight, start)
        assert pipeline.pending == (0,)
        pipeline.finish()
        assert pipeline.pending == ()


def test_only_apply_runs_in_the_training_thread() -> None:
    with Pipeline(LAYERS, "fcfs") as pipeline:
        task = train(pipeline, steps=1)[0]
    names = {"down": "edgeops-down", "update": "edgeops-cpu", "up": "edgeops-up"}
    assert task.threads == names | {"apply": threading.current_thread().name}


def served(policy: str, resource: str = "cpu") -> list[int]:
    """The order in which a resource serves six layers that wait for it while it works on the first that came."""
    gate, arrived = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        assert gate.wait(30)

    stage = {"down": "down", "cpu": "update", "up": "up"}[resource]
    order: list[int] = []
    with Pipeline(LAYERS, policy) as pipeline:
        for layer in reversed(range(LAYERS)):
            task = Adam(layer)
            task.before[stage] = (lambda n: lambda: order.append(n))(layer)
            if layer == LAYERS - 1:
                task.before[stage] = lambda: (order.append(LAYERS - 1), hold())
            pipeline.submit(task)
            if layer == LAYERS - 1:
                assert arrived.wait(30)
        if resource == "cpu":  # let all the others queue up behind it
            with pipeline._engine.cond:
                assert pipeline._engine.cond.wait_for(lambda: len(pipeline._engine.queues["cpu"]) == LAYERS - 1, 30)
        gate.set()
        pipeline.finish()
    return order


@pytest.mark.parametrize("resource", ["down", "cpu"])
@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("fcfs", [5, 4, 3, 2, 1, 0]),
        ("lcfs", [5, 0, 1, 2, 3, 4]),
        ("transition:2", [5, 0, 1, 4, 3, 2]),
        ("transition:9", [5, 0, 1, 2, 3, 4]),
    ],
)
def test_queues_follow_the_policy_and_finish_what_they_began(policy: str, order: list[int], resource: str) -> None:
    assert served(policy, resource) == order


def test_zero_updates_when_all_gradients_are_down() -> None:
    with Pipeline(3, "zero") as pipeline:
        tasks = [Adam(layer) for layer in range(3)]
        log: list[str] = []
        for task in tasks:
            for stage in ("down", "update"):
                task.before[stage] = (lambda s: lambda: log.append(s))(stage)
        for task in reversed(tasks):
            pipeline.submit(task)
        pipeline.wait(0)
        assert all(task.done[:3] == ["down", "update", "up"] for task in tasks)
    assert log == ["down"] * 3 + ["update"] * 3


def test_zero_does_not_wait_for_layers_without_a_gradient() -> None:
    with Pipeline(3, "zero") as pipeline:
        pipeline.submit(Adam(1))
        pipeline.wait(1)


def test_few_slots_never_lock_up_and_are_kept_to() -> None:
    staged: list[int] = []
    with Pipeline(LAYERS, "fcfs", slots=2) as pipeline:
        tasks = [Adam(layer) for layer in range(LAYERS)]
        for task in reversed(tasks):
            task.before["up"] = lambda: staged.append(pipeline._engine.staged)
            pipeline.submit(task)
        pipeline.wait(0)  # the last one served: all others must have made room
        assert tasks[0].done[-1] == "apply"
    assert max(staged) <= 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from(POLICIES[:-1]), st.sampled_from([None, 1]))
def test_any_order_of_submits_and_waits(order: list[int], policy: str, slots: int | None) -> None:
    """Layers that come again are waited for first; others are left to `finish`."""
    with Pipeline(4, policy, slots=slots) as pipeline:
        tasks = [Adam(layer) for layer in range(4)]
        for layer in order:
            pipeline.wait(layer)
            pipeline.submit(tasks[layer].gradient(torch.ones(5)))
        pipeline.finish()
    for task in tasks:
        assert task.done == ["down", "update", "up", "apply"] * order.count(task.layer)


# failures


@pytest.mark.parametrize("policy", ["serial", "zero", "fcfs", "lcfs"])
@pytest.mark.parametrize("stage", ["down", "update", "up"])
def test_a_failing_stage_leaves_no_weight_half_updated(policy: str, stage: str) -> None:
    pipeline = Pipeline(3, policy)
    tasks = [Adam(layer) for layer in range(3)]
    before = [task.weight.clone() for task in tasks]
    tasks[1].before[stage] = boom
    given: list[int] = []

    def step() -> None:
        for task in reversed(tasks):
            given.append(task.layer)
            pipeline.submit(task.gradient(torch.ones(5)))
        pipeline.finish()

    with pytest.raises(OffloadError, match=rf"ValueError\(boom\) in {stage} of layer 1. The weights of") as seen:
        step()
    assert (seen.value.layer, seen.value.stage) == (1, stage)
    assert isinstance(seen.value.__cause__, ValueError)
    for task, weight in zip(tasks, before):
        assert torch.equal(task.weight, weight) or task.done == ["down", "update", "up", "apply"]
    assert torch.equal(tasks[1].weight, before[1])
    for call in (pipeline.finish, lambda: pipeline.wait(0), lambda: pipeline.submit(tasks[0])):
        with pytest.raises(RuntimeError, match=r"refuses work after a failure until reset\(\); got a call after"):
            call()
    left = {each.layer: each for each in pipeline.reset()}
    assert left[1].task is tasks[1]
    assert left[1].reached == {"down": "submitted", "update": "down", "up": "update"}[stage]
    # each is accounted for: applied, left over, or refused with the news of the failure
    assert set(given) - set(left) <= {task.layer for task in tasks if task.done[-1:] == ["apply"]} | {given[-1]}
    tasks[1].before.clear()
    for task in reversed(tasks):
        pipeline.submit(task)
    pipeline.close()
    assert all(task.done[-1] == "apply" for task in tasks)


def test_a_failing_apply_is_told_and_ends_the_step() -> None:
    pipeline = Pipeline(2)
    task = Adam(1)
    task.before["apply"] = boom
    pipeline.submit(task)
    with pytest.raises(OffloadError, match=r"boom\) in apply of layer 1. The weights of layer 1 may be changed"):
        pipeline.wait(1)
    assert [each.reached for each in pipeline.reset()] == ["up"]
    pipeline.close()


def test_a_failure_is_told_at_the_next_submit_too() -> None:
    pipeline = Pipeline(2, "fcfs")
    task = Adam(1)
    task.before["down"] = boom
    pipeline.submit(task)
    with pipeline._engine.cond:
        assert pipeline._engine.cond.wait_for(lambda: pipeline._engine.failure is not None, 30)
    with pytest.raises(OffloadError, match="in down of layer 1"):
        pipeline.submit(Adam(0))
    pipeline.close()


def test_close_tells_a_failure_that_nobody_has_heard_of() -> None:
    pipeline = Pipeline(2, "fcfs")
    task = Adam(1)
    task.before["update"] = boom
    pipeline.submit(task)
    with pytest.raises(OffloadError, match="in update of layer 1"):
        pipeline.close()
    pipeline.close()
    with pytest.raises(RuntimeError, match="needs an open pipeline; got a closed one"):
        pipeline.finish()


def test_an_interrupt_during_apply_stays_one() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pipeline = Pipeline(1)
    task = Adam(0)
    task.before["apply"] = interrupt
    pipeline.submit(task)
    with pytest.raises(KeyboardInterrupt):
        pipeline.finish()
    with pytest.raises(RuntimeError, match="refuses work after a failure"):
        pipeline.finish()
    assert [each.reached for each in pipeline.reset()] == ["up"]
    pipeline.close()


def test_an_interrupt_while_waiting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with Pipeline(1) as pipeline:
        task = Adam(0)
        task.before["update"] = lambda: gate.wait(30)
        pipeline.submit(task)
        cond = pipeline._engine.cond

        waiting, here = cond.wait, threading.current_thread()

        def interrupted(timeout: float | None = None) -> bool:
            if threading.current_thread() is here:
                raise KeyboardInterrupt
            return waiting(timeout)

        monkeypatch.setattr(cond, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.wait(0)
        monkeypatch.undo()
        gate.set()
        assert pipeline.wait(0) is not None
    assert task.done == ["down", "update", "up", "apply"]


def test_leaving_by_an_exception_touches_no_weight_and_says_so() -> None:
    task = Adam(1)
    start = task.weight.clone()
    kept: list[Pipeline] = []

    def leave() -> None:
        with Pipeline(2) as pipeline:
            kept.append(pipeline)
            pipeline.submit(task.gradient(torch.ones(5)))
            raise OSError("the data is gone")

    with (
        pytest.warns(RuntimeWarning, match=r"updates of layers \[1\] were not applied"),
        pytest.raises(OSError, match="the data is gone"),
    ):
        leave()
    assert torch.equal(task.weight, start)
    assert not any(thread.is_alive() for thread in kept[0]._engine.threads)


def test_a_dropped_pipeline_ends_its_threads_and_says_what_was_lost() -> None:
    kept: list[Pipeline] = [Pipeline(2)]
    kept[0].submit(Adam(0))
    threads = kept[0]._engine.threads

    def drop() -> None:
        kept.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"updates of layers \[0\] were not applied"):
        drop()
    assert not any(thread.is_alive() for thread in threads)


def test_a_worker_that_cannot_start_is_a_failure() -> None:
    def affinity(resource: str) -> None:
        if resource == "cpu":
            raise OSError("no such core")

    pipeline = Pipeline(1, on_start=affinity)
    pipeline.submit(Adam(0))
    with pytest.raises(OffloadError, match=r"OSError\(no such core\) in update of layer 0"):
        pipeline.finish()
    pipeline.close()


# misuse


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"layers": 0}, "layers must be an integer of 1 or more; got int 0"),
        ({"layers": 2.0}, "layers must be an integer of 1 or more; got float 2.0"),
        (
            {"layers": 2, "policy": "random"},
            "kind must be one of native, serial, zero, fcfs, lcfs, transition, delayed",
        ),
        ({"layers": 2, "policy": "native"}, "policy must send something"),
        ({"layers": 2, "slots": 0}, "slots must be 1 or more"),
        ({"layers": 2, "slots": 1, "policy": "delayed"}, "None with 'delayed'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Pipeline(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [-1, 2, 0.0, None])
def test_a_layer_that_is_not_there(layer: object) -> None:
    with Pipeline(2) as pipeline:
        with pytest.raises(ValueError, match="layer must be an integer from 0 to 1; got"):
            pipeline.wait(layer)  # type: ignore[arg-type]
        task = Adam(0)
        task.layer = layer  # type: ignore[assignment]
        with pytest.raises(ValueError, match="layer must be an integer from 0 to 1; got"):
            pipeline.submit(task)


def test_a_second_gradient_before_the_wait() -> None:
    with Pipeline(2) as pipeline:
        pipeline.submit(Adam(0))
        with pytest.raises(ValueError, match="must be waited for before its next gradient comes; got another one of"):
            pipeline.submit(Adam(0))


def test_copies_are_refused() -> None:
    with Pipeline(1) as pipeline:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="holds threads and cannot be copied or pickled"):
                attempt(pipeline)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told() -> None:
    with Pipeline(1) as pipeline:
        pipeline.submit(Adam(0))
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads, which is the point here
            child = os.fork()
        if child == 0:
            try:
                pipeline.wait(0)
            except RuntimeError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as answer:
            assert "belongs to the process that used it first; got a call in a forked one" in answer.read()


# what it tells


def test_events_and_profile() -> None:
    with Pipeline(2, "fcfs", record=True) as pipeline:
        assert pipeline.profile() is None
        train(pipeline, steps=3, layers=2)
        pipeline.mark("forward", 1, 1.0, 2.0)
        events, profile = pipeline.events, pipeline.profile()
        with pytest.raises(ValueError, match="stage must be one of"):
            pipeline.mark("lunch", 1, 1.0, 2.0)
    assert len(events) == 2 * 3 * 4 + 1
    for layer, step in [(layer, step) for layer in range(2) for step in range(3)]:
        own = [e for e in events if (e.layer, e.step) == (layer, step) and e.stage != "forward"]
        assert [(e.resource, e.stage) for e in own] == [
            ("down", "down"),
            ("cpu", "update"),
            ("up", "up"),
            ("compute", "apply"),
        ]
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
    assert profile is not None
    assert profile.layers == 2
    assert all(profile.total(stage) > 0 for stage in ("forward", "backward", "down", "update", "up", "apply"))


def test_auto_chooses_once_it_has_measured() -> None:
    link = EmulatedLink(1e6)
    with Pipeline(LAYERS, "auto", link=link) as pipeline:
        assert str(pipeline.policy) == "fcfs"
        train(pipeline)
        assert not pipeline._auto
        assert pipeline.policy.kind in ("fcfs", "lcfs", "transition")
