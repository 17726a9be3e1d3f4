# SPDX-License-Identifier: Apache-2.0
"""Sessions against eager PyTorch: results, gradients, flushes, operands of every kind, wrong use."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeops import batching
from edgeops.batching.cells import BinaryTreeLSTM
from tests.batching.models import TreeLSTM, random_trees


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def tree_loss(model: TreeLSTM, trees: list[Any]) -> Tensor:
    losses: list[Any] = []
    with batching.session() as s:
        for tree in trees:
            model(tree, losses)
    return s.sum(losses)


def eager_loss(model: TreeLSTM, trees: list[Any]) -> Tensor:
    losses: list[Any] = []
    for tree in trees:
        model(tree, losses)
    return torch.stack(losses).sum()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8))
def test_trees_equal_eager(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    model = TreeLSTM().double()
    trees = random_trees(seed, count)
    ours, theirs = tree_loss(model, trees), eager_loss(model, trees)
    torch.testing.assert_close(ours, theirs)
    for got, want in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        torch.testing.assert_close(got, want)


def test_equal_calls_run_together() -> None:
    model = TreeLSTM()
    losses: list[Any] = []
    with batching.session() as s:
        for _ in range(4):
            model((0, (1, 2), (3, 4)), losses)
    s.sum(losses)
    assert (s.report.nodes, s.report.types, s.report.batches, s.report.flushes) == (24, 3, 3, 1)


def test_generators_get_tuples() -> None:
    double, add = batching.cell(lambda x: 2 * x), batching.cell(torch.add)

    def program(x: Tensor) -> Any:
        a, b = yield double(x), add(x, x)
        return a, b

    with batching.session() as s:
        results = s.run(program(torch.full((2,), float(i))) for i in range(3))
    for i, (a, b) in enumerate(results):
        assert a.tolist() == b.tolist() == [2.0 * i] * 2
    assert s.report.flushes == 1


def test_gradients_reach_tensors_outside_and_across_flushes() -> None:
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    scaled = w * 2  # captured, not a leaf
    x, y = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mix = batching.cell(lambda a, b: torch.tanh(a @ scaled) * b)
    with batching.session() as s:
        first = mix(x, y)
        middle = s.tensor(first) + y  # an ordinary tensor, and an operand again
        last = mix(middle, first)
        out = s.tensor(last)
    grads = torch.autograd.grad(out.sum() + middle.sum(), (w, x, y), retain_graph=True)

    def plain(a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(a @ scaled) * b

    first = plain(x, y)
    middle = first + y
    want = torch.autograd.grad(plain(middle, first).sum() + middle.sum(), (w, x, y))
    for g, v in zip(grads, want, strict=True):
        torch.testing.assert_close(g, v)
    assert s.report.flushes == 2


def test_backward_again() -> None:
    model = TreeLSTM().double()
    loss = tree_loss(model, random_trees(1, 3))
    params = list(model.parameters())
    first = torch.autograd.grad(loss, params, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivative_is_refused() -> None:
    x = torch.randn(2, requires_grad=True)
    square = batching.cell(lambda a: a * a)
    with batching.session() as s:
        y = s.tensor(square(x))
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"batching.session: has first derivatives only"):
        g.sum().backward()


@pytest.mark.parametrize("lengths", [[1], [3, 1, 2], [2, 2]])
def test_lists_are_one_kind_at_any_length(lengths: list[int]) -> None:
    @batching.cell
    def total(parts: batching.Ragged) -> Tensor:
        sums = parts.values.new_zeros(len(parts.offsets) - 1, *parts.values.shape[1:])
        which = torch.repeat_interleave(torch.arange(len(sums)), parts.offsets.diff().long())
        return sums.index_add(0, which, parts.values)

    double = batching.cell(lambda x: 2 * x)
    x = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    with batching.session() as s:
        values = iter([double(row) for row in x])
        sums = s.stack([total([next(values) for _ in range(n)]) for n in lengths])
    torch.testing.assert_close(sums, torch.stack([2 * p.sum(0) for p in x.split(lengths)]))
    assert s.report.batches == 2
    (g,) = torch.autograd.grad(sums.sum(), x)
    torch.testing.assert_close(g, torch.full_like(x, 2.0))


def test_unbatched_cells_run_one_by_one() -> None:
    sizes: list[int] = []

    @batching.cell(batched=False)
    def alone(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x + 1

    with batching.session() as s:
        out = s.stack([alone(torch.zeros(1)) for _ in range(3)])
    assert out.flatten().tolist() == [1.0, 1.0, 1.0]
    assert sizes[-3:] == [1, 1, 1]


def test_the_report_says_what_happened() -> None:
    model = TreeLSTM()
    losses: list[Any] = []
    with batching.session() as s:
        for tree in random_trees(3, 4):
            model(tree, losses)
    s.sum(losses)
    facts = s.report.as_dict()
    assert facts["batches"] >= facts["lower_bound"] > 0
    assert facts["batches_over_bound"] == facts["batches"] / facts["lower_bound"]
    assert facts["copied_bytes"]["activations"] > 0
    ((site, count),) = facts["sites"].items()
    assert (site.split(":")[0], count) == (__file__, 1)
    assert json.loads(json.dumps(facts)) == facts


def test_native_cells_gather_nothing() -> None:
    tree = BinaryTreeLSTM(4, 4, num_embeddings=30)

    def visit(node: Any) -> Any:
        return tree.leaf(node[1]) if isinstance(node[1], int) else tree.inner(*visit(node[1]), *visit(node[2]))

    with batching.session() as s:
        roots = [visit(t) for t in random_trees(3, 4, most=8)]
    s.stack([h for h, _ in roots])
    assert s.report.gathered_bytes == 0


def test_asking_one_by_one_is_warned_of_once() -> None:
    double = batching.cell(lambda x: 2 * x)

    def one_by_one() -> None:
        for _ in range(40):
            double(torch.ones(1)).item()

    with batching.session() as s, pytest.warns(UserWarning, match=r"one at a time stop.*Session.run") as told:
        one_by_one()
    assert len(told) == 1
    assert s.report.sites == {f"{__file__}:{one_by_one.__code__.co_firstlineno + 2}": 40}


def test_many_kinds_are_warned_of() -> None:
    same = batching.cell(lambda x: x)
    with batching.session() as s:
        values = [same(torch.ones(n)) for n in range(1, 70)]
    with pytest.warns(UserWarning, match="more than 64 kinds of calls"):
        s.tensor(values[0])


@pytest.mark.parametrize(
    "scheduler", ["depth", "agenda", "agenda_remaining", "sufficient", "lookahead", "beam", "auto"]
)
def test_every_scheduler_gives_the_same_results(scheduler: str) -> None:
    torch.manual_seed(0)
    model = TreeLSTM().double()
    trees = random_trees(5, 4)
    losses: list[Any] = []
    with batching.session(scheduler) as s:
        for tree in trees:
            model(tree, losses)
    torch.testing.assert_close(s.sum(losses), eager_loss(model, trees))


def test_plans_and_policies_are_kept() -> None:
    model = TreeLSTM()
    tree = random_trees(5, 1)[0]
    cache = batching.PlanCache()
    for _ in range(3):
        losses: list[Any] = []
        with batching.session(cache=cache) as s:
            model(tree, losses)
        s.sum(losses)
    assert (cache.hits, cache.misses) == (2, 1)
    policy = batching.FSMPolicy.train(s.report._graphs[0])
    losses = []
    with batching.session("fsm-sort", policy=policy) as learned:
        model(tree, losses)
    learned.sum(losses)
    assert learned.report.batches <= s.report.batches


def test_unknown_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scheduler must be one of depth.*got 'best'"):
        batching.session("best")


def test_values_stand_in_for_tensors() -> None:
    double = batching.cell(lambda x: 2 * x)
    with batching.session() as s:
        v = double(torch.ones(2, 3))
    assert (v.shape, v.dtype) == (torch.Size([2, 3]), torch.float32)
    assert repr(v) == "Value(shape=(2, 3), dtype=torch.float32)"
    assert s.report.flushes == 0
    assert torch.sum(v).item() == 12.0
    assert torch.stack([v, v]).shape == (2, 2, 3)
    assert s.report.flushes == 1


def test_no_gradients_where_none_are_wanted() -> None:
    model = TreeLSTM()
    with torch.no_grad():
        assert not tree_loss(model, random_trees(0, 2)).requires_grad
    for p in model.parameters():
        p.requires_grad_(False)
    assert not tree_loss(model, random_trees(0, 2)).requires_grad


def test_sessions_nest_and_end() -> None:
    double = batching.cell(lambda x: 2 * x)
    with batching.session() as outer:
        a = double(torch.ones(1))
        with batching.session() as inner:
            b = double(torch.ones(1))
        c = double(a)
    assert isinstance(double(torch.ones(1)), Tensor)
    assert (inner.tensor(b).item(), outer.tensor(c).item()) == (2.0, 4.0)


def test_an_error_in_a_program_ends_the_session() -> None:
    with pytest.raises(KeyError), batching.session():
        raise KeyError("mine")
    assert isinstance(batching.cell(lambda x: x)(torch.ones(1)), Tensor)


def test_sessions_are_freed() -> None:
    model = TreeLSTM()
    s = batching.session()
    with s:
        losses: list[Any] = []
        model(random_trees(0, 1)[0], losses)
    s.sum(losses).backward()
    gone = weakref.ref(s)
    del s, losses
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_have_cells_of_their_own(copied: Any) -> None:
    """Cells of bound methods and of modules, and a cell that is copied before the module that holds it."""
    module, model = batching.cell(nn.Linear(3, 2)), TreeLSTM()
    again, x = copied(module), torch.randn(3)
    torch.testing.assert_close(again(x), module(x))
    assert again.cell.weight is not module.cell.weight
    assert list(module.state_dict()) == ["cell.weight", "cell.bias"]
    other = copied(model)
    with torch.no_grad():
        other.words.weight.zero_()
    trees = random_trees(0, 2)
    torch.testing.assert_close(eager_loss(other, trees), tree_loss(other, trees))
    assert tree_loss(other, trees) != tree_loss(model, trees)
    leaf = copied(model.leaf)
    torch.testing.assert_close(leaf(3), model.leaf(3))


identity = batching.cell(lambda x: x)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda s: identity("x"), TypeError, r"an operand must be a value.*got str 'x'"),
        (lambda s: identity(None), TypeError, r"an operand must be a value.*got NoneType None"),
        (lambda s: identity([]), ValueError, r"must not be empty; got \[\]"),
        (lambda s: identity([torch.ones(1)]), TypeError, r"list operand must hold results of cells; got Tensor"),
        (lambda s: identity(2**70), OverflowError, "too big|too large"),
        (lambda s: identity(x=torch.ones(1)), TypeError, r"all by position; got 0 and keywords"),
        (lambda s: s.stack([]), ValueError, "stack needs at least one value; got none"),
        (lambda s: s.stack([torch.ones(1)]), ValueError, "stack takes values of this session"),
        (lambda s: s.stack([identity(torch.ones(1)), identity(torch.ones(2))]), ValueError, r"one shape and dtype"),
        (lambda s: batching.cell(lambda x: x.sum(0))(torch.ones(3)), ValueError, "as many rows as it gets"),
        (lambda s: batching.cell(lambda x: 3)(torch.ones(3)), TypeError, "must return a tensor or a tuple"),
        (lambda s: batching.cell(3), TypeError, "a cell must be a function or a module; got int 3"),
    ],
)
def test_wrong_use(wrong: Any, error: type[Exception], text: str) -> None:
    with batching.session() as s, pytest.raises(error, match=text):
        wrong(s)


def test_a_value_of_another_session_is_refused() -> None:
    with batching.session():
        v = identity(torch.ones(1))
    with batching.session(), pytest.raises(ValueError, match="got a value of another session"):
        identity(v)


def test_hidden_parameters_are_refused() -> None:
    class Box:
        inside = nn.Parameter(torch.ones(2))

    hidden = batching.cell(lambda x: x * Box.inside)
    box = Box()
    by_attribute = batching.cell(lambda x: x * box.inside)
    for c in (hidden, by_attribute):
        with batching.session() as s, pytest.raises(ValueError, match="reached another way"):
            s.tensor(c(torch.ones(2, requires_grad=True)))


def test_a_failing_cell_says_so_and_ends_the_session() -> None:
    @batching.cell
    def picky(x: Tensor) -> Tensor:
        if (x < 0).any():
            raise ArithmeticError("negative")
        return x.sqrt()

    with batching.session() as s:
        fine = picky(torch.tensor([4.0]))
        v = picky(torch.tensor([-1.0]))
    with pytest.raises(ArithmeticError, match="negative"):
        s.tensor(v)
    with pytest.raises(RuntimeError, match=r"ends with the first failing cell; got ArithmeticError"):
        s.tensor(fine)
