"""Loads a checkpoint the way its users will, with AutoModelForCausalLM and AutoTokenizer, and prints one JSON object.

  python check_checkpoint.py DIR                          does it load; parameters, dtype, missing and unexpected names
  python check_checkpoint.py DIR --ids 5,0,7              and the logits (T, V) of these tokens
  python check_checkpoint.py DIR --ids 5,0,7 --greedy 20  and the 20 most likely tokens that follow, one by one
  python check_checkpoint.py DIR --compare F.safetensors  and how far `logits` (B, T, V) of F are from ours on its `idx`
  python check_checkpoint.py DIR --text "Once upon"       and the ids of the text, and the text of these ids

Exits with 1 where a tensor is missing or unexpected, or where logits differ by more than --tolerance (relative L2).
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ids", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--greedy", type=int, default=0)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--text")
    args = parser.parse_args()

    # The weights keep the precision they have on disk; the arithmetic is float32.
    model, loading = AutoModelForCausalLM.from_pretrained(
        args.directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    report = dict(
        architecture=type(model).__name__, parameters=model.num_parameters(),
        tied=model.lm_head.weight is model.model.embed_tokens.weight,
        dtype=stored_dtypes(args.directory), missing=sorted(loading["missing_keys"]),
        unexpected=sorted(loading["unexpected_keys"]),
    )
    fine = not report["missing"] and not report["unexpected"]
    if args.ids:
        report["logits"] = logits(model, torch.tensor([args.ids]))[0].tolist()
    if args.greedy:
        ids = torch.tensor([args.ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=args.greedy)
        report["greedy"] = out[0, len(args.ids) :].tolist()
    if args.compare:
        theirs = load_file(args.compare)
        ours = logits(model, theirs["idx"].long())
        report["relative_error"] = ((theirs["logits"] - ours).norm() / ours.norm()).item()
        fine = fine and report["relative_error"] <= args.tolerance
    if args.text is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.directory, local_files_only=True)
        report["text_ids"] = tokenizer(args.text)["input_ids"]
        report["text"] = tokenizer.decode(report["text_ids"])
    print(json.dumps(report))
    sys.exit(0 if fine else 1)


def logits(model, idx):
    with torch.inference_mode():
        return model(input_ids=idx, use_cache=False).logits  # (B, T, V)


def stored_dtypes(directory):
    return sorted({str(t.dtype) for t in load_file(directory / "model.safetensors").values()})


if __name__ == "__main__":
    main()
