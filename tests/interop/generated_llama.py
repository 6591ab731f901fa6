"""Generated models as GGUF files: a llama of any size with Gaussian weights, and files that only a plan is made of."""

import os

import gguf
import numpy as np


def _layer_shapes(width, kv_width, experts, fused):
    """{name: numpy shape} of a layer's matrices. With 4 experts there is a shared one besides."""
    attention = {"attn_q": (width, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width)}
    if fused:
        attention = {"attn_qkv": (width + 2 * kv_width, width)}
    ffn = {"ffn_gate": (width, width), "ffn_up": (width, width), "ffn_down": (width, width)}
    if fused:
        del ffn["ffn_gate"]
    shared = {f"{name}_shexp": shape for name, shape in ffn.items()} if experts == 4 else {}
    if experts:
        ffn = {f"{name}_exps": (experts, *shape) for name, shape in ffn.items()}
        ffn["ffn_gate_inp"] = (experts, width)
    return {**attention, "attn_output": (width, width), **ffn, **shared, "attn_norm": (width,), "ffn_norm": (width,)}


def _delta_net_shapes(architecture, width):
    """Of a layer in the place of attention, with 4 key and 8 value heads; of its vectors only one."""
    rates = {"ssm_ba": (16, width)} if architecture == "qwen3next" else {"ssm_alpha": (8, width), "ssm_beta": (8, width)}
    return {"attn_qkv": (2 * width, width), "attn_gate": (width, width), "ssm_conv1d": (2 * width, 4), **rates,
            "ssm_out": (width, width), "ssm_norm": (width // 8,), "attn_norm": (width,)}  # fmt: skip


def _add_delta_net_keys(writer, width):
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(width // 8)
    writer.add_ssm_group_count(4)
    writer.add_ssm_time_step_rank(8)
    writer.add_ssm_inner_size(width)
    writer.add_rope_dimension_sections([2, 1, 1, 0])


def write_skeleton(
    path, *, layers, gqa=1, experts=0, tied=False, width=256, architecture="llama", fused=False, backwards=False, mtp=0
):
    """A model of float16 zeros, which take no space on disk: 8 heads, gqa of them per K and V. fused: Q, K and V are
    one matrix; backwards: the last layer comes first; mtp: how many of the layers, the last ones, predict further tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(8)
    writer.add_head_count_kv(8 // gqa)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(32)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if mtp:
        writer.add_nextn_predict_layers(mtp)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    is_hybrid = architecture in ("qwen35", "qwen35moe", "qwen3next")
    is_gpt_oss = architecture == "gpt-oss"
    if is_gpt_oss:
        writer.add_sliding_window(128)
        writer.add_expert_feed_forward_length(width)
    if is_hybrid:
        _add_delta_net_keys(writer, width)
    shapes = {"token_embd": (32, width), "output_norm": (width,)}
    if not tied:
        shapes["output"] = (32, width)
    for layer in reversed(range(layers)) if backwards else range(layers):
        of_layer = _layer_shapes(width, width // gqa, experts, fused)
        if is_hybrid:
            attention = [name for name in of_layer if name.startswith("attn_")]
            of_layer["attn_q"] = (2 * width, width)
            if layer >= layers - mtp:
                of_layer |= {"nextn.eh_proj": (width, 2 * width), "nextn.enorm": (width,)}
            elif layer % 4 < 3:
                of_layer = {name: shape for name, shape in of_layer.items() if name not in attention}
                of_layer.update(_delta_net_shapes(architecture, width))
            if experts:
                of_layer["ffn_gate_inp_shexp"] = (width,)
        if is_gpt_oss:
            of_layer["post_attention_norm"] = of_layer.pop("ffn_norm")
            of_layer["attn_sinks"] = (8,)
            of_layer["ffn_gate_inp.bias"] = (experts,)
            of_layer |= {f"ffn_{name}_exps.bias": (experts, width) for name in ("gate", "up", "down")}
        for name, shape in of_layer.items():
            shapes[f"blk.{layer}.{name}"] = shape
    data_bytes = 0
    for name, shape in shapes.items():
        num_bytes = 2 * int(np.prod(shape))
        full_name = name if name.endswith(".bias") else f"{name}.weight"
        writer.add_tensor_info(full_name, shape, np.dtype(np.float16), num_bytes)
        data_bytes += -(-num_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-os.path.getsize(path) // 32) * 32 + data_bytes)


def write_llama(
    path, tokenizer_source, *, width, wide, layers, heads, context, dtype, tied=True, gqa=1, seed=1, experts=0
):
    """dtype: np.float16 or np.float32, of the matrices; norms and routers are float32. gqa: heads per K and V. Of the
    experts two are used, and the first and the last never: of each two others one has a positive logit."""
    source = gguf.GGUFReader(tokenizer_source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in source.fields.values():
        if field.name.startswith("tokenizer."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    vocab = len(source.fields["tokenizer.ggml.tokens"].contents())
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_context_length(context)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // gqa)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == np.float16 else gguf.LlamaFileType.ALL_F32)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    random = np.random.default_rng(seed)

    def gaussian(*shape):
        return random.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[-1], dtype=np.float32)

    def matrix(name, *shape):
        writer.add_tensor(name, gaussian(*shape).astype(dtype))

    matrix("token_embd.weight", vocab, width)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        for name, rows, length in [
            ("attn_q", width, width), ("attn_k", width // gqa, width), ("attn_v", width // gqa, width),
            ("attn_output", width, width),
            ("ffn_gate", wide, width), ("ffn_up", wide, width), ("ffn_down", width, wide),
        ]:
            if experts and name.startswith("ffn"):
                matrix(f"{prefix}{name}_exps.weight", experts, rows, length)
            else:
                matrix(f"{prefix}{name}.weight", rows, length)
        if experts:
            half = gaussian(experts // 2 - 1, width)
            never = np.zeros((1, width), np.float32)
            writer.add_tensor(f"{prefix}ffn_gate_inp.weight", np.concatenate([never, half, -half, never]))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{prefix}{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    if not tied:
        matrix("output.weight", vocab, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
