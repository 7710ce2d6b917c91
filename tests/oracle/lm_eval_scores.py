# Scores texts with lm-eval through a server's /v1/completions, and with the same weights in transformers.
# python tests/oracle/lm_eval_scores.py CHECKPOINT URL MODEL prints both as JSON.
# Of what lm-eval's extra "api" installs it uses, with one connection, only the names below: they are stood in for where missing.
import importlib.machinery
import importlib.util
import json
import sys
import types

import torch

STAND_INS = {
    "aiohttp": {"ClientSession": None, "ClientTimeout": None, "TCPConnector": None},
    "tenacity": {"RetryError": ConnectionError, "stop_after_attempt": lambda n: n, "wait_exponential": lambda **_: None,
                 "retry": lambda **_: lambda f: f},
}
for package, names in STAND_INS.items():
    if not importlib.util.find_spec(package):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__dict__.update(names, __spec__=importlib.machinery.ModuleSpec(package, None))

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import AutoModelForCausalLM, AutoTokenizer

checkpoint, url, name = sys.argv[1:]
lm = LocalCompletionsAPI(model=name, base_url=url, tokenizer=checkpoint, tokenizer_backend="huggingface", max_length=64,
                         batch_size=4, num_concurrent=1, max_retries=1)
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)


def ask(kind, arguments):
    requests = [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]
    return getattr(lm, kind)(requests)


def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)


@torch.no_grad()
def score(context, continuation):
    context = encode(context) or [tokenizer.eos_token_id]
    continuation = encode(continuation)
    logprobs = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
    chosen = logprobs[range(len(continuation)), continuation]
    return [chosen.sum().item(), logprobs.argmax(-1).tolist() == continuation]


def written(prompt):
    ids = torch.tensor([encode(prompt)])
    out = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True).split(".")[0]


prompts, rolling = ["Once upon", "the"], ["Once upon a time."]
# What the model itself goes on with is greedy, anything else is not.
pairs = [("Once upon", written("Once upon")), ("Once upon", " a time"), ("the small", "zq"), ("a", "nd then"), ("", "On")]
until = {"until": ["."], "max_gen_toks": 12, "temperature": 0}
print(json.dumps({
    "ours": {
        "loglikelihood": [[score, bool(greedy)] for score, greedy in ask("loglikelihood", pairs)],
        "rolling": ask("loglikelihood_rolling", [(text,) for text in rolling]),
        "written": ask("generate_until", [(prompt, dict(until)) for prompt in prompts]),
    },
    "theirs": {
        "loglikelihood": [score(*pair) for pair in pairs],
        "rolling": [score("", text)[0] for text in rolling],
        "written": [written(prompt) for prompt in prompts],
    },
}))
