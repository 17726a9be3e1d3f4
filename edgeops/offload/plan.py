# SPDX-License-Identifier: Apache-2.0
"""What fits on a device, how fast it trains and by which means, before anything is bought. LSP-Offload, sections 5, 7.

Bytes follow from the model's shapes. Seconds are simulated from the speeds of compute, memory, link and CPU, so they
are no better than these; ratios between the ways are better than the seconds themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from edgeops._common import message
from edgeops.offload.quantities import quantity, short
from edgeops.offload.schedule import Policy, Profile
from edgeops.offload.shapes import ModelShape, model_shape
from edgeops.offload.simulate import choose, simulate, switches
from edgeops.offload.trace import Event
from edgeops.perf import sgemm_roof

# Bytes a parameter on the device under plain AdamW: half-precision weight and gradient, fp32 moments.
_WEIGHT, _GRADIENT, _MOMENTS = 2, 2, 8
_MASTER = 12  # on the host under ZeRO-Offload: fp32 weight and moments
_ADAM_TRAFFIC = 22  # read and written by a fused AdamW on the device
_CPU_TRAFFIC = 28  # by one on the CPU with fp32 weights
_CLOSE = 1.05
_SLOTS_COST = 1.02


@dataclass(frozen=True)
class Machine:
    """Speeds and sizes, in bytes, bytes/s and operations/s."""

    memory: float
    down: float
    up: float
    compute: float
    device_bandwidth: float
    cpu_bandwidth: float
    host_memory: float | None
    reserve: float


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        method: `"AdamW"` all on the device, `"ZeRO"`, `"ZeRO, layer-wise"` or `"LSP"`.
        d, r, slots: of LSP; 0 for the others.
        device: bytes on the device by what they hold; `device_bytes` is their sum.
        host_bytes: optimizer state and buffers on the host.
        down_bytes, up_bytes: over the link in a step.
        policy: of the schedule.
        step_seconds, tokens_per_s: simulated.
        fits: in the device's memory, and in the host's where that is known.
        profile: the durations behind the seconds.
    """

    method: str
    d: int
    r: int
    slots: int
    device: dict[str, float]
    host_bytes: float
    down_bytes: float
    up_bytes: float
    policy: str
    step_seconds: float
    tokens_per_s: float
    fits: bool
    profile: Profile = field(repr=False)

    @property
    def device_bytes(self) -> float:
        return sum(self.device.values())

    @property
    def name(self) -> str:
        return f"{self.method} d={self.d} r={self.r}" if self.d else self.method


@dataclass(frozen=True)
class Plan:
    """What `plan` found. `ways` are in the order AdamW, ZeRO, LSP; `choice` is the name of one of them,
    `"leave it"` where plain AdamW fits, or `"none"` where nothing does.

    All seconds and tokens/s in it are simulated.
    """

    model: str
    parameters: int
    layers: int
    batch: int
    tokens: int
    machine: Machine
    assumed: tuple[str, ...]
    ways: tuple[Way, ...]
    choice: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """All facts as JSON types."""
        ways = [
            {f.name: getattr(way, f.name) for f in fields(way) if f.name != "profile"}
            | {"name": way.name, "device_bytes": way.device_bytes}
            for way in self.ways
        ]
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {
            "machine": asdict(self.machine),
            "ways": ways,
            "assumed": list(self.assumed),
            "label": "simulated",
        }

    def timeline(self, steps: int = 2) -> tuple[Event, ...]:
        """What would run when, of the choice or, without one, of the last way."""
        otherwise = self.ways[-1 if self.choice == "none" else 0]
        way = next((way for way in self.ways if way.name == self.choice), otherwise)
        return simulate(way.profile, way.policy, steps=steps, timeline=True, slots=way.slots or None).events

    def __str__(self) -> str:
        rows = [
            f"{way.name:20s} {short(way.device_bytes, 'B'):>8s} device {short(way.host_bytes, 'B'):>8s} host "
            f"{way.step_seconds:8.3g} s/step {way.tokens_per_s:8.3g} tokens/s  {'fits' if way.fits else 'too large'}"
            for way in self.ways
        ]
        return "\n".join([f"{self.model}: {self.parameters:,} parameters (simulated)", *rows, self.conclusion])

    @property
    def conclusion(self) -> str:
        """The choice and why."""
        return f"=> {self.choice}: {self.reason}"


@dataclass(frozen=True)
class _Load:
    """A model, a batch and a machine: the durations and bytes that every way shares."""

    shape: ModelShape
    machine: Machine
    batch: int
    tokens: int
    checkpointing: bool
    tables: bool

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    def shared_bytes(self) -> dict[str, float]:
        shape, rows = self.shape, self.rows
        # of a layer, for every token: each matrix' outputs, the widest one's input, and what the two norms keep
        kept = [sum(n for _, n in layer) + max(m for m, _ in layer) + 2 * shape.hidden for layer in shape.layers]
        if self.checkpointing:
            elements = rows * (len(shape.layers) * shape.hidden + max(kept))
        else:
            elements = rows * sum(kept)
        trained = shape.vectors + (shape.tables if self.tables else 0)
        return {
            "weights": float(_WEIGHT * shape.parameters),
            "activations": float(2 * elements + 8 * rows * shape.vocab),
            "norms, biases" + (" and tables: AdamW" if self.tables else ": AdamW"): float(
                trained * (_GRADIENT + _MOMENTS)
            ),
            "reserve": self.machine.reserve,
        }

    def compute(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Seconds of forward and backward by layer, with full weight gradients."""
        rows, rate = self.rows, self.machine.compute
        attention = 4 * rows * self.tokens * self.shape.hidden
        forward = self.per_layer(lambda m, n: 2 * rows * m * n) + attention
        backward = forward * (3 if self.checkpointing else 2)
        head = 2.0 * rows * self.shape.hidden * self.shape.vocab
        forward[-1] += head
        backward[-1] += 2 * head
        return forward / rate, backward / rate

    def per_layer(self, cost: Any) -> np.ndarray[Any, Any]:
        """`cost(m, n)` summed over each layer's matrices."""
        return np.array([sum(cost(m, n) for m, n in layer) for layer in self.shape.layers], float)

    def small_update(self) -> float:
        """Seconds of AdamW for what is not in the layers' matrices."""
        trained = self.shape.vectors + (self.shape.tables if self.tables else 0)
        return _ADAM_TRAFFIC * trained / self.machine.device_bandwidth

    def way(
        self, method: str, device: dict[str, float], host: float, profile: Profile, policy: Policy, **more: Any
    ) -> Way:
        found = simulate(profile, policy, slots=more.get("slots"))
        seconds = found.step_seconds + self.small_update()
        all_device = self.shared_bytes() | device
        fits = sum(all_device.values()) <= self.machine.memory
        fits = fits and (self.machine.host_memory is None or host <= self.machine.host_memory)
        sizes = {"d": 0, "r": 0, "slots": 0, "down_bytes": 0.0, "up_bytes": 0.0} | more
        return Way(
            method=method, device=all_device, host_bytes=float(host), policy=str(policy), step_seconds=seconds,
            tokens_per_s=self.rows / seconds, fits=fits, profile=profile, **sizes,
        )  # fmt: skip

    def native(self) -> Way:
        forward, backward = self.compute()
        update = self.per_layer(lambda m, n: _ADAM_TRAFFIC * m * n) / self.machine.device_bandwidth
        profile = Profile(forward, backward, 0.0, 0.0, 0.0, device_update=update)
        state = float((_GRADIENT + _MOMENTS) * self.shape.in_layers)
        return self.way("AdamW", {"gradients and moments": state}, 0.0, profile, Policy("native"))

    def zero(self) -> list[Way]:
        forward, backward = self.compute()
        sizes = self.per_layer(lambda m, n: m * n)
        machine = self.machine
        profile = Profile(
            forward,
            backward,
            _GRADIENT * sizes / machine.down,
            _CPU_TRAFFIC * sizes / machine.cpu_bandwidth,
            _WEIGHT * sizes / machine.up,
        )
        # a layer's gradient in the making and one on its way
        device = {"gradients": float(2 * _GRADIENT * sizes.max())}
        host = float((_MASTER + _GRADIENT) * self.shape.in_layers)
        moved = {"down_bytes": float(_GRADIENT * sizes.sum()), "up_bytes": float(_WEIGHT * sizes.sum())}
        ways = (("ZeRO", Policy("zero")), ("ZeRO, layer-wise", choose(profile)))
        return [self.way(method, device, host, profile, policy, **moved) for method, policy in ways]

    def lsp(self, d: int, r: int, wire: int, slots: int | None) -> Way:
        machine, rows = self.machine, self.rows

        def side(m: int, n: int) -> int:
            return min(d, m, n)

        forward, backward = self.compute()
        elements = self.per_layer(lambda m, n: side(m, n) ** 2)
        # the full weight gradient is never formed; rows are projected by reading them, and multiplied at width d
        saved = self.per_layer(lambda m, n: 2 * rows * m * n) / machine.compute
        project = self.per_layer(lambda m, n: 2 * rows * (m + n + 2 * side(m, n))) / machine.device_bandwidth
        thin = 2 * rows * elements / machine.compute
        both = self.per_layer(lambda m, n: 2 * _WEIGHT * m * n) / machine.device_bandwidth
        spread = self.per_layer(lambda m, n: 2 * r * m * (side(m, n) + n)) / machine.compute
        profile = Profile(
            forward,
            backward - saved,
            wire * elements / machine.down,
            (16 + 2 * wire) * elements / machine.cpu_bandwidth,
            wire * elements / machine.up,
            compress=project + thin,
            apply=both + spread,
        )
        held = slots or self.few_slots(profile)
        index = 2 if d <= 2**15 - 1 else 4
        projectors = float(sum(r * (m + n) * (index + 2) for layer in self.shape.layers for m, n in layer))
        device = {"projectors": projectors, "staging": float((held + 1) * wire * elements.max())}
        host = float((_MOMENTS + wire) * elements.sum())
        moved = dict.fromkeys(("down_bytes", "up_bytes"), float(wire * elements.sum()))
        return self.way("LSP", device, host, profile, choose(profile, slots=held), d=d, r=r, slots=held, **moved)

    def few_slots(self, profile: Profile) -> int:
        """The fewest of 2, 4, 8, ... slots that cost little time."""
        layers = len(self.shape.layers)
        free = float(switches(profile).min())
        counts = (2**power for power in range(1, layers.bit_length()))
        return next((n for n in counts if float(switches(profile, n).min()) <= _SLOTS_COST * free), layers)


def _advise(ways: Sequence[Way], machine: Machine) -> tuple[str, str]:
    native, zeros, lsps = ways[0], [w for w in ways if w.method.startswith("ZeRO")], [w for w in ways if w.d]
    fitting = [way for way in ways if way.fits]
    if not fitting:
        least = min(ways, key=lambda way: way.device_bytes)
        over = least.device_bytes - machine.memory
        if over <= 0:
            return "none", f"{least.name} needs {short(least.host_bytes, 'B')} on the host, which has less"
        advice = "use a smaller batch, fewer tokens or checkpointing"
        return "none", f"the smallest, {least.name}, is {short(over, 'B')} over the device's memory: {advice}"
    best = min(fitting, key=lambda way: way.step_seconds)
    if native.fits:
        gain = native.step_seconds / best.step_seconds
        rest = "and is the fastest" if best is native else f"and is exact; {best.name} would be {gain:.2f}x as fast"
        return "leave it", f"plain AdamW fits {rest}"
    exact = min((way for way in zeros if way.fits), key=lambda way: way.step_seconds, default=None)
    if exact is not None and exact.step_seconds <= 1.1 * best.step_seconds:
        return exact.name, "its updates are those of AdamW, and nothing that fits is more than 1.10x as fast"
    near = [way for way in lsps if way.fits and way.step_seconds <= _CLOSE * best.step_seconds]
    if not near:
        return best.name, "the fastest that fits"
    chosen = max(near, key=lambda way: (way.d, -way.r))
    share = native.step_seconds / chosen.step_seconds
    beat = f", {exact.step_seconds / chosen.step_seconds:.2f}x as fast as ZeRO-Offload" if exact is not None else ""
    reason = f"the widest subspace within 5 % of the fastest that fits: {share:.0%} of the speed of AdamW"
    return chosen.name, reason + beat


def _measured_compute() -> float:
    """Operations a second of a large product here."""
    return 1e9 * sgemm_roof()


def plan(
    model: Any,
    memory: str | float,
    link: str | float,
    *,
    up_link: str | float | None = None,
    batch: int = 1,
    tokens: int = 512,
    compute: str | float | None = None,
    device_bandwidth: str | float = "300GB/s",
    cpu_bandwidth: str | float = "20GB/s",
    host_memory: str | float | None = None,
    reserve: str | float = "400MB",
    d: Sequence[int] | None = None,
    r: Sequence[int] = (4,),
    wire: str = "bf16",
    slots: int | None = None,
    checkpointing: bool = True,
    train_tables: bool = False,
) -> Plan:
    """Plan the fine-tuning of a model in half precision on a small device.

    Args:
        model: whatever `model_shape` takes.
        memory: of the device, as `"4GB"` or bytes.
        link: from device to host, as `"12GB/s"`; `up_link` is the other direction, by default as fast.
        batch, tokens: sequences a step and tokens in each.
        compute: what the device reaches in large products, as `"50TFLOPS"`; `None` measures this machine's CPU.
        device_bandwidth, cpu_bandwidth: of the memories, as they are reached.
        host_memory: where it is scarce.
        reserve: device memory for the driver and the allocator.
        d, r: subspaces to try. By default d of 256, 512, 1024, 2048 and half the width, as far as these are below the
            width.
        wire: `"bf16"` or `"fp32"`, of gradients and updates on the link under LSP.
        slots: updates that lie on the device at once (see `Pipeline`); by default the fewest of 2, 4, 8, ... that cost
            no more than 2 % of the speed.
        checkpointing: keep one activation a layer and compute the others again in the backward.
        train_tables: train embeddings and head too, with AdamW on the device; otherwise they are frozen, in every way.

    Returns:
        A `Plan`: plain AdamW, ZeRO-Offload (as published, and layer by layer), and LSP at every d and r.

    Raises:
        ValueError: an amount, count or name that makes no sense.
        ImportError: transformers is needed for the model, or the native runtime, and not installed.

    >>> found = plan("hidden=2048,layers=24,vocab=50257,tied=1", "4GB", "12GB/s", compute="10TFLOPS")
    >>> [way.fits for way in found.ways[:3]], found.choice
    ([False, True, True], 'LSP d=1024 r=4')
    """
    who = "plan"
    shape = model_shape(model)
    assumed = []
    if compute is None:
        compute = _measured_compute()
        assumed.append(f"compute: {short(compute, 'FLOPS')} measured on this machine's CPU")
    down = quantity(link, "B/s", who)
    machine = Machine(
        memory=quantity(memory, "B", who),
        down=down,
        up=down if up_link is None else quantity(up_link, "B/s", who),
        compute=quantity(compute, "FLOPS", who),
        device_bandwidth=quantity(device_bandwidth, "B/s", who),
        cpu_bandwidth=quantity(cpu_bandwidth, "B/s", who),
        host_memory=None if host_memory is None else quantity(host_memory, "B", who),
        reserve=quantity(reserve, "B", who),
    )
    if wire not in ("bf16", "fp32"):
        raise ValueError(message(who, "wire must be 'bf16' or 'fp32'", repr(wire), "Pick one."))
    widths = sorted({256, 512, 1024, 2048, shape.hidden // 2}) if d is None else list(d)
    widths = [width for width in widths if d is not None or 0 < width < shape.hidden]
    counts = [
        ("batch", batch),
        ("tokens", tokens),
        ("slots", 1 if slots is None else slots),
        *(("d", w) for w in widths),
        *(("r", x) for x in r),
    ]
    for name, count in counts:
        if not isinstance(count, int) or count < 1:
            raise ValueError(message(who, f"{name} must be an integer of 1 or more", repr(count), "Leave it out."))
    if widths and max(r, default=0) > min(widths):
        rule, got = "r must not be above d", f"r={max(r)} with d={min(widths)}"
        raise ValueError(message(who, rule, got, "Use r of 4 to 16."))
    load = _Load(shape, machine, batch, tokens, checkpointing, train_tables)
    ways = [load.native(), *load.zero()]
    ways += [load.lsp(width, nonzeros, 2 if wire == "bf16" else 4, slots) for width in widths for nonzeros in r]
    choice, reason = _advise(ways, machine)
    assumed += [
        f"device memory {short(machine.device_bandwidth, 'B/s')}, CPU memory {short(machine.cpu_bandwidth, 'B/s')}",
        "half-precision weights, fp32 moments; activations estimated from the matrices, "
        + ("one kept a layer" if checkpointing else "all kept"),
        "embeddings and head " + ("trained with AdamW on the device" if train_tables else "frozen in every way"),
    ]
    sizes = (shape.name, shape.parameters, len(shape.layers), batch, tokens)
    return Plan(*sizes, machine, tuple(assumed), tuple(ways), choice, reason)
