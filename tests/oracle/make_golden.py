"""Writes tests/golden/*.safetensors, the numbers that loam's tests compare with. Usage: python make_golden.py

The same script gives the same files on the same versions. The metadata of each file has one key, "about": JSON with
the versions and, where they apply, the config (in the words of config.json) and the optimizer settings.
"""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

import llama

GOLDEN = Path(__file__).parent.parent / "golden"
ADAMW = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, grad_clip=1.0)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the last bits of a sum depend on the thread count
    GOLDEN.mkdir(exist_ok=True)
    for name, tied in (("llama_tiny", True), ("llama_untied", False)):
        config = llama.make_config(V=61, C=32, L=3, H=4, K=2, D=8, F=48, T=32, tied=tied)
        llama.save(GOLDEN / f"{name}.safetensors", llama_golden(config), config=config, optimizer=ADAMW)
    llama.save(GOLDEN / "adamw.safetensors", adamw_golden(), optimizer=ADAMW)
    llama.save(GOLDEN / "from_python.safetensors", one_of_each_type(), note="ü")
    llama.save(GOLDEN / "sharded.safetensors", sharded_golden(GOLDEN / "sharded"))


def llama_golden(config):
    """Weights, one batch, logits, loss and gradients from Hugging Face (float32) and from the plain model (float64),
    then ten AdamW losses of each on the same batch. Names ending in 64 were computed in float64, stored as float32."""
    weights = llama.random_weights(config, seed=1)
    V, B, T = config["vocab_size"], 3, 17  # T is odd on purpose
    idx, targets = (torch.randint(0, V, (B, T)) for _ in range(2))
    results = llama.reference(config, weights, idx, targets)

    rates = [2e-3, 6e-3, 1e-2, 1e-2, 1e-2, 8e-3, 6e-3, 4e-3, 2e-3, 1e-3]
    model = llama.hf_model(config, weights)
    parameters = {name: w.double().requires_grad_() for name, w in weights.items()}
    losses, norms = llama.train(
        list(model.parameters()), lambda: llama.hf_logits(model, idx), targets, rates, ADAMW
    )
    losses64, norms64 = llama.train(
        list(parameters.values()), lambda: llama.plain_logits(config, parameters, idx), targets, rates, ADAMW
    )
    llama.agree(dict(losses=torch.tensor(losses)), dict(losses=torch.tensor(losses64)))
    return weights | results | dict(
        idx=idx.int(), targets=targets.int(), learning_rates=torch.tensor(rates),
        losses=torch.tensor(losses), losses64=torch.tensor(losses64),
        grad_norms=torch.tensor(norms), grad_norms64=torch.tensor(norms64),
    )


def adamw_golden():
    """A matrix (decayed) and a vector (not) over eight steps with the gradients given: some norms above the clip, some
    below. weight.<name> and weight64.<name> hold the values after each step, (8, ...)."""
    steps, shapes = 8, dict(matrix=(7, 13), vector=(13,))
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    size = torch.tensor([3.0, 0.01, 0.5, 1e-4, 0.05, 2.0, 0.02, 1e-6])  # from far above the clip to near Adam's eps
    grads = {name: torch.randn(steps, *shape) * size.view(-1, *[1] * len(shape)) for name, shape in shapes.items()}
    rates = torch.linspace(1e-2, 1e-3, steps)
    tensors = {f"start.{name}": t for name, t in start.items()} | {f"grad.{name}": g for name, g in grads.items()}
    for suffix, dtype in (("", torch.float32), ("64", torch.float64)):
        weights = {name: t.to(dtype).clone().requires_grad_() for name, t in start.items()}
        optimizer = llama.adamw(list(weights.values()), ADAMW)
        after = {name: [] for name in shapes}
        for step in range(steps):
            for name, w in weights.items():
                w.grad = grads[name][step].to(dtype).clone()
            llama.update(optimizer, weights.values(), rates[step].item(), ADAMW)
            for name, w in weights.items():
                after[name].append(w.detach().clone())
        tensors |= {f"weight{suffix}.{name}": torch.stack(ts) for name, ts in after.items()}
    return tensors | dict(learning_rates=rates)


def one_of_each_type():
    """One small tensor of each element type, a scalar, and a name outside ASCII, as Python writes them."""
    values = torch.tensor([[0.0, -0.0, 1.5], [-2.25, 65504.0, 6.103515625e-05]])
    return {
        "f32": values, "bf16": values.bfloat16(), "f16": values.half(),
        "i32": torch.tensor([-1, 2**31 - 1], dtype=torch.int32), "scalar": torch.tensor(0.5), "größe": torch.zeros(0, 4),
    }


def sharded_golden(directory):
    """Writes a model of float16 in several files, as transformers does it, and returns what it says in float32."""
    config = llama.make_config(V=40, C=16, L=1, H=2, K=1, D=8, F=16, T=16, tied=False)
    model = llama.hf_model(config, llama.random_weights(config, seed=2))
    model.half().save_pretrained(directory, max_shard_size="2KB")
    idx = torch.randint(0, config["vocab_size"], (1, 9))
    loaded = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return dict(idx=idx.int(), logits=llama.hf_logits(loaded, idx).detach())


if __name__ == "__main__":
    main()
