# SPDX-License-Identifier: Apache-2.0
"""Gradients through subspaces between the processes of a plain DDP model. LSP-Offload (AAAI 2025), sections 2 and 3.

As the PowerSGD hook of `torch.distributed`: what is sent of a matrix is its compressed form, what is lost comes again
with the next gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.offload._reference import compute_dtype
from edgeops.offload.learning import reconsider
from edgeops.offload.pair import Pair
from edgeops.offload.projector import IdentityProjector, Projector
from edgeops.offload.settings import check_settings
from edgeops.offload.targets import FIXED, Target, first_pair, width_of

WHO = "SubspaceHookState"
_SMALLEST = 1e-6  # of the largest: below are directions that rounding made


@dataclass
class _Matrix:
    """What is kept of one parameter that is compressed.

    Attributes:
        target: its name, pair and fit; learned as those of `LSPAdamW`.
        shape: `(m, n)`, later dimensions taken together.
        left, right: `(P^T P)^(-1/2)` and that of Q, or `None` of an identity.
        residual: what has not been sent yet, in the compute dtype.
    """

    target: Target
    shape: tuple[int, int]
    left: Tensor | None = None
    right: Tensor | None = None
    residual: Tensor | None = field(default=None, repr=False)

    def use(self, pair: Pair, device: torch.device) -> None:
        """Compress through this pair from now on."""
        pair = pair.to(device)
        self.target.set_pair(pair)
        self.left, self.right = _whitening(pair.left), _whitening(pair.right)

    def compress(self, grad: Tensor) -> Tensor:
        """Its coordinates in orthonormal bases of the pair, `[p, q]`."""
        small = self.target.pair.compress(grad)
        small = small if self.left is None else self.left @ small
        return small if self.right is None else small @ self.right

    def expand(self, small: Tensor) -> Tensor:
        """What these coordinates stand for: the matrix nearest to the compressed one, so that none grows."""
        small = small if self.left is None else self.left @ small
        return self.target.pair.expand(small if self.right is None else small @ self.right)


def _whitening(projector: Projector) -> Tensor | None:
    """`(P^T P)^(-1/2)`, pseudo-inverse where columns depend on others."""
    if isinstance(projector, IdentityProjector):
        return None
    wide = projector.to(dtype=torch.float64)
    values, vectors = torch.linalg.eigh(wide.project(wide.dense()))
    keep = values > _SMALLEST * values[-1]
    scaled = torch.where(keep, values, torch.ones_like(values)).rsqrt() * keep
    return ((vectors * scaled) @ vectors.T).to(projector.dense().dtype)


class SubspaceHookState:
    """What `subspace_hook` compresses the gradients of a DistributedDataParallel model with.

    Of a matrix G `[m, n]` (later dimensions of a parameter are taken together) `P^T G Q` is sent, and its expansion
    becomes the gradient, with any optimizer. Everything else goes as it is, in the same message.

    Args:
        model: the model, wrapped or not; names of its parameters are those of the state.
        process_group: as of the wrapper; `None` is the default group.
        d, r, projector: as of `LSPAdamW`: width, entries a row, and "learned", "random", "svd", "rows" or "identity"
            (nothing is compressed). "random" pairs are drawn anew every `check_every` steps.
        start_iter: steps at the beginning in which gradients are sent whole.
        check_every: steps between two looks at whether the pairs still fit. In those steps gradients are sent whole.
        error_feedback: what a process could not send is added to its next gradient, in memory of the size of the
            gradients.
        feedback_decay: factor of what is added; what no pair has caught would grow without end at 1.
        min_compression_rate: a matrix goes as it is where it would not become this many times smaller.
        alpha, alpha_relative, fit_steps, fit_lr, fit_beta, warm_start: as of `LSPAdamW`.
        wire_dtype: of the messages; `None` is the gradients' own.
        seed: of draws; the same in every process.

    Attributes:
        iteration: steps so far.
        bytes_sent: bytes that this process has handed to collectives.
        bytes_plain: what they would have been without the hook.

    Raises:
        ValueError: settings out of range, or no matrix to compress.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> state = SubspaceHookState(model, d=16, r=4)
        >>> state.compressed
        ('0.weight',)

        In every process, before training: `ddp.register_comm_hook(state, subspace_hook)`.
    """

    def __init__(
        self,
        model: nn.Module,
        process_group: Any = None,
        *,
        d: int | float = 0.25,
        r: int = 4,
        projector: str = "learned",
        start_iter: int = 10,
        check_every: int = 100,
        error_feedback: bool = True,
        feedback_decay: float = 0.9,
        min_compression_rate: float = 2.0,
        alpha: float | None = None,
        alpha_relative: float = 1.25,
        fit_steps: int = 30,
        fit_lr: float = 0.1,
        fit_beta: float = 0.0,
        warm_start: bool = True,
        wire_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self._settings: dict[str, Any] = {
            "d": d, "r": r, "projector": projector, "check_every": check_every, "alpha": alpha,
            "alpha_relative": alpha_relative, "fit_steps": fit_steps, "fit_lr": fit_lr, "fit_beta": fit_beta,
            "warm_start": warm_start, "wire_dtype": wire_dtype, "max_norm": None, "on_change": "reset",
        }  # fmt: skip
        check_settings(WHO, self._settings)
        for name, value, good, rule in (
            ("start_iter", start_iter, start_iter >= 0, "must not be negative"),
            ("feedback_decay", feedback_decay, 0 < feedback_decay <= 1, "must lie in (0, 1]"),
            ("min_compression_rate", min_compression_rate, min_compression_rate >= 1, "must be at least 1"),
        ):
            if not good:
                raise ValueError(message(WHO, f"{name} {rule}", repr(value), "See its documentation."))
        self.process_group, self._seed = process_group, seed
        self._start, self._feedback, self._decay = start_iter, error_feedback, feedback_decay
        self.iteration = self.bytes_sent = self.bytes_plain = 0
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        parameters = [(name, p) for name, p in inner.named_parameters() if p.requires_grad]
        self._names = {id(p): name for name, p in parameters}
        self._matrices: dict[str, _Matrix] = {}
        for name, p in parameters:
            self._begin(name, p, min_compression_rate)
        if not self._matrices and projector != "identity":
            rule = f"needs a matrix that d = {d} makes {min_compression_rate:g} times smaller"
            raise ValueError(message(WHO, rule, f"{len(parameters)} parameters without any", "Give a smaller d."))

    def _begin(self, name: str, p: Tensor, rate: float) -> None:
        settings = self._settings
        if p.dim() < 2 or p.numel() == 0 or not p.is_floating_point() or settings["projector"] == "identity":
            return
        matrix = p.detach().reshape(p.shape[0], -1)
        shorter = min(matrix.shape)
        if not isinstance(settings["d"], float) and settings["d"] > shorter:
            return
        width = width_of(WHO, name, matrix, settings["d"], 1)
        if matrix.numel() < rate * width * width:
            return
        target = Target(name, matrix, nn.Parameter(p.new_zeros(0)), None, 0)
        entry = _Matrix(target, (matrix.shape[0], matrix.shape[1]))
        self._matrices[name] = entry
        entry.use(self._drawn(entry), p.device)

    def _generator(self, entry: _Matrix) -> torch.Generator:
        """The same in all processes, whatever the order of buckets."""
        place = list(self._matrices).index(entry.target.name)
        return torch.Generator().manual_seed(((self._seed * 1000003 + place) * 1000003 + self.iteration) & (2**63 - 1))

    def _drawn(self, entry: _Matrix) -> Pair:
        d, r = self._settings["d"], self._settings["r"]
        return first_pair(WHO, entry.target.name, entry.target.weight, "random", d, r, self._generator(entry))

    # ------------------------------------------------------------------ what is there

    @property
    def compressed(self) -> tuple[str, ...]:
        """Names of the parameters whose gradients are compressed."""
        return tuple(self._matrices)

    @property
    def compression_rate(self) -> float:
        """How many times fewer bytes have been sent than without the hook; 1 before anything was."""
        return self.bytes_plain / self.bytes_sent if self.bytes_sent else 1.0

    def state_dict(self) -> dict[str, Any]:
        """This process' state: what it has not sent yet is its own, so every process saves and loads its own."""
        return {
            "iteration": self.iteration,
            "bytes_sent": self.bytes_sent,
            "bytes_plain": self.bytes_plain,
            "matrices": {
                name: {
                    "shape": list(entry.shape), "pair": entry.target.pair.state(), "fit_bias": entry.target.fit_bias,
                    "learned": entry.target.learned, "due": entry.target.due, "residual": entry.residual,
                }
                for name, entry in self._matrices.items()
            },
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a saved state stopped.

        Raises:
            ValueError: it was of other parameters; nothing has been changed then.
        """
        saved = state_dict["matrices"]
        have = [(name, list(entry.shape)) for name, entry in self._matrices.items()]
        given = [(name, list(kept["shape"])) for name, kept in saved.items()]
        if have != given:
            odd = next((f"{g} where {h} is" for g, h in zip(given, have) if g != h), f"{len(given)} of them")
            rule, advice = "the saved state must be of the same parameters", "Build it as it was when it was saved."
            raise ValueError(message(WHO, rule, odd, advice))
        self.iteration = state_dict["iteration"]
        self.bytes_sent, self.bytes_plain = state_dict["bytes_sent"], state_dict["bytes_plain"]
        for name, kept in saved.items():
            entry, device = self._matrices[name], self._matrices[name].target.weight.device
            entry.use(Pair.of(kept["pair"]), device)
            entry.target.fit_bias, entry.target.due = kept["fit_bias"], kept["due"]
            entry.target.learned = kept["learned"]
            residual = kept["residual"]
            entry.residual = None if residual is None else residual.to(device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        rule, advice = "cannot be pickled: it belongs to a model's parameters", "Save its state_dict()."
        raise TypeError(message(WHO, rule, "a copy or a pickle of it", advice))

    # ------------------------------------------------------------------ a bucket

    def _entries(self, bucket: Any) -> list[tuple[Tensor, _Matrix | None]]:
        """Gradients of a bucket, each with what it is compressed by."""
        grads, parameters = bucket.gradients(), bucket.parameters()
        if bucket.buffer().layout != torch.strided:
            got = describe(bucket.buffer()) + " of a sparse layout"
            raise TypeError(message("subspace_hook", "needs dense gradients", got, "Set sparse=False."))
        unknown = [p for p in parameters if id(p) not in self._names]
        if unknown:
            rule = "the state must have been built for the model it is registered with"
            got = f"a parameter that is not its own, {describe(unknown[0])}"
            advice = "Pass this model to SubspaceHookState, with the same parameters trained."
            raise ValueError(message("subspace_hook", rule, got, advice))
        return [(g, self._matrices.get(self._names[id(p)])) for g, p in zip(grads, parameters)]

    def _whole(self) -> bool:
        """Whether this step sends gradients whole."""
        return self.iteration < self._start or self._looks()

    def _looks(self) -> bool:
        since = self.iteration - self._start
        return since >= 0 and since % self._settings["check_every"] == 0 and self._settings["projector"] not in FIXED

    def _group(self) -> Any:
        return self.process_group if self.process_group is not None else torch.distributed.group.WORLD

    def _send(self, flat: Tensor) -> Any:
        """Begin to average over the processes."""
        self.bytes_sent += flat.numel() * flat.element_size()
        group = self._group()
        flat.div_(torch.distributed.get_world_size(group))
        return torch.distributed.all_reduce(flat, group=group, async_op=True).get_future()

    def _learn(self, entries: Sequence[_Matrix], grads: Sequence[Tensor]) -> None:
        """Look at averaged gradients; the first process decides, so that none differs by a rounding."""
        group = self._group()
        told: list[Any] = [None]
        if torch.distributed.get_rank(group) == 0:
            found = []
            for entry, grad in zip(entries, grads):
                target = entry.target
                target.due = True
                old = target.pair
                reconsider(target, self._settings, grad, None, self._generator(entry), WHO)
                new = None if target.pair is old else target.pair.to("cpu").state()
                found.append((new, target.fit_bias, target.learned, target.due))
                target.set_pair(old)
            told = [found]
        torch.distributed.broadcast_object_list(told, src=torch.distributed.get_global_rank(group, 0), group=group)
        for entry, (state, *facts) in zip(entries, told[0]):
            entry.target.fit_bias, entry.target.learned, entry.target.due = facts
            if state is not None:
                pair = Pair.of(state)
                self.bytes_sent += pair.nbytes()
                entry.use(pair, entry.target.weight.device)


@torch.no_grad()
def subspace_hook(state, bucket):  # DDP refuses annotations that are text, as all are here
    """A communication hook of DistributedDataParallel: `ddp.register_comm_hook(state, subspace_hook)`.

    Gradients that are not finite are so in all processes afterwards, as without the hook, and what is to come again is
    left as it was. Processes keep the same bits.

    Args:
        state: of this process.
        bucket: `torch.distributed.GradBucket`.

    Raises:
        TypeError: sparse gradients.
        ValueError: a parameter that the state does not know.
    """
    buffer: Tensor = bucket.buffer()
    entries = state._entries(bucket)
    state.bytes_plain += buffer.numel() * buffer.element_size()
    looks, whole = state._looks(), state._whole()
    if bucket.index() == 0 and not whole and state._settings["projector"] == "random":
        _redraw(state)
    if whole:
        future = state._send(buffer)
        if looks:
            future.wait()
            known = [(entry, grad) for grad, entry in entries if entry is not None]
            averaged = [g.reshape(e.shape).to(compute_dtype(g.dtype)) for e, g in known]
            state._learn([entry for entry, _ in known], averaged)
        done = future.then(lambda f: f.value()[0])
    else:
        done = _compressed(state, buffer, entries)
    if bucket.is_last():
        state.iteration += 1
    return done


def _redraw(state: SubspaceHookState) -> None:
    """New pairs of "random", in all processes alike."""
    if (state.iteration - state._start) % state._settings["check_every"] == 0:
        for entry in state._matrices.values():
            entry.use(state._drawn(entry), entry.target.weight.device)


def _compressed(
    state: SubspaceHookState, buffer: Tensor, entries: Sequence[tuple[Tensor, _Matrix | None]]
) -> torch.futures.Future[Tensor]:
    """Send what there is in one message, and expand what comes."""
    wire = state._settings["wire_dtype"] or buffer.dtype
    parts, sums = [], []
    for grad, entry in entries:
        if entry is None:
            parts.append(grad.reshape(-1).to(wire))
            continue
        total = grad.reshape(entry.shape).to(compute_dtype(grad.dtype), copy=True)
        if state._feedback and entry.residual is not None:
            total.add_(entry.residual, alpha=state._decay)
        # the last element tells all processes of what is not finite where the pair does not look
        small = entry.compress(total).to(wire)
        parts += [small.reshape(-1), torch.linalg.vector_norm(total, torch.inf).mul(0).to(wire).reshape(1)]
        sums.append((entry, total, small))
    flat = torch.cat(parts)
    future = state._send(flat)
    rests = []
    if state._feedback:  # while it travels
        rests = [total.sub_(entry.expand(small.to(total.dtype))) for entry, total, small in sums]
    return future.then(functools.partial(_arrived, state, buffer, entries, rests))


@torch.no_grad()
def _arrived(
    state: SubspaceHookState,
    buffer: Tensor,
    entries: Sequence[tuple[Tensor, _Matrix | None]],
    rests: Sequence[Tensor],
    future: torch.futures.Future[list[Tensor]],
) -> Tensor:
    flat, first, place = future.value()[0], 0, 0
    for grad, entry in entries:
        if entry is None:
            grad.copy_(flat[first : first + grad.numel()].view_as(grad))
            first += grad.numel()
            continue
        p, q = entry.target.pair.shape
        small = flat[first : first + p * q].view(p, q).to(compute_dtype(grad.dtype))
        fine = bool(torch.isfinite(flat[first : first + p * q + 1]).all())
        first += p * q + 1
        if fine:
            grad.copy_(entry.expand(small).view_as(grad))
            if state._feedback:
                entry.residual = rests[place]
        else:
            grad.fill_(torch.nan)
        place += 1
    return buffer
