"""PyTorch beside bench/kernels.ts: the same operations, named alike, timed alike. Prints a JSON list.

  python torch_kernels.py --B 4 --T 2048 --C 1024 --H 16 --K 4 --F 2816 --V 50304 --chunk 2048 --device cuda

A time is that of many queued calls and one wait, divided by their number, the median of several such batches. Attention is
timed for each backend of scaled_dot_product_attention. Everything is eager: short calls may wait for Python.
wgrad makes bfloat16 here, where loam adds to float32. Operations that do not run are in the list with an "error".
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SIZES = dict(B=4, T=2048, C=1024, H=16, K=4, F=2816, V=50304, chunk=2048)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--weights", type=int, default=0, help="elements that AdamW updates, 0 = leave it out")
    parser.add_argument("--batch_ms", type=float, default=10)
    parser.add_argument("--rotate_mb", type=float, default=512, help="arrays of a call and its copies together")
    args = parser.parse_args()
    results = []
    for op, variant, mb, make in cases(args):
        result = dict(op=op, variant=variant)
        try:
            copies = max(1, min(16, math.ceil(args.rotate_mb / mb)))
            result |= timed([make() for _ in range(copies)], args)
        except Exception as error:  # a backend that this card or shape does not have, or no memory
            result["error"] = str(error).splitlines()[0]
        results.append(result)
    print(json.dumps(dict(torch=torch.__version__, results=results)))


def timed(calls, args):
    def run(n):
        start = time.perf_counter()
        for i in range(n):
            calls[i % len(calls)]()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / n * 1e3

    run(len(calls))
    n = max(len(calls), math.ceil(args.batch_ms / run(len(calls))))
    run(n)
    ms = sorted(run(n) for _ in range(9))
    return dict(ms=statistics.median(ms), ms_least=ms[0], ms_most=ms[-1])


def cases(a):
    """(op, variant, MB that a call touches, function that makes the arrays and returns the call)"""
    N, D = a.B * a.T, a.C // a.H
    yield from norm_cases(a, N)
    yield from attention_cases(a, N, D)
    shapes = dict(
        qkv=(N, a.C, (a.H + 2 * a.K) * D), o=(N, a.C, a.C), gate_up=(N, a.C, 2 * a.F), down=(N, a.F, a.C),
        head=(min(N, a.chunk), a.C, a.V),
    )
    for name, shape in shapes.items():
        yield from linear_cases(a, name, *shape)
    yield from swiglu_cases(a, N)
    yield "cross_entropy", "forward and backward", 6e-6 * min(N, a.chunk) * a.V, lambda: cross_entropy(a, min(N, a.chunk))
    if a.weights:
        yield "adamw", "fused, float32", 28e-6 * a.weights, lambda: adamw(a)


def normal(a, *shape, grad=False):
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    return torch.randn(shape, device=a.device, dtype=dtype, requires_grad=grad)


def backward(out, inputs, dout):
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)


def norm_cases(a, N):
    def forward(grad=False):
        x, w = normal(a, N, a.C, grad=grad), normal(a, a.C, grad=grad)
        return x, w, lambda: F.rms_norm(x, (a.C,), w, 1e-6)

    def make_backward():
        x, w, call = forward(True)
        return backward(call(), (x, w), normal(a, N, a.C))

    yield "rmsnorm forward", "eager", 4e-6 * N * a.C, lambda: forward()[2]
    yield "rmsnorm backward", "eager", 10e-6 * N * a.C, make_backward


def attention_cases(a, N, D):
    def forward(backend, grad=False):
        q, k, v = (normal(a, a.B, heads, a.T, D, grad=grad) for heads in (a.H, a.K, a.K))

        def call():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return (q, k, v), call

    def make_backward(backend):
        inputs, call = forward(backend, True)
        return backward(call(), inputs, normal(a, a.B, a.H, a.T, D))

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        variant, mb = f"sdpa {backend.name.split('_')[0].lower()}", 5e-6 * N * a.C
        yield "attention forward", variant, mb, lambda b=backend: forward(b)[1]
        yield "attention backward", variant, 2 * mb, lambda b=backend: make_backward(b)


def linear_cases(a, name, N, IN, OUT):
    def make(product):
        x, dout, w = normal(a, N, IN), normal(a, N, OUT), normal(a, OUT, IN)
        return lambda: product(x, dout, w)

    mb = 2e-6 * (N * IN + N * OUT + OUT * IN)
    yield f"{name} forward", "F.linear", mb, lambda: make(lambda x, dout, w: F.linear(x, w))
    yield f"{name} dgrad", "matmul", mb, lambda: make(lambda x, dout, w: dout @ w)
    yield f"{name} wgrad", "matmul", mb, lambda: make(lambda x, dout, w: dout.t() @ x)


def swiglu_cases(a, N):
    def forward(grad=False):
        gate_up = normal(a, N, 2 * a.F, grad=grad)

        def call():
            gate, up = gate_up.chunk(2, -1)
            return F.silu(gate) * up

        return gate_up, call

    def make_backward():
        gate_up, call = forward(True)
        return backward(call(), (gate_up,), normal(a, N, a.F))

    yield "swiglu forward", "eager", 6e-6 * N * a.F, lambda: forward()[1]
    yield "swiglu backward", "eager", 12e-6 * N * a.F, make_backward


def cross_entropy(a, n):
    logits = normal(a, n, a.V, grad=True)
    targets = torch.randint(0, a.V, (n,), device=a.device)
    return lambda: torch.autograd.grad(F.cross_entropy(logits.float(), targets), (logits,))


def adamw(a):
    p = torch.zeros(a.weights, device=a.device, requires_grad=True)
    p.grad = torch.randn(a.weights, device=a.device)
    return torch.optim.AdamW([p], lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True).step


if __name__ == "__main__":
    main()
