"""Files of base log-probabilities, as llama-perplexity --kl-divergence-base writes them."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class KlBase:
    ctx: int
    vocab: int
    tokens: np.ndarray  # int32 [chunks, ctx], the text's own
    step: np.ndarray  # float32 [chunks, rows]
    lowest: np.ndarray  # float32 [chunks, rows]
    codes: np.ndarray  # uint16 [chunks, rows, vocab]

    @property
    def first(self):
        """Position that the first row scores from."""
        return self.ctx // 2

    def log_probs(self):
        return self.lowest[..., None] + self.step[..., None] * self.codes.astype(np.float64)


def read_kl_base(path):
    data = np.fromfile(path, dtype=np.uint8)
    assert data[:8].tobytes() == b"_logits_"
    ctx, vocab, chunks = data[8:20].view(np.int32).tolist()
    rows = ctx - 1 - ctx // 2
    end = 20 + 4 * ctx * chunks
    tokens = data[20:end].view(np.int32).reshape(chunks, ctx)
    table = data[end:].view(np.uint16).reshape(chunks, rows, (vocab + 1) // 2 * 2 + 4)
    scales = np.ascontiguousarray(table[..., :4]).view(np.float32)
    return KlBase(ctx, vocab, tokens, scales[..., 0], scales[..., 1], table[..., 4:4 + vocab])
