"""Times tiktoken's encode_ordinary on the texts of parquet files; bench/prepare.ts runs it. Prints one line of JSON.

    TIKTOKEN_CACHE_DIR=... python tiktoken_encode.py ENCODING PASSES FILE...
"""
import json
import sys
import time

import pyarrow.parquet as pq
import tiktoken

encoding, passes, *files = sys.argv[1:]
texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist() if text]
encode = tiktoken.get_encoding(encoding).encode_ordinary
encode("The vocabulary is loaded.")
seconds = []
for _ in range(int(passes)):
    start = time.perf_counter()
    tokens = 0
    for text in texts:
        tokens += len(encode(text))
    seconds.append(time.perf_counter() - start)
print(json.dumps({
    "bytes": sum(len(text.encode()) for text in texts),
    "tokens": tokens,
    "seconds": seconds,
    "version": tiktoken.__version__,
}))
