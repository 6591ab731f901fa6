"""nibble's training and torchao's QAT (int4 weights, groups of 32) of the same llama on the same text for the same steps,
both exported to Q4_0 and measured against the original. Prints a table, or with --json one object.

    python tests/bench/torchao_qat.py MODEL.gguf TRAIN.txt HELD_OUT.txt [--tokens N] [--rates 1e-3,3e-4,1e-4,3e-5] ...

Needs torchao in a folder of its own (pip install --no-deps --target FOLDER torchao; PYTHONPATH=FOLDER): beside transformers it
slows every import of that. Both distil the original by KL with AdamW, linear warm-up and a cosine.
torchao fake-quantizes the matrices that are Q4_0 in the file, with each of its two int4 grids (the symmetric one knows
embeddings too), and gets each rate: the best is what counts. Q4_0 is made of its weights and of what its grid made of them (which the search packs
without loss where it can be, as from the symmetric grid but for the scales' fp16), by llama-quantize's rules and by the search; the best of the four counts. Steps are timed
one by one, beside nothing else, and medians compared.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time

import gguf
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
NIBBLE = os.environ.get("NIBBLE", ROOT / "build" / "nibble")
WARMUP, FINAL_RATIO, BETAS = 0.05, 0.05, (0.9, 0.95)
CONFIG = """
name: torchao
model: {model}
output: {output}
quant: {{type: Q4_0}}
data: {{files: [{text}], sequence_length: {sequence}, held_out: 0.01}}
loss: {{kind: kl}}
optimizer: {{learning_rate: {rate}, relative: true, scale_learning_rate: 1e-3, beta2: {beta2}, warmup: {warmup}, final_ratio: {final}}}
batch_tokens: {batch}
micro_batch_tokens: {batch}
max_tokens: {tokens}
dtype: {dtype}
evaluate_every: 0
checkpoint_every: 0
"""


def nibble(*arguments):
    result = subprocess.run([NIBBLE, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"nibble {arguments[0]} failed: {result.stderr[-1000:]}")
    return result.stdout


def train_nibble(options, base, folder):
    """(the exported file, seconds of each step)"""
    config = folder / "nibble.yaml"
    config.write_text(CONFIG.format(
        model=base, output=folder / "run", text=options.train, sequence=options.sequence, rate=options.nibble_rate,
        beta2=BETAS[1], warmup=WARMUP, final=FINAL_RATIO, batch=options.batch, tokens=options.tokens, dtype=options.dtype))
    nibble("train", config)
    nibble("export", folder / "run", folder / "nibble.gguf")
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return folder / "nibble.gguf", [options.batch / row["tokens_per_second"] for row in rows if "tokens_per_second" in row]


def torchao_configs():
    import torch
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    return {
        "symmetric": QATConfig(weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32), step="prepare"),
        "Int4WeightOnlyConfig": QATConfig(Int4WeightOnlyConfig(group_size=32), step="prepare"),
    }


def load(base):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)


def q4_0_modules(model, types):
    names = {"token_embd": "model.embed_tokens"}
    names |= {f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for layer in range(model.config.num_hidden_layers)
             for ours, theirs in LAYER_NAMES.items()}
    return {theirs for ours, theirs in names.items() if types[f"{ours}.weight"] == "Q4_0"}


LAYER_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def sequences_of(options, base):
    """[N, sequence] ids, in a random order, as many as training takes."""
    ids = json.loads(nibble("tokenize", base, options.train, "--json"))["ids"]
    rows = np.array(ids[: len(ids) // options.sequence * options.sequence]).reshape(-1, options.sequence)
    wanted = options.tokens // options.sequence
    if len(rows) < wanted:
        sys.exit(f"{options.train}: has {len(rows)} sequences, {wanted} are wanted")
    return np.random.default_rng(1).permutation(rows)[:wanted]


def train_torchao(options, base, types, grid, rate, folder):
    """Writes the trained weights and the rounded ones as F32; seconds of each step."""
    import torch
    from torchao.quantization import quantize_

    torch.manual_seed(1)
    name = f"{grid} {rate}"
    teacher, student = load(base).eval(), load(base).train()
    names = q4_0_modules(student, types)
    known = torch.nn.Linear if grid == "Int4WeightOnlyConfig" else (torch.nn.Linear, torch.nn.Embedding)
    quantize_(student, torchao_configs()[grid], filter_fn=lambda module, path: path in names and isinstance(module, known))
    optimizer = torch.optim.AdamW(student.parameters(), lr=float(rate), betas=BETAS, weight_decay=0.0, fused=True)
    batches = sequences_of(options, base).reshape(-1, options.batch // options.sequence, options.sequence)
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    seconds = []
    for step, batch in enumerate(batches):
        begin = time.perf_counter()
        progress = (step + 1) / len(batches)
        share = max(0.0, (progress - WARMUP) / (1 - WARMUP))
        factor = min(progress / WARMUP, FINAL_RATIO + (1 - FINAL_RATIO) * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = float(rate) * factor
        tokens = torch.from_numpy(batch)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                wanted = teacher(tokens).logits.float().log_softmax(-1)
            given = student(tokens).logits.float().log_softmax(-1)
        loss = torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="sum") / tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    state = student.state_dict()
    write_weights(base, state, student.config, trained_file(folder, name, "weights"))
    write_weights(base, state | rounded_weights(student), student.config, trained_file(folder, name, "rounded"))
    return seconds


def trained_file(folder, name, kind):
    return folder / f"{name} {kind}.gguf"


def rounded_weights(model):
    import torch

    with torch.no_grad():
        return {f"{name}.weight": module.weight_fake_quantizer(module.weight) for name, module in model.named_modules()
                if getattr(module, "weight_fake_quantizer", None) is not None}


def write_weights(base, state, config, out):
    """A copy of the F32 file with these weights; rows of q and k in GGUF's order."""
    shutil.copy(base, out)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out, "r+").tensors}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        prefix, theirs = f"blk.{layer}.", f"model.layers.{layer}."
        names |= {prefix + "attn_norm": theirs + "input_layernorm", prefix + "ffn_norm": theirs + "post_attention_layernorm"}
        names |= {prefix + ours: theirs + each for ours, each in LAYER_NAMES.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, theirs in names.items():
        if f"{name}.weight" not in tensors:  # a tied output
            continue
        values = state[f"{theirs}.weight"].float().numpy()
        if count := heads.get(name.split(".")[-1]):
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        tensors[f"{name}.weight"].data[:] = values


def torchao_child(options, base, types, folder):
    """In a process of its own, so that nibble's and torch's threads do not meet; every rate of one grid."""
    folder.mkdir()
    request = folder / "request.json"
    request.write_text(json.dumps({**vars(options), "base": str(base), "types": types, "folder": str(folder)}))
    site = pathlib.Path(sysconfig.get_path("purelib"))
    stubs = site.parents[2] / "cuda-stubs"
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{stubs}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    subprocess.run([sys.executable, __file__, "--child", request], check=True, env=environment, stdout=sys.stderr)
    return json.loads((folder / "seconds.json").read_text())


def run_child(request):
    given = json.loads(pathlib.Path(request).read_text())
    options, folder = argparse.Namespace(**given), pathlib.Path(given["folder"])
    seconds = {}
    for grid in torchao_configs():
        for rate in options.rates.split(","):
            seconds[f"{grid} {rate}"] = train_torchao(options, pathlib.Path(given["base"]), given["types"], grid, rate, folder)
    (folder / "seconds.json").write_text(json.dumps(seconds))


def figures(options, base, files):
    output = nibble("compare", *files, "--base", base, "--text", options.held_out, "--ctx", options.sequence, "--chunks", options.chunks,
                    "--json")
    return [model["mean_kld"] for model in json.loads(output)["models"]]


def measure(options, folder):
    base = folder / "base-f32.gguf"
    nibble("quantize", options.model, base, "F32", "--allow-requantize")
    ours, our_seconds = train_nibble(options, base, folder)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(ours).tensors}
    theirs = torchao_child(options, base, types, folder / "torchao")
    result = {"nibble": {"mean_kld": figures(options, base, [ours])[0], "seconds": statistics.median(our_seconds)}}
    for method in ("ggml", "search"):
        nibble("quantize", base, folder / f"ptq {method}.gguf", "Q4_0", "--method", method)
        result[f"PTQ, {method}"] = {"mean_kld": figures(options, base, [folder / f"ptq {method}.gguf"])[0]}
    for name, seconds in theirs.items():
        ways = list(itertools.product(("weights", "rounded"), ("ggml", "search")))
        files = [folder / f"{name} {kind} {method}.gguf" for kind, method in ways]
        for (kind, method), file in zip(ways, files):
            nibble("quantize", trained_file(folder / "torchao", name, kind), file, "Q4_0", "--method", method)
        mean_kld, way = min(zip(figures(options, base, files), map(", ".join, ways)))
        result[f"torchao {name} ({way})"] = {"mean_kld": mean_kld, "seconds": statistics.median(seconds)}
    return result


def print_table(result):
    print("| | mean KLD, Q4_0 | ms per step |\n| --- | --- | --- |")
    for name, row in result.items():
        print(f"| {name} | {row['mean_kld']:.5f} | {1000 * row['seconds']:.0f} |" if "seconds" in row else
              f"| {name} | {row['mean_kld']:.5f} | |")


def main():
    if sys.argv[1:2] == ["--child"]:
        return run_child(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "held_out"):
        parser.add_argument(name)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--batch", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=64, help="of the held-out text, of --sequence tokens")
    parser.add_argument("--rates", default="1e-3,3e-4,1e-4,3e-5", help="torchao's learning rates")
    parser.add_argument("--nibble-rate", type=float, default=4e-3, help="relative to the distance between levels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.tokens % options.batch:
        parser.error(f"--tokens {options.tokens} is no multiple of --batch {options.batch}")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, pathlib.Path(folder))
    print(json.dumps(result)) if options.json else print_table(result)


if __name__ == "__main__":
    main()
