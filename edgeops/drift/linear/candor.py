# SPDX-License-Identifier: Apache-2.0
"""Candor on logistic regression: an expert for each batch, pulled towards those before. Drift spec, section 5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeops.drift.linear.logistic import Logistic


class Candor(Logistic):
    """Model reuse: each batch trains a new expert whose regulariser is centred on the mean of the others, by weight.

    Weights are those of the last batch: uniform, times `exp(-decay)` for each of its points that an expert got wrong.
    Experts vote with them on the next batch, all of whose labels are still unknown then; the authors' program changes
    them after every single prediction, within the batch. An expert is the minimum on its batch, by Newton's method.

    Args:
        features: as in `Logistic`.
        experts: how many at most; the oldest leaves.
        decay: what an error costs.
        **settings: as in `Logistic`; `mu` weighs the distance from the mean of the others, `eta` is not used.

    >>> learner = Candor(2, eta=0.1, mu=1e-3, seed=0)
    >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).repeat(50, 1).double()
    >>> learner.observe(x, x[:, 0])
    >>> learner.predict(x[:2]).tolist()
    [1.0, -1.0]
    """

    def __init__(self, features: int, *, experts: int = 25, decay: float = 0.75, **settings: Any) -> None:
        super().__init__(features, slots=experts, **settings)
        self.bank.w.zero_()
        self.decay = decay
        self.weight = torch.zeros(experts, dtype=torch.float64)
        self.alive = 0

    def predict(self, x: Tensor) -> Tensor:
        """A vote by weight; 1 everywhere before the first expert."""
        return _sign(_sign(x @ self.bank.w.T) @ self.weight.to(x.dtype))

    def _observe(self, x: Tensor, y: Tensor) -> None:
        w, alive = self.bank.w, self.alive
        if alive:
            wrong = (_sign(x @ w[:alive].T) != y[:, None]).double().sum(0)
            self.weight[:alive] = torch.softmax(-self.decay * wrong, 0)
        expert = minimum(x, y, self.weight.to(w.dtype) @ w, self.bank.mu)
        if alive == len(w):
            w[:-1], self.weight[:-1] = w[1:].clone(), self.weight[1:].clone()
        else:
            self.alive += 1
        w[self.alive - 1] = expert
        # the new one starts with the weight of the best: it has been wrong on nothing yet
        self.weight[self.alive - 1] = float(self.weight[: self.alive - 1].max()) if self.alive > 1 else 1.0
        self.weight /= self.weight.sum()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weight": self.weight.clone(), "alive": self.alive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight, self.alive = state["weight"].clone(), state["alive"]


def _sign(margins: Tensor) -> Tensor:
    return 2.0 * (margins >= 0).to(margins.dtype) - 1.0


def minimum(x: Tensor, y: Tensor, centre: Tensor, mu: float, steps: int = 20) -> Tensor:
    """Weights of the least mean logistic loss plus `mu / 2 * |w - centre|^2`, by Newton steps, halved as needed.

    >>> x, y = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([1.0, -1.0]).double()
    >>> w = minimum(x, y, torch.zeros(1).double(), 0.1)
    >>> round(float(-torch.sigmoid(-w) + 0.1 * w), 9)
    0.0
    """

    def objective(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y * (x @ w)).mean() + mu / 2 * (w - centre).square().sum()

    w, at = centre.clone(), objective(centre)
    for _ in range(steps):
        chance = torch.sigmoid(-y * (x @ w))
        slope = -(x.T @ (y * chance)) / len(x) + mu * (w - centre)
        curve = (x.T * (chance * (1 - chance))) @ x / len(x) + (mu + 1e-9) * torch.eye(len(w), dtype=w.dtype)
        step = torch.linalg.solve(curve, slope)
        size = 1.0
        while size > 1e-4 and not objective(w - size * step) <= at:
            size /= 2
        w = w - size * step if size > 1e-4 else w
        before, at = at, objective(w)
        if float(before - at) < 1e-12:
            break
    return w
