"""The PyTorch side of `deno task bench:peer`: the same Llama as model/llama.ts, trained in the usual way.

  python torch_llama.py --preset small --steps 10           one JSON line: median step time, tokens/s, peak memory
  python torch_llama.py --preset small --serve              waits for lines "steps N" and answers each with a JSON line

Same shapes, fused q/k/v and gate/up matrices, tied embeddings, AdamW (fused), clipping, a new random batch each micro-step,
and the loss read every step. --compile for torch.compile. --dtype bfloat16 is autocast: float32 weights, bfloat16 GEMMs.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F

PRESETS = {
    "tiny": dict(n_layer=4, n_embd=128, n_head=4, n_kv_head=2, n_inner=384, T=64, B=12, V=65),
    "small": dict(n_layer=6, n_embd=384, n_head=6, n_kv_head=2, n_inner=1024, T=256, B=8, V=65),
    "gpt-270m": dict(n_layer=24, n_embd=1024, n_head=16, n_kv_head=4, n_inner=2816, T=2048, B=4, V=50304),
}
WARMUP = 3  # steps before anything is timed; compilation happens in the first


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU; no effect on a CPU without it
    torch.manual_seed(0)
    trainer = Trainer(args)
    for _ in range(WARMUP):
        trainer.step()
    if not args.serve:
        print(json.dumps(trainer.report(args.steps)))
        return
    say(dict(ready=True, parameters=trainer.parameters, version=torch.__version__, device=device_name(args.device)))
    for line in sys.stdin:
        command, count = line.split()
        assert command == "steps", f'expected "steps N", got {line!r}'
        say(trainer.report(int(count)))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    for name in PRESETS["small"]:
        parser.add_argument(f"--{name}", type=int, help="replaces the value of the preset")
    parser.add_argument("--accum", type=int, default=1, help="micro-steps of B sequences in a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def say(message):
    print(json.dumps(message), flush=True)


# ---- model ----------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        C, self.H, self.K, self.D = c.n_embd, c.n_head, c.n_kv_head, c.n_embd // c.n_head
        self.input_layernorm = RMSNorm(C)
        self.qkv_proj = nn.Linear(C, (self.H + 2 * self.K) * self.D, bias=False)
        self.o_proj = nn.Linear(self.H * self.D, C, bias=False)
        self.post_attention_layernorm = RMSNorm(C)
        self.gate_up_proj = nn.Linear(C, 2 * c.n_inner, bias=False)
        self.down_proj = nn.Linear(c.n_inner, C, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.input_layernorm(x), cos, sin)
        gate, up = self.gate_up_proj(self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.down_proj(F.silu(gate) * up)

    def attention(self, x, cos, sin):
        B, T, _ = x.shape
        heads = self.qkv_proj(x).view(B, T, -1, self.D).transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = heads.split((self.H, self.K, self.K), 1)
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


def rope(x, cos, sin):
    x1, x2 = x.chunk(2, -1)  # pairs are (j, j + D/2)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.V, c.n_embd)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = RMSNorm(c.n_embd)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0.0, 0.02)
        D = c.n_embd // c.n_head
        angle = torch.outer(torch.arange(c.T), 10000.0 ** (-torch.arange(0, D, 2) / D))  # (T, D/2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, idx, targets):
        """idx, targets (B, T) -> mean cross entropy"""
        x = self.embed_tokens(idx)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)  # (B, T, V)
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


# ---- training -------------------------------------------------------------------------------------------------------


class Trainer:
    def __init__(self, args):
        self.args = args
        model = Llama(args).to(args.device)
        self.parameters = sum(p.numel() for p in model.parameters())
        matrices = dict(params=[p for p in model.parameters() if p.dim() > 1], weight_decay=0.1)
        vectors = dict(params=[p for p in model.parameters() if p.dim() == 1], weight_decay=0.0)
        self.optimizer = torch.optim.AdamW([matrices, vectors], lr=3e-4, betas=(0.9, 0.95), fused=True)
        self.loss = torch.compile(model) if args.compile else model
        self.weights = list(model.parameters())
        mixed = args.dtype == "bfloat16"
        self.precision = torch.autocast(args.device, dtype=torch.bfloat16) if mixed else nullcontext()

    def step(self):
        """One optimizer step over accum micro-steps; returns the mean loss."""
        args, mean = self.args, 0.0
        for _ in range(args.accum):
            tokens = torch.randint(0, args.V, (args.B, args.T + 1), device=args.device)
            with self.precision:
                loss = self.loss(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) / args.accum
            loss.backward()
            mean += loss.detach()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean.item()  # waits for a GPU

    def report(self, steps):
        step_ms = []
        for _ in range(steps):
            start = time.perf_counter()
            loss = self.step()
            step_ms.append((time.perf_counter() - start) * 1e3)
        tokens = self.args.B * self.args.T * self.args.accum
        median = statistics.median(step_ms)
        return dict(
            step_ms=step_ms, median_ms=median, tokens_per_sec=tokens / median * 1e3, loss=loss,
            peak_bytes=peak_bytes(self.args.device),
        )


def peak_bytes(device):
    """Of the GPU, or of the whole process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device):
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
