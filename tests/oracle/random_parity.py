"""Reference numbers for models that no golden file holds.

  python random_parity.py cases DIR [--count 8] [--seed 0]    DIR/0.safetensors ...: random shapes and weights
  python random_parity.py run IN.safetensors OUT.safetensors  for weights, idx and targets that IN holds

IN has Hugging Face weights, idx and targets (int32) and the config.json as metadata "config". Every file written has
logits, loss, grad.<name> (Hugging Face, float32) and logits64, loss64, grad64.<name> (float64); a case also has its
weights, idx, targets, and the config in the metadata "about", like the files of tests/golden.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors import safe_open

import llama


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    cases = commands.add_parser("cases")
    cases.add_argument("directory", type=Path)
    cases.add_argument("--count", type=int, default=8)
    cases.add_argument("--seed", type=int, default=0)
    cases.set_defaults(run=write_cases)
    run = commands.add_parser("run")
    run.add_argument("input", type=Path)
    run.add_argument("output", type=Path)
    run.set_defaults(run=run_file)
    args = parser.parse_args()
    args.run(args)


def write_cases(args):
    args.directory.mkdir(parents=True, exist_ok=True)
    choose = random.Random(args.seed)
    for case in range(args.count):
        config, B, T = random_shape(choose)
        torch.manual_seed(choose.randrange(2**31))
        weights = llama.random_weights(config, seed=choose.randrange(2**31))
        idx, targets = (torch.randint(0, config["vocab_size"], (B, T)) for _ in range(2))
        if case % 2:  # as of a conversation: only some are trained on, one at least
            targets = targets.where((torch.rand(B, T) < 0.4).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(True)), -100)
        results = llama.reference(config, weights, idx, targets)
        tensors = weights | results | dict(idx=idx.int(), targets=targets.int())
        llama.save(args.directory / f"{case}.safetensors", tensors, config=config)


def random_shape(choose):
    """Small, and often odd: sizes that are no multiple of a vector or a tile are where kernels go wrong."""
    K, D = choose.choice([1, 2, 3]), choose.choice([8, 16, 32])
    H = K * choose.choice([1, 2, 3, 4])
    config = llama.make_config(
        V=choose.randint(20, 200), C=H * D, L=choose.randint(1, 3), H=H, K=K, D=D, F=8 * choose.randint(3, 20), T=64,
        theta=choose.choice([100.0, 10000.0, 500000.0]), eps=choose.choice([1e-6, 1e-5]), tied=choose.random() < 0.7,
    )
    return config, choose.randint(1, 4), choose.randint(1, 64)


def run_file(args):
    with safe_open(args.input, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    idx, targets = tensors.pop("idx").long(), tensors.pop("targets").long()
    llama.save(args.output, llama.reference(config, tensors, idx, targets))


if __name__ == "__main__":
    main()
