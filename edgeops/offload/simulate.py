# SPDX-License-Identifier: Apache-2.0
"""How long a step takes under a policy, before anything is bought or run. LSP-Offload (AAAI 2025), equations 1 and 4.

Durations go in, a step time comes out: of an event simulation of four serial resources, and as bounds in closed form.
Which policy is best depends on the durations (the paper's own formula loses to plain LCFS for its largest model), so
`choose` tries them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgeops._common import message
from edgeops.offload._runtime import runtime
from edgeops.offload.schedule import RESOURCE_OF, STAGES, Policy, Profile
from edgeops.offload.trace import Event, chrome_trace

# Updates that are a step late carry work over into the next step: the steps settle only after some.
_STALE_STEPS = 64
_VARIATIONS = 8


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found; every figure is simulated.

    Attributes:
        policy: that was simulated.
        step_seconds: of a step in the steady state.
        steps: seconds of each simulated step, from backward to backward.
        busy: seconds a step by resource.
        events: what ran when, if asked for.
    """

    policy: Policy
    step_seconds: float
    steps: tuple[float, ...]
    busy: dict[str, float]
    events: tuple[Event, ...] = field(default=(), repr=False)

    @property
    def utilisation(self) -> dict[str, float]:
        """Part of a step in which each resource works, 0 to 1."""
        return {name: seconds / self.step_seconds if self.step_seconds else 0.0 for name, seconds in self.busy.items()}

    def to_trace(self) -> dict[str, object]:
        """The events for ui.perfetto.dev; needs `timeline=True`."""
        return chrome_trace(self.events, "simulated")


def _native(profile: Profile, steps: int, timeline: bool) -> Simulation:
    """Compute alone: forward, backward, and the update on the spot."""
    own = float(profile.forward.sum() + profile.backward.sum() + profile.device_update.sum())  # type: ignore[union-attr]
    events, now = [], 0.0

    def ran(stage: str, layer: int, step: int, seconds: float) -> None:
        nonlocal now
        if seconds > 0:
            events.append(Event("compute", stage, layer, step, now, now + seconds))
        now += seconds

    for step in range(steps if timeline else 0):
        for layer in range(profile.layers):
            ran("forward", layer, step, profile.forward[layer])  # type: ignore[index]
        for layer in reversed(range(profile.layers)):
            ran("backward", layer, step, profile.backward[layer])  # type: ignore[index]
            ran("apply", layer, step, profile.device_update[layer])  # type: ignore[index]
    busy = {"compute": own, "down": 0.0, "cpu": 0.0, "up": 0.0}
    return Simulation(Policy("native"), own, (own,) * steps, busy, tuple(events))


def simulate(
    profile: Profile,
    policy: str | Policy = "fcfs",
    *,
    steps: int | None = None,
    timeline: bool = False,
    slots: int | None = None,
) -> Simulation:
    """Simulate training with a policy.

    Rules: compute goes forward from the first layer and backward from the last. Before a layer's forward its update of
    the step before must be through and is applied. The link down, the CPU and the link up each do one thing at a time,
    take the next waiting layer by the policy, and do not stop what runs. Older steps go first. One layer's gradient
    waits for that layer's update before, since both use one buffer.

    Args:
        profile: seconds of every stage.
        policy: a `Policy` or its name.
        steps: how many, at least 1. By default as many as the steady state takes: 1, or 64 for `"delayed"`.
        timeline: keep the events.
        slots: updates that may lie on the device at once, as of `Pipeline`; `None`: one a layer.

    Returns:
        A `Simulation`. Without staleness every step after the first backward is the same, and `step_seconds` exact;
        for `"delayed"` it is the mean of the second half of the steps.

    Raises:
        ValueError: an unknown policy, `steps` below 1, `slots` below 1 or with `"delayed"`.
        ImportError: the native runtime is not built.

    >>> profile = Profile(forward=5e-3, backward=10e-3, down=12e-3, update=14e-3, up=12e-3, layers=24)
    >>> [round(1e3 * simulate(profile, p).step_seconds) for p in ("zero", "fcfs", "lcfs", "transition:10")]
    [766, 490, 420, 440]
    """
    wanted = Policy.parse(policy)
    if steps is not None and steps < 1:
        raise ValueError(message("simulate", "steps must be at least 1", str(steps), "Leave it out."))
    if slots is not None and (slots < 1 or wanted.stale):
        rule = "slots must be 1 or more, and None with 'delayed'"
        raise ValueError(message("simulate", rule, f"slots={slots} with {wanted}", "Leave slots out."))
    if wanted.kind == "native":
        return _native(profile, steps or 1, timeline)
    count = steps or (_STALE_STEPS if wanted.stale else 1)
    starts, found = runtime().simulate(
        profile.seconds,
        wanted.latest_first(profile.layers),
        wanted.kind == "zero",
        wanted.stale,
        wanted.kind == "serial",
        slots or 0,
        count,
        timeline,
    )
    gaps = np.diff(starts)
    settled = gaps[len(gaps) // 2 :] if wanted.stale else gaps[-1:]
    events = (Event(RESOURCE_OF[STAGES[stage]], STAGES[stage], *rest) for stage, *rest in found)
    return Simulation(wanted, float(settled.mean()), tuple(gaps.tolist()), profile.busy(), tuple(events))


def bounds(profile: Profile) -> dict[str, float]:
    """Seconds that no step without staleness can beat, by what binds, and the paper's two formulas.

    `"compute"`: all of compute's work and, while it waits, the first layer's way down, through the CPU and up (equation
    4). `"down"`, `"cpu"`, `"up"`: the resource's own work, what must come before its first and after its last layer.
    `"lower bound"`: the largest of these. `"zero, equation 1"` and `"lsp, equation 4"`: as printed, for comparison.

    >>> found = bounds(Profile(forward=1.0, backward=2.0, down=1.0, update=4.0, up=1.0, layers=2))
    >>> found["compute"], found["cpu"], found["zero, equation 1"]
    (12.0, 13.0, 14.0)
    """
    forward, backward, compress, down, update, up, apply = profile.seconds
    busy = profile.busy()
    ready = np.cumsum((backward + compress)[::-1])[::-1]  # seconds from the start of a backward to a layer's gradient
    to_end = np.cumsum((apply + forward)[::-1])[::-1]  # from a layer's apply to the end of the forward
    found = {
        "compute": busy["compute"] + float(down[0] + update[0] + up[0]),
        "down": float(ready.min() + busy["down"] + (update + up + to_end).min()),
        "cpu": float((ready + down).min() + busy["cpu"] + (up + to_end).min()),
        "up": float((ready + down + update).min() + busy["up"] + to_end.min()),
    }
    found["lower bound"] = max(found.values())
    found["zero, equation 1"] = float(forward.sum() + max(backward.sum(), busy["down"]) + max(busy["cpu"], busy["up"]))
    one_layer = float((down + update + up).mean())
    found["lsp, equation 4"] = max(float(forward.sum() + backward.sum()) + one_layer, *list(busy.values())[1:])
    return found


def switches(profile: Profile, slots: int | None = None) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds of a step for every switch point, `[layers + 1]`: entry 0 is FCFS, the last one LCFS."""
    return np.asarray(runtime().all_switches(profile.seconds, slots or 0))


def choose(profile: Profile, *, uncertainty: float = 0.0, slots: int | None = None) -> Policy:
    """The best policy without staleness: FCFS, LCFS and every switch point between them are simulated.

    Of equal ones, FCFS goes first, then LCFS, then the switch with the fewest layers.

    Args:
        profile: seconds of every stage.
        uncertainty: how far off the durations may be, as a share of each (standard deviation), 0 to 0.5. Above 0 the
            choice is what is best on average over the profile and eight variations of it. At 0 no policy of `Policy`
            without staleness that sends anything is faster on this profile.
        slots: as of `simulate`.

    Raises:
        ValueError: an uncertainty outside of its range.

    >>> str(choose(Profile(forward=1.0, backward=2.0, down=0.5, update=0.5, up=0.5, layers=4)))
    'fcfs'
    >>> str(choose(Profile(forward=1.0, backward=1.0, down=1.0, update=4.0, up=1.0, layers=4)))
    'lcfs'
    """
    if not 0 <= uncertainty <= 0.5:
        raise ValueError(message("choose", "uncertainty must be 0 to 0.5", str(uncertainty), "Pass 0.05 for 5 %."))
    seconds = switches(profile, slots)
    if uncertainty and seconds.min() > 0:
        rng = np.random.default_rng(0)
        seconds = seconds / seconds.min()
        for _ in range(_VARIATIONS):
            factors = rng.normal(1.0, uncertainty, profile.seconds.shape).clip(0.1)
            varied = np.asarray(runtime().all_switches(profile.seconds * factors, slots or 0))
            seconds = seconds + varied / varied.min()
    close = float(seconds.min()) * (1 + 1e-12)
    if seconds[0] <= close:
        return Policy("fcfs")
    if seconds[-1] <= close:
        return Policy("lcfs")
    return Policy("transition", int(np.flatnonzero(seconds <= close)[0]))
