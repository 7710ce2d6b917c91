"""The same Llama twice: Hugging Face's, in float32, and a plain one, in float64, that shares no code with it.

Both take `config` (a dict in the words of config.json), `weights` (a dict under Hugging Face names) and int tokens
idx, targets (B, T), and return {"logits", "loss", "grad.<name>": ...}. The loss is the mean cross entropy over all B*T
tokens, with the targets given: nothing is shifted here.
"""

import json
import platform

import safetensors
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def reference(config, weights, idx, targets):
    """The results of both models, those of the float64 one as logits64, loss64 and grad64.<name>. They must agree."""
    hf, plain = hf_run(config, weights, idx, targets), plain_run(config, weights, idx, targets)
    agree(hf, plain)
    return hf | {name.replace("grad", "grad64") if "grad" in name else f"{name}64": t for name, t in plain.items()}


def agree(a, b, tolerance=1e-5):
    for name in a:
        size = b[name].double().norm().clamp(min=1e-3)  # with T = 1 the gradients of q and k are 0
        error = (a[name].double() - b[name].double()).norm() / size
        assert error < tolerance, f"{name}: relative error {error:.2e} between float32 and float64"


def save(path, tensors, **facts):
    """Writes tensors, float64 narrowed to float32. The metadata has one key, "about": the facts and versions as JSON."""
    versions = dict(
        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
        safetensors=safetensors.__version__,
    )
    narrowed = {k: (t.float() if t.dtype == torch.float64 else t).contiguous() for k, t in tensors.items()}
    # One key, since safetensors writes several in random order, and the same numbers should be the same file.
    save_file(narrowed, path, {"about": json.dumps(facts | dict(versions=versions))})
    print(f"{path}: {len(narrowed)} tensors")


def make_config(*, V, C, L, H, K, D, F, T, theta=10000.0, eps=1e-6, tied=True):
    """A config.json as a dict. The letters are those of kernels.h; L layers."""
    return dict(
        model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=V, hidden_size=C, num_hidden_layers=L,
        num_attention_heads=H, num_key_value_heads=K, head_dim=D, intermediate_size=F, max_position_embeddings=T,
        rope_theta=theta, rms_norm_eps=eps, hidden_act="silu", attention_bias=False, mlp_bias=False,
        tie_word_embeddings=tied,
    )


def random_weights(config, seed):
    """Matrices normal(0, 1/sqrt(C)), so that no activation or gradient fades out; norms 1 + normal(0, 0.2)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in hf_model(config).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        weights[name] = noise * config["hidden_size"] ** -0.5 if parameter.dim() > 1 else 1 + 0.2 * noise
    return weights


# ---- Hugging Face, float32 ----------------------------------------------------------------------------------------


def hf_model(config, weights=None):
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="eager").float()
    if weights is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
    return model


def hf_logits(model, idx):
    return model(input_ids=idx, use_cache=False).logits  # (B, T, V)


def hf_run(config, weights, idx, targets):
    model = hf_model(config, weights)
    logits = hf_logits(model, idx)
    return _results(logits, targets, dict(model.named_parameters()))


# ---- the plain one, float64 ---------------------------------------------------------------------------------------


def plain_run(config, weights, idx, targets):
    parameters = {name: w.detach().double().requires_grad_() for name, w in weights.items()}
    return _results(plain_logits(config, parameters, idx), targets, parameters)


def plain_logits(config, w, idx):
    """idx (B, T) -> logits (B, T, V), in the dtype of the weights."""
    eps = config["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][idx]  # (B, T, C)
    for i in range(config["num_hidden_layers"]):
        layer = lambda name: w[f"model.layers.{i}.{name}.weight"]
        x = x + _attention(config, layer, _rmsnorm(x, layer("input_layernorm"), eps))
        h = _rmsnorm(x, layer("post_attention_layernorm"), eps)
        gate, up = h @ layer("mlp.gate_proj").T, h @ layer("mlp.up_proj").T  # (B, T, intermediate_size) each
        x = x + (gate * torch.sigmoid(gate) * up) @ layer("mlp.down_proj").T
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return _rmsnorm(x, w["model.norm.weight"], eps) @ head.T


def _attention(config, layer, x):
    B, T, _ = x.shape
    H, K, D = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q = _rope((x @ layer("self_attn.q_proj").T).view(B, T, H, D), config["rope_theta"])
    k = _rope((x @ layer("self_attn.k_proj").T).view(B, T, K, D), config["rope_theta"])
    v = (x @ layer("self_attn.v_proj").T).view(B, T, K, D)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    heads = []
    for h in range(H):
        kv = h // (H // K)  # the key/value head that query head h shares
        scores = q[:, :, h] @ k[:, :, kv].transpose(1, 2) / D**0.5  # (B, T, T)
        heads.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v[:, :, kv])
    return torch.cat(heads, -1) @ layer("self_attn.o_proj").T


def _rope(x, theta):
    """Turns the pair (x[j], x[j + D/2]) of every head by the angle t * theta^(-2j/D). x (B, T, heads, D)"""
    T, D = x.shape[1], x.shape[3]
    j = torch.arange(D // 2, dtype=x.dtype)
    angle = torch.arange(T, dtype=x.dtype)[:, None] * theta ** (-2 * j / D)  # (T, D/2)
    turned = torch.polar(torch.ones_like(angle), angle)[:, None] * torch.complex(x[..., : D // 2], x[..., D // 2 :])
    return torch.cat((turned.real, turned.imag), -1)


def _rmsnorm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


# ---- shared -------------------------------------------------------------------------------------------------------


def mean_loss(logits, targets):
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def train(parameters, logits_of, targets, learning_rates, settings):
    """The losses and gradient norms of one AdamW step per learning rate, on one batch. Changes the parameters."""
    optimizer = adamw(parameters, settings)
    losses, norms = [], []
    for rate in learning_rates:
        optimizer.zero_grad()
        loss = mean_loss(logits_of(), targets)
        loss.backward()
        norms.append(update(optimizer, parameters, rate, settings).item())
        losses.append(loss.item())
    return losses, norms


def adamw(parameters, settings):
    """torch's AdamW as language models use it: decay on matrices only, never on norms."""
    matrices = dict(params=[p for p in parameters if p.dim() > 1], weight_decay=settings["weight_decay"])
    vectors = dict(params=[p for p in parameters if p.dim() == 1], weight_decay=0.0)
    return torch.optim.AdamW([matrices, vectors], lr=0.0, betas=settings["betas"], eps=settings["eps"])


def update(optimizer, parameters, rate, settings):
    """Clips the gradients to grad_clip over all parameters together, then one step; returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings["grad_clip"])
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm


def _results(logits, targets, parameters):
    loss = mean_loss(logits, targets)
    grads = torch.autograd.grad(loss, list(parameters.values()))
    results = {"logits": logits.detach(), "loss": loss.detach()}
    return results | {f"grad.{name}": grad for name, grad in zip(parameters, grads)}
