"""Log-probabilities of chunks of tokens from llama.cpp, in a process of its own (llama.cpp aborts on some errors).

python llama_cpp_child.py MODEL.gguf TOKENS.npy OUT.npy: tokens int32 [chunks, ctx]; out float32 [chunks, ctx, vocabulary].
All float32: key-value cache in F32, flash attention off.
"""

import sys

import llama_cpp
import numpy as np


def main(model, tokens, out):
    chunks = np.load(tokens)
    ctx = chunks.shape[1]
    llama = llama_cpp.Llama(
        model, n_ctx=ctx, n_batch=ctx, n_ubatch=ctx, logits_all=True, flash_attn=False, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )
    rows = []
    for chunk in chunks:
        llama.reset()
        llama.eval(chunk.tolist())
        logits = np.array(llama.scores[:ctx], dtype=np.float64)
        logits -= logits.max(-1, keepdims=True)
        rows.append((logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32))
    np.save(out, np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
