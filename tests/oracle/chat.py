"""Renders conversations with transformers, for comparison with data/chat_template.ts and `deno task prepare --chat`.

  python chat.py            writes tests/golden/chat/*.jsonl and its tokenizers, which are committed

A line has the template, the messages and the options, and what apply_chat_template() makes of them: the text, the ids, the mask
and the spans of the text that the mask is of. A template without {% generation %} has them of its second form, with these tags.
"""

import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent.parent / "golden" / "chat"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CORPUS = [
    "You answer briefly. What is the capital of France? The capital of France is Paris.\n\n",
    "system user assistant ipython Today Date: 26 Jul 2024 functions name parameters arguments\n",
    "Roles must alternate. Was weißt du über Zürich? 日本語 und Äpfel, Ülm  and  more   blanks\n",
] * 4
SYSTEM = {"role": "system", "content": "  You are a poet.  "}
TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": " Über Zürich?\n"},
    {"role": "assistant", "content": "Zürich is a city: 日本語 🧵 & <Äpfel>.\n"},
]
TOOLS = [{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of <a> city & \"more\"",
        "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "number"}}, "required": []},
    },
}]
CALLS = [
    {"role": "user", "content": "How warm is Ülm?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"z": "Ülm", "a": 1.5}}}]},
    {"role": "tool", "content": "{\"degrees\": 12}"},
    {"role": "assistant", "content": "12 degrees."},
]
THOUGHTS = [
    {"role": "user", "content": "Think."},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nDone."},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "<think>\nHm, hm.\n</think>\n\nDone again."},
]
BLANKS = [
    {"role": "user", "content": "\n  def f():\n"},
    {"role": "assistant", "content": "\n\n    return 1 \n\ufeff\x1f\n"},
    {"role": "user", "content": "\u3000Hm? "},
    {"role": "assistant", "content": "\n  <think>\n\n Hm\t\n</think>\n\n  Done.\n\n"},
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tools>", "</tools>"])  # which are not special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def characters():
    """As Llama 2's: BPE over characters, blanks as U+2581, bytes for what the vocabulary lacks."""
    merges, vocab = [], {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for character in sorted(set("".join(CORPUS).replace("日本語", "").replace(" ", "▁") + "[]/<>")):
        vocab.setdefault(character, len(vocab))
    for pair in ["▁ t", "▁t h", "▁th e", "▁ i", "▁i s", "a n", "r i", "i s", "▁ P", "▁ [", "I N", "S T", "IN ST", "] ▁"]:
        pair = tuple(pair.split(" "))
        if all(part in vocab for part in pair):
            merges.append(pair)
            vocab.setdefault("".join(pair), len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "<s>:1", "$B:1"], special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def case(tokenizer, name, messages, **options):
    marked_name = name.removesuffix("_marked") + "_marked"
    template, marked = [(HERE / f"{form}.jinja").read_text() for form in (name, marked_name)]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    result = tokenizer.apply_chat_template(
        messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True, **options)
    assert text == tokenizer.apply_chat_template(messages, chat_template=marked, tokenize=False, **options), name
    _, [spans] = render_jinja_template([messages], chat_template=marked, return_assistant_tokens_mask=True,
                                       **options, **tokenizer.special_tokens_map)
    return {"template": name, "messages": messages, "options": options, "text": text, "spans": spans,
            "ids": result["input_ids"], "mask": "".join(map(str, result["assistant_masks"]))}


def main():
    sys.stdout.reconfigure(encoding="utf-8")
    bytes_, chars = byte_level(), characters()
    for name, tokenizer in (("bytes", bytes_), ("characters", chars)):
        directory = HERE / name
        tokenizer.save_pretrained(directory)
        path = directory / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")))
    lines = []
    for name in ("chatml", "chatml_marked", "tags_marked", "llama3", "llama3_marked", "qwen3", "qwen3_marked"):
        for messages in (TURNS, TURNS[:2], [SYSTEM] + TURNS, BLANKS):
            lines.append(case(bytes_, name, messages))
        lines.append(case(bytes_, name, [SYSTEM] + TURNS[:3], add_generation_prompt=True))
    for name in ("llama3", "llama3_marked", "qwen3", "qwen3_marked"):
        lines.append(case(bytes_, name, CALLS, tools=TOOLS))
    for name in ("qwen3", "qwen3_marked"):
        lines.append(case(bytes_, name, THOUGHTS))
    lines = [{"tokenizer": "bytes", **line} for line in lines]
    for name in ("llama2", "llama2_marked", "chatml_marked"):
        for messages in (TURNS, [SYSTEM] + TURNS[:2], BLANKS):
            lines.append({"tokenizer": "characters", **case(chars, name, messages)})
    with open(HERE / "rendered.jsonl", "w") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
