# SPDX-License-Identifier: Apache-2.0
"""The TreeLSTM of the benchmark in DyNet, with its automatic batching; runs in an environment of its own.

Reads one JSON object from standard input (trees, hidden size, strategy, whether to train), answers `ready`, and then
gives one line of process seconds for every line read. Needs `dynet38`, which the project does not: see `tree_lstm.py`.
"""

import json
import sys
import time

import dynet_config

JOB = json.loads(sys.stdin.readline())
dynet_config.set(mem=2048, autobatch=JOB["strategy"], random_seed=1)

import dynet as dy  # noqa: E402


class Model:
    def __init__(self, width: int, words: int) -> None:
        self.pc = pc = dy.ParameterCollection()
        self.embedding = pc.add_lookup_parameters((words, width))
        self.leaf = [(pc.add_parameters((width, width)), pc.add_parameters(width)) for _ in "iou"]
        self.inner = [(pc.add_parameters((width, 2 * width)), pc.add_parameters(width)) for _ in "iou"]
        self.forget = [pc.add_parameters((width, width)) for _ in "lr"]
        self.forget_bias = pc.add_parameters(width)
        self.classes, self.classes_bias = pc.add_parameters((5, width)), pc.add_parameters(5)
        self.trainer = dy.SimpleSGDTrainer(pc, 1e-3)

    def tree(self, t, losses):
        if len(t) == 2:
            x = self.embedding[t[1]]
            i, o, u = (dy.affine_transform([b, w, x]) for w, b in self.leaf)
            c = dy.cmult(dy.logistic(i), dy.tanh(u))
        else:
            (h1, c1), (h2, c2) = self.tree(t[1], losses), self.tree(t[2], losses)
            e = dy.concatenate([h1, h2])
            i, o, u = (dy.affine_transform([b, w, e]) for w, b in self.inner)
            f1 = dy.logistic(dy.affine_transform([self.forget_bias, self.forget[0], h1]))
            f2 = dy.logistic(dy.affine_transform([self.forget_bias, self.forget[1], h2]))
            c = dy.cmult(dy.logistic(i), dy.tanh(u)) + dy.cmult(f1, c1) + dy.cmult(f2, c2)
        h = dy.cmult(dy.logistic(o), dy.tanh(c))
        losses.append(dy.pickneglogsoftmax(dy.affine_transform([self.classes_bias, self.classes, h]), t[0]))
        return h, c

    def step(self, train: bool) -> float:
        dy.renew_cg()
        losses: list = []
        for t in JOB["trees"]:
            self.tree(t, losses)
        total = dy.esum(losses)
        value = total.value()
        if train:
            total.backward()
            self.trainer.update()
        return value


model = Model(JOB["width"], JOB["words"])
print("ready", flush=True)
for _ in sys.stdin:
    begin = time.process_time()
    model.step(JOB["train"])
    print(time.process_time() - begin, flush=True)
