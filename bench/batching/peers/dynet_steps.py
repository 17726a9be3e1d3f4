# SPDX-License-Identifier: Apache-2.0
"""What DyNet's programs share: the job from standard input, parameters as given, and steps when asked for.

The job is one JSON object. A program answers `ready`, and then one line of process seconds and loss for every line
that it reads. Needs `dynet38`, which the project does not: see `bench/batching/side_by_side.py`.
"""

import base64
import json
import sys
import time

import dynet_config

JOB = json.loads(sys.stdin.readline())
dynet_config.set(mem=2048, autobatch=JOB["strategy"], random_seed=1)

import dynet as dy  # noqa: E402
import numpy as np  # noqa: E402

COLLECTION = dy.ParameterCollection()
_GIVEN = iter(JOB["parameters"])


def _next():
    shape, text = next(_GIVEN)
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(shape)


def parameter():
    """The next parameter of the job."""
    return COLLECTION.parameters_from_numpy(_next())


def parts(count):
    """The next parameter of the job, cut into equal rows."""
    return [COLLECTION.parameters_from_numpy(value) for value in np.split(_next(), count)]


def lookup():
    """The next parameter of the job, as a table to look up rows of."""
    return COLLECTION.lookup_parameters_from_numpy(_next())


def serve(losses) -> None:
    """Answer until the input ends; `losses` gives the losses of one mini-batch."""
    trainer = dy.SimpleSGDTrainer(COLLECTION, JOB["lr"])
    trainer.set_clip_threshold(0)  # PyTorch's SGD does not clip either
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        dy.renew_cg()
        total = dy.esum(losses(JOB["examples"]))
        value = total.value()
        if JOB["train"]:
            total.backward()
            trainer.update()
        print(time.process_time() - begin, value, flush=True)
