# SPDX-License-Identifier: Apache-2.0
"""One DriftSurf at a federated server, and each client's own report beside it. Drift spec, section 14, item 16.

`python -m bench.drift.federated [--sets SEA SINE CIRCLE] [--patterns A C few] [--seeds 1] [--rounds 30] [--z 0]`

Ten clients, eleven time steps, 500 points a client and step; which concept a client is in at a step says a matrix of
`shared/data/federated/changepoints`, or the pattern "few": two of ten clients change at step 4 and stay. Models are
networks of d inputs, 2d hidden units and two outputs, trained by FedAvg with Adam; the server keeps the two models of
`PooledMonitor`. Per step: the pooled error, what the server decided, and the clients whose report (`ClientMonitor`)
says drift, a star at those that did.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edgeops.drift.pooled import (
    CLIENT_DELTA,
    FEDERATED_DELTA,
    ClientMonitor,
    ClientReport,
    PooledMonitor,
    drifted,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "federated" / "changepoints"
POINTS, LOCAL_STEPS, LR, DECAY = 500, 5, 0.01, 1e-3
FEW = tuple(tuple(int(t >= 4 and c in (2, 7)) for c in range(10)) for t in range(11))
"""Two of ten clients change at step 4."""
SEA_THETAS = (8.0, 9.0, 7.0, 9.5)
CENTRES = ((0.2, 0.5, 0.15), (0.6, 0.5, 0.25))


def _sea(concept: int, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 10 * torch.rand(n, 3, generator=g)
    noise = torch.rand(n, generator=g) < 0.1
    return x, ((x[:, 1] + x[:, 2] > SEA_THETAS[concept]) ^ noise).long()


def _sine(concept: int, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 2, generator=g)
    return x, ((x[:, 1] <= x[:, 0].sin()) ^ bool(concept % 2)).long()


def _circle(concept: int, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 2, generator=g)
    a, b, r = CENTRES[concept % 2]
    return x, ((x - torch.tensor([a, b])).square().sum(1) > r * r).long()


SETS: dict[str, tuple[int, Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]]] = {
    "SEA": (3, _sea),
    "SINE": (2, _sine),
    "CIRCLE": (2, _circle),
}
"""Set -> features, and points of a concept. SEA has 10 % of labels turned round."""


def read_pattern(path: Path) -> tuple[tuple[int, ...], ...]:
    """A matrix of concepts, `[steps][clients]`."""
    return tuple(tuple(map(int, line.split())) for line in path.read_text().splitlines() if line.strip())


class Model:
    """A network of one hidden layer; `rounds` of FedAvg over stacked copies of it, one a client."""

    def __init__(self, features: int, g: torch.Generator) -> None:
        shapes = ((features, 2 * features), (2 * features,), (2 * features, 2), (2,))
        bounds = (features**-0.5, features**-0.5, (2 * features) ** -0.5, (2 * features) ** -0.5)
        self.weights = [(2 * torch.rand(s, generator=g) - 1) * b for s, b in zip(shapes, bounds, strict=True)]

    @staticmethod
    def _outputs(weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """`[clients, n, 2]`, or without clients."""
        first, a, second, b = weights
        return torch.relu(x @ first + a.unsqueeze(-2)) @ second + b.unsqueeze(-2)

    def wrong(self, x: Tensor, y: Tensor) -> Tensor:
        """1 for each wrong prediction, `[..., n]`."""
        return (self._outputs(self.weights, x).argmax(-1) != y).double()

    def train(self, x: Tensor, y: Tensor, rounds: int) -> None:
        """FedAvg on `[clients, n, features]`: a few steps of Adam at each client, then the mean."""
        clients = len(x)
        for _ in range(rounds):
            local = [w.expand(clients, *w.shape).clone().requires_grad_() for w in self.weights]
            adam = torch.optim.Adam(local, lr=LR, weight_decay=DECAY, amsgrad=True, foreach=True)
            for _ in range(LOCAL_STEPS):
                adam.zero_grad()
                out = self._outputs(local, x)
                loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none")
                loss.view(clients, -1).mean(1).sum().backward()
                adam.step()
            self.weights = [w.detach().mean(0) for w in local]


@dataclass
class Step:
    """What was seen and decided at a time step."""

    t: int
    errors: dict[str, float]
    event: str
    served: float
    reports: dict[int, ClientReport] = field(default_factory=dict)
    changed: tuple[int, ...] = ()


def simulate(
    name: str,
    pattern: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    rounds: int = 30,
    z: float = 0.0,
    points: int = POINTS,
) -> list[Step]:
    """Every time step after the first.

    Args:
        name: of `SETS`.
        pattern: concept of each client at each step.
        seed: of points and weights.
        rounds: of FedAvg a step.
        z: of `ClientMonitor`.
        points: of a client at a step.
    """
    features, draw = SETS[name]
    g = torch.Generator().manual_seed(seed)
    drawn = [[draw(concept, points, g) for concept in row] for row in pattern]
    scale = 10.0 if name == "SEA" else 1.0
    x = [torch.stack([part[0] for part in row]) / scale for row in drawn]
    y = [torch.stack([part[1] for part in row]) for row in drawn]
    monitor = PooledMonitor(delta=FEDERATED_DELTA[name])
    clients = [ClientMonitor(CLIENT_DELTA[name], z=z) for _ in pattern[0]]
    models = {role: Model(features, g) for role in monitor.train}

    def learn() -> None:
        for role, steps in monitor.train.items():
            models[role].train(torch.cat([x[s] for s in steps], 1), torch.cat([y[s] for s in steps], 1), rounds)

    learn()
    for c, client in enumerate(clients):
        client.observe({role: model.wrong(x[0][c], y[0][c]) for role, model in models.items()})
    seen = []
    for t in range(1, len(pattern)):
        wrong = {role: model.wrong(x[t], y[t]) for role, model in models.items()}
        errors = {role: float(part.mean()) for role, part in wrong.items()}
        reports = {
            c: client.observe({role: part[c] for role, part in wrong.items()}) for c, client in enumerate(clients)
        }
        served = errors[monitor.serve]
        needed = {role: errors[role] for role in ("stable", "reactive") if role in errors}
        decision = monitor.step(errors["model"], **needed)
        if decision.event == "switch":
            models["model"] = models["reactive"]
        for role in decision.fresh:
            models[role] = Model(features, g)
        models = {role: model for role, model in models.items() if role in monitor.train}
        changed = tuple(
            c for c, (now, before) in enumerate(zip(pattern[t], pattern[t - 1], strict=True)) if now != before
        )
        seen.append(Step(t, errors, decision.event, served, reports, changed))
        learn()
    return seen


def found(steps: Sequence[Step]) -> tuple[int, int, int]:
    """Changes of clients, how many of them their reports told, and reports of drift where none was."""
    told = [(c in step.changed) for step in steps for c in drifted(step.reports)]
    return sum(len(step.changed) for step in steps), sum(told), len(told) - sum(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--patterns", nargs="*", default=["few", "A", "C"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--z", type=float, default=0.0)
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.sets:
        for which in given.patterns:
            file = given.data / f"{which}.cp"
            if which != "few" and not file.exists():
                print(f"{name} {which}: skipped, {file.name} is not in the data folder")
                continue
            pattern = FEW if which == "few" else read_pattern(file)
            steps = simulate(name, pattern, seed=given.seed, rounds=given.rounds, z=given.z)
            print(f"\n{name}, pattern {which}: step, served error, server, clients that report drift (* changed)")
            for step in steps:
                told = " ".join(f"{c}{'*' if c in step.changed else ''}" for c in drifted(step.reports)) or "-"
                missed = [c for c in step.changed if c not in drifted(step.reports)]
                rest = f"   changed unreported: {' '.join(map(str, missed))}" if missed else ""
                print(f"{step.t:3} {step.served:7.3f}  {step.event:7} {told}{rest}")
            changes, right, false = found(steps)
            trials = [step.t for step in steps if step.event == "enter"]
            print(
                f"    {changes} changes, {right} reported, {false} reports without one; server's trials at {trials}",
                flush=True,
            )


if __name__ == "__main__":
    main()
