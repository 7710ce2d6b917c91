"""Writes tests/golden/*.safetensors, the numbers that loam's tests compare with. Usage: python make_golden.py

The same script gives the same files on the same versions. The metadata of each file has one key, "about": JSON with
the versions and, where they apply, the config (in the words of config.json) and the optimizer settings.
"""

import json
import platform
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import save_file

import llama

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = dict(
    python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
    safetensors=safetensors.__version__,
)
ADAMW = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, grad_clip=1.0)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the last bits of a sum depend on the thread count
    GOLDEN.mkdir(exist_ok=True)
    for name, tied in (("llama_tiny", True), ("llama_untied", False)):
        config = llama.make_config(V=61, C=32, L=3, H=4, K=2, D=8, I=48, T=32, tied=tied)
        write(name, *llama_golden(config))
    write("adamw", *adamw_golden())
    write("from_python", *format_golden())


def llama_golden(config):
    """Weights, one batch, logits, loss and gradients from Hugging Face (float32) and from the plain model (float64),
    then ten AdamW losses of each on the same batch. Names ending in 64 were computed in float64, stored as float32."""
    weights = llama.random_weights(config, seed=1)
    V, B, T = config["vocab_size"], 3, 17  # T is odd on purpose
    idx, targets = (torch.randint(0, V, (B, T)) for _ in range(2))
    hf = llama.hf_run(config, weights, idx, targets)
    plain = llama.plain_run(config, weights, idx, targets)
    agree(hf, plain)

    rates = [2e-3, 6e-3, 1e-2, 1e-2, 1e-2, 8e-3, 6e-3, 4e-3, 2e-3, 1e-3]
    model = llama.hf_model(config, weights)
    parameters = {name: w.double().requires_grad_() for name, w in weights.items()}
    losses, norms = llama.train(
        list(model.parameters()), lambda: llama.hf_logits(model, idx), targets, rates, ADAMW
    )
    losses64, norms64 = llama.train(
        list(parameters.values()), lambda: llama.plain_logits(config, parameters, idx), targets, rates, ADAMW
    )
    agree(dict(losses=torch.tensor(losses)), dict(losses=torch.tensor(losses64)))
    tensors = weights | dict(
        idx=idx.int(), targets=targets.int(), learning_rates=torch.tensor(rates),
        losses=torch.tensor(losses), losses64=torch.tensor(losses64),
        grad_norms=torch.tensor(norms), grad_norms64=torch.tensor(norms64),
    )
    tensors |= hf | {name.replace("grad.", "grad64."): t for name, t in plain.items() if name.startswith("grad.")}
    tensors |= dict(logits64=plain["logits"], loss64=plain["loss"])
    return tensors, dict(config=config, optimizer=ADAMW)


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
    return tensors | dict(learning_rates=rates), dict(optimizer=ADAMW)


def format_golden():
    """One small tensor of each element type, a scalar, and a name outside ASCII, as Python writes them."""
    values = torch.tensor([[0.0, -0.0, 1.5], [-2.25, 65504.0, 6.103515625e-05]])
    tensors = {
        "f32": values, "bf16": values.bfloat16(), "f16": values.half(),
        "i32": torch.tensor([-1, 2**31 - 1], dtype=torch.int32), "scalar": torch.tensor(0.5), "größe": torch.zeros(0, 4),
    }
    return tensors, dict(note="ü")


def agree(a, b, tolerance=1e-5):
    """The two models must agree before their numbers may serve as a reference."""
    for name in a:
        error = (a[name].double() - b[name].double()).norm() / b[name].double().norm()
        assert error < tolerance, f"{name}: relative error {error:.2e} between float32 and float64"


def write(name, tensors, facts):
    path = GOLDEN / f"{name}.safetensors"
    narrowed = {k: (t.float() if t.dtype == torch.float64 else t).contiguous() for k, t in tensors.items()}
    about = json.dumps(facts | dict(versions=VERSIONS))  # one key: safetensors writes several in random order
    save_file(narrowed, path, {"about": about})
    print(f"{path.name}: {len(narrowed)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
