"""Python's side of bench/tokenizer.ts. Prints one line of JSON.

    python tokenizer_side.py RANKS.tiktoken|tokenizer.json PASSES SAMPLE.parquet
"""
import json
import os
import sys
import time

import pyarrow.parquet as pq

path, passes, sample = sys.argv[1:]
texts = [text for text in pq.read_table(sample, columns=["text"])["text"].to_pylist() if text]
size = sum(len(text.encode()) for text in texts)


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_tiktoken():
    openai.load_tiktoken_bpe = lambda *_, **__: load_tiktoken_bpe(path)
    encoding = tiktoken.Encoding(**getattr(openai, os.path.basename(path).removesuffix(".tiktoken"))())
    return lambda text: len(encoding.encode_ordinary(text))


def open_tokenizers():
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


if path.endswith(".tiktoken"):
    import tiktoken
    import tiktoken_ext.openai_public as openai
    from tiktoken.load import load_tiktoken_bpe
    library, opener = "tiktoken", open_tiktoken
else:
    import tokenizers
    library, opener = "tokenizers", open_tokenizers

before, start = resident(), time.perf_counter()
count = opener()
open_ms, open_mb = 1000 * (time.perf_counter() - start), (resident() - before) / 1e6
rates = []
for _ in range(int(passes)):
    start, tokens = time.perf_counter(), 0
    for text in texts:
        tokens += count(text)
    rates.append(size / 1e6 / (time.perf_counter() - start))
print(json.dumps({"library": library, "open_ms": open_ms, "open_mb": open_mb, "mb_per_sec": rates, "tokens": tokens}))
