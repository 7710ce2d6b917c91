"""PyTorch's side of bench/curve.ts: trains from the weights and on the windows that curve.ts wrote to a directory.

  python torch_curve.py DIR --device cuda --dtype bfloat16

Reads DIR/run/config.json (the variables of train.ts), DIR/weights.safetensors (float32) and DIR/windows.json; writes the loss
and gradient norm of every step to DIR/torch.json. The learning rates and the batches are worked out here, from the formula
and the token files, so that they are compared too. --dtype bfloat16 is autocast: float32 weights, bfloat16 products.
"""

import argparse
import json
import math
import time
from contextlib import nullcontext

import numpy
import torch
from safetensors.torch import load_file
from torch import nn

from torch_llama import Llama, device_name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config, data = read(f"{args.dir}/run/config.json"), read(f"{args.dir}/windows.json")
    model = build(data["model"], f"{args.dir}/weights.safetensors").to(args.device)
    start = time.perf_counter()
    losses, norms = train(model, config, data, args)
    step_ms = (time.perf_counter() - start) / len(losses) * 1e3
    with open(f"{args.dir}/torch.json", "w") as file:
        names = dict(version=torch.__version__, device=device_name(args.device), step_ms=step_ms)
        json.dump(dict(losses=losses, grad_norms=norms, **names), file)


def read(path):
    with open(path) as file:
        return json.load(file)


def build(c, weights):
    assert c["rope_theta"] == 10000 and c["norm_eps"] == 1e-6, "torch_llama.py has Llama's theta and eps built in"
    assert c["head_dim"] * c["n_head"] == c["n_embd"], "torch_llama.py has heads of n_embd / n_head"
    sizes = {name: c[name] for name in ("n_layer", "n_embd", "n_head", "n_kv_head", "n_inner")}
    model = Llama(argparse.Namespace(**sizes, V=c["vocab_size"], T=c["block_size"]))
    missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    assert set(missing) == {"cos", "sin"} and not unexpected, (missing, unexpected)
    return model


def train(model, config, data, args):
    """Losses and gradient norms of all steps."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [dict(params=matrices, weight_decay=config["weight_decay"]), dict(params=vectors, weight_decay=0.0)],
        betas=(config["beta1"], config["beta2"]), eps=config["eps"], fused=True,
    )
    mixed = args.dtype == "bfloat16"
    precision = torch.autocast(args.device, dtype=torch.bfloat16) if mixed else nullcontext()
    batches = Batches(data["shards"], config["block_size"], args.device)
    losses, norms = [], []
    for step, micro_steps in enumerate(data["windows"]):
        mean = 0.0
        for windows in micro_steps:
            with precision:
                loss = model(*batches.read(windows)) / len(micro_steps)
            loss.backward()
            mean += loss.detach()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), config["grad_clip"] or math.inf))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(mean)
    return [loss.item() for loss in losses], [norm.item() for norm in norms]


def learning_rate(step, c):
    """Linear warm-up, then half a cosine from learning_rate to min_lr."""
    if step < c["warmup_iters"]:
        return c["learning_rate"] * (step + 1) / c["warmup_iters"]
    progress = min(1, (step - c["warmup_iters"]) / max(1, c["max_iters"] - c["warmup_iters"]))
    return c["min_lr"] + 0.5 * (1 + math.cos(math.pi * progress)) * (c["learning_rate"] - c["min_lr"])


class Batches:
    def __init__(self, shards, T, device):
        self.T, self.device = T, device
        self.shards = [
            numpy.memmap(s["path"], f"<u{s['token_bytes']}", mode="r", offset=s["header_bytes"]) for s in shards
        ]

    def read(self, windows):
        """Inputs and targets (B, T) of a list of (shard, first token)."""
        rows = [self.shards[shard][start : start + self.T + 1].astype("int64") for shard, start in windows]
        tokens = torch.from_numpy(numpy.stack(rows)).to(self.device)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


if __name__ == "__main__":
    main()
