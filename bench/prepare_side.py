"""Python's side of the whole runs of bench/prepare.ts: reads the texts of parquet files, encodes a thousand at a time on several
threads, with an end-of-text id before each, and writes the ids. One line of JSON goes to the file LOAM_PRINTED.

    python prepare_side.py tiktoken:ENCODING|tokenizers:TOKENIZER.json THREADS OUT FILE...
"""
import json
import os
import sys

encoder, threads, out, *files = sys.argv[1:]
os.environ["RAYON_NUM_THREADS"] = threads  # of tokenizers, before it is imported
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy as np
import pyarrow.parquet as pq

library, name = encoder.split(":", 1)
if library == "tiktoken":
    import tiktoken
    encoding = tiktoken.get_encoding(name)
    eot, version = encoding.eot_token, tiktoken.__version__
    encode = lambda texts: encoding.encode_ordinary_batch(texts, num_threads=int(threads))
else:
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(name)
    tokenizer.encode_special_tokens = True
    eot, version = tokenizer.token_to_id("<|endoftext|>"), tokenizers.__version__
    encode = lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

size = tokens = 0
with open(out, "wb") as file:
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
            texts = [text for text in batch["text"].to_pylist() if text]
            size += sum(len(text.encode()) for text in texts)
            for ids in encode(texts):
                file.write(np.array([eot, *ids], dtype=np.uint32 if eot > 65535 else np.uint16).tobytes())
                tokens += 1 + len(ids)
    os.fsync(file.fileno())
with open(os.environ["LOAM_PRINTED"], "w") as file:
    json.dump({"bytes": size, "tokens": tokens, "version": version}, file)
