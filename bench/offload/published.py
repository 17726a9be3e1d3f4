# SPDX-License-Identifier: Apache-2.0
"""The paper's throughput table from its published times, simulated. LSP-Offload specification, 10.4 and item 15.

    python -m bench.offload.published

Two tables. The first repeats the paper: ZeRO-Offload ships fp32 both ways (as its authors' version did, section 9.7),
LSP ships fp32, makes its projectors dense and switches by their formula. The second is ours: half-precision wire,
sparse projectors at no gain and no loss of device time, the chosen policy, against a fair ZeRO-Offload with
half-precision wire. Everything is simulated from these inputs, but the ratio that is emulated on a scaled-down machine.

Where the inputs come from (sections 5.4, 6, 9.10, 10.3, 10.4 of the specification):
    device seconds   7B: per layer, table 1. Others: published seconds of a ZeRO step over the published "native", of
                     which the update is taken as 2.4 %, as for 7B. (The 7.9 ms a layer of table 5 would make the update
                     of the 1.3B model as long as all the rest, which its "native" of 4.2 excludes.)
                     Forward to backward as 12.2 : 28.1 (7B) and 4.5 : 8.7 (others).
    apply            as the update on the device, since both go over all weights once.
    CPU seconds      7B: 60 ms a layer; 3B by parameters from it. 1.3B: 0.62 s of figure 6, since the 80 ms a layer of
                     table 5 (3.2 s a step) contradict the 1.5 s of a step there. 774M: the same table 5 by parameters,
                     since figure 6 by parameters (0.37 s) contradicts the 3.14 s of a step.
    link             15 GB/s (10 to 20 published) and 12.5 GB/s (10 to 15).

What does not fit, and why: "layer-wise" is simulated at 1.5 to 1.9 and published at 1.15 to 1.2, since the authors' CPU
work runs in hooks of the main thread with delays set by hand (section 9.8) and not as soon as it can. For the 1.3B and
3B models the published ZeRO is slower than its own published parts allow by a fifth, so all their columns come out low.
Those of the 774M model come out high: its published LSP step takes 1.3 times its published native one, at any d, which
the arithmetic of dense projectors does not explain.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.offload.simulate import emulate
from edgeops.offload.schedule import Policy, Profile, transition_layer
from edgeops.offload.simulate import choose, simulate

WIDTHS = (2048, 1024, 512, 256)
RANK = 4


@dataclass(frozen=True)
class Setting:
    """A model on a machine; `published` has the columns of section 10.4, `slowdown` is ZeRO over device compute."""

    name: str
    layers: int
    matrices: tuple[tuple[int, int], ...]
    parameters: float
    tokens: int
    device: float
    forward_share: float
    device_update: float
    cpu: float
    link: float
    slowdown: float
    published: tuple[float, ...]

    @property
    def in_matrices(self) -> int:
        return sum(m * n for m, n in self.matrices)

    def profile(self, down: float, cpu: float, extra: float = 0.0, apply: float = 0.0) -> Profile:
        """`down`: bytes a layer each way; `cpu`: seconds a step; `extra`: device seconds a step besides."""
        each = (self.device * self.forward_share, self.device * (1 - self.forward_share) + extra)
        wire = down / self.link
        forward, backward, update = (seconds / self.layers for seconds in (*each, cpu))
        on_device = self.device_update / self.layers
        return Profile(forward, backward, wire, update, wire, apply=apply, device_update=on_device, layers=self.layers)

    def zero(self, width: int) -> Profile:
        """Full gradients down and full parameters up, `width` bytes each."""
        return self.profile(width * self.parameters / self.layers, self.cpu)

    def lsp(self, d: int, width: int, dense: bool) -> Profile:
        """Subspaces of d, `width` bytes an element on the wire; with dense projectors, their arithmetic besides."""
        sides = [min(d, m, n) for m, n in self.matrices]
        elements = sum(side**2 for side in sides)
        cpu = self.cpu * elements * self.layers / self.parameters
        extra, apply = 0.0, self.device_update / self.layers
        if dense:
            # of a step with recomputation, 8 operations a token and parameter, as seconds an operation
            rate = self.device / (8 * self.tokens * self.in_matrices * self.layers)
            more = sum(
                2 * self.tokens * (side * (m + n) + side**2 - m * n) + 2 * m * side * (side + n)
                for (m, n), side in zip(self.matrices, sides)
            )
            # smaller d saves arithmetic on paper; the published times at d=256 are no better than native
            extra = max(more * rate * self.layers, 0.0)
        return self.profile(width * elements, cpu, extra, apply)


def _gpt2(width: int) -> tuple[tuple[int, int], ...]:
    return ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))


def _llama(width: int, inner: int) -> tuple[tuple[int, int], ...]:
    return ((width, width),) * 4 + ((width, inner),) * 2 + ((inner, width),)


SHARE, SHARE_7B = 4.5 / 13.2, 12.2 / 40.3
SETTINGS = (
    Setting("GPT2-774M, 4 GB", 36, _gpt2(1280), 774e6, 2048, 3.14 / 2.7 / 1.024, SHARE, 3.14 / 2.7 * 0.024,
            0.08 * 40 * 0.774 / 1.3, 12.5e9, 2.43, (1.2, 1.4, 1.6, 2.03, 2.15, 2.7)),
    Setting("GPT2-1.3B, 4 GB", 40, _gpt2(1600), 1.3e9, 384, 1.50 / 4.2 / 1.024, SHARE, 1.50 / 4.2 * 0.024,
            0.62, 12.5e9, 4.28, (1.15, 1.2, 2.4, 3.09, 3.5, 4.2)),
    Setting("Llama-3B, 24 GB", 26, _llama(3200, 8640), 3.43e9, 8192, 3.63 / 2.05 / 1.024, SHARE, 3.63 / 2.05 * 0.024,
            1.92 * 3.43 / 6.74, 15e9, 1.93, (1.2, 1.65, 1.9, 2.04, 2.07, 2.05)),
    Setting("Llama-7B, 24 GB", 32, _llama(4096, 11008), 7e9, 4096, 32 * 40.3e-3, SHARE_7B, 0.032,
            1.92, 15e9, 3.38, (1.15, 2.4, 3.05, 3.33, 3.35, 3.3)),
)  # fmt: skip
COLUMNS = ("layer-wise", *(f"d={d}" for d in WIDTHS), "native")


def theirs(setting: Setting) -> tuple[float, list[float]]:
    """ZeRO over device compute, and the columns over ZeRO, by the authors' conventions."""
    zero = setting.zero(4)
    slow = simulate(zero, "zero").step_seconds

    def switched(profile: Profile) -> float:
        return simulate(profile, Policy("transition", transition_layer(profile))).step_seconds

    times = [
        switched(zero),
        *(switched(setting.lsp(d, 4, True)) for d in WIDTHS),
        simulate(zero, "native").step_seconds,
    ]
    return slow / setting.device, [slow / seconds for seconds in times]


def ours(setting: Setting) -> tuple[float, list[float]]:
    """Fair ZeRO over device compute, and the columns over it, by our conventions."""
    zero = setting.zero(2)
    slow = simulate(zero, "zero").step_seconds
    profiles = [zero, *(setting.lsp(d, 2, False) for d in WIDTHS)]
    times = [simulate(p, choose(p)).step_seconds for p in profiles] + [simulate(zero, "native").step_seconds]
    return slow / setting.device, [slow / seconds for seconds in times]


def hides(profile: Profile) -> bool:
    """Whether compute is the busiest and nothing but the first layer's own way can stick out."""
    busy = profile.busy()
    return max(busy["down"], busy["cpu"], busy["up"]) <= profile.total("backward")


def grouped(profile: Profile, layers: int, scale: float) -> Profile:
    """Layers put together to `layers` groups, all durations scaled: what an emulation can follow."""
    return Profile.of_seconds(profile.seconds.reshape(7, layers, -1).sum(2) * scale)


def emulated_ratio() -> tuple[float, float]:
    """d=512 over fair ZeRO for the 7B model in eight groups at half the time: emulated and simulated."""
    setting = SETTINGS[-1]
    zero, lsp = (grouped(p, 8, 0.5) for p in (setting.zero(2), setting.lsp(512, 2, False)))
    seen, told = [], []
    for profile, policy in ((zero, Policy("zero")), (lsp, choose(lsp))):
        seen.append(sum(emulate(profile, policy, 2).steps))
        told.append(sum(simulate(profile, policy, steps=2).steps))
    return seen[0] / seen[1], told[0] / told[1]


def figures() -> dict[str, float]:
    """Item 15."""
    gains, shares, off, off_7b = [], [], [], []
    at = COLUMNS.index("d=512")
    for setting in SETTINGS:
        slowdown, columns = ours(setting)
        if slowdown >= 1.9:
            gains.append(columns[at])
        for d in WIDTHS:
            profile = setting.lsp(d, 2, False)
            if hides(profile):
                native = simulate(profile, "native").step_seconds
                shares.append(native / simulate(profile, choose(profile)).step_seconds)
        differences = [abs(got / want - 1) for got, want in zip(theirs(setting)[1], setting.published)]
        off += differences
        off_7b += differences[2:] if setting is SETTINGS[-1] else []
    emulated, simulated = emulated_ratio()
    print(f"  published columns off by {100 * max(off):.0f} % at most, {100 * sum(off) / len(off):.0f} % on average")
    print(f"  7B, d=512 over fair ZeRO: emulated {emulated:.3f}, simulated {simulated:.3f}")
    return {
        "d=512 over fair ZeRO, least where that is 1.9x slower": min(gains),
        "share of native where all hides, least": min(shares),
        "d=512 over fair ZeRO, emulated over simulated, off by": abs(emulated / simulated - 1),
        "7B, authors' conventions, d <= 1024 and native, off by": max(off_7b),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    head = "".join(f"{name:>12s}" for name in ("ZeRO/device", *COLUMNS))
    for title, way in (
        ("authors' conventions, simulated / published", theirs),
        ("ours against fair ZeRO, simulated", ours),
    ):
        print(f"\n{title}\n{'':18s}{head}")
        for setting in SETTINGS:
            slowdown, columns = way(setting)
            pairs = zip((slowdown, *columns), (setting.slowdown, *setting.published))
            cells = [f"{got:.2f}/{want:.2f}" if way is theirs else f"{got:.2f}" for got, want in pairs]
            print(f"{setting.name:18s}" + "".join(f"{cell:>12s}" for cell in cells))
    print()
    for name, value in figures().items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
