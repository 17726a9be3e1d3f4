# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's CPU Adam, a step for every line of standard input. See `bench/offload/side_by_side.py`.

The job is one JSON object. Answers `ready`, and then one line of process seconds and the first parameters for every
line that it reads. Needs `deepspeed`, which the project does not: `make deepspeed`.
"""

import json
import os
import sys
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")
ANSWERS, sys.stdout = sys.stdout, sys.stderr  # DeepSpeed prints

import torch  # noqa: E402
from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: E402

JOB = json.loads(sys.stdin.readline())
torch.set_num_threads(1)
p = torch.zeros(JOB["n"], requires_grad=True)
p.grad = torch.arange(JOB["n"]).remainder(1000).float() / 1000 - 0.5
optimizer = DeepSpeedCPUAdam([p], lr=JOB["lr"], weight_decay=JOB["weight_decay"], adamw_mode=True)
print("ready", file=ANSWERS, flush=True)
for _ in sys.stdin:
    begin = time.process_time()
    optimizer.step()
    taken = time.process_time() - begin
    print(json.dumps([taken, p.detach()[:1000].tolist()]), file=ANSWERS, flush=True)
