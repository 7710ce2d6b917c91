"""What transformers begins and ends texts with.

    python starts.py golden           writes tests/golden/starts.jsonl from tests/fixtures/tokenizers.jsonl
    python starts.py ask CASES.json   answers a test: [{"directory", "prompts", "tokens"}, ...]

golden: a line is a tokenizer of one kind. `base` names the fixture that it is made of; `added_tokens`, `post_processor` and
`config` (tokenizer_config.json) take the place of the fixture's. With them go the ids of texts and the likeliest tokens that
follow them in tests/testing.ts's model of random weights, where the tokenizer begins texts as it does by itself, or with its
end of text if it adds nothing: `post_processor_out` then.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

TESTS = Path(__file__).parent.parent
TEXTS = ["by the way", "Größe 12 中", " a  b\n", "<|endoftext|> is text", ""]
TOKENS = 12


def template(token, id):
    return processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, id)])


def kinds():
    """name: base, special tokens to add, the token that begins a text (None: nothing does), eos_token, more of the config"""
    return {
        "gpt2": ("gpt2_like", [], None, "<|endoftext|>", dict(tokenizer_class="GPT2TokenizerFast", bos_token="<|endoftext|>")),
        "llama3": ("llama3_like", ["<|begin_of_text|>", "<|end_of_text|>"], "<|begin_of_text|>", "<|end_of_text|>",
                   dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<|begin_of_text|>")),
        "llama2": ("llama2_like", [], "<s>", "</s>", dict(tokenizer_class="LlamaTokenizerFast", bos_token="<s>")),
        "gemma": ("gemma_like", [], "<s>", "</s>", dict(tokenizer_class="GemmaTokenizerFast", bos_token="<s>")),
        "qwen": ("qwen_like", [], None, "<|endoftext|>", dict(tokenizer_class="Qwen2Tokenizer", bos_token=None, add_bos_token=False)),
    }


def golden():
    bases = dict(json.loads(line) for line in open(TESTS / "fixtures" / "tokenizers.jsonl"))
    with open(TESTS / "golden" / "starts.jsonl", "w") as file:
        for name, (base, added, bos, eos, config) in kinds().items():
            tokenizer = Tokenizer.from_str(json.dumps(bases[base]))
            tokenizer.add_special_tokens(added)
            byte_level = "like" in base and base not in ("llama2_like", "gemma_like")
            own = [processors.ByteLevel(trim_offsets=False)] if byte_level and name != "gpt2" else []
            own += [template(bos, tokenizer.token_to_id(bos))] if bos else []
            if own:
                tokenizer.post_processor = own[0] if len(own) == 1 else processors.Sequence(own)
            before = json.loads(tokenizer.to_str())
            begin = bos or eos
            if not bos:
                tokenizer.post_processor = template(begin, tokenizer.token_to_id(begin))
            ids = dict(bos=tokenizer.token_to_id(begin), eot=tokenizer.token_to_id(eos))
            with tempfile.TemporaryDirectory() as directory:
                tokenizer.save(f"{directory}/tokenizer.json")
                out = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=begin, eos_token=eos)
                Path(f"{directory}/tokenizer_config.json").write_text(json.dumps(out))
                random_model(tokenizer.get_vocab_size(), ids).save_pretrained(directory)
                answer = ask(dict(directory=directory, prompts=TEXTS, tokens=TOKENS))
            line = dict(
                name=name, base=base, added_tokens=before["added_tokens"], post_processor=before["post_processor"],
                config=config | dict(eos_token=eos), post_processor_out=json.loads(tokenizer.to_str())["post_processor"],
                vocab_size=tokenizer.get_vocab_size(), **ids, begin=begin, end=eos, prompts=answer["prompts"],
            )
            print(json.dumps(line, ensure_ascii=False), file=file)


def random_model(V, ids):
    """The model of SMALL_MODEL and randomTensors() in tests/testing.ts."""
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-6, rope_theta=10000.0,
        tie_word_embeddings=False, bos_token_id=ids["bos"], eos_token_id=ids["eot"],
    )
    model = LlamaForCausalLM(config).float()
    names = ["model.embed_tokens.weight"]
    for part in ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]:
        names.append(f"model.layers.0.{part}.weight")
    state, weights = 1, dict(model.named_parameters())
    assert set(names + ["model.norm.weight", "lm_head.weight"]) == set(weights)
    for name in names + ["model.norm.weight", "lm_head.weight"]:
        values = numpy.empty(weights[name].numel(), dtype=numpy.float64)
        for i in range(values.size):
            state = (state * 1664525 + 1013904223) % 2**32
            values[i] = state / 2**32 - 0.5
        weights[name].data = torch.tensor(values.astype(numpy.float32)).view(weights[name].shape)
    return model


def ask(case):
    """How the tokenizer and the model of a directory begin, go on from and end texts."""
    tokenizer = AutoTokenizer.from_pretrained(case["directory"])
    model = AutoModelForCausalLM.from_pretrained(case["directory"], dtype=torch.float32)
    prompts = []
    for text in case["prompts"]:
        tokenizer.split_special_tokens = True  # the text of a special token is text, as in loam
        tokenizer._tokenizer.encode_special_tokens = True
        ids = tokenizer(text)["input_ids"]
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        prompt = torch.tensor([ids or [start]])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=case["tokens"], pad_token_id=0)
        prompts.append(dict(text=text, ids=ids, greedy=out[0, prompt.shape[1]:].tolist()))
    return dict(
        prompts=prompts, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, max_length=tokenizer.model_max_length,
        config=[model.config.bos_token_id, model.config.eos_token_id],
        generation=[model.generation_config.bos_token_id, model.generation_config.eos_token_id],
    )


if __name__ == "__main__":
    if sys.argv[1] == "golden":
        golden()
    else:
        print(json.dumps([ask(case) for case in json.load(open(sys.argv[2]))]))
