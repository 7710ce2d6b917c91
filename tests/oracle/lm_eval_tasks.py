# Scores of lm-eval's hf backend on tasks of its own kind, read from the files that loam reads.
# python tests/oracle/lm_eval_tasks.py writes tests/golden/lm_eval: a small random model, its tokenizer, tasks and their scores.
# python tests/oracle/lm_eval_tasks.py MODEL FILE... prints the logarithms of the probabilities that a model directory gives what
# is scored in JSON lines. Of lm-eval's dependencies it needs fewer: those that are missing are stood in for.
import importlib.machinery
import importlib.util
import json
import os
import random
import sys
from unittest.mock import MagicMock

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
OUT = os.path.join(os.path.dirname(__file__), "../golden/lm_eval")
WORDS = "the loom wove a long blue cloth for one small king while rain fell over stone and seven ships went out to sea".split()


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def backend(model, is_text):
    from lm_eval.models.huggingface import HFLM

    # Of a text lm-eval would score the token too that a tokenizer puts before it, behind the same token.
    return HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=3, add_bos_token=False if is_text else None)


def logprobs(model, path):
    from lm_eval.api.instance import Instance

    rows = lines(path)
    ask = lambda lm, kind, all: getattr(lm, kind)([Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(all)])
    if "text" in rows[0]:
        return [[sum] for sum in ask(backend(model, True), "loglikelihood_rolling", [(row["text"],) for row in rows])]
    pairs = [(row["context"], row.get("target_delimiter", " ") + choice) for row in rows for choice in row["choices"]]
    scored = iter(ask(backend(model, False), "loglikelihood", pairs))
    return [[next(scored)[0] for _ in row["choices"]] for row in rows]


def scores(model, path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name, is_text = os.path.basename(path).split(".")[0], "text" in lines(path)[0]
    metrics = ["word_perplexity", "byte_perplexity", "bits_per_byte"] if is_text else ["acc", "acc_norm"]
    config = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": path}}, "test_split": "test",
              "metric_list": [{"metric": metric} for metric in metrics]}
    if is_text:
        config |= {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    else:
        config |= {"output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_target": "{{label}}",
                   "doc_to_choice": "{{choices}}"}
    results = simple_evaluate(model=backend(model, is_text), tasks=[config], bootstrap_iters=10, log_samples=False,
                              task_manager=TaskManager(include_defaults=False))
    found = {key.split(",")[0]: value for key, value in results["results"][name].items() if isinstance(value, float)}
    return {"n": results["n-samples"][name]["effective"], **found, "logprobs": logprobs(model, path)}


def write():
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    random.seed(7)
    sentence = lambda n: " ".join(random.choice(WORDS) for _ in range(n))
    os.makedirs(OUT, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([sentence(40) for _ in range(200)], vocab_size=300, special_tokens=["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.save_pretrained(OUT)
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=48, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(7)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # answers differ in more than rounding
    model.to(torch.bfloat16).save_pretrained(OUT)
    with open(f"{OUT}/choices.jsonl", "w") as f:
        for i in range(40):
            context = ["", sentence(3), sentence(6) + "  ", sentence(60), "Éa\n"][i % 5]
            choices = [sentence(random.randint(1, 5)) + ["", "é", ".", "ß"][k] for k in range(random.randint(2, 4))]
            row = {"context": context, "choices": choices, "label": random.randrange(len(choices))}
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    with open(f"{OUT}/texts.jsonl", "w") as f:
        for n in (1, 5, 20, 50, 100, 130):
            f.write(json.dumps({"text": sentence(n) + "  é\n" + sentence(n)}, ensure_ascii=False) + "\n")
    with open(f"{OUT}/scores.json", "w") as f:
        json.dump({name: scores(OUT, f"{OUT}/{name}.jsonl") for name in ("choices", "texts")}, f)
        f.write("\n")


if len(sys.argv) == 1:
    write()
else:
    for name in ("dill", "datasets", "sacrebleu", "evaluate"):
        if not importlib.util.find_spec(name):
            sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
    model, *paths = sys.argv[1:]
    print(json.dumps({os.path.basename(path).split(".")[0]: logprobs(model, path) for path in paths}))
