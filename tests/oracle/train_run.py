"""Writes tests/golden/train_run: a small dataset, and what a whole run of train.ts on it has to give. Usage: python train_run.py

And tests/golden/chat_run: masks of the same shards, and the run in which only what they say is trained on, each conversation
by itself. Its losses and the gradients of its first step are Hugging Face's too, of LlamaForCausalLM with labels of -100, a
mask of pairs of tokens and positions that begin anew, or nothing is written.

Everything between the command line and the last weights is written here a second time, from the descriptions in kernels.h,
data/order.ts and README.md: initial weights (Philox), the order of the windows, gradient accumulation, warm-up and cosine,
clipping, AdamW, evaluation. The model is the float64 one of llama.py. Settings that the test does not pass are train.ts's
defaults: betas 0.9 and 0.95, eps 1e-8, weight_decay 0.1 on matrices, grad_clip 1.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

import llama

OUT = Path(__file__).parent.parent / "golden" / "train_run"
CONFIG = llama.make_config(V=257, C=32, L=2, H=2, K=1, D=32, F=48, T=16)
ADAMW = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, grad_clip=1.0)
SEED, B, MICRO_STEPS, STEPS, EVAL_INTERVAL = 4_300_000_007, 4, 3, 17, 4  # a seed of more than 32 bits
PEAK, LOWEST, WARMUP = 0.01, 0.001, 5
CHAT_OUT = OUT.parent / "chat_run"
TRAINED, BEGINS = 1, 2  # of a byte of a mask
SHARDS = {"train_000000.bin": 810, "train_000001.bin": 641, "train_000002.bin": 180, "val_000000.bin": 165}  # tokens


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    tokens = write_dataset()
    train = windows(tokens, "train")  # 50 + 40 + 11: twelve a step do not divide them, and 17 steps are two epochs and a bit
    val = windows(tokens, "val")  # 10: three batches, the last one of two
    assert (len(train), len(val)) == (101, 10)
    first = {n: w.double() for n, w in initial_weights().items()}
    last = write_run(OUT, first, train, val)
    llama.save(OUT / "first.safetensors", first, config=CONFIG)
    llama.save(OUT / "last.safetensors", last, config=CONFIG, optimizer=ADAMW)

    CHAT_OUT.mkdir(exist_ok=True)
    masks = write_masks()
    train, val = ([(w, m) for w, m in zip(windows(tokens, s), windows(masks, s))] for s in ("train", "val"))
    untrained = [i for i, (_, mask) in enumerate(train) if not (mask[1:] & TRAINED).any()]
    assert len(untrained) > 2, untrained
    write_run(CHAT_OUT, first, train, val)


def write_run(out, first, train, val):
    """A run, whose numbers go to out/run.json; returns its last weights."""
    parameters = {n: w.clone().requires_grad_() for n, w in first.items()}
    optimizer = llama.adamw(list(parameters.values()), ADAMW)
    losses, norms, rates, val_losses = [], [], [], {}
    sample = 0
    for step in range(STEPS):
        optimizer.zero_grad()
        step_windows = [train[place(sample + i, len(train))] for i in range(MICRO_STEPS * B)]
        sample += MICRO_STEPS * B
        loss = mean_loss(parameters, step_windows)
        loss.backward()
        if step == 0:
            agree_with_hugging_face(parameters, step_windows, loss)
        rates.append(rate(step))
        norms.append(llama.update(optimizer, list(parameters.values()), rates[-1], ADAMW).item())
        losses.append(loss.item())
        if (step + 1) % EVAL_INTERVAL == 0 or step + 1 == STEPS:
            with torch.no_grad():
                val_losses[step + 1] = mean_loss(parameters, val).item()
    clipped = sum(n > 1 for n in norms)
    print("losses", losses, "\nnorms", norms, f"\nclipped in {clipped} of {STEPS} steps\nval", val_losses)
    assert 0 < clipped < STEPS
    (out / "run.json").write_text(json.dumps(dict(
        seed=SEED, losses=losses, grad_norms=norms, learning_rates=rates, val_losses=val_losses,
    ), indent=1) + "\n")
    return {n: w.detach() for n, w in parameters.items()}


def agree_with_hugging_face(parameters, batch, loss):
    """labels hold each token itself, which Hugging Face shifts, and -100 where there is no loss."""
    model = llama.hf_model(CONFIG, {n: w.detach().float() for n, w in parameters.items()})
    ids, labels = (torch.stack(rows) for rows in zip(*map(ids_and_labels, batch)))
    starts = torch.stack([starts_of(window) for window in batch])  # of the conversation of each token
    t = torch.arange(ids.shape[1])
    sees = (t[None, :] <= t[:, None]) & (starts[:, :, None] <= t)
    pairs = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    theirs = model(input_ids=ids, labels=labels, attention_mask=pairs, position_ids=t - starts).loss
    theirs.backward()
    found = {n: w.grad for n, w in model.named_parameters()} | dict(loss=theirs.detach())
    llama.agree(found, {n: w.grad.float() for n, w in parameters.items()} | dict(loss=loss.detach().float()), 1e-4)


def ids_and_labels(window):
    ids, mask = window if isinstance(window, tuple) else (window, torch.full_like(window, TRAINED))
    return ids, torch.where(mask & TRAINED > 0, ids, -100)


def starts_of(window):
    """Where in a window the conversation of each token begins: 0 if before it, or where there are none."""
    ids, mask = window if isinstance(window, tuple) else (window, torch.zeros_like(window))
    return torch.cummax(torch.where(mask & BEGINS > 0, torch.arange(len(ids)), 0), 0).values


# ---- data


def write_dataset():
    """A text of lower-case letters in which each letter prefers a few followers. No end-of-text token: so rare a token has an
    embedding so small that RMSNorm makes the run chaotic, and bfloat16 cannot follow it."""
    generator = np.random.default_rng(1)
    follow = generator.integers(97, 123, (26, 3))
    tokens, shards = {}, []
    for file, n in SHARDS.items():
        ids = np.empty(n, np.uint16)
        ids[0] = 97
        at = 0
        for i in range(1, n):
            at = generator.choice(follow[at]) - 97 if generator.random() < 0.8 else generator.integers(26)
            ids[i] = 97 + at
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, n
        data = header.tobytes() + ids.tobytes()
        (OUT / file).write_bytes(data)
        tokens[file] = ids
        shards.append(dict(file=file, tokens=n, sha256=hashlib.sha256(data).hexdigest()))
    sizes = {
        split: dict(
            documents=0,
            tokens=sum(n for f, n in SHARDS.items() if f.startswith(split)),
            bytes=sum(n - 1 for f, n in SHARDS.items() if f.startswith(split)),
        )
        for split in ("train", "val")
    }
    meta = dict(
        format="loam-bins", version=1, tokenizer="bytes", tokenizer_sha256="", vocab_size=257, eot=256, token_bytes=2,
        inputs=[dict(name="letters.txt", bytes=sizes["train"]["bytes"] + sizes["val"]["bytes"], version="1")],
        sources=[dict(weight=None, files=1)],
        options=dict(
            column="text", split_on="file", limit=None, dedup="", shuffle_docs=None, skip_bad=False, val_fraction=0.1,
            seed=1337, shard_tokens=100_000_000,
        ),
        part=None, **sizes, left_out=dict(empty=0, duplicates=0, bad=0), shards=shards,
    )
    (OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return tokens


def write_masks():
    """Conversations of some lengths, in each of which a few stretches are trained on, and one shard almost without."""
    generator = np.random.default_rng(2)
    masks = {}
    for file, n in SHARDS.items():
        mask = np.zeros(n, np.uint8)
        at = 0
        while at < n:
            length = int(generator.integers(5, 70))
            mask[at] |= BEGINS
            if file != "train_000002.bin" or at == 0:
                answer = at + int(generator.integers(1, length))
                mask[answer : at + length] |= TRAINED
            at += length
        (CHAT_OUT / file.replace(".bin", ".mask")).write_bytes(mask.tobytes())
        masks[file] = mask
    meta = json.loads((OUT / "meta.json").read_text()) | dict(template="{{ messages }}")
    for shard in meta["shards"]:
        shard["mask_sha256"] = hashlib.sha256(masks[shard["file"]].tobytes()).hexdigest()
    (CHAT_OUT / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return masks


def windows(tokens, split):
    """Every window of T + 1 tokens that begins at a multiple of T, shard by shard."""
    T = CONFIG["max_position_embeddings"]
    return [
        torch.tensor(ids[start : start + T + 1].astype(np.int64))
        for file, ids in tokens.items() if file.startswith(split)
        for start in range(0, len(ids) - T, T)
    ]


def mix(x):
    x &= 0xFFFFFFFF
    x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> 16


def signed(x):
    return x - 2**32 if x >= 2**31 else x


def place(sample, n):
    """The window of a sample: six rounds of a Feistel network over half-words, again until the result is below n."""
    epoch, i = divmod(sample, n)
    half = 2 ** math.ceil(math.log2(n) / 2)
    key = signed(mix(mix(SEED) ^ mix(SEED // 2**32 + 0x5BD1E995) ^ mix(epoch + 0x27D4EB2F)))
    while True:
        left, right = divmod(i, half)
        for r in range(6):
            left, right = right, (left + mix(right ^ mix(key + r))) % half
        i = left * half + right
        if i < n:
            return i


# ---- the model


def initial_weights():
    """Normal values by Philox, element by element of the flat buffer in which train.ts keeps the parameters: matrices first,
    then vectors, each from a multiple of 64. qkv and gate_up are stacked; a padded vocabulary has 320 rows."""
    C, F, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    H, K, D = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    std, residual_std = 0.02, 0.02 / math.sqrt(2 * CONFIG["num_hidden_layers"])
    weights, offset = {"model.embed_tokens.weight": normal(0, V * C, std).view(V, C)}, 320 * C
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for names, shape, s in (
            ((("self_attn.q_proj", H * D), ("self_attn.k_proj", K * D), ("self_attn.v_proj", K * D)), (H * D + 2 * K * D, C), std),
            ((("self_attn.o_proj", C),), (C, H * D), residual_std),
            ((("mlp.gate_proj", F), ("mlp.up_proj", F)), (2 * F, C), std),
            ((("mlp.down_proj", C),), (C, F), residual_std),
        ):
            size = shape[0] * shape[1]
            whole = normal(offset, size, s).view(shape)
            offset += -(-size // 64) * 64
            for (name, _), part in zip(names, whole.split([rows for _, rows in names])):
                weights[f"{layer}{name}.weight"] = part
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{norm}.weight"] = torch.ones(C)
    weights["model.norm.weight"] = torch.ones(C)
    return weights


def normal(offset, n, std):
    blocks = np.arange(offset // 4, (offset + n + 3) // 4, dtype=np.uint64)
    words = philox(blocks)
    u = words.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    radius = np.sqrt(np.float32(-2) * np.log(u[:, 0::2]))
    angle = np.float32(2 * np.pi) * u[:, 1::2]
    z = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(-1)
    return torch.from_numpy((np.float32(std) * z[offset % 4 :][:n]).copy())


def philox(blocks):
    """Philox4x32-10 (Salmon et al. 2011) of the counters (block, 0, 0) under the key SEED."""
    low = np.uint64(0xFFFFFFFF)
    c = [blocks & low, blocks >> np.uint64(32), np.zeros_like(blocks), np.zeros_like(blocks)]
    k0, k1 = SEED & 0xFFFFFFFF, SEED >> 32
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, -1)


def mean_loss(parameters, batch):
    """The mean over the tokens of all windows that are trained on: in float64, and nowhere cut into micro-steps."""
    ids, labels = (torch.stack(rows) for rows in zip(*map(ids_and_labels, batch)))
    logits = torch.cat([logits_of(parameters, window) for window in batch])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)


def logits_of(parameters, window):
    """What follows each token but the last: the model is given one conversation after the other."""
    ids, starts = ids_and_labels(window)[0][:-1], starts_of(window)[:-1]
    pieces = [ids[starts == start] for start in starts.unique()]
    return torch.cat([llama.plain_logits(CONFIG, parameters, piece[None])[0] for piece in pieces])


def rate(step):
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return LOWEST + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * (PEAK - LOWEST)


if __name__ == "__main__":
    main()
