# SPDX-License-Identifier: Apache-2.0
"""CapyMOA's learners in the batch protocol: a whole batch is predicted, then learned.

Each line names a learner, its seed and a file of arrays `x`, `y` (classes from 0) and `batch`; the answer is the mean
error and the seconds of the process, Java's among them. Needs `capymoa` and Java, which the project does not: see
`bench/drift/peers.py`.
"""

import sys
import time

import numpy as np
from capymoa import classifier
from capymoa.core import LabeledInstance
from capymoa.stream import NumpyStream


def serve(line):
    name, seed, path = line.split(" ", 2)
    data = np.load(path)
    x, y, batch = data["x"], data["y"], int(data["batch"])
    schema = NumpyStream(x, y, target_type="categorical").get_schema()
    points = [LabeledInstance.from_array(schema, row, int(label)) for row, label in zip(x, y)]
    learner = getattr(classifier, name)(schema, random_seed=int(seed))
    begun = time.process_time()
    errors = []
    for first in range(0, len(points) // batch * batch, batch):
        part = points[first : first + batch]
        errors.append(np.mean([learner.predict(point) != point.y_index for point in part]))
        for point in part:
            learner.train(point)
    return f"{np.mean(errors)} {time.process_time() - begun}"


for line in sys.stdin:
    print(serve(line.strip()), flush=True)
