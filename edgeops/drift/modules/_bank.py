# SPDX-License-Identifier: Apache-2.0
"""The bank of modules that a trial drives: scored and trained on a stream, one or several at once. Section 12.4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import message
from edgeops.drift.modules._candidate import Candidate, Recipe, device_of, random_from
from edgeops.drift.modules._scores import PerSample, Score, aligned, per_sample
from edgeops.drift.modules._stack import Program, Stack, agree
from edgeops.drift.modules.buffer import ReplayBuffer
from edgeops.drift.monitor import KEEP


class ModuleBank:
    """Modules by name, each with its optimizer and window, over one replay buffer: a `Bank` for `Trial`.

    Args:
        recipe: makes candidates.
        module: the first one, "keep"; `None`, the recipe makes it.
        loss: per-sample loss that is trained.
        score: per-sample loss that is compared.
        buffer: the stored points.
        rate: points trained on for each new one: itself, and `rate - 1` drawn from the window.
        minibatch: points of an optimizer step, about.
        batched: whether several candidates run as one call: `True`, `False`, or "auto", where the module allows it.
        compiled: whether the step is compiled, or the backend.
        widest: candidates of the largest trial.
        autocast: makes the context in which modules run.
    """

    def __init__(
        self,
        recipe: Recipe,
        module: nn.Module | None,
        loss: PerSample,
        score: Score,
        buffer: ReplayBuffer,
        *,
        rate: float,
        minibatch: int,
        batched: bool | str,
        compiled: object,
        widest: int,
        autocast: Callable[[], Any] | None,
    ) -> None:
        self.recipe, self.loss, self.score, self.buffer = recipe, loss, score, buffer
        self.rate, self.minibatch, self.batched, self.autocast = rate, minibatch, batched, autocast
        self.candidates: dict[str, Candidate] = {KEEP: recipe.fresh(module)}
        self.program = Program(self.candidates[KEEP].module, self._losses, compiled)
        has_buffers = next(self.candidates[KEEP].module.buffers(), None) is not None
        self.widest = widest if has_buffers else 0
        self.stack: Stack | None = None
        self.version = 0
        """Grows whenever a model changes."""
        self.skipped = 0
        """Optimizer steps that were not taken, for a loss or gradient that is not finite."""
        self.known: dict[int, Tensor] = {}
        """Outputs that a candidate gave for the points that are scored next, by its uid."""
        self.seen: Tensor | None = None
        """The first scores since this was set to `None`: those before any training on the batch."""
        self.diverged: Callable[[str], None] = lambda name: None
        """Called with the name of a candidate whose parameters are not finite."""
        self.alone: str | None = None
        """Why candidates run one by one; `None`, they run as one call."""
        if batched is False:
            self.alone = "batched=False"
        elif recipe.scaler is not None:
            self._refuse("each candidate's gradient scaler needs a step of its own")
        self._agreed = False
        self._weights: dict[torch.Size, Tensor] = {}
        device = recipe.device
        self._bad, self._unit = torch.zeros(1, device=device), torch.ones(1, device=device)

    def _refuse(self, reason: str) -> None:
        if self.batched is True:
            rule, advice = "batched=True needs a module that torch.func.vmap takes", "Use batched='auto'."
            raise ValueError(message("DriftSurf", rule, reason, advice))
        self.alone = reason

    def _context(self) -> Any:
        return nullcontext() if self.autocast is None else self.autocast()

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What is trained, for each point, `[n]`."""
        return per_sample(self.loss(*aligned(outputs, y)), len(y), "loss_fn")

    # what a trial asks for

    def open(self, name: str, like: str | None) -> None:
        """A new candidate: a new model, or a copy of another; its window begins with the points it trains on next."""
        made = self.recipe.fresh() if like is None else self.recipe.like(self.candidates[like])
        made.start = self.buffer.count
        self.candidates[name] = made

    def rename(self, name: str, new: str) -> None:
        """Call a model by another name; whoever had that name is gone."""
        self.drop(new)
        self.candidates[new] = self.candidates.pop(name)
        self.version += 1

    def drop(self, name: str) -> None:
        """Forget a model."""
        gone = self.candidates.pop(name, None)
        if gone is not None:
            if self.stack is not None and gone in self.stack.candidates:
                rest, stack = [c for c in self.stack.candidates if c is not gone], self.stack
                gone.release()
                if len(rest) < 2:
                    self.stack = None
                    stack.dissolve()
            else:
                gone.release()
        self.buffer.release(min((c.start for c in self.candidates.values()), default=0))

    def _stacked(self, names: Sequence[str], x: Tensor) -> Stack | None:
        """The stack of these candidates; `None` where they run one by one."""
        wanted = tuple(self.candidates[name] for name in names)
        if self.stack is not None and self.stack.candidates != wanted:
            self.stack.dissolve()
            self.stack = None
        if len(wanted) < 2 or self.alone is not None:
            return None
        if self.stack is None:
            # vmap of normalisation fixes the number of rows in a graph: one that holds for all trials
            self.stack = Stack(wanted, self.widest if self.program.compiled else 0)
            if not self._agreed and not self._agrees(x):
                self.stack.dissolve()
                self.stack = None
        return self.stack

    def _agrees(self, x: Tensor) -> bool:
        assert self.stack is not None
        try:
            with random_from(self.recipe.device, [s.clone() for s in self.stack.candidates[0].random]):
                agree(self.program, self.stack, x[:8].repeat(2, *[1] * (x.dim() - 1)))
        except (RuntimeError, TypeError, NotImplementedError, IndexError) as reason:
            self._refuse(str(reason).split("\n")[0])
            return False
        self._agreed = True
        return True

    def restack(self, names: Sequence[str]) -> None:
        """Lay candidates out as they lie when they were run together before."""
        if self._agreed and len(names) > 1:
            self._stacked(names, torch.empty(0))

    @torch.no_grad()
    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        """Score of each model on each point, `[names, n]`, in evaluation mode."""
        self.score.decide(y)
        stack, known = self._stacked(names, x), self.known
        self.known = {}
        with self._context():
            if stack is not None:
                outputs = list(self.program.outputs(stack, x, each=False, train=False))
            else:
                chosen = [self.candidates[name] for name in names]
                outputs = [known[c.uid] if c.uid in known else c.module(x) for c in chosen]
        scores = torch.stack([self.score(out, y) for out in outputs])
        self.seen = scores if self.seen is None else self.seen
        return scores

    @torch.no_grad()
    def try_loss(self, x: Tensor, y: Tensor) -> None:
        """Refuse labels or a loss with which training would fail, before anything is changed."""
        with self._context():
            outputs = self.candidates[KEEP].module(x[:2])
        self.score.decide(y)
        self.score(outputs, y[:2])
        self._losses(outputs, y[:2])

    def train(self, names: Sequence[str], x: Tensor, y: Tensor) -> None:
        """Train these on a batch, which joins the stored points."""
        self.buffer.append(x, y)
        chosen = [self.candidates[name] for name in names]
        stack = self._stacked(names, x)
        if stack is not None:
            self._train_many(stack, x, y)
        else:
            for c in chosen:
                self._train_one(c, x, y)
        for c in chosen:
            if c.scheduler is not None:
                c.scheduler.step()
        self.version += 1
        for name in names:
            if not self.candidates[name].finite:
                self._rescue(name)

    def _rescue(self, name: str) -> None:
        """A diverged candidate is reported; the model itself is replaced."""
        if name == KEEP:
            self.replace()
        self.diverged(name)

    def replace(self, x: Tensor | None = None) -> Tensor | None:
        """Put a model that was replaced before, or a new one, in the place of the model, which diverged.

        Where points are given, only one whose outputs on them are finite will do; returns these outputs.
        """
        fine = [other for other, c in self.candidates.items() if other.startswith("past") and c.finite]
        if self.recipe.factory is None and not fine:
            return None
        self.open("rescue", fine[-1] if fine else None)
        outputs = None if x is None else self.outputs("rescue", x)
        if outputs is not None and not bool(outputs.isfinite().all()):
            self.drop("rescue")
            return None
        self.rename("rescue", KEEP)
        return outputs

    @torch.no_grad()
    def outputs(self, name: str, x: Tensor) -> Tensor:
        """What a candidate says to points, in evaluation mode."""
        with self._context():
            outputs: Tensor = self.candidates[name].module(x)
        return outputs

    def _points(self, c: Candidate, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What a candidate trains on: the new points and those drawn from its window, in an order of its own."""
        again = round((self.rate - 1) * len(x))
        if again > 0:
            old_x, old_y = self.buffer.gather(self.buffer.draw(c.start, again, c.generator))
            x, y = torch.cat([x, old_x]), torch.cat([y, old_y])
        order = torch.randperm(len(x), generator=c.generator).to(x.device)
        return x[order], y[order]

    def _parts(self, n: int) -> int:
        return max(1, math.ceil(n / self.minibatch))

    def _train_one(self, c: Candidate, x: Tensor, y: Tensor) -> None:
        x, y = self._points(c, x, y)
        parts = self._parts(len(x))
        c.module.train()
        try:
            with random_from(self.recipe.device, c.random):
                for some_x, some_y in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
                    self._step(c, some_x, some_y)
        finally:
            c.module.eval()
            for p in c.trained:
                p.grad = None

    def _step(self, c: Candidate, x: Tensor, y: Tensor) -> None:
        for p in c.trained:
            p.grad = None
        if self.autocast is None:
            losses = self.program.one(c.module, x, y)
        else:
            with self.autocast():
                losses = self.program.one(c.module, x, y)
        c.steps += 1
        if c.scaler is not None:
            before = c.scaler.get_scale()
            c.scaler.scale(losses.mean()).backward()
            c.scaler.step(c.optimizer)
            c.scaler.update()
            self._count_skipped([c] if c.scaler.get_scale() < before else [])
            return
        # the mean's gradient, without the mean
        losses.backward(self._shares(losses))
        if self._all_finite([losses.detach(), *[p.grad for p in c.trained if p.grad is not None]], c.dtype):
            c.optimizer.step()
        else:
            self._count_skipped([c])

    def _shares(self, losses: Tensor) -> Tensor:
        """What each loss weighs in the mean over the last dimension."""
        key = losses.shape
        weights = self._weights.get(key)
        if weights is None or weights.dtype != losses.dtype or weights.device != losses.device:
            self._weights = {} if len(self._weights) > 8 else self._weights
            self._weights[key] = weights = torch.full_like(losses, 1 / key[-1], requires_grad=False)
        return weights

    def _all_finite(self, found: list[Tensor], dtype: torch.dtype | None) -> bool:
        if found[0].dtype != dtype:
            dense = [g.coalesce().values() if g.is_sparse else g for g in found]
            return all(bool(g.isfinite().all()) for g in dense)
        self._bad.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(found, self._bad, self._unit)
        return not self._bad.item()

    def _count_skipped(self, candidates: Sequence[Candidate]) -> None:
        for c in candidates:
            c.skipped += 1
            self.skipped += 1

    def _train_many(self, stack: Stack, x: Tensor, y: Tensor) -> None:
        own = [self._points(c, x, y) for c in stack.candidates]
        xs, ys = torch.stack([part[0] for part in own]), torch.stack([part[1] for part in own])
        del own
        parts = self._parts(xs.shape[1])
        optimizer = stack.merged(self.recipe.optimizer)
        try:
            for some_x, some_y in zip(xs.tensor_split(parts, 1), ys.tensor_split(parts, 1), strict=True):
                with self._context():
                    losses = self.program.many(stack, some_x, some_y)
                grads = torch.autograd.grad(losses, stack.leaves, self._shares(losses), allow_unused=True)
                self._step_many(stack, optimizer, losses.detach(), grads)
        finally:
            for c in stack.candidates:
                for p in c.trained:
                    p.grad = None

    def _step_many(
        self, stack: Stack, optimizer: torch.optim.Optimizer, losses: Tensor, grads: Sequence[Tensor | None]
    ) -> None:
        taken = [True] * len(losses)
        there = [g for g in grads if g is not None]
        if not self._all_finite([losses, *there], stack.candidates[0].dtype):
            fine = losses.isfinite().all(1)
            for g in there:
                fine &= g[: len(fine)].flatten(1).isfinite().all(1)
            taken = fine.tolist()
            self._count_skipped([c for c, good in zip(stack.candidates, taken, strict=True) if not good])
        # fused optimizers read gradients as if they lay in memory like the parameters; rows behind are cut off by zip
        rows = [[None] * len(losses) if g is None else g.contiguous().unbind(0) for g in grads]
        for number, c in enumerate(stack.candidates):
            c.steps += 1
            for p, row in zip(c.trained, rows, strict=True):
                p.grad = row[number] if taken[number] else None
        if any(taken):
            optimizer.step()

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move everything as `nn.Module.to` moves parameters."""
        if self.stack is not None:
            self.stack.dissolve()
            self.stack = None
        for c in self.candidates.values():
            c.module._apply(fn)
            for p, state in c.optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == p.shape and value.dim():
                        state[name] = fn(value)
        device = device_of(self.candidates[KEEP].module)
        self.recipe.move(device)
        self.buffer.to(device)
        self._bad, self._unit = self._bad.to(device), self._unit.to(device)
        self.version += 1

    @property
    def nbytes(self) -> int:
        """Bytes of all models with their optimizers, and of the stored points."""
        return sum(c.nbytes for c in self.candidates.values()) + self.buffer.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        models = {name: c.state_dict() for name, c in self.candidates.items()}
        numbers = {
            "seed": self.recipe.seed,
            "made": self.recipe.made,
            "skipped": self.skipped,
            "agreed": self._agreed,
            "alone": self.alone,
        }
        return {"models": models, "buffer": self.buffer.state_dict(), "score": self.score.state_dict(), **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        if self.stack is not None:
            self.stack.dissolve()
            self.stack = None
        for name in [name for name in self.candidates if name not in state["models"]]:
            self.candidates.pop(name).release()
        for name, saved in state["models"].items():
            if name not in self.candidates:
                self.candidates[name] = self.recipe.like(self.candidates[KEEP])
            self.candidates[name].load_state_dict(saved)
        self.candidates = {name: self.candidates[name] for name in state["models"]}
        self.recipe.seed, self.recipe.made, self.skipped = state["seed"], state["made"], state["skipped"]
        self._agreed, self.alone = state["agreed"], state["alone"]
        self.buffer.load_state_dict(state["buffer"])
        self.score.load_state_dict(state["score"])
        self.version += 1
