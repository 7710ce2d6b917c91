"""Trains a byte-level BPE tokenizer with Hugging Face's tokenizers, for timing. Prints bytes of text and the
version of the library as JSON.

    python train_tokenizer.py CORPUS.parquet VOCAB_SIZE TOKENIZER.json

Cuts text as Llama 3 does, merges pairs that occur twice or more, and leaves out the documents that
`deno task tokenizer` holds out. RAYON_NUM_THREADS says how many threads it uses.
"""
import json
import sys

import pyarrow.parquet as pq
import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

corpus, vocab_size, out = sys.argv[1:]
read = {"bytes": 0}


def documents():
    count = held_out = 0
    for batch in pq.ParquetFile(corpus).iter_batches(1000, columns=["text"]):
        for text in batch["text"].to_pylist():
            if not text:
                continue
            count += 1
            size = len(text.encode())
            read["bytes"] += size
            if count % 100 == 0 and held_out < 1e6:
                held_out += size
            else:
                yield text


tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
])
tokenizer.train_from_iterator(documents(), trainers.BpeTrainer(
    vocab_size=int(vocab_size), min_frequency=2, special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
tokenizer.save(out)
print(json.dumps({"bytes": read["bytes"], "version": tokenizers.__version__}))
