"""Ten steps of torch.optim.Muon and AdamW together, on one batch, in float64.

  python muon.py                       writes tests/golden/muon.safetensors
  python muon.py OUT.safetensors SEED  the same of random shapes

Muon has the matrices of the layers, each under its Hugging Face name for itself, with adjust_lr_fn="match_rms_adamw";
AdamW has the embedding, the head and the norms. The file has weights, idx, targets, learning_rates, losses64 and
grad_norms64 of the steps, and the weights after them as after64.<name>.
"""

import random
import sys
from pathlib import Path

import torch

import llama
from random_parity import random_shape

GOLDEN = Path(__file__).parent.parent / "golden" / "muon.safetensors"
SETTINGS = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, grad_clip=1.0, muon_momentum=0.9)
RATES = [2e-3, 6e-3, 1e-2, 1e-2, 1e-2, 8e-3, 6e-3, 4e-3, 2e-3, 1e-3]


def train(config, weights, idx, targets):
    parameters = {name: w.double().requires_grad_() for name, w in weights.items()}
    hidden = [p for name, p in parameters.items() if p.dim() == 2 and ".layers." in name]
    others = [p for p in parameters.values() if not any(p is h for h in hidden)]
    muon = torch.optim.Muon(
        hidden, lr=0.0, weight_decay=SETTINGS["weight_decay"], momentum=SETTINGS["muon_momentum"],
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = llama.adamw(others, SETTINGS)
    losses, norms = [], []
    for rate in RATES:
        loss = llama.mean_loss(llama.plain_logits(config, parameters, idx), targets)
        for p, grad in zip(parameters.values(), torch.autograd.grad(loss, list(parameters.values()))):
            p.grad = grad
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), SETTINGS["grad_clip"]))
        losses.append(loss.detach())
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    after = {f"after64.{name}": p.detach() for name, p in parameters.items()}
    return after | dict(losses64=torch.stack(losses), grad_norms64=torch.stack(norms))


def main(path, seed):
    torch.Tensor.bfloat16 = torch.Tensor.clone  # Muon multiplies in bfloat16, and here in float64
    torch.manual_seed(seed)
    if seed == 0:
        config, B, T = llama.make_config(V=61, C=24, L=1, H=3, K=1, D=8, F=40, T=32), 3, 17
    else:
        config, B, T = random_shape(random.Random(seed))
    weights = llama.random_weights(config, seed)
    idx, targets = (torch.randint(0, config["vocab_size"], (B, T)) for _ in range(2))
    results = train(config, weights, idx, targets)
    rates = torch.tensor(RATES)
    llama.save(
        path, weights | results | dict(idx=idx.int(), targets=targets.int(), learning_rates=rates),
        config=config, optimizer=SETTINGS,
    )


if __name__ == "__main__":
    main(*((sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else (GOLDEN, 0)))
