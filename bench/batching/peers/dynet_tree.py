# SPDX-License-Identifier: Apache-2.0
"""The TreeLSTM of the benchmark in DyNet, with its automatic batching."""

from dynet_steps import dy, lookup, parameter, serve

EMBEDDING = lookup()
LEAF = [(parameter(), parameter()) for _ in "iou"]
INNER = [(parameter(), parameter()) for _ in "iou"]
FORGET_LEFT, FORGET_RIGHT, FORGET_BIAS = parameter(), parameter(), parameter()
CLASSES, CLASSES_BIAS = parameter(), parameter()


def tree(t, losses):
    if len(t) == 2:
        x = EMBEDDING[t[1]]
        i, o, u = (dy.affine_transform([b, w, x]) for w, b in LEAF)
        c = dy.cmult(dy.logistic(i), dy.tanh(u))
    else:
        (h1, c1), (h2, c2) = tree(t[1], losses), tree(t[2], losses)
        e = dy.concatenate([h1, h2])
        i, o, u = (dy.affine_transform([b, w, e]) for w, b in INNER)
        f1 = dy.logistic(dy.affine_transform([FORGET_BIAS, FORGET_LEFT, h1]))
        f2 = dy.logistic(dy.affine_transform([FORGET_BIAS, FORGET_RIGHT, h2]))
        c = dy.cmult(dy.logistic(i), dy.tanh(u)) + dy.cmult(f1, c1) + dy.cmult(f2, c2)
    h = dy.cmult(dy.logistic(o), dy.tanh(c))
    losses.append(dy.pickneglogsoftmax(dy.affine_transform([CLASSES_BIAS, CLASSES, h]), t[0]))
    return h, c


def losses(trees):
    found: list = []
    for t in trees:
        tree(t, found)
    return found


serve(losses)
