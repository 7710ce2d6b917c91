"""Makes a large corpus from a small one, for timing prepare. Needs pyarrow and numpy.

    python make_corpus.py SAMPLE.parquet OUT_DIR --bytes 5e9 --format parquet

Every document is as many sentences as a document of the sample has, drawn from all of them. Since a real corpus keeps
bringing words that did not occur before, one letter in 300 becomes another: about every 60th word is new. --bytes
counts what is stored; it is spread over --files files.
"""
import argparse
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

parser = argparse.ArgumentParser()
parser.add_argument("sample")
parser.add_argument("out")
parser.add_argument("--bytes", type=float, default=200e6)
parser.add_argument("--files", type=int, default=4)
parser.add_argument("--format", choices=["parquet", "jsonl.zst"], default="parquet")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()
rng = np.random.default_rng(args.seed)
row_group_bytes = min(32e6, args.bytes / args.files)  # of text

texts = [text for text in pq.read_table(args.sample, columns=["text"])["text"].to_pylist() if text]
split = [re.split(r"(?<=[.!?\n])(?=\s)", text) for text in texts]
sentences = [sentence.encode() for parts in split for sentence in parts]
counts = np.array([len(parts) for parts in split])
sizes = np.array([len(sentence) for sentence in sentences])


def row_group():
    """Text of about row_group_bytes as bytes, and where each document begins and the last one ends."""
    documents = rng.choice(counts, size=int(row_group_bytes / (counts.mean() * sizes.mean())))
    chosen = rng.integers(len(sentences), size=documents.sum())
    text = np.frombuffer(bytearray(b"".join(map(sentences.__getitem__, chosen))), dtype=np.uint8)
    place = rng.integers(len(text), size=len(text) // 300)
    place = place[(text[place] >= ord("a")) & (text[place] <= ord("z"))]
    text[place] = rng.integers(ord("a"), ord("z") + 1, size=len(place), dtype=np.uint8)
    ends = np.cumsum(np.add.reduceat(sizes[chosen], np.concatenate([[0], np.cumsum(documents)[:-1]])))
    return text, np.concatenate([[0], ends]).astype(np.int32)


def write_parquet(path, limit):
    with open(path, "wb") as file:
        with pq.ParquetWriter(file, pa.schema([("text", pa.string())]), compression="snappy", use_dictionary=False) as writer:
            while file.tell() < limit:
                text, bounds = row_group()
                column = pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(text))
                writer.write_table(pa.table({"text": column}), row_group_size=len(bounds))


def write_jsonl(path, limit):
    with open(path, "wb") as file, pa.CompressedOutputStream(file, "zstd") as out:
        while file.tell() < limit:
            text, bounds = row_group()
            for begin, end in zip(bounds[:-1], bounds[1:]):
                document = text[begin:end].tobytes().decode()
                out.write(json.dumps({"text": document}, ensure_ascii=False).encode() + b"\n")
            out.flush()


os.makedirs(args.out, exist_ok=True)
write = write_parquet if args.format == "parquet" else write_jsonl
for i in range(args.files):
    write(os.path.join(args.out, f"{i:03}.{args.format}"), args.bytes / args.files)
