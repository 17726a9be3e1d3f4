# SPDX-License-Identifier: Apache-2.0
"""The LatticeLSTM of the benchmark in DyNet, with its automatic batching.

DyNet's own LSTM nodes are the fastest form. Batched by depth they give wrong values in dyNET38 2.2, so there the cell
is made of a product a gate, which is the next fastest.
"""

from dynet_steps import JOB, dy, lookup, parameter, parts, serve

TABLES = {kind: lookup() for kind in ("char", "word")}
OWN_NODES = JOB["own_nodes"]
CELLS = {kind: [parameter() if OWN_NODES else parts(4) for _ in range(3)] for kind in ("char", "word")}
CLASSES, CLASSES_BIAS = parameter(), parameter()


def arc(kind, index, h, c):
    """Rows of the parameters are i, f, o, g; DyNet's own node adds one to f, which the job has taken off."""
    x = TABLES[kind][index]
    if OWN_NODES:
        gates = dy.vanilla_lstm_gates(x, h, *CELLS[kind])
        c = dy.vanilla_lstm_c(c, gates)
        return dy.vanilla_lstm_h(c, gates), c
    i, f, o, g = (dy.affine_transform([b, wx, x, wh, h]) for wx, wh, b in zip(*CELLS[kind]))
    c = dy.cmult(dy.logistic(i), dy.tanh(g)) + dy.cmult(dy.logistic(f), c)
    return dy.cmult(dy.logistic(o), dy.tanh(c)), c


def losses(lattices):
    found = []
    for positions in lattices:
        states = []
        for at, (tag, arcs) in enumerate(positions):
            made = [arc("char" if source == at - 1 else "word", index, *states[source]) for source, index in arcs]
            if not made:
                h, c = dy.zeros(JOB["width"]), dy.zeros(JOB["width"])
            elif len(made) == 1:
                h, c = made[0]
            else:
                h, c = dy.esum([h for h, _ in made]), dy.esum([c for _, c in made])
            states.append((h, c))
            found.append(dy.pickneglogsoftmax(dy.affine_transform([CLASSES_BIAS, CLASSES, h]), tag))
    return found


serve(losses)
