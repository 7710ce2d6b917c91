"""Trains byte-level BPE tokenizers with Hugging Face's tokenizers, for comparison with `deno task tokenizer`.

  python train_tokenizer.py             reads one request as JSON on stdin, prints the answer as JSON
  python train_tokenizer.py --golden    writes tests/golden/trained_tokenizers.jsonl, which is committed
  python train_tokenizer.py --load DIR  loads a directory with tokenizers and with transformers, reads texts as a JSON
                                        list on stdin, and prints what both make of them

A request has documents, pattern, vocab_size, min_frequency, special_tokens, texts and perhaps max_token_length. The answer has the tokens in the
order of their ids and the merges, both as in tokenizer.json, and the ids of the texts.
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

GOLDEN = Path(__file__).parent.parent / "golden" / "trained_tokenizers.jsonl"

# As they stand in the tokenizer.json of Llama 3, Qwen 2.5 and gpt-oss. GPT-2's is built into ByteLevel.
PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
             r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
             r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def pre_tokenizer(pattern):
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(request):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(request["pattern"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(request["documents"], trainers.BpeTrainer(
        vocab_size=request["vocab_size"], min_frequency=request["min_frequency"],
        special_tokens=request["special_tokens"], max_token_length=request.get("max_token_length"), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    assert [model["vocab"][token] for token in tokens] == list(range(len(tokens)))
    # The text of a special token is text: special tokens are not looked for.
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in request["texts"]]
    assert [tokenizer.decode(of_text) for of_text in ids] == request["texts"]
    return {"tokens": tokens, "merges": [" ".join(merge) for merge in model["merges"]], "ids": ids}


def load(directory, texts):
    from transformers import AutoTokenizer
    a, b = AutoTokenizer.from_pretrained(directory), Tokenizer.from_file(f"{directory}/tokenizer.json")
    ids = [a(text, add_special_tokens=False)["input_ids"] for text in texts]
    return {
        "ids": ids,
        "same": ids == [b.encode(text, add_special_tokens=False).ids for text in texts],
        "decoded": [a.decode(of_text) for of_text in ids],
        "size": len(a),
        "eos": [a.eos_token, a.eos_token_id],
        "special": a.all_special_tokens,
    }


# ---- golden

WORDS = """the The THE of and loam loams weaving woven loom it's It'S they'll we'VE don't I'm a's Gartenzäune größer ſich
it'ſ naïve naïve ходить ходили Ελλάδα 你好 你好世界 世界 こんにちは สวัสดี नमस्ते שלום مرحبا 👍 👍🏽 👩‍👩‍👧 ½ ²³ ٣٤٥ 7 42 1234 1234567
3.14159 2026-11-22 camelCase HTTPServer snake_case x=y+z; foo(bar[0]); {"a": 1} // /// <|endoftext|> <|im_start|> --- ...
aaaa aaaaa aaaaaaa abababab !!! ?!?! https://example.com/a/b?c=d""".split()
GAPS = [" "] * 12 + ["  ", "    ", "\n", "\n\n", "\r\n", "\t", " \n  ", "\u00a0", "\u3000", "\u0085", "\ufeff", ", ", ". ", ""]


def document(generator):
    words = generator.choices(WORDS, weights=[1 / (1 + i % 37) for i in range(len(WORDS))], k=generator.randint(5, 60))
    return "".join(word + generator.choice(GAPS) for word in words)


def write_golden():
    generator = random.Random(1)
    documents = [document(generator) for _ in range(20)]
    texts = documents[:3] + ["", " ", "<|endoftext|>", "unseen ẞ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff\u0000"]
    cases = [
        ("llama3", 450, 2, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        ("gpt2", 500, 1, ["<|endoftext|>"]),
        ("o200k", 400, 3, ["<|endoftext|>"]),
        ("qwen", 100_000, 2, ["<|endoftext|>"]),  # more than there is to merge
    ]
    lines = [{"documents": documents, "texts": texts}]
    for pattern, vocab_size, min_frequency, special_tokens in cases:
        case = dict(pattern=pattern, vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=special_tokens)
        lines.append({**case, **train(dict(**case, documents=documents, texts=texts))})
    GOLDEN.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


if __name__ == "__main__":
    if sys.argv[1:] == ["--golden"]:
        write_golden()
    elif sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(sys.argv[2], json.load(sys.stdin))))
    elif not sys.argv[1:]:
        print(json.dumps(train(json.load(sys.stdin))))
    else:
        print(__doc__)
