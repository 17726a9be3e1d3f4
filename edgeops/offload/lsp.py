# SPDX-License-Identifier: Apache-2.0
"""AdamW in learned sparse subspaces, as a `torch.optim.Optimizer`. LSP-Offload (AAAI 2025), algorithm 1."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.offload._reference import compute_dtype
from edgeops.offload.learning import look
from edgeops.offload.linear import SubspaceLinear
from edgeops.offload.links import Link
from edgeops.offload.overlap import Overlap, check_overlap
from edgeops.offload.pair import Pair
from edgeops.offload.pipeline import Pipeline
from edgeops.offload.saved import check_saved, restore_targets, saved_targets
from edgeops.offload.schedule import Policy
from edgeops.offload.settings import check_settings
from edgeops.offload.sharded import average_leaf, is_sharded, refuse_other_wrappers, rows_of
from edgeops.offload.targets import FIXED, Select, Target, first_pair, select_linears
from edgeops.offload.update import Update, without_bad_gradients

WHO = "LSPAdamW"


class LSPAdamW(torch.optim.Optimizer):
    """AdamW whose matrices are updated through `d x d` subspaces between sparse projectors.

    The gradient of a target weight `[m, n]` is never formed: its layer gives `P^T G Q` `[d, d]`, Adam's moments of that
    live on `state_device`, and the weight becomes `(1 - lr * weight_decay) W - lr * scale * P Delta Q^T`. All other
    parameters are updated by `torch.optim.AdamW`. Scale makes the update as large as Adam's own
    (`sqrt(m n) / (||P|| ||Q||)`), so one `lr` holds over d and r.

    Args:
        params: a model, whose plain `nn.Linear`s are turned into `SubspaceLinear`s in place (`release` turns them
            back); or parameters or groups of them, as every optimizer takes: groups with a key "d" are targets, whose
            whole gradients exist one at a time and are compressed as soon as they are there.
        lr, betas, eps, weight_decay: as of `torch.optim.AdamW`.
        d: width of the subspaces; a float is a share of each weight's shorter side.
        r: entries a row of the projectors.
        targets: which linear layers of the model, see `select_linears`.
        projector: "learned" (sparse, fitted to gradients), "random" (sparse, as drawn), "svd" (dense singular vectors
            on both sides), "rows" (largest rows and columns) or "identity".
        check_every: steps between two looks at whether a pair still fits; the first step looks, too. That step's
            backward pass forms whole gradients, one at a time.
        alpha: learn again where the relative bias is above this (the paper's rule).
        alpha_relative: where alpha is `None`: learn again where the bias is above this multiple of that after the last
            fit, since no fixed threshold is reachable on every model.
        fit_steps, fit_lr, fit_beta: of the fit, see `fit`; `fit_lr=0.1` is the paper's.
        warm_start: fit from the current pair instead of a new draw.
        on_change: what becomes of the moments, see `transfer`.
        state_device: where the moments live and Adam runs.
        stochastic_rounding: round bfloat16 weights by chance; small updates would be lost otherwise.
        wire_dtype: what travels between the weights' device and `state_device`: `torch.bfloat16` halves the bytes;
            `None` is the compute dtype.
        max_norm: clip each compressed gradient to this norm. `torch.nn.utils.clip_grad_norm_` clips all of them
            together, where nothing is overlapped.
        seed: of draws and rounding.
        policy: overlap updates with computation, by a policy of `Pipeline` ("fcfs", "lcfs", "transition:3", "auto");
            `None` updates in `step`. Results are the same, bit for bit, for every policy but "delayed". Updates start
            in the backward pass: gradients must not be changed between the two (use `max_norm` to clip, and bfloat16
            rather than a scaler), and `finish()` before weights are read by other than the layers themselves.
        accumulation_steps: backward passes a step; with a policy, the last one starts the updates.
        link: what copies where updates are overlapped, such as `EmulatedLink` or `CudaLink`.
        record: keep the pipeline's `events`.

    Raises:
        ValueError: no target, d beyond a side, r beyond d, hyperparameters out of range, or tied weights as targets.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        >>> optimizer = LSPAdamW(model, lr=1e-2, d=8, r=2)
        >>> x, y = torch.randn(64, 32), torch.randn(64, 16)
        >>> losses = []
        >>> for _ in range(30):
        ...     loss = nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     losses.append(loss.item())
        >>> losses[-1] < 0.9 * losses[0], model[0].weight.grad is None
        (True, True)

    On several processes: under DistributedDataParallel compressed gradients are averaged; `fully_shard` (FSDP2) comes
    first, by rows and around blocks, not on linear layers themselves. Coordinates and moments are then whole in every
    process and weights sharded; `state_dict()` is saved by each process. Without FSDP1, `CPUOffloadPolicy`, `policy`::

        for block in model.layers:
            fully_shard(block)
        fully_shard(model)
        optimizer = LSPAdamW(model, d=256, r=4)

    `torch.compile(model, fullgraph=True)` makes two graphs, one of them for steps that look at pairs. With a policy
    graphs end at every layer, whose update is waited for there.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        d: int | float = 256,
        r: int = 4,
        targets: Select | None = None,
        projector: str = "learned",
        check_every: int = 1000,
        alpha: float | None = None,
        alpha_relative: float = 1.25,
        fit_steps: int = 30,
        fit_lr: float | None = None,
        fit_beta: float = 0.0,
        warm_start: bool = True,
        on_change: str = "project_normalised",
        state_device: torch.device | str = "cpu",
        stochastic_rounding: bool = True,
        wire_dtype: torch.dtype | None = None,
        max_norm: float | None = None,
        seed: int = 0,
        policy: str | Policy | None = None,
        accumulation_steps: int = 1,
        link: Link | None = None,
        record: bool = False,
    ) -> None:
        subspace = {
            "d": d, "r": r, "projector": projector, "check_every": check_every, "alpha": alpha,
            "alpha_relative": alpha_relative, "fit_steps": fit_steps, "fit_lr": fit_lr, "fit_beta": fit_beta,
            "warm_start": warm_start, "on_change": on_change, "stochastic_rounding": stochastic_rounding,
            "wire_dtype": wire_dtype, "max_norm": max_norm,
        }  # fmt: skip
        self._given = subspace  # for groups that do not say otherwise
        self._targets: dict[int, Target] = {}
        self._hooks: list[Any] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._seed, self._state_device = seed, torch.device(state_device)
        self._ordinary: torch.optim.AdamW | None = None
        self._overlaps = policy is not None
        self._overlap: Overlap | None = None
        self.skipped = 0
        defaults = torch.optim.AdamW([torch.zeros(1)], lr, betas, eps, weight_decay).defaults
        check_settings(WHO, subspace)  # all that can be refused, before a layer is touched
        if policy is not None:
            check_overlap(WHO, policy, accumulation_steps, isinstance(params, nn.Module))
        groups = self._groups_of_model(params, subspace, targets) if isinstance(params, nn.Module) else list(params)
        super().__init__(groups, {**defaults, **dict.fromkeys(subspace)})
        for group in self.param_groups:
            self._prepare(group)
        if not self._targets:
            rule = "needs at least one weight to train through a subspace"
            advice = "Give a smaller d, other targets, or groups with a key 'd'; or use torch.optim.AdamW."
            raise ValueError(message(WHO, rule, f"{len(self.param_groups)} groups without any", advice))
        if policy is not None:
            self._overlap = Overlap(
                self.targets, policy, accumulation_steps, link, record, self.param_groups[0]["wire_dtype"],
                self._update_of, self._through,
            )  # fmt: skip

    # ------------------------------------------------------------------ set-up

    def _groups_of_model(
        self, model: nn.Module, subspace: dict[str, Any], targets: Select | None
    ) -> list[dict[str, Any]]:
        refuse_other_wrappers(WHO, model)
        chosen = select_linears(WHO, model, subspace["d"], targets)
        shards = {name: rows_of(WHO, f"{name}.weight", x.weight) for name, x in chosen.items()}
        if self._overlaps and any(rows is not None for rows in shards.values()):
            rule = "policy needs whole weights: shards are gathered before their layers wait"
            raise NotImplementedError(message(WHO, rule, "a model sharded by fully_shard", "Leave policy out."))
        pairs = {  # all of them before the first layer is touched
            name: first_pair(WHO, f"{name}.weight", x.weight, subspace["projector"], subspace["d"], subspace["r"],
                             self._generator)
            for name, x in chosen.items()
        }  # fmt: skip
        if not chosen:
            return [{"params": [p for p in model.parameters() if p.requires_grad]}]
        leaves = []
        for name, linear in chosen.items():
            module = SubspaceLinear.adopt(linear, pairs[name])
            target = Target(f"{name}.weight", module.weight, module.subspace, module, 0, rows=shards[name])
            if target.rows is not None:
                self._hooks.append(average_leaf(target.leaf, target.rows.mesh))
            self._targets[id(module.subspace)] = target
            leaves.append(module.subspace)
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in self._targets]
        return [{"params": leaves, **subspace}, *([{"params": rest}] if rest else [])]

    def _prepare(self, group: dict[str, Any]) -> None:
        """Check one group, and make targets of its weights where it has a key "d"."""
        if group.get("d") is None:
            return
        for key, value in self._given.items():
            group[key] = value if group.get(key) is None else group[key]
        check_settings(WHO, group)
        place = next(i for i, each in enumerate(self.param_groups) if each is group)
        for i, p in enumerate(group["params"]):
            if id(p) in self._targets:
                continue
            name = f"parameter {i} of its group"
            if not p.requires_grad:
                raise ValueError(message(WHO, f"{name} must require a gradient", "a frozen one", "Leave it out."))
            if is_sharded(p):
                rule, advice = f"{name} must be a whole weight", "Pass the sharded model itself."
                raise NotImplementedError(message(WHO, rule, "a DTensor", advice))
            pair = first_pair(WHO, name, p, group["projector"], group["d"], group["r"], self._generator)
            target = Target(name, p, p, None, place, pair)
            self._targets[id(p)] = target
            self._hooks.append(p.register_post_accumulate_grad_hook(functools.partial(self._compress, target)))
        self._places = {key: place for place, key in enumerate(self._targets)}
        self._arm(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of every optimizer; a group with a key "d" is one of targets.

        Raises:
            ValueError: a weight that is trained through its subspace already.
        """
        inside = {id(t.weight) for t in self._targets.values() if t.module is not None}
        given = param_group["params"]
        for p in [given] if isinstance(given, Tensor) else list(given):
            if id(p) in inside:
                rule = "a weight that is trained through its subspace cannot be added again"
                raise ValueError(message(WHO, rule, describe(p), "Leave it to its group."))
        if getattr(self, "_overlap", None) is not None and param_group.get("d") is not None:
            rule = "targets cannot be added while updates are overlapped"
            raise ValueError(message(WHO, rule, "a group with 'd'", "Build the optimizer with all of them."))
        super().add_param_group(param_group)
        if getattr(self, "_places", None) is not None:
            self._prepare(self.param_groups[-1])

    def release(self) -> None:
        """Turn the model's layers back into `nn.Linear`s with whole gradients, and drop every hook."""
        if self._overlap is not None:
            self._overlap.close()
        for target in self._targets.values():
            if target.module is not None:
                target.module.release()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # ------------------------------------------------------------------ learning

    def _arm(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            target = self._targets[id(p)]
            target.due = target.due and group["projector"] not in FIXED
            self._watch(target)

    def _watch(self, target: Target) -> None:
        """Let the layer's next backward pass form the whole gradient where the pair is to be looked at."""
        if target.due and target.module is not None:
            target.module.watch(functools.partial(self._learn, target))

    def _learn(self, target: Target, grad: Tensor) -> Pair:
        """The pair to use, after a look at a whole gradient where one is due."""
        if target.due:
            look(target, self._group_of(target), grad, self.state.get(target.leaf), self._generator)
        return target.pair

    @torch.no_grad()
    def _compress(self, target: Target, p: Tensor) -> None:
        """A whole gradient has been formed: keep its compressed form, free it."""
        grad = p.grad
        if grad is None:
            return
        if grad.is_sparse:
            raise TypeError(
                message(WHO, f"{target.name} must have a dense gradient", "a sparse one", "Set sparse=False.")
            )
        target.set_pair(target.pair.to(grad.device))
        small = self._learn(target, grad).compress(grad)
        target.small = small if target.small is None else target.small + small
        p.grad = None

    def learn(self, closure: Callable[[], Any]) -> dict[str, float]:
        """Check and fit every pair now, on gradients of a calibration batch.

        Args:
            closure: forward and backward pass of held-out data; the gradients it leaves are thrown away.

        Returns:
            The relative bias after the fit, by name of the weight.

        Raises:
            ValueError: gradients of a pending step are there.
        """
        self.finish()
        if any(t.gradient() is not None for t in self._targets.values()):
            rule = "learn needs a moment without pending gradients"
            raise ValueError(message(WHO, rule, "gradients", "Call it after step() and zero_grad()."))
        for group in self.param_groups:
            if group["d"] is not None:
                for p in group["params"]:
                    self._targets[id(p)].due = True
                self._arm(group)
        if self._overlap is not None:
            self._overlap.paused = True
        try:
            with torch.enable_grad():
                closure()
        finally:
            if self._overlap is not None:
                self._overlap.paused = False
            for target in self._targets.values():
                target.due = False
        self.zero_grad()
        return {t.name: t.fit_bias for t in self._targets.values()}

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of everything that has a gradient.

        What has a gradient that is not finite is left out and counted: `skipped` of a target, `skipped` of the
        optimizer for other parameters.

        Raises:
            TypeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_layers()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    raise TypeError(message(WHO, "needs dense gradients", "a sparse one", "Set sparse=False."))
        for group in self.param_groups:
            for p in group["params"] if group["d"] is not None else ():
                target = self._targets[id(p)]
                small = target.gradient()
                if small is not None and self._overlap is not None:  # fewer backward passes than announced
                    self._overlap.submit(target)
                elif small is not None:
                    update = self._update_of(target, small, None)
                    update.run()
                    self._through(update)
                    target.small = None
        self._step_ordinary()
        return loss

    def _check_layers(self) -> None:
        """Refuse to train what the layers do not have any more."""
        for target in self._targets.values():
            own = None if target.module is None else getattr(target.module, "subspace", None)
            if own is not None and own is not target.leaf:
                rule = f"the layer of {target.name} must keep its parameters once the optimizer is built"
                advice = "Call fully_shard, and what else replaces parameters, before LSPAdamW."
                raise RuntimeError(message(WHO, rule, "others", advice))

    def _group_of(self, target: Target) -> dict[str, Any]:
        """A target's settings as they are now: loading a state makes new groups."""
        return self.param_groups[target.group]

    def _update_of(self, target: Target, small: Tensor, host: Tensor | None) -> Update:
        group = self._group_of(target)
        place = self._places[id(target.leaf)]
        rounded = group["stochastic_rounding"] and target.weight.dtype == torch.bfloat16
        seed = self._seed * 1000003 + place if rounded else None
        return Update(place, target, group, self.state[target.leaf], small, self._state_device, seed, host)

    def _through(self, update: Update) -> None:
        """A target's step has ended: note whether the next backward pass is to look at its pair."""
        target, group = update.target, self._group_of(update.target)
        if target.module is not None and not target.due:
            target.module.learn = None
        # what was left out counts, too: targets are looked at together, so compiled models need two graphs, not more
        steps = target.skipped + (int(update.state["step"]) if update.state else 0)
        if group["projector"] not in FIXED and steps % group["check_every"] == 0:
            target.due = True
            self._watch(target)

    # ------------------------------------------------------------------ overlapped updates

    @property
    def pipeline(self) -> Pipeline | None:
        """What carries overlapped updates; `None` without a policy."""
        return None if self._overlap is None else self._overlap.pipeline

    def finish(self) -> None:
        """Return when every update under way is in its weight."""
        if self._overlap is not None:
            self._overlap.pipeline.finish()

    # ------------------------------------------------------------------ the rest

    def _step_ordinary(self) -> None:
        groups = [g for g in self.param_groups if g["d"] is None]
        if groups:
            if self._ordinary is None:
                self._ordinary = torch.optim.AdamW([torch.zeros(1)])
            self._ordinary.param_groups, self._ordinary.state = groups, self.state
            with without_bad_gradients([p for g in groups for p in g["params"]]) as left_out:
                self._ordinary.step()
            self.skipped += left_out

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of every optimizer; compressed gradients go, too."""
        super().zero_grad(set_to_none)
        for target in self._targets.values():
            target.small = None
            if target.module is not None and not target.due:
                target.module.learn = None

    # ------------------------------------------------------------------ what is there

    @property
    def targets(self) -> tuple[Target, ...]:
        """The weights trained through a subspace."""
        return tuple(self._targets.values())

    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer; under "subspace" the projectors, their fits and the generator: resuming is exact."""
        self.finish()
        out = super().state_dict()
        out["subspace"] = {
            "generator": self._generator.get_state(),
            "targets": saved_targets(self.targets),
        }
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a saved optimizer stopped.

        Raises:
            ValueError: it was of other weights, shapes or dtypes; nothing has been changed then.
        """
        check_saved(WHO, self.targets, state_dict)
        saved = state_dict["subspace"]
        self.finish()
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "subspace"})
        self._generator.set_state(saved["generator"].cpu())
        packed = {
            id(p): key
            for group, given_group in zip(self.param_groups, state_dict["param_groups"])
            for p, key in zip(group["params"], given_group["params"])
        }
        restore_targets(self.targets, saved["targets"])
        for target in self.targets:
            state = self.state.get(target.leaf)
            if state:  # as saved: torch has cast and moved them like the parameter
                for key in ("exp_avg", "exp_avg_sq"):
                    moments = state_dict["state"][packed[id(target.leaf)]][key]
                    state[key] = moments.to(self._state_device, compute_dtype(target.weight.dtype), copy=True)
        for group in self.param_groups:
            if group["d"] is not None:
                self._arm(group)
