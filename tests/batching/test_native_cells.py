# SPDX-License-Identifier: Apache-2.0
"""Built-in cells in a session against their readable forms, run eagerly: results and gradients."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeops import batching
from edgeops.batching.cells import GRU, LSTM, BinaryTreeGRU, BinaryTreeLSTM, Classifier, Embedding, RaggedSum
from tests.batching.models import random_trees


def run_tree(module: BinaryTreeLSTM, tree: Any, vectors: Tensor | None, states: list[Any]) -> Any:
    if isinstance(tree[1], int):
        state = module.leaf(tree[1] if vectors is None else vectors[tree[1]])
    else:
        state = module.inner(*run_tree(module, tree[1], vectors, states), *run_tree(module, tree[2], vectors, states))
    states.append(state)
    return state


def eager_tree(module: BinaryTreeLSTM, tree: Any, vectors: Tensor | None, states: list[Any]) -> Any:
    if isinstance(tree[1], int):
        x = torch.tensor([tree[1]]) if vectors is None else vectors[tree[1]][None]
        state = module.leaf_rows(x)
    else:
        children = (eager_tree(module, child, vectors, states) for child in tree[1:])
        (h1, c1), (h2, c2) = children
        state = module.inner_rows(h1, c1, h2, c2)
    states.append(state)
    return state


def run_lstm(module: LSTM, words: Tensor, states: list[Any]) -> None:
    h = c = torch.zeros(module.hidden_size, dtype=words.dtype)
    for x in words:
        h, c = module.step(x, h, c)
        states.append((h, c))


def eager_lstm(module: LSTM, words: Tensor, states: list[Any]) -> None:
    h = c = torch.zeros(1, module.hidden_size, dtype=words.dtype)
    for x in words:
        h, c = module.step_rows(x[None], h, c)
        states.append((h, c))


def compare(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(ours, leaves, upstream)
    want = torch.autograd.grad(theirs, leaves, upstream)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("which", ["h", "c", "both"])
def test_tree_lstm(dtype: torch.dtype, embedded: bool, which: str) -> None:
    torch.manual_seed(0)
    module = BinaryTreeLSTM(5, 7, num_embeddings=30 if embedded else None).to(dtype)
    vectors = None if embedded else torch.randn(30, 5, dtype=dtype, requires_grad=True)
    ours: list[Any] = []
    theirs: list[Any] = []
    trees = random_trees(4, 6)
    with batching.session() as s:
        for tree in trees:
            run_tree(module, tree, vectors, ours)
    for tree in trees:
        eager_tree(module, tree, vectors, theirs)
    parts = {"h": (0,), "c": (1,), "both": (0, 1)}[which]
    a = torch.cat([s.stack([state[p] for state in ours]) for p in parts])
    b = torch.cat([torch.cat([state[p] for state in theirs]) for p in parts])
    leaves = [*module.parameters(), *([] if vectors is None else [vectors])]
    compare(a, b, leaves)


@pytest.mark.parametrize("bias", [True, False])
def test_lstm(bias: bool) -> None:
    torch.manual_seed(0)
    module = LSTM(4, 6, bias=bias).double()
    rng = random.Random(0)
    texts = [torch.randn(rng.randrange(1, 9), 4, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    ours: list[Any] = []
    theirs: list[Any] = []
    with batching.session() as s:
        for text in texts:
            run_lstm(module, text, ours)
    for text in texts:
        eager_lstm(module, text, theirs)
    compare(s.stack([h for h, _ in ours]), torch.cat([h for h, _ in theirs]), [*module.parameters(), *texts])
    assert s.report.batches == 1 + max(len(t) for t in texts)  # x of all steps first


@pytest.mark.parametrize("bias", [True, False])
def test_gru(bias: bool) -> None:
    torch.manual_seed(0)
    module = GRU(4, 6, bias=bias).double()
    rng = random.Random(1)
    texts = [torch.randn(rng.randrange(1, 9), 4, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    ours, theirs = [], []
    with batching.session() as s:
        for text in texts:
            h = torch.zeros(6, dtype=torch.float64)
            for x in text:
                h = module.step(x, h)
                ours.append(h)
    for text in texts:
        h = torch.zeros(1, 6, dtype=torch.float64)
        for x in text:
            h = module.step_rows(x[None], h)
            theirs.append(h)
    compare(s.stack(ours), torch.cat(theirs), [*module.parameters(), *texts])


def test_tree_gru() -> None:
    torch.manual_seed(0)
    module = BinaryTreeGRU(5, 7).double()
    vectors = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)

    def visit(tree: Any, leaf: Any, inner: Any, states: list[Any]) -> Any:
        inside = (visit(child, leaf, inner, states) for child in tree[1:])
        states.append(leaf(vectors[tree[1]]) if isinstance(tree[1], int) else inner(*inside))
        return states[-1]

    ours: list[Any] = []
    theirs: list[Any] = []
    trees = random_trees(4, 6)
    with batching.session() as s:
        for tree in trees:
            visit(tree, module.leaf, module.inner, ours)
    for tree in trees:
        visit(tree, lambda x: module.leaf_rows(x[None]), module.inner_rows, theirs)
    compare(s.stack(ours), torch.cat(theirs), [*module.parameters(), vectors])


def random_lattice(rng: random.Random) -> list[list[tuple[int, int]]]:
    """For every position after the first, its incoming arcs: (from, word)."""
    return [
        [(i, rng.randrange(8)), *((rng.randrange(i + 1), rng.randrange(8, 20)) for _ in range(rng.randrange(3)))]
        for i in range(rng.randrange(1, 8))
    ]


def test_lattice_lstm() -> None:
    torch.manual_seed(0)
    words, cell = Embedding(20, 4).double(), LSTM(4, 5).double()
    total = RaggedSum()
    rng = random.Random(2)
    lattices = [random_lattice(rng) for _ in range(6)]
    zero = torch.zeros(5, dtype=torch.float64)
    ours: list[Any] = []
    with batching.session() as s:
        for lattice in lattices:
            states = [(zero, zero)]
            for arcs in lattice:
                made = [cell.step(words.look_up(word), *states[at]) for at, word in arcs]
                states.append(total([h for h, _ in made], [c for _, c in made]))
                ours.append(states[-1])
    theirs: list[Any] = []
    for lattice in lattices:
        states = [(zero[None], zero[None])]
        for arcs in lattice:
            made = [cell.step_rows(words.rows(torch.tensor([word])), *states[at]) for at, word in arcs]
            states.append((sum(h for h, _ in made), sum(c for _, c in made)))
            theirs.append(states[-1])
    parameters = [*words.parameters(), *cell.parameters()]
    compare(
        torch.cat([s.stack([state[p] for state in ours]) for p in (0, 1)]),
        torch.cat([torch.cat([state[p] for state in theirs]) for p in (0, 1)]),
        parameters,
    )


def test_sums_of_numbers_and_matrices() -> None:
    total, scale = RaggedSum(), batching.cell(lambda x: x * x)
    for shape in ((), (2, 3)):
        x = torch.randn(5, *shape, dtype=torch.float64, requires_grad=True)
        with batching.session() as s:
            made = [scale(row) for row in x]
            sums = s.stack([total(made[:2]), total(made[1:]), total(made[4:])])
        alone = torch.stack([scale(row) for row in x])
        compare(sums, torch.stack([alone[:2].sum(0), alone[1:].sum(0), alone[4:].sum(0)]), [x])
    assert total([torch.ones(2), torch.ones(2)]).tolist() == [2.0, 2.0]


def test_sums_refuse_what_is_no_list() -> None:
    with batching.session(), pytest.raises(TypeError, match="RaggedSum: operands must be lists of values"):
        RaggedSum()(torch.ones(2))


def test_a_gradient_goes_only_where_it_belongs() -> None:
    module = BinaryTreeLSTM(3, 4, num_embeddings=9)
    with batching.session() as s:
        h, _ = module.leaf(1)
        module.inner(*module.leaf(2), *module.leaf(3))
    s.tensor(h).sum().backward()
    assert module.inner_weight.grad is None
    assert module.embedding is not None
    assert module.embedding.grad is not None
    assert module.embedding.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(
    "module",
    [LSTM(3, 4), GRU(3, 4), Embedding(3, 4), BinaryTreeLSTM(3, 4), BinaryTreeGRU(3, 4), Classifier(3, 4)],
    ids=lambda m: type(m).__name__,
)
def test_copies_are_modules_of_their_own(module: nn.Module) -> None:
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for a, b in zip(module.parameters(), again.parameters(), strict=True):
            assert a is not b
            assert torch.equal(a, b)
        cells = [getattr(again, name, None) for name in ("step", "inner", "look_up", "loss")]
        assert [c.owner.module is again for c in cells if c is not None] == [True]


def test_parameters_are_those_of_torch() -> None:
    for ours, theirs in ((LSTM, nn.LSTMCell), (GRU, nn.GRUCell), (Embedding, nn.Embedding), (Classifier, nn.Linear)):
        assert list(ours(3, 4).state_dict()) == list(theirs(3, 4).state_dict())


def test_wrong_dtype_is_refused() -> None:
    module = LSTM(2, 2)
    zero = torch.zeros(2, dtype=torch.float64)
    with batching.session(), pytest.raises(TypeError, match=r"LSTM.step: operands must have the parameters' dtype"):
        module.step(zero, zero, zero)


@pytest.mark.parametrize("word", [-1, 9, 2**32])
@pytest.mark.parametrize("look_up", [BinaryTreeLSTM(3, 4, num_embeddings=9).leaf, Embedding(9, 3).look_up])
def test_unknown_words_are_refused(word: int, look_up: Any) -> None:
    with batching.session() as s:
        look_up(1)
        v = look_up(word)
    with pytest.raises(ValueError, match=rf"ids must lie in 0..8; got {word}. Check num_embeddings"):
        s.tensor(v[0] if isinstance(v, tuple) else v)


def test_leaves_take_what_the_module_was_made_for() -> None:
    with batching.session(), pytest.raises(TypeError, match="leaves take integers with num_embeddings"):
        BinaryTreeLSTM(3, 4, num_embeddings=9).leaf(torch.ones(3))
    with batching.session(), pytest.raises(TypeError, match="leaves take integers with num_embeddings"):
        BinaryTreeLSTM(3, 4).leaf(1)


def test_rows_of_another_width_are_refused() -> None:
    tree = BinaryTreeLSTM(3, 4)
    with batching.session(), pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        tree.leaf(torch.ones(5))


def test_equal_calls_on_integers_are_computed_once() -> None:
    torch.manual_seed(0)
    tree, words = BinaryTreeLSTM(3, 4, num_embeddings=9).double(), [2, 5, 2, 2, 5, 8]
    with batching.session() as s:
        leaves = [tree.leaf(word) for word in words]
    h = s.stack([h for h, _ in leaves])
    theirs, _ = tree.leaf_rows(torch.tensor(words))
    compare(h, theirs, [p for name, p in tree.named_parameters() if name.startswith(("leaf", "embedding"))])
    assert s.report.nodes == 3
    assert s._tables.used[leaves[0][0]._class] == 2 * 3  # h and c of three words


def test_user_cells_run_for_every_call() -> None:
    drawn = batching.cell(lambda i: torch.rand(len(i), 2))
    with batching.session() as s:
        values = [drawn(3) for _ in range(4)]
    assert len({tuple(x.tolist()) for x in s.stack(values)}) == 4


def test_parameters_that_change_before_backward_are_an_error() -> None:
    tree = BinaryTreeLSTM(3, 4, num_embeddings=9)
    with batching.session() as s:
        h, _ = tree.inner(*tree.leaf(1), *tree.leaf(2))
    loss = s.tensor(h).sum()
    with torch.no_grad():
        tree.inner_weight.mul_(2)
    with pytest.raises(
        RuntimeError, match=r"parameters must not change between forward and backward; got .*BinaryTreeLSTM"
    ):
        loss.backward()


def test_packed_weights_follow_every_change_of_a_parameter() -> None:
    tree = BinaryTreeLSTM(3, 4, num_embeddings=9)

    def run() -> Tensor:
        with torch.no_grad(), batching.session() as s:
            h, _ = tree.inner(*tree.leaf(1), *tree.leaf(2))
        return s.tensor(h)

    def eager() -> Tensor:
        (h1, h2), (c1, c2) = ((x[:1], x[1:]) for x in tree.leaf_rows(torch.tensor([1, 2])))
        return tree.inner_rows(h1, c1, h2, c2)[0][0].detach()

    torch.testing.assert_close(run(), eager())
    tree.inner_weight.data[0, 0] += 1  # leaves no trace in the version counter
    torch.testing.assert_close(run(), eager())
    tree.load_state_dict({k: v * 2 for k, v in tree.state_dict().items()}, assign=True)
    torch.testing.assert_close(run(), eager())
    tree.double()
    torch.testing.assert_close(run(), eager())
    tree.load_state_dict({k: v.float() for k, v in tree.state_dict().items()}, assign=True)
    with pytest.raises(
        TypeError, match=r"parameters must keep the dtype and device of the first call; got torch.float32"
    ):
        run()


def test_backward_twice() -> None:
    torch.manual_seed(0)
    tree = BinaryTreeLSTM(3, 4, num_embeddings=9).double()
    with batching.session() as s:
        h, c = tree.inner(*tree.leaf(1), *tree.leaf(2))
    loss = (s.tensor(h) * s.tensor(c)).sum()
    first = torch.autograd.grad(loss, list(tree.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(tree.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_cells_that_no_gradient_reaches() -> None:
    """Their parameters get none, and the rows of others of their type add nothing."""
    torch.manual_seed(0)
    tree, step = BinaryTreeLSTM(3, 4, num_embeddings=9).double(), LSTM(4, 4).double()
    with batching.session() as s:
        left, right = tree.leaf(1), tree.leaf(2)
        deep = tree.inner(*tree.inner(*left, *right), *right)
        step.step(deep[0], *left)
        h, _ = tree.inner(*left, *right)
    s.tensor(h).sum().backward()
    (h1, h2), (c1, c2) = ((x[:1], x[1:]) for x in tree.leaf_rows(torch.tensor([1, 2])))
    want = torch.autograd.grad(tree.inner_rows(h1, c1, h2, c2)[0].sum(), list(tree.parameters()))
    for p, grad in zip(tree.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, grad)
    assert all(p.grad is None for p in step.parameters())


def test_the_default_device_does_not_matter() -> None:
    """Tensors that a session makes for itself stand where its parameters are."""
    tree = BinaryTreeLSTM(3, 4, num_embeddings=9)
    double = batching.cell(lambda h: 2 * h)
    with torch.device("meta"):
        with batching.session() as s:
            h, _ = tree.inner(*tree.leaf(1), *tree.leaf(2))
            total = double(h)
        loss = s.tensor(total).sum()
        loss.backward()
    assert loss.device.type == "cpu"
    assert tree.inner_weight.grad is not None
    assert tree.inner_weight.grad.device.type == "cpu"


def test_parametrized_modules_are_refused() -> None:
    step = torch.nn.utils.parametrizations.weight_norm(LSTM(3, 4), "weight_hh")
    zero = torch.zeros(4)
    with batching.session(), pytest.raises(TypeError, match=r"LSTM.step: parameters must be plain ones; got a param"):
        step.step(torch.zeros(3), zero, zero)


def test_gather_modes_agree() -> None:
    torch.manual_seed(0)
    module = BinaryTreeLSTM(5, 7, num_embeddings=30)
    found = []
    for mode in ("index", "copy", "auto"):
        states: list[Any] = []
        with batching.session(gather_mode=mode) as s:
            for tree in random_trees(4, 6):
                run_tree(module, tree, None, states)
        h = s.stack([h for h, _ in states])
        found.append((h, *torch.autograd.grad(h.square().sum(), list(module.parameters()))))
        assert (s.report.copied_bytes["activations"] > 0) == (mode == "copy")
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    with pytest.raises(ValueError, match="gather_mode must be one of auto, index, copy; got 'some'"):
        batching.session(gather_mode="some")


def test_batch_invariant() -> None:
    """Bits of an instance do not depend on the others, for functions of the user's and for built-in cells."""
    torch.manual_seed(0)
    tree, last = BinaryTreeLSTM(33, 65, num_embeddings=30), batching.cell(nn.Linear(65, 3))
    total = batching.cell(
        lambda parts: torch.stack([x.sum(0) for x in parts.values.split(parts.offsets.diff().tolist())])
    )

    def run(trees: list[Any]) -> list[Tensor]:
        roots = []
        with batching.session(batch_invariant=True) as s:
            for one in trees:
                states: list[Any] = []
                run_tree(tree, one, None, states)
                roots.append(last(total([h for h, _ in states])))
        return list(s.stack(roots))

    trees = random_trees(3, 9)
    together = run(trees)
    for one, value in zip(trees, together, strict=True):
        assert torch.equal(run([one])[0], value)
