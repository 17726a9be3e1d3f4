# SPDX-License-Identifier: Apache-2.0
"""A recorded dynamic graph: what each node is and which nodes it reads."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


def _integers(name: str, values: npt.ArrayLike, dtype: type[np.integer]) -> npt.NDArray:
    given = np.asarray(values)
    if given.ndim != 1 or (given.size > 0 and given.dtype.kind not in "iu"):
        raise TypeError(
            message("Graph", f"{name} must be a list of integers", describe(values), "Pass one list or 1-D array.")
        )
    limits = np.iinfo(dtype)
    if given.size > 0 and (int(given.max()) > limits.max or int(given.min()) < limits.min):
        raise ValueError(
            message(
                "Graph",
                f"{name} must fit {limits.dtype} ({limits.min}..{limits.max})",
                f"{given.min()}..{given.max()}",
                "Schedule the graph in parts.",
            )
        )
    return np.ascontiguousarray(given, dtype)


class Graph:
    """Typed nodes in topological order and the nodes that they read.

    A node is a call of a cell; nodes of one type may run as one batch. Graphs do not change.

    Args:
        types: `[V]`, the type of every node, from 0.
        arg_start: `[V + 1]`; node `v` reads `args[arg_start[v]:arg_start[v + 1]]`.
        args: node ids, each smaller than its consumer; a node may read another one several times.
        lone: types that may not be batched: their nodes run one at a time, as soon as they are ready.
        keys: one entry a type, all different: what the type is, whatever its number; learned policies know types by
            their keys. Default: the number as text.
        phases: `[V]`, from 0; all nodes of a phase run before any of a later one. Default: one phase.
        depths: `[V]`, from 0, above those of arguments of the same phase: what the scheduler `"inline"` goes by.
            Default: none are known, and it counts them itself.

    Raises:
        TypeError: lists that are not of integers, keys that are not bytes.
        ValueError: sizes that do not fit together, a type out of range, an argument that does not come before its
            consumer or is of a later phase or as deep, two equal keys.

    >>> graph = Graph([0, 0, 1], [0, 0, 0, 2], [0, 1])
    >>> graph
    Graph(3 nodes, 2 types, 2 edges)
    """

    types: Ints
    arg_start: Longs
    args: Ints
    lone: tuple[int, ...]
    keys: tuple[bytes, ...]
    phases: Ints
    depths: Ints

    def __init__(
        self,
        types: npt.ArrayLike,
        arg_start: npt.ArrayLike,
        args: npt.ArrayLike,
        *,
        lone: Iterable[int] = (),
        keys: Sequence[bytes] | None = None,
        phases: npt.ArrayLike = (),
        depths: npt.ArrayLike = (),
    ) -> None:
        kinds = _integers("types", types, np.int32)
        count = int(kinds.max(initial=-1)) + 1 if keys is None else len(keys)
        flags = np.zeros(count, np.uint8)
        for kind in lone:
            if not 0 <= kind < count:
                raise ValueError(
                    message("Graph", f"lone must name types in 0..{count - 1}", f"{kind}", "Name types of the graph.")
                )
            flags[kind] = 1
        starts, operands = _integers("arg_start", arg_start, np.int64), _integers("args", args, np.int32)
        marks = _integers("depths", depths, np.int32), _integers("phases", phases, np.int32)
        self._hold(runtime().Graph(kinds, starts, operands, flags, *marks), _keys(keys, count))

    @classmethod
    def _of_native(cls, native: Any, keys: tuple[bytes, ...]) -> Graph:
        """A graph recorded natively, as it is: no copy and no check."""
        graph = cls.__new__(cls)
        graph._hold(native, keys)
        return graph

    def _hold(self, native: Any, keys: tuple[bytes, ...]) -> None:
        self._native = native
        self.keys = keys
        self.types, self.arg_start, self.args = native.type, native.arg_start, native.args
        self.phases, self.depths = native.phase, native.depth
        self.lone = tuple(kind for kind, alone in enumerate(native.lone.tolist()) if alone)

    @classmethod
    def of(cls, nodes: Iterable[tuple[Hashable, Sequence[int]]], *, lone: Iterable[Hashable] = ()) -> Graph:
        """The graph of `(type, arguments)` pairs, types being any names; their `repr` becomes the key.

        >>> Graph.of([("leaf", ()), ("leaf", ()), ("inner", (0, 1)), ("loss", (2,))], lone=["loss"])
        Graph(4 nodes, 3 types, 3 edges)
        """
        number: dict[Hashable, int] = {}
        types: list[int] = []
        starts: list[int] = [0]
        args: list[int] = []
        for name, operands in nodes:
            types.append(number.setdefault(name, len(number)))
            args.extend(operands)
            starts.append(len(args))
        single = list(lone)
        unknown = [name for name in single if name not in number]
        if unknown:
            raise ValueError(
                message(
                    "Graph.of", f"lone must name types of {list(number)}", repr(unknown), "Name types of the graph."
                )
            )
        return cls(
            types, starts, args, lone=[number[name] for name in single], keys=[repr(name).encode() for name in number]
        )

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.types)

    def __repr__(self) -> str:
        return f"Graph({len(self)} nodes, {len(self.keys)} types, {len(self.args)} edges)"


def _keys(keys: Sequence[bytes] | None, count: int) -> tuple[bytes, ...]:
    if keys is None:
        return tuple(str(t).encode() for t in range(count))
    wrong = [key for key in keys if not isinstance(key, bytes)]
    if wrong:
        raise TypeError(message("Graph", "keys must be bytes", describe(wrong[0]), "Encode what the type is."))
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if list(keys).count(key) > 1)
        raise ValueError(
            message("Graph", "keys of different types must differ", f"{twice!r} twice", "Give equal types one number.")
        )
    return tuple(keys)
