# SPDX-License-Identifier: Apache-2.0
"""A small network that learns from batches; without hidden layers, logistic or linear regression."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeops._common import message


class Network:
    """Trains on each batch and on as many points of the last ones; output rows are added as classes appear.

    The features are scaled by the mean and deviation of what this model has seen, so that copies and new models have
    scales of their own (pitfall 9 of the drift spec).

    Args:
        task: "classification" or "regression".
        hidden: widths of hidden layers.
        lr: of Adam.
        passes: over the batch.
        minibatch: points of a step.
        window: points that may be visited again.
        seed: of first weights and of the order of visits.

    >>> x = np.repeat([[0.0], [1.0]], 50, axis=0)
    >>> model = Network("classification", seed=0)
    >>> for _ in range(5):
    ...     model.learn(x, x[:, 0].astype(int), 2)
    >>> model.proba(x[[0, 99]], 2).argmax(1).tolist()
    [0, 1]
    """

    def __init__(
        self,
        task: str,
        *,
        hidden: Sequence[int] = (),
        lr: float = 0.02,
        passes: int = 4,
        minibatch: int = 32,
        window: int = 1000,
        seed: int | None = None,
    ) -> None:
        if task not in ("classification", "regression"):
            rule = "task must be 'classification' or 'regression'"
            raise ValueError(message("Network", rule, repr(task), "Pass one of them."))
        self.task, self.hidden, self.lr, self.passes = task, tuple(hidden), lr, passes
        self.minibatch, self.window = minibatch, window
        self._draws = np.random.default_rng(seed)
        self.ready = False
        self._count = 0
        self._mean = self._squares = torch.zeros(0, dtype=torch.float64)
        self._seen_x = self._seen_y = torch.zeros(0)
        self._net: nn.Sequential | None = None
        self._adam: torch.optim.Adam | None = None

    def copy(self) -> Network:
        """All of it: weights, optimizer, scale, window and draws."""
        return copy.deepcopy(self)

    def learn(self, x: NDArray[np.float64], y: NDArray[np.generic], classes: int) -> None:
        """Train on points `[n, d]` with class numbers or values `[n]`."""
        points, targets = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(np.asarray(y))
        targets = targets.float() if self.task == "regression" else targets.long()
        self._scale(points, targets)
        self._grow(points.shape[1], classes if self.task == "classification" else 1)
        old_x, old_y = self._seen_x, self._seen_y
        for _ in range(self.passes):
            again = self._draws.integers(0, len(old_x), min(len(old_x), len(points)) if len(old_x) else 0)
            both_x = self._scaled(torch.cat([points, old_x[again]]))
            both_y = torch.cat([targets, old_y[again]])
            if self.task == "regression":
                spread, middle = self._target_scale()
                both_y = (both_y - middle) / spread
            for part in torch.as_tensor(self._draws.permutation(len(both_x))).split(self.minibatch):
                self._step(both_x[part], both_y[part])
        self._seen_x = torch.cat([old_x, points])[-self.window :]
        self._seen_y = torch.cat([old_y, targets])[-self.window :]
        self.ready = True

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.generic]:
        """Class numbers or values `[n]`."""
        out = self._forward(x)
        if self.task == "classification":
            return np.asarray(out.argmax(1))
        spread, middle = self._target_scale()
        return np.asarray((out[:, 0] * spread + middle).double())

    def proba(self, x: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
        """Probabilities `[n, classes]`, 0 for a class that the model has not seen."""
        out = self._forward(x).double().softmax(1).numpy()
        return np.asarray(np.pad(out, ((0, 0), (0, classes - out.shape[1]))))

    def _forward(self, x: NDArray[np.float64]) -> Tensor:
        if self._net is None:
            raise ValueError(message("Network.predict", "the model must have learned", "a new one", "Call learn."))
        with torch.no_grad():
            return torch.as_tensor(self._net(self._scaled(torch.as_tensor(x, dtype=torch.float32))))

    def _step(self, x: Tensor, y: Tensor) -> None:
        assert self._net is not None
        assert self._adam is not None
        out = self._net(x)
        if self.task == "classification":
            loss = nn.functional.cross_entropy(out, y)
        else:
            loss = nn.functional.smooth_l1_loss(out[:, 0], y)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    def _scale(self, x: Tensor, y: Tensor) -> None:
        """Mean and sum of squares about it of the features and the target, with this batch."""
        values = torch.cat([x.double(), y.double()[:, None]], 1)
        if not self._count:
            self._mean, self._squares = values.new_zeros(values.shape[1]), values.new_zeros(values.shape[1])
            self._seen_x, self._seen_y = x[:0], y[:0]
        total = self._count + len(values)
        away = values.mean(0) - self._mean
        self._squares += (values - values.mean(0)).square().sum(0) + away.square() * self._count * len(values) / total
        self._mean += away * len(values) / total
        self._count = total

    def _spread(self) -> Tensor:
        spread = (self._squares / self._count).sqrt().float()
        return torch.where(spread > 1e-6 * (1 + self._mean.abs().float()), spread, torch.ones(()))

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self._mean[:-1].float()) / self._spread()[:-1]

    def _target_scale(self) -> tuple[float, float]:
        return float(self._spread()[-1]), float(self._mean[-1])

    def _grow(self, features: int, outputs: int) -> None:
        """Make the net, or one with more outputs that keeps what is there."""
        last = None if self._net is None else self._net[-1]
        if isinstance(last, nn.Linear) and last.out_features >= outputs:
            return
        if self._net is None:
            widths = [features, *self.hidden]
            pairs = itertools.pairwise(widths)
            layers = [layer for a, b in pairs for layer in (self._linear(a, b), nn.ReLU())]
            self._net = nn.Sequential(*layers, self._output(widths[-1], outputs))
        elif isinstance(last, nn.Linear):
            wide = self._output(last.in_features, outputs)
            with torch.no_grad():
                wide.weight[: last.out_features], wide.bias[: last.out_features] = last.weight, last.bias
            self._net[-1] = wide
        self._adam = torch.optim.Adam(self._net.parameters(), self.lr, fused=True)

    def _output(self, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        return layer

    def _linear(self, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        bound = 1 / max(1, inputs) ** 0.5
        with torch.no_grad():
            for values in (layer.weight, layer.bias):
                values.copy_(torch.as_tensor(self._draws.uniform(-bound, bound, tuple(values.shape))))
        return layer
