"""Models in transformers, in a process of its own: importing torch beside llama.cpp would mix their thread pools.

Reads commands, each a line with a JSON list of words, and answers each with a line: "done" or what went wrong, in JSON. It
stays for many of them, as importing takes nine seconds.

make FOLDER SEED DTYPE SHARD_SIZE: random weights for FOLDER's config.json, saved there.
log_probs FOLDER TOKENS.npy OUT.npy DTYPE: tokens int32 [chunks, ctx]; out DTYPE
[chunks, ctx, vocabulary], all of it, plain attention.
router_margins FOLDER TOKENS.npy OUT.npy: float32 [chunks, ctx], how far the last expert
that a router chooses is before the next, in logits; the least of all layers.
make_stacked FOLDER OUT DTYPE: a checkpoint of its experts as transformers has them in
memory.
unpack_mxfp4 FOLDER OUT.safetensors: its stacks in MXFP4 as transformers decodes them, float32.
gradients FOLDER TOKENS.npy OUT DTYPE: those of the mean cross-entropy, computed in DTYPE and saved in OUT as the weights
of a model in float32.
log_probs_half_gelu ...: the same with GELU looked up in float16, as ggml does on a CPU.
"""

import json
import os
import pathlib
import sys
import traceback

import numpy as np
import safetensors.torch
import torch
import transformers


def randomize(model, seed):
    """Biases and norms large enough, and logits spread enough (a standard deviation of about 4 at a width of 64), that
    nothing can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    # 62 layers of norms 1 + w with w near 1, whose scores spread by 6, make 1e-2 of a rounding: there w is near 0.
    norm = 0 if model.config.get_text_config().num_hidden_layers > 60 else 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 or name.endswith("_bias"):
                values = norm + 0.3 * values if "norm" in name else (2 if "sinks" in name else 0.5) * values
            elif "embed_tokens" in name or "lm_head" in name:
                values *= 0.5
            elif model.config.model_type == "gpt_oss" and ".experts." in name:
                # Columns for rows; gates that come to both sides of their limit.
                values *= (3 if "gate_up" in name else 1) * (2 / parameter.shape[-2]) ** 0.5
            else:
                values *= (2 / parameter.shape[-1]) ** 0.5
            parameter.copy_(values)


def auto_class(config):
    """A model of text and images is loaded whole."""
    return transformers.AutoModelForImageTextToText if hasattr(config, "vision_config") else transformers.AutoModelForCausalLM


def make(folder, seed, dtype, shard_size):
    folder = pathlib.Path(folder)
    given = (folder / "config.json").read_text()
    config = transformers.AutoConfig.from_pretrained(folder)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    randomize(model, int(seed))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    if "rope_parameters" not in json.loads(given):
        (folder / "config.json").write_text(given)  # as transformers 4 wrote it
    (folder / "generation_config.json").unlink(missing_ok=True)
    weights = folder / "model.safetensors"
    if "linear_num_key_heads" in given and weights.exists():
        add_mtp_layer(weights)


def add_mtp_layer(weights):
    """The layer that predicts further tokens, which transformers does not have: one that attends, and four tensors of
    its own."""
    tensors = safetensors.torch.load_file(weights)
    attends = next(name for name in tensors if name.endswith("self_attn.q_proj.weight")).split("self_attn")[0]
    norm = tensors["model.norm.weight"]
    like = {
        name.replace(attends, "mtp.layers.0."): tensor for name, tensor in tensors.items() if name.startswith(attends)
    }
    like["mtp.fc.weight"] = norm.new_empty(len(norm), 2 * len(norm))
    like |= {f"mtp.{name}.weight": norm for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    generator = torch.Generator().manual_seed(len(tensors))
    for name, tensor in like.items():
        tensors[name] = (0.2 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})


def half_gelu(x):
    """ggml's GELU on a CPU: a table from float16 to float16, within its range (source: ggml/src/ggml-cpu/vec.h)."""
    rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, rounded))


def log_probs_half_gelu(folder, tokens, out):
    log_probs(folder, tokens, out, activation=half_gelu)


def router_margins(folder, tokens, out):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.from_numpy(np.load(tokens)).long()
    with torch.no_grad():
        layers = model(tokens, output_router_logits=True).router_logits
    used = model.config.num_experts_per_tok
    best = [logits.topk(used + 1, dim=-1).values for logits in layers]
    margins = torch.stack([values[:, used - 1] - values[:, used] for values in best]).min(0).values
    np.save(out, margins.reshape(tokens.shape).numpy())


def make_stacked(folder, out, dtype):
    from safetensors.torch import save_file

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tied = model.config.tie_word_embeddings
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, pathlib.Path(out) / "model.safetensors", metadata={"format": "pt"})


def unpack_mxfp4(folder, out):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = safetensors.torch.load_file(pathlib.Path(folder) / "model.safetensors")
    names = [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]
    safetensors.torch.save_file({
        name: convert_moe_packed_tensors(tensors[f"{name}_blocks"], tensors[f"{name}_scales"], dtype=torch.float32).contiguous()
        for name in names}, out)


def load(folder, dtype):
    """For float64 too: of experts, the other implementations know none."""
    implementation = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if dtype == "float64" else {})
    return auto_class(transformers.AutoConfig.from_pretrained(folder)).from_pretrained(
        folder, dtype=getattr(torch, dtype), **implementation
    )


def log_probs(folder, tokens, out, dtype="float32", activation=None):
    model = load(folder, dtype)
    if activation:
        for layer in getattr(model.model, "language_model", model.model).layers:
            layer.mlp.act_fn.forward = activation
    with torch.no_grad():
        logits = model(torch.from_numpy(np.load(tokens)).long()).logits
    np.save(out, logits.log_softmax(-1).numpy())


def gradients(folder, tokens, out, dtype="float32"):
    model = load(folder, dtype)
    tokens = torch.from_numpy(np.load(tokens)).long()
    logits = model(tokens).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).backward()
    given = (pathlib.Path(out) / "config.json").read_text()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.float().save_pretrained(out)
    (pathlib.Path(out) / "config.json").write_text(given)


def main():
    torch.set_num_threads(1)
    commands = {f.__name__: f for f in (make, make_stacked, unpack_mxfp4, gradients, log_probs, log_probs_half_gelu, router_margins)}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            commands[command](*arguments)
            answer = "done"
        except Exception:
            answer = traceback.format_exc()[-2000:]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
