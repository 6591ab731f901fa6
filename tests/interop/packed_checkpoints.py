"""GPTQ's and AWQ's checkpoints, packed in numpy by the layouts of AutoGPTQ and AutoAWQ.

Codes and zeros are uint8 [rows, columns] and [rows, groups], scales [rows, groups]: of the matrix as a Linear has it.
"""

import json
import re
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight rows lies at each place of a word
PLAIN = list(range(8))


def words(codes, order=PLAIN):
    """[..., n] codes as int32 [..., n / 8]."""
    eight = codes.reshape(*codes.shape[:-1], -1, 8)[..., order].astype(np.uint32)
    return np.bitwise_or.reduce(eight << (4 * np.arange(8, dtype=np.uint32)), axis=-1).view(np.int32)


def quantize(weight, group_size, symmetric):
    """Codes, zeros and float16 scales by rounding to nearest."""
    size = weight.shape[1] if group_size == -1 else group_size
    groups = weight.astype(np.float32).reshape(weight.shape[0], -1, size)
    if symmetric:
        scales = (np.abs(groups).max(-1) / 7).astype(np.float16)
        zeros = np.full(scales.shape, 8, np.uint8)
    else:
        scales = ((groups.max(-1) - groups.min(-1)) / 15).astype(np.float16)
        zeros = np.clip(np.round(-groups.min(-1) / scales), 1, 15).astype(np.uint8)
    codes = np.clip(np.round(groups / scales[..., None].astype(np.float32)) + zeros[..., None], 0, 15)
    return codes.reshape(weight.shape).astype(np.uint8), zeros, scales


def dequantize(codes, zeros, scales, g_idx):
    return (codes.astype(np.float32) - zeros[:, g_idx]) * scales[:, g_idx].astype(np.float32)


def gptq(codes, zeros, scales, g_idx, minus_one):
    return {
        "qweight": np.ascontiguousarray(words(codes).T),
        "qzeros": words(np.ascontiguousarray(zeros.T) - minus_one),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": g_idx.astype(np.int32),
    }


def awq(codes, zeros, scales):
    return {
        "qweight": words(np.ascontiguousarray(codes.T), AWQ_ORDER),
        "qzeros": words(np.ascontiguousarray(zeros.T), AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T),
    }


def shuffled_groups(columns, group_size, seed=0):
    """What desc_act makes of g_idx."""
    return np.random.default_rng(seed).permutation(np.arange(columns) // group_size)


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def mxfp4(rows):
    """[..., n] in groups of 32: bytes of two codes [..., n / 32, 16], the first in the low half, powers of two [..., n / 32],
    and what they stand for."""
    groups = rows.reshape(*rows.shape[:-1], -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(-1))).astype(np.int32) - 2
    sizes = np.ldexp(np.abs(groups), -exponents[..., None])
    codes = np.abs(sizes[..., None] - FP4).argmin(-1).astype(np.uint8)
    weights = np.copysign(np.ldexp(FP4[codes], exponents[..., None]), groups)
    codes |= (np.signbit(groups) * 8).astype(np.uint8)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    return blocks, (exponents + 127).astype(np.uint8), weights.reshape(rows.shape)


def write_gpt_oss(source, out):
    """source's experts, float32 as all else, as gpt-oss's makers published theirs, in out/packed; what they stand for in
    out/unpacked, as transformers saves it."""
    packed, unpacked = {}, {}
    for name, weights in load_file(source / "model.safetensors").items():
        packed[name] = unpacked[name] = weights
        if re.search(r"experts\.(gate_up|down)_proj$", name):
            del packed[name]
            packed[f"{name}_blocks"], packed[f"{name}_scales"], rounded = mxfp4(np.ascontiguousarray(weights.swapaxes(1, 2)))
            unpacked[name] = np.ascontiguousarray(rounded.swapaxes(1, 2))
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    write_folders(source, out, packed, unpacked, quantization)


def write_folders(source, out, packed, unpacked, quantization):
    config = json.loads((source / "config.json").read_text())
    for kind, tensors, added in [("packed", packed, {"quantization_config": quantization}), ("unpacked", unpacked, {})]:
        shutil.copytree(source, out / kind)
        save_file(tensors, out / kind / "model.safetensors", metadata={"format": "pt"})
        (out / kind / "config.json").write_text(json.dumps({**config, **added}))


def write_checkpoint(source, out, method, group_size=32, symmetric=True, version=1, act_order=False, asymmetric=()):
    """source's block matrices packed, in out/packed; what they stand for in out/unpacked, all float32. asymmetric: names of
    those that are whatever the others are."""
    packed, unpacked = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not re.search(r"_proj(_(qkv|z|qkvz|ba))?\.weight$", name):
            packed[name] = unpacked[name] = weight
            continue
        codes, zeros, scales = quantize(weight, group_size, symmetric and name not in asymmetric)
        size = weight.shape[1] // scales.shape[1]
        g_idx = shuffled_groups(weight.shape[1], size) if act_order else np.arange(weight.shape[1]) // size
        parts = awq(codes, zeros, scales) if method == "awq" else gptq(codes, zeros, scales, g_idx, 2 - version)
        packed |= {name.removesuffix("weight") + part: data for part, data in parts.items()}
        unpacked[name] = dequantize(codes, zeros, scales, g_idx)
    quantization = {"quant_method": method, "bits": 4, "group_size": group_size}
    if method == "awq":
        quantization |= {"version": "gemm", "zero_point": True}
    else:
        quantization |= {"desc_act": act_order, "sym": symmetric, "checkpoint_format": ["gptq", "gptq_v2"][version - 1]}
    write_folders(source, out, packed, unpacked, quantization)
