"""Learning rates of torch's LambdaLR with the schedules of transformers: writes tests/golden/schedules.json.

    python schedules.py

Each case is a schedule with its settings and the rates of all steps, and the one behind the last. transformers begins its
warm-up with a rate of 0, and that of its wsd at min_lr: while it warms up, the rate of step + 1 of its constant schedule is
ours.
"""

import json
from pathlib import Path

import torch
from transformers import optimization

GOLDEN = Path(__file__).parent.parent / "golden" / "schedules.json"
CASES = [
    ("cosine", 3e-3, 3e-4, 5, 0, 40),
    ("cosine", 1e-3, 0.0, 0, 0, 12),
    ("linear", 3e-3, 3e-4, 5, 0, 40),
    ("linear", 1e-3, 0.0, 0, 0, 12),
    ("constant", 3e-3, 3e-4, 5, 0, 20),
    ("wsd", 3e-3, 3e-4, 5, 12, 40),
    ("wsd", 1e-3, 0.0, 0, 1, 12),
    ("wsd", 1e-3, 1e-4, 4, 0, 40),  # a fifth: 8 steps
    ("wsd", 2e-3, 0.0, 10, 30, 40),  # nothing between warm-up and cooldown
]


def scheduler(optimizer, schedule, peak, min_lr, warmup, cooldown, steps):
    if schedule == "cosine":
        return optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr=min_lr)
    if schedule == "linear":
        return optimization.get_polynomial_decay_schedule_with_warmup(optimizer, warmup, steps, lr_end=min_lr, power=1.0)
    if schedule == "constant":
        return optimization.get_constant_schedule_with_warmup(optimizer, warmup)
    decay = cooldown or steps // 5
    return optimization.get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps=steps, decay_type="linear", min_lr_ratio=min_lr / peak
    )


def rates(schedule, peak, min_lr, warmup, cooldown, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    lambda_lr = scheduler(optimizer, schedule, peak, min_lr, warmup, cooldown, steps)
    theirs = []
    for _ in range(steps + 1):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lambda_lr.step()
    return theirs


names = ["schedule", "learning_rate", "min_lr", "warmup_iters", "cooldown_iters", "max_iters"]
lines = []
for case in CASES:
    warmup = case[3]
    warming = rates("constant", *case[1:])[1 : warmup + 1]
    lines.append(json.dumps({**dict(zip(names, case)), "rates": warming + rates(*case)[warmup:]}))
GOLDEN.write_text("[\n" + ",\n".join(lines) + "\n]\n")
