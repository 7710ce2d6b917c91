"""LoRA as PEFT has it.

  python lora.py golden                     writes tests/golden/lora.safetensors, which is committed
  python lora.py check BASE ADAPTERS MERGED whether PEFT loads adapters that loam trained beside the model in BASE, and gets the
                                            logits of ADAPTERS/logits.safetensors from them, as transformers does from MERGED

loam has one adapter for queries, keys and values, and one for gates and ups. Llama has separate matrices for them, but Phi-3,
which computes the same otherwise, has them stacked as loam does: PEFT trains that model. The golden has its weights under the
names of Llama, the adapters under the dot paths of loam.
"""

import argparse
import json
import sys
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

import llama
from families import RATES
from make_golden import ADAMW

GOLDEN = Path(__file__).parent.parent / "golden" / "lora.safetensors"
RANK, ALPHA, B, T = 3, 7, 2, 19
TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("golden").set_defaults(run=golden)
    check = commands.add_parser("check")
    for name in ["base", "adapters", "merged"]:
        check.add_argument(name, type=Path)
    check.set_defaults(run=check_one)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the last bits of a sum depend on the thread count
    args.run(args)


def golden(args):
    torch.manual_seed(0)
    shape = dict(V=23, C=16, L=2, H=2, K=1, D=8, F=24, T=64, eps=1e-5, tied=False)
    config = llama.make_config(**shape)
    model = Phi3ForCausalLM._from_config(
        Phi3Config(
            **{k: v for k, v in config.items() if k not in ("model_type", "architectures", "head_dim", "mlp_bias")},
            original_max_position_embeddings=64, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        ),
        attn_implementation="eager",
    ).float()
    with torch.no_grad():
        for p in model.parameters():  # bfloat16 has them all
            noise = torch.randn(p.shape)
            p.copy_((noise / p.shape[1] ** 0.5 if p.dim() > 1 else 1 + 0.2 * noise).bfloat16())
    weights = dict(parts(name, p.detach().clone()) for name, p in model.named_parameters())
    weights = {name: w for group in weights.values() for name, w in group.items()}
    idx, targets = (torch.randint(0, 23, (B, T)) for _ in range(2))

    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    adapters = {ours(name): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in adapters.items():
            p.copy_(torch.randn(p.shape) * (0.3 if name.endswith(".A") else 0.1))
    first = {f"first.{name}": p.detach().clone() for name, p in adapters.items()}
    logits = llama.hf_logits(model, idx)
    plain = llama.plain_logits(config, merged(config, weights, first), idx)
    llama.agree(dict(logits=logits), dict(logits=plain))
    loss = llama.mean_loss(logits, targets)
    loss.backward()
    grads = {f"grad.{name}": p.grad.clone() for name, p in adapters.items()}
    losses, norms = llama.train(
        list(adapters.values()), lambda: llama.hf_logits(model, idx), targets, RATES, ADAMW
    )
    last = {f"last.{name}": p.detach().clone() for name, p in adapters.items()}
    numbers = dict(
        idx=idx.int(), targets=targets.int(), logits=logits.detach(), loss=loss.detach(),
        learning_rates=torch.tensor(RATES), losses=torch.tensor(losses), grad_norms=torch.tensor(norms),
    )
    narrow = {name: w.bfloat16() for name, w in weights.items()}
    about = dict(config=config, optimizer=ADAMW, lora=dict(rank=RANK, alpha=ALPHA, targets=TARGETS), peft=peft.__version__)
    llama.save(GOLDEN, narrow | first | grads | last | numbers, **about)


def parts(name, w):
    """A weight of Phi-3 as those of Llama that are stacked in it."""
    sizes = {"qkv_proj": dict(q_proj=16, k_proj=8, v_proj=8), "gate_up_proj": dict(gate_proj=24, up_proj=24)}
    for stacked, rows in sizes.items():
        if stacked in name:
            return name, {name.replace(stacked, part): p for part, p in zip(rows, w.split(list(rows.values())))}
    return name, {name: w}


def ours(name):
    """base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight -> layers.0.lora.down_proj.A"""
    _, _, _, layers, i, _, target, kind, _, _ = name.split(".")
    return f"{layers}.{i}.lora.{target}.{kind[-1]}"


def merged(config, weights, first):
    """The weights in float64 with alpha / rank B A added to those of each target."""
    result = {name: w.double() for name, w in weights.items()}
    for i in range(config["num_hidden_layers"]):
        for target in TARGETS:
            a, b = (first[f"first.layers.{i}.lora.{target}.{kind}"].double() for kind in "AB")
            block = "self_attn" if target in ("qkv_proj", "o_proj") else "mlp"
            _, added = parts(f"model.layers.{i}.{block}.{target}.weight", ALPHA / RANK * b @ a)
            for name, w in added.items():
                result[name] = result[name] + w
    return result


def check_one(args):
    numbers = load_file(args.adapters / "logits.safetensors")
    load = lambda path: AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    error = lambda model: (
        (llama.hf_logits(model, numbers["idx"].long()) - numbers["logits"]).norm() / numbers["logits"].norm()
    ).item()
    with torch.no_grad():
        base = load(args.base)
        errors = dict(base=error(base), merged=error(load(args.merged)), automatic=error(load(args.adapters)))
        model = peft.PeftModel.from_pretrained(base, args.adapters)
        errors["adapters"] = error(model)
        errors["merge_and_unload"] = error(model.merge_and_unload())
    print(json.dumps(errors))


if __name__ == "__main__":
    sys.exit(main())
