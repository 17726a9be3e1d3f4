# SPDX-License-Identifier: Apache-2.0
"""The cells of the literature as data: one entry per affine map, sum, product and activation."""

from __future__ import annotations

from edgeops.batching.static_cell import CellGraph

_Op = tuple[str, str, tuple[str, ...]]


def _affine(name: str, weight: str, argument: str) -> _Op:
    return name, "affine", (weight, argument)


def _weights(ops: list[_Op]) -> list[str]:
    return [args[0] for _, kind, args in ops if kind == "affine"]


def lstm() -> CellGraph:
    """LSTM step: gates i, f, o and candidate g of input x and state h; cell c."""
    ops = [_affine(f"x{g}", f"W{g}", "x") for g in "ifog"] + [_affine(f"h{g}", f"U{g}", "h") for g in "ifog"]
    weights = _weights(ops)
    ops += [(f"s{g}", "add", (f"x{g}", f"h{g}")) for g in "ifog"]
    ops += [(g, "sigmoid", (f"s{g}",)) for g in "ifo"] + [("g", "tanh", ("sg",))]
    ops += [("fc", "mul", ("f", "c")), ("ig", "mul", ("i", "g")), ("c_new", "add", ("fc", "ig"))]
    ops += [("t", "tanh", ("c_new",)), ("h_new", "mul", ("o", "t"))]
    return CellGraph(ops, ["x", "h", "c"], weights, ["h_new", "c_new"])


def gru() -> CellGraph:
    """GRU step, as torch has it: `h' = n + z (h - n)`, `n = tanh(Wn x + r (Un h))`."""
    ops = [_affine(f"x{g}", f"W{g}", "x") for g in "rzn"] + [_affine(f"h{g}", f"U{g}", "h") for g in "rzn"]
    weights = _weights(ops)
    ops += [(f"s{g}", "add", (f"x{g}", f"h{g}")) for g in "rz"] + [(g, "sigmoid", (f"s{g}",)) for g in "rz"]
    ops += [("rh", "mul", ("r", "hn")), ("sn", "add", ("xn", "rh")), ("n", "tanh", ("sn",))]
    ops += [("d", "sub", ("h", "n")), ("zd", "mul", ("z", "d")), ("h_new", "add", ("n", "zd"))]
    return CellGraph(ops, ["x", "h"], weights, ["h_new"])


def treelstm_leaf() -> CellGraph:
    """Leaf of a binary TreeLSTM: gates i and o, candidate u of the word x."""
    ops = [_affine(f"x{g}", f"W{g}", "x") for g in "iou"]
    weights = _weights(ops)
    ops += [(g, "sigmoid", (f"x{g}",)) for g in "io"] + [("u", "tanh", ("xu",))]
    ops += [("c_new", "mul", ("i", "u")), ("t", "tanh", ("c_new",)), ("h_new", "mul", ("o", "t"))]
    return CellGraph(ops, ["x"], weights, ["h_new", "c_new"])


def treelstm_internal() -> CellGraph:
    """Inner node of a binary TreeLSTM: gates i, l (forget left), r (forget right), o; candidate u; two children."""
    gates = "ilrou"
    ops = [_affine(f"a{g}", f"U{g}", "h_left") for g in gates] + [_affine(f"b{g}", f"V{g}", "h_right") for g in gates]
    weights = _weights(ops)
    ops += [(f"s{g}", "add", (f"a{g}", f"b{g}")) for g in gates]
    ops += [(g, "sigmoid", (f"s{g}",)) for g in "ilro"] + [("u", "tanh", ("su",))]
    ops += [("lc", "mul", ("l", "c_left")), ("rc", "mul", ("r", "c_right")), ("iu", "mul", ("i", "u"))]
    ops += [("lr", "add", ("lc", "rc")), ("c_new", "add", ("lr", "iu"))]
    ops += [("t", "tanh", ("c_new",)), ("h_new", "mul", ("o", "t"))]
    return CellGraph(ops, ["h_left", "h_right", "c_left", "c_right"], weights, ["h_new", "c_new"])


def treegru() -> CellGraph:
    """Inner node of a binary TreeGRU: reset gates l and r of the children, update gate z, candidate n.

    The sum of the children has a type of its own: among the sums of the gates it would save a batch and cost a copy.
    """
    gates = "lrz"
    ops = [_affine(f"a{g}", f"U{g}", "h_left") for g in gates] + [_affine(f"b{g}", f"V{g}", "h_right") for g in gates]
    ops += [(f"s{g}", "add", (f"a{g}", f"b{g}")) for g in gates] + [(g, "sigmoid", (f"s{g}",)) for g in gates]
    ops += [("lh", "mul", ("l", "h_left")), ("rh", "mul", ("r", "h_right"))]
    ops += [_affine("nl", "Un", "lh"), _affine("nr", "Vn", "rh"), ("sn", "add", ("nl", "nr")), ("n", "tanh", ("sn",))]
    ops += [("m", "sum_children", ("h_left", "h_right")), ("d", "sub", ("m", "n")), ("zd", "mul", ("z", "d"))]
    ops += [("h_new", "add", ("n", "zd"))]
    return CellGraph(ops, ["h_left", "h_right"], _weights(ops), ["h_new"])


CELLS = {
    "lstm": lstm,
    "gru": gru,
    "treelstm_leaf": treelstm_leaf,
    "treelstm_internal": treelstm_internal,
    "treegru": treegru,
}
