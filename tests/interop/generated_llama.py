"""A llama of any size with Gaussian weights, as a GGUF file, with the tokenizer of another file."""

import gguf
import numpy as np


def write_llama(path, tokenizer_source, *, width, wide, layers, heads, context, dtype, tied=True, seed=1):
    """dtype: np.float16 or np.float32, of the matrices; norms are float32 ones."""
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
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == np.float16 else gguf.LlamaFileType.ALL_F32)
    random = np.random.default_rng(seed)

    def matrix(name, rows, length):
        values = random.standard_normal((rows, length), dtype=np.float32) / np.sqrt(length, dtype=np.float32)
        writer.add_tensor(name, values.astype(dtype))

    matrix("token_embd.weight", vocab, width)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        for name, rows, length in [
            ("attn_q", width, width), ("attn_k", width, width), ("attn_v", width, width), ("attn_output", width, width),
            ("ffn_gate", wide, width), ("ffn_up", wide, width), ("ffn_down", width, wide),
        ]:
            matrix(f"{prefix}{name}.weight", rows, length)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{prefix}{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    if not tied:
        matrix("output.weight", vocab, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
