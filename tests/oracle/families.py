"""Reference numbers for small models of each class that loam computes, from transformers in float32.

  python families.py golden               writes tests/golden/families/<name>.safetensors, which are committed
  python families.py cases DIR [--seed 0] the same for random shapes
  python families.py check DIR...         for each directory of a model that a test saved: class, missing and unexpected
                                          names, and how far its logits are from those in DIR/golden.safetensors

A file has Hugging Face weights, idx and targets (B, T) int32, logits, loss, grad.<name>, losses and grad_norms of ten AdamW
steps, and greedy: what follows the first row of idx[:, :4]. Its metadata "about" has config.json and the optimizer.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

import llama
from make_golden import ADAMW

RATES = [2e-3, 6e-3, 1e-2, 1e-2, 1e-2, 8e-3, 6e-3, 4e-3, 2e-3, 1e-3]
GOLDEN = Path(__file__).parent.parent / "golden" / "families"

LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
# name -> model_type, and what differs from the common shape
FAMILIES = {
    "linear": ("llama", dict(rope_scaling=dict(rope_type="linear", factor=2.5))),
    "llama3": ("llama", dict(rope_scaling=LLAMA3, rope_theta=50.0)),
    "yarn": (
        "llama", dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16), rope_theta=30.0)
    ),
    "mistral": ("mistral", dict(sliding_window=32, head_dim=16)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, use_sliding_window=False)),
    "qwen2_yarn": (
        "qwen2",
        dict(
            rope_scaling=dict(
                rope_type="yarn", factor=3.0, original_max_position_embeddings=8, beta_fast=4, mscale=0.7, mscale_all_dim=0.3
            ),
            rope_theta=100.0,
        ),
    ),
    "qwen3": ("qwen3", dict(head_dim=16)),
    "smollm3": ("smollm3", dict(no_rope_layer_interval=2, tie_word_embeddings=True)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    golden = commands.add_parser("golden")
    golden.set_defaults(run=lambda args: write(GOLDEN, 0, lambda choose: small_shape()))
    cases = commands.add_parser("cases")
    cases.add_argument("directory", type=Path)
    cases.add_argument("--seed", type=int, default=0)
    cases.set_defaults(run=lambda args: write(args.directory, args.seed, random_shape))
    check = commands.add_parser("check")
    check.add_argument("directories", type=Path, nargs="+")
    check.set_defaults(run=check_all)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the last bits of a sum depend on the thread count
    args.run(args)


def write(directory, seed, shape):
    directory.mkdir(parents=True, exist_ok=True)
    choose = random.Random(seed)
    for name, (model_type, changes) in FAMILIES.items():
        common, B, T, rates = shape(choose)
        seed = choose.randrange(2**31)
        config = CONFIG_MAPPING[model_type](**{**common, **changes}, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        llama.save(directory / f"{name}.safetensors", numbers(config, seed, B, T, rates), config=written(config), optimizer=ADAMW)


def small_shape():
    """As small as shows everything: two layers, two query heads, a vocabulary that is no multiple of anything."""
    shape = dict(
        vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
    )
    return shape, 2, 19, RATES


def random_shape(choose):
    K, D = choose.choice([1, 2]), choose.choice([8, 64, 80, 96, 128])
    H = K * choose.choice([1, 2, 3])
    shape = dict(
        vocab_size=choose.randint(20, 150), hidden_size=8 * H, num_hidden_layers=choose.randint(2, 5),
        num_attention_heads=H, head_dim=D, num_key_value_heads=K, intermediate_size=8 * choose.randint(2, 12),
        max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=choose.random() < 0.5,
    )
    rates = [rate / 20 for rate in RATES]  # with more weights, rounding alone sends large steps elsewhere
    return shape, choose.randint(1, 3), choose.randint(5, 32), rates


def numbers(config, seed, B, T, rates):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for p in model.parameters():  # bfloat16 has them all
            noise = torch.randn(p.shape)
            p.copy_((noise / p.shape[1] ** 0.5 if p.dim() > 1 else (1 if p.mean() == 1 else 0) + 0.2 * noise).bfloat16())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    idx, targets = (torch.randint(0, config.vocab_size, (B, T)) for _ in range(2))
    logits = llama.hf_logits(model, idx)
    loss = llama.mean_loss(logits, targets)
    loss.backward()
    grads = {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()}
    greedy = greedily(model, idx[:1, :4], 12)
    losses, norms = llama.train(
        list(model.parameters()), lambda: llama.hf_logits(model, idx), targets, rates, ADAMW
    )
    return {name: w.bfloat16() for name, w in weights.items()} | grads | dict(
        idx=idx.int(), targets=targets.int(), logits=logits.detach(), loss=loss.detach(), greedy=greedy.int(),
        learning_rates=torch.tensor(rates), losses=torch.tensor(losses), grad_norms=torch.tensor(norms),
    )


def greedily(model, ids, n):
    for _ in range(n):
        ids = torch.cat((ids, llama.hf_logits(model, ids)[:, -1:].argmax(-1)), -1)
    return ids[0, -n:]


def written(config):
    """config.json as save_pretrained() writes it."""
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    return json.loads(config.to_json_string())


def check_all(args):
    reports = [check_one(directory) for directory in args.directories]
    print(json.dumps(reports))


def check_one(directory):
    model, loading = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, output_loading_info=True, attn_implementation="eager"
    )
    golden = load_file(directory / "golden.safetensors")
    logits = llama.hf_logits(model, golden["idx"].long()).detach()
    return dict(
        architecture=type(model).__name__, missing=sorted(loading["missing_keys"]),
        unexpected=sorted(loading["unexpected_keys"]),
        error=((logits - golden["logits"]).norm() / golden["logits"].norm()).item(),
    )


if __name__ == "__main__":
    sys.exit(main())
